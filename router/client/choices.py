"""
What a client does so that nobody can steer which node it gets: commitments that it holds, and what must follow.

The router commits to a secret before it sees the client's nonce (`router.choose.choice`).  A commitment comes with each
answer, and the next request uses it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from router.choose import choice as choices
from router.choose.decision import Decision, replay
from router.client.errors import Step, UnverifiedError
from router.model.errors import ChoiceError, ReplayError
from router.receipts.payload import Receipt
from verifier.result_keys import b64url

MAX_HELD: Final = 64
_LIFE_S: Final = 240.0
"""A commitment can be used for 300 s after it was given out."""
_NONCE: Final = 32
_FORM: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\.[0-9a-f]{64}\Z")
_FAILED: Final = range(400, 600)


class _Error(Struct, frozen=True):
    code: str | None = None


class _Refusal(Struct, frozen=True):
    error: _Error


@dataclass(frozen=True)
class Stake:
    """A commitment of the router with a nonce for it: what the client has in a decision."""

    commitment: str
    """``ID.HEX``, as the router gave it."""
    nonce: str
    """Base64url."""

    @property
    def header(self) -> str:
        """``ID.NONCE``, as it is sent."""
        return f"{self.commitment.partition('.')[0]}.{self.nonce}"


class HeldCommitments:
    """Commitments that were given out to this client, the newest used first."""

    def __init__(self) -> None:
        self._held: deque[tuple[str, float]] = deque(maxlen=MAX_HELD)

    def put(self, commitment: str | None, now: float) -> None:
        """Take one; what has not its form is passed over."""
        if commitment is not None and _FORM.match(commitment):
            self._held.append((commitment, now + _LIFE_S))

    def stake(self, now: float) -> Stake | None:
        """One of them with a fresh nonce; `None` if there is none.  It is not given twice."""
        while self._held:
            commitment, until = self._held.pop()
            if now < until:
                return Stake(commitment, b64url(secrets.token_bytes(_NONCE)))
        return None

    def clear(self) -> None:
        """Forget them."""
        self._held.clear()


def is_void(body: bytes) -> bool:
    """Whether a refusal says that a commitment cannot be used: it has expired, or the router was started again."""
    try:
        code = msgspec.json.decode(body, type=_Refusal).error.code
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return code is not None and code.startswith("choice.")


def check_choice(receipt: Receipt, stake: Stake) -> str:
    """
    Step 8: the receipt names the stake, and reveals what the router had committed to.

    Raises:
        UnverifiedError: it does not.
    """
    told = receipt.choice
    if told is UNSET:
        if receipt.node is UNSET or receipt.response.status in _FAILED:
            return "nobody was chosen"
        raise UnverifiedError(Step.CHOICE, "the router passed over the caller's nonce")
    if told.commitment != stake.commitment:
        raise UnverifiedError(Step.CHOICE, "the receipt names another commitment than the one that was used")
    if told.nonce_sha256 != hashlib.sha256(choices.decode_nonce(stake.nonce)).hexdigest():
        raise UnverifiedError(Step.CHOICE, "the receipt is about another nonce than the one that was sent")
    try:
        reveal = bytes.fromhex("" if told.reveal is UNSET else told.reveal)
    except ValueError:
        reveal = b""
    if choices.commit(reveal) != stake.commitment.partition(".")[2]:
        raise UnverifiedError(Step.CHOICE, "what the router reveals is not what it had committed to")
    return "the seed follows from the router's commitment and the caller's nonce"


def check_decision(record: Any, receipt: Receipt, stake: Stake) -> str:
    """
    The same, and the whole decision comes out again from its record, with the node that answered among its ranked.

    Args:
        record: What the router gives for the decision.

    Raises:
        UnverifiedError: it does not.
    """
    try:
        again = replay(Decision.from_wire(record))
        if again.choice is not None:
            again.choice.check_held(stake.commitment, stake.header)
    except (ReplayError, ChoiceError) as error:
        raise UnverifiedError(Step.CHOICE, f"the decision does not come out again: {error}") from None
    if again.choice is None:
        raise UnverifiedError(Step.CHOICE, "the record of the decision has no choice")
    node = None if receipt.node is UNSET else receipt.node.id
    if node is not None and node not in {ranked.node for ranked in again.ranked}:
        raise UnverifiedError(Step.CHOICE, "a node has answered that was not chosen")
    return f"the decision comes out again by seed {again.seed}"
