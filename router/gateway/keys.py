"""
API keys: who may use the gateway, how much at a time, and how much a day.

Limits of a minute are buckets that fill with the monotonic clock, to a sixth of a minute's worth
at most.  How many tokens an answer has is known only when it is over, so that bucket may go into
debt: while it is in debt, nothing is admitted.  Likewise a budget is exceeded by no more than the
answers that were under way when it ran out.

A budget is for a day of UTC, counted in whole tokens.  The day only moves forward, and by at most
one for each twelve hours that the monotonic clock has passed since it last moved: a wall clock
that goes back gives nobody a new budget, and one that jumps ahead for a moment gives one, and is
waited for a day, not until that day comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from router.model.errors import RouterError

_DAY_MS: Final = 86_400_000
_STEP_S: Final = 43_200.0
_MAX_HEADER: Final = 512
_MAX_WAIT_S: Final = 86_400

_Limit = Annotated[int, Meta(ge=0, le=10**12)]


class LimitError(RouterError):
    """A key is over one of its limits; `retry_after` is in seconds, at least one."""

    def __init__(self, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.code = code
        # A whole second more, rather than one that comes too early by a rounding.
        self.retry_after = min(_MAX_WAIT_S, max(0, int(retry_after)) + 1)


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of ``[[keys]]``; a limit of 0 is none."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the key, hex."""
    role: Literal["client", "reviewer"] = "client"
    workloads: tuple[str, ...] = ()
    """The workloads it may use; any, where empty."""
    operator: str | None = None
    """Whoever holds it belongs to this operator of nodes, whose nodes earn nothing by its work."""
    requests_per_minute: _Limit = 0
    concurrency: _Limit = 0
    """Requests under way at a time."""
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0
    """The budget of a day of UTC."""


ANONYMOUS: Final = Key(name="anonymous", sha256="")
"""Whoever asks, where no keys are configured; it has no limits, and no key has its digest."""


class _Bucket:
    """A level that fills with time to its burst, and that may be below nothing."""

    __slots__ = ("_at", "_burst", "level", "rate")

    def __init__(self, per_minute: int, now: float) -> None:
        self.rate = per_minute / 60
        self._burst = max(1.0, per_minute / 6)
        self.level = self._burst
        self._at = now

    def fill(self, now: float) -> float:
        """The level *now*."""
        self.level = min(self._burst, self.level + max(0.0, now - self._at) * self.rate)
        self._at = now
        return self.level


class _KeyUsage:
    """What one key has under way and has used."""

    __slots__ = ("day", "others", "places", "requests", "spent", "tokens")

    def __init__(self, key: Key, now: float) -> None:
        self.places = 0
        self.requests = _Bucket(key.requests_per_minute, now) if key.requests_per_minute else None
        self.tokens = _Bucket(key.tokens_per_minute, now) if key.tokens_per_minute else None
        self.day = 0
        self.spent = 0
        self.others = (0, 0)

    def turn(self, today: int) -> None:
        """Begin a new day, if it is one."""
        if today > self.day:
            self.day, self.spent = today, 0

    def used(self) -> int:
        """Tokens of the account's day, here and on other routers, one of which may be a day ahead."""
        day, tokens = self.others
        return self.spent + (tokens if 0 <= day - self.day <= 1 else 0)


class Keyring:
    """
    The keys that may be used, and what is left of the limits of each.

    Args:
        wall_ms: The time in milliseconds since 1970.
        monotonic: A monotonic clock in seconds.

    Raises:
        ValueError: two keys have one name, or are one.
    """

    def __init__(
        self, keys: Sequence[Key], *, wall_ms: Callable[[], int], monotonic: Callable[[], float]
    ) -> None:
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        now = monotonic()
        self._keys = {bytes.fromhex(key.sha256): key for key in keys}
        self._accounts = {key.name: _KeyUsage(key, now) for key in keys or (ANONYMOUS,)}
        if len(self._accounts) < len(keys):
            raise ValueError("two keys have one name")
        if len(self._keys) < len(keys):
            raise ValueError("two entries are for one key")
        self._day = wall_ms() // _DAY_MS
        # The first midnight may come at once.
        self._moved = now - _STEP_S

    @property
    def open(self) -> bool:
        """Whether anyone may use the gateway: no keys are configured."""
        return not self._keys

    def find(self, authorization: str | None) -> Key | None:
        """
        The key of an ``Authorization`` header, which is ``Bearer``, one space and the key.

        It is looked up by its digest, and not compared in constant time: what timing could tell
        is how much of a hash of a guess is right, and nobody comes nearer to a key, or to a
        second guess, by that.
        """
        if not self._keys:
            return ANONYMOUS
        if authorization is None or len(authorization) > _MAX_HEADER:
            return None
        scheme, _, presented = authorization.partition(" ")
        if scheme != "Bearer" or not presented:
            return None
        try:
            # Headers come decoded so; this gives back the bytes that were sent.
            data = presented.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return None
        return self._keys.get(hashlib.sha256(data).digest())

    def enter(self, key: Key) -> None:
        """
        Admit a request of *key*, one that `find` gave: it has a place until it leaves.

        Raises:
            LimitError: over a limit, the one that is waited for longest first; nothing is
                taken from any.
        """
        account = self._accounts[key.name]
        now = self._monotonic()
        if key.tokens_per_day:
            account.turn(self._today(now))
            if account.used() >= key.tokens_per_day:
                wait = (account.day + 1) * (_DAY_MS // 1000) - self._wall_ms() // 1000
                raise LimitError("budget_exhausted", "the key's tokens of this day are used up", wait)
        tokens, requests = account.tokens, account.requests
        if tokens is not None and (level := tokens.fill(now)) <= 0:
            raise LimitError("rate_limit_exceeded", "too many tokens a minute", -level / tokens.rate)
        if requests is not None and (level := requests.fill(now)) < 1:
            raise LimitError("rate_limit_exceeded", "too many requests a minute", (1 - level) / requests.rate)
        if key.concurrency and account.places >= key.concurrency:
            raise LimitError("concurrency", f"{account.places} requests of the key are under way", 0)
        if requests is not None:
            requests.level -= 1
        account.places += 1

    def leave(self, key: Key, tokens: int) -> None:
        """A request that had entered here is over: free its place, and book its tokens, 0 if it failed."""
        account = self._accounts[key.name]
        account.places = max(0, account.places - 1)
        if tokens <= 0:
            return
        now = self._monotonic()
        account.turn(self._today(now))
        account.spent += tokens
        if account.tokens is not None:
            account.tokens.fill(now)
            account.tokens.level -= tokens

    def spent(self) -> dict[str, tuple[int, int]]:
        """What each key has spent through this router: the day, counted from 1970, and its tokens."""
        return {name: (a.day, a.spent) for name, a in self._accounts.items() if a.spent}

    def restore(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """
        Take up what `spent` said before a restart; to be called before the first request.

        A day that is still to come counts as tomorrow at the latest, for no key is to wait years
        for the day that a wrong clock once wrote.
        """
        today = self._today(self._monotonic())
        for name, (day, tokens) in spent.items():
            if (account := self._accounts.get(name)) is not None:
                account.day, account.spent = min(day, today + 1), max(0, tokens)

    def others(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """Set, for every key, what other routers have spent of its budget; nothing, where not named."""
        for name, account in self._accounts.items():
            day, tokens = spent.get(name, (0, 0))
            account.others = (day, max(0, tokens))

    def _today(self, now: float) -> int:
        ahead = self._wall_ms() // _DAY_MS - self._day
        if ahead > 0 and (steps := int((now - self._moved) / _STEP_S)) > 0:
            self._day += min(ahead, steps)
            self._moved = now
        return self._day
