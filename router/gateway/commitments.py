"""
What the router commits to before it sees a caller's nonce (`router.choose.choice`).

A commitment is an id and a SHA-256.  The secret behind it follows from the id and from a secret of this process, so
that nothing is kept of those that nobody uses; of those that were used it is remembered until they expire.  An id
names the caller and the process that it is for, and neither can be changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from functools import lru_cache
from typing import Final

from router.choose.choice import REVEAL_BYTES, Choice, commit, decode_nonce, derive_seed, split_header
from router.model.clock import Clock
from router.model.errors import ChoiceError
from router.model.shares import Shares
from router.state.random_bytes import random_bytes

COMMITMENT_HEADER: Final = "X-Touchstone-Commitment"
"""Of answers: ``ID.HEX``."""
NONCE_HEADER: Final = "X-Touchstone-Nonce"
"""Of requests: ``ID.NONCE``."""
LIFE_S: Final = 300
"""For so long a commitment can be used."""
_REMEMBERED_S: Final = LIFE_S + 1
"""What was used is remembered until it has expired, and not only as long: both are sums of fractions."""
MAX_SPENT: Final = 200_000
"""Used commitments that are remembered, of all callers together."""
_TIME, _PROCESS, _CALLER, _RANDOM, _TAG = 6, 4, 8, 8, 8
_PREFIX: Final = _TIME + _PROCESS + _CALLER + _RANDOM
_SIZE: Final = _PREFIX + _TAG
_DIGEST: Final = 16
_MAX_KEYS: Final = 10_000


class Commitments:
    """
    Gives out commitments, and takes each of them once.

    Args:
        secret: 32 random bytes of this process; tests give their own.
        max_spent: How many used ones are remembered.
    """

    def __init__(self, clock: Clock, secret: bytes | None = None, max_spent: int = MAX_SPENT) -> None:
        self._clock = clock
        self._secret = random_bytes(32) if secret is None else secret
        self._process = hashlib.sha256(b"process" + self._secret).digest()[:_PROCESS]
        self._spent = Spent(max_spent)
        self._key_of = lru_cache(maxsize=_MAX_KEYS)(self._derive_key)

    def issue(self, caller: str) -> str:
        """A new commitment for a caller: ``ID.HEX``."""
        # By the clock that nobody sets, which begins anew with the process, as the secret does.
        at = int(self._clock.monotonic() * 1000).to_bytes(_TIME, "big")
        name, key = self._key_of(caller)
        prefix = at + self._process + name + random_bytes(_RANDOM)
        reveal, tag = _derive(prefix, key)
        data = base64.urlsafe_b64encode(prefix + tag).rstrip(b"=")
        return f"{data.decode()}.{commit(reveal)}"

    def take(self, header: str, caller: str) -> tuple[Choice, int]:
        """
        Use a commitment with a caller's nonce; returns the choice and the seed that follows.

        Raises:
            ChoiceError: the header is malformed; the commitment is another router's or another caller's, is forged, has
                expired or was used; or the caller has sent the nonce before.
        """
        commitment_id, text = split_header(header)
        data = _decode(commitment_id)
        prefix, tag = data[:_PREFIX], data[_PREFIX:]
        if prefix[_TIME : _TIME + _PROCESS] != self._process:
            raise ChoiceError(
                "the commitment was given out by another router, or by this one before it was started again",
                code="choice.commitment.other-router",
            )
        name, key = self._key_of(caller)
        if not hmac.compare_digest(prefix[_TIME + _PROCESS : -_RANDOM], name):
            raise ChoiceError(
                "the commitment was given out to another caller", code="choice.commitment.other-caller"
            )
        reveal, expected = _derive(prefix, key)
        if not hmac.compare_digest(tag, expected):
            raise ChoiceError("this router did not give out the commitment", code="choice.commitment.forged")
        now, issued = self._clock.monotonic(), int.from_bytes(prefix[:_TIME], "big") / 1000
        nonce = decode_nonce(text)
        self._spent.spend(caller, prefix, hashlib.sha256(nonce).digest()[:_DIGEST], issued=issued, now=now)
        found = Choice(commitment_id, commit(reveal), reveal.hex(), text)
        return found, derive_seed(reveal, nonce)

    def expires_ms(self) -> int:
        """When a commitment of this moment expires, Unix milliseconds."""
        return self._clock.now_ms() + LIFE_S * 1000

    def _derive_key(self, caller: str) -> tuple[bytes, bytes]:
        """What stands for a caller in ids, and the secret from which those of its commitments follow."""
        made = hashlib.blake2b(caller.encode(), key=self._secret).digest()
        return made[:_CALLER], made[_CALLER:]


class Spent:
    """
    The commitments and nonces that were used, each until it expires.

    Where there is no more room, the caller that has most loses its oldest, and with it the use of whatever was given
    out to it before that one: what is not remembered any more cannot be used again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._of: dict[str, OrderedDict[bytes, tuple[float, bytes, float]]] = {}
        """By caller, the oldest first: each commitment, until when it is remembered, its nonce, and when it was issued."""
        self._nonces: dict[str, set[bytes]] = {}
        self._floors: dict[str, float] = {}
        """By caller: what was issued by then cannot be used any more."""
        self._shares = Shares()

    def __len__(self) -> int:
        return self._count

    def spend(self, caller: str, commitment: bytes, nonce: bytes, *, issued: float, now: float) -> None:
        """
        Note that a commitment and a nonce are used.

        Raises:
            ChoiceError: one of them was used before, or the commitment has expired.
        """
        if now - issued >= LIFE_S or issued <= self._floors.get(caller, -1.0):
            raise ChoiceError("the commitment has expired", code="choice.commitment.expired")
        self._forget(caller, now)
        if commitment in self._of.get(caller, ()):
            raise ChoiceError("the commitment was used already", code="choice.commitment.used")
        if nonce in self._nonces.get(caller, ()):
            raise ChoiceError("the nonce was sent already; each needs its own", code="choice.nonce.repeated")
        self._of.setdefault(caller, OrderedDict())[commitment] = now + _REMEMBERED_S, nonce, issued
        self._nonces.setdefault(caller, set()).add(nonce)
        self._shares.add(caller)
        self._count += 1
        if self._count > self._limit:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        for caller in list(self._of):
            self._forget(caller, now)
        self._floors = {caller: floor for caller, floor in self._floors.items() if now - floor <= LIFE_S}
        while self._count > self._limit:
            largest = self._shares.largest()
            _, _, issued = next(iter(self._of[largest].values()))
            self._floors[largest] = max(self._floors.get(largest, issued), issued)
            self._pop(largest)

    def _forget(self, caller: str, now: float) -> None:
        """Forget what is remembered of a caller until *now*."""
        while (spent := self._of.get(caller)) and next(iter(spent.values()))[0] <= now:
            self._pop(caller)

    def _pop(self, caller: str) -> None:
        """Forget a caller's oldest."""
        spent = self._of[caller]
        _, (_, nonce, _) = spent.popitem(last=False)
        self._nonces[caller].discard(nonce)
        if not spent:
            del self._of[caller], self._nonces[caller]
        self._shares.remove(caller)
        self._count -= 1


def _derive(prefix: bytes, key: bytes) -> tuple[bytes, bytes]:
    """The secret behind an id, and the part of the id that shows that it was given out (BLAKE2b with a key, RFC 7693)."""
    made = hashlib.blake2b(prefix, key=key).digest()
    return made[:REVEAL_BYTES], made[REVEAL_BYTES : REVEAL_BYTES + _TAG]


def _decode(commitment_id: str) -> bytes:
    padded = commitment_id + "=" * (-len(commitment_id) % 4)
    try:
        data = base64.urlsafe_b64decode(padded)
    except ValueError:
        data = b""
    if len(data) != _SIZE or base64.urlsafe_b64encode(data).rstrip(b"=").decode() != commitment_id:
        raise ChoiceError("the id is not that of a commitment", code="choice.malformed")
    return data
