"""
API keys: whose a request is, and how much its key may at a time, a minute and a day.

Keys of the configuration are there from the start.  Those of the store come and go while the router runs.

Limits of a minute are buckets that fill with the monotonic clock, to a sixth of a minute's worth
at most.  How many tokens an answer has is known only at its end, so the bucket of tokens may go
into debt; while it is in debt, nothing is admitted.  In the same way a budget is exceeded by no
more than the answers that were in flight when it ran out.

A budget is for one day of UTC, counted in whole tokens.  The day only moves forward, and by at
most one for each twelve hours of the monotonic clock since it last moved.  So a wall clock that
goes back gives no new budget.  A wall clock that jumps ahead for a moment gives one new budget,
and delays the next by a day, not until the wrong date.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from router.config import ANYONE, ApiKey
from router.model.errors import RouterError

_DAY_MS: Final = 86_400_000
_STEP_S: Final = 43_200.0
_MAX_HEADER: Final = 512
_MAX_WAIT_S: Final = 86_400
_MAX_GUESTS: Final = 10_000
"""Holders of tokens whose limits are remembered."""


class LimitError(RouterError):
    """A key is over one of its limits; `retry_after` is in seconds, at least one."""

    def __init__(self, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.code = code
        # One second more than needed: rounding must not make the client come too early.
        self.retry_after = min(_MAX_WAIT_S, max(0, int(retry_after)) + 1)


ANONYMOUS: Final = ApiKey(name=ANYONE, sha256="")
"""The key of every caller without one, if the gateway is open.  It has no limits, and no key has its digest."""


class _Bucket:
    """A level that rises with time up to its burst, and that may be negative."""

    __slots__ = ("_at", "burst", "level", "rate")

    def __init__(self, per_minute: int, now: float) -> None:
        self.rate = per_minute / 60
        self.burst = max(1.0, per_minute / 6)
        self.level = self.burst
        self._at = now

    def fill(self, now: float) -> float:
        """The level *now*."""
        self.level = min(self.burst, self.level + max(0.0, now - self._at) * self.rate)
        self._at = now
        return self.level


class _KeyUsage:
    """What one key has in flight, and what it has used."""

    __slots__ = ("day", "others", "places", "requests", "spent", "tokens", "unwritten")

    def __init__(self, key: ApiKey, now: float) -> None:
        self.places = 0
        self.requests = _Bucket(key.requests_per_minute, now) if key.requests_per_minute else None
        self.tokens = _Bucket(key.tokens_per_minute, now) if key.tokens_per_minute else None
        self.day = 0
        self.spent = 0
        self.others = (0, 0)
        self.unwritten = 0

    def begin_day(self, today: int) -> None:
        """Begin a new day, if *today* is one."""
        if today > self.day:
            self.day, self.spent = today, 0

    def used(self) -> int:
        """Tokens of this day, here and on other routers, of which one may be a day ahead."""
        day, tokens = self.others
        return self.spent + self.unwritten + (tokens if 0 <= day - self.day <= 1 else 0)


class Keyring:
    """
    The keys that may be used, and what is left of their limits.

    Args:
        configured: The keys of the configuration.
        is_open: Whether callers without a key may send work.
        wall_ms: The time in milliseconds since 1970.
        monotonic: A monotonic clock in seconds.

    Raises:
        ValueError: two keys have the same name or the same digest.
    """

    def __init__(
        self,
        configured: Sequence[ApiKey],
        *,
        is_open: bool = False,
        wall_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self.is_open = is_open
        self._configured = {bytes.fromhex(key.sha256): key for key in configured}
        self._keys = dict(self._configured)
        self._by_name = {key.name: key for key in configured}
        if len({key.name for key in configured}) < len(configured):
            raise ValueError("two keys have the same name")
        if len(self._configured) < len(configured):
            raise ValueError("two keys have the same digest")
        self._accounts: dict[str, _KeyUsage] = {}
        self._guests: dict[str, ApiKey] = {}
        self._unclaimed: dict[str, tuple[int, int]] = {}
        """What was restored for names that have no account yet."""
        self._add_accounts()
        self._day = wall_ms() // _DAY_MS
        # The first midnight may come soon after the start.
        self._moved = monotonic() - _STEP_S

    def __len__(self) -> int:
        return len(self._keys)

    def set_stored(self, active: Sequence[ApiKey], revoked: Collection[str]) -> None:
        """
        Set which keys the store has.

        Args:
            active: Those that may be used.  Where one has the name or the digest of a configured key, that one counts.
            revoked: The digests of keys that are revoked, configured ones included.
        """
        names = {key.name for key in self._configured.values()}
        keys = {bytes.fromhex(key.sha256): key for key in active if key.name not in names}
        keys.update(self._configured)
        for digest in revoked:
            keys.pop(bytes.fromhex(digest), None)
        self._keys = keys
        self._by_name = {key.name: key for key in keys.values()}
        self._add_accounts()

    def _add_accounts(self) -> None:
        # The account of a key that is gone is kept: its requests may be under way, and its name is not given again.
        now = self._monotonic()
        for key in (*self._keys.values(), ANONYMOUS):
            if key.name not in self._accounts:
                self._open_account(key, now)

    def _open_account(self, key: ApiKey, now: float) -> None:
        account = self._accounts[key.name] = _KeyUsage(key, now)
        account.day, account.spent = self._unclaimed.pop(key.name, (0, 0))

    def welcome(self, key: ApiKey) -> ApiKey:
        """
        Open an account for a caller without a key of its own: somebody with a token of the issuer.

        Of too many, one that has nothing in flight is forgotten, and its limits begin anew.
        """
        known = self._guests.pop(key.name, None)
        if known is None and key.name not in self._accounts:
            if len(self._guests) >= _MAX_GUESTS:
                self._forget_guest()
            self._open_account(key, self._monotonic())
        # The last one is who came last.
        self._guests[key.name] = key
        return key

    def _forget_guest(self) -> None:
        for name in self._guests:
            if not self._accounts[name].places:
                del self._guests[name], self._accounts[name]
                return

    def find(self, authorization: str | None) -> ApiKey | None:
        """
        The key of an ``Authorization`` header, which is ``Bearer``, spaces and the key.

        The scheme is written in any case (RFC 9110 §11.1, §11.4).  At an open gateway who shows no key that is known is
        anonymous: OpenAI's clients always send some key.

        The key is looked up by its digest, and not compared in constant time.  Timing could tell how
        much of the hash of a guess is right, and that brings nobody nearer to a key.
        """
        nobody = ANONYMOUS if self.is_open else None
        if authorization is None or len(authorization) > _MAX_HEADER:
            return nobody
        scheme, _, presented = authorization.partition(" ")
        presented = presented.lstrip(" ")
        if scheme.lower() != "bearer" or not presented:
            return nobody
        try:
            # This gives back the bytes that were sent: aiohttp decodes headers in this way.
            data = presented.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return nobody
        return self._keys.get(hashlib.sha256(data).digest(), nobody)

    def named(self, name: str) -> ApiKey | None:
        """The key of a name, if it may be used."""
        found = self._by_name.get(name)
        return found or self._guests.get(name)

    def is_guest(self, key: ApiKey) -> bool:
        """Whether a key is a person's who has none of its own."""
        return key.name in self._guests

    def enter(self, key: ApiKey, *, spares: bool = False) -> None:
        """
        Admit a request of *key*, which `find` gave.  It has a place until `leave`.

        Args:
            spares: Whether it leaves half of what the key may do at a time to other requests of the key.

        Raises:
            LimitError: the key is over a limit; nothing is taken from any limit.
        """
        account = self._accounts[key.name]
        now = self._monotonic()
        if key.tokens_per_day:
            account.begin_day(self._today(now))
            if account.used() >= key.tokens_per_day:
                wait = (account.day + 1) * (_DAY_MS // 1000) - self._wall_ms() // 1000
                raise LimitError("budget_exhausted", "the key's tokens of this day are used up", wait)
        tokens, requests = account.tokens, account.requests
        if tokens is not None and (level := tokens.fill(now)) <= 0:
            raise LimitError("rate_limit_exceeded", "too many tokens a minute", -level / tokens.rate)
        least = 1.0 if requests is None or not spares else max(1.0, requests.burst / 2)
        if requests is not None and (level := requests.fill(now)) < least:
            raise LimitError(
                "rate_limit_exceeded", "too many requests a minute", (least - level) / requests.rate
            )
        concurrency = (key.concurrency + 1) // 2 if spares else key.concurrency
        if concurrency and account.places >= concurrency:
            raise LimitError("concurrency", f"{account.places} requests of the key are in flight", 0)
        if requests is not None:
            requests.level -= 1
        account.places += 1

    def leave(self, key: ApiKey, tokens: int) -> None:
        """Free the place of a request, and count its tokens, 0 if it failed."""
        account = self._accounts[key.name]
        account.places = max(0, account.places - 1)
        if tokens <= 0:
            return
        now = self._monotonic()
        account.begin_day(self._today(now))
        account.spent += tokens
        if account.tokens is not None:
            account.tokens.fill(now)
            account.tokens.level -= tokens

    def begin_charge(self, key: ApiKey, tokens: int) -> None:
        """Count tokens that are about to be charged in the store: what a line of a job has used."""
        account = self._accounts.get(key.name)
        if account is None:
            return
        account.unwritten += tokens
        if account.tokens is not None:
            account.tokens.fill(self._monotonic())
            account.tokens.level -= tokens

    def end_charge(self, key: ApiKey, day: int, tokens: int, *, is_charged: bool) -> None:
        """Note that they were charged in the store, or will not be."""
        account = self._accounts.get(key.name)
        if account is None:
            # A person's, which was forgotten among many.
            return
        account.unwritten = max(0, account.unwritten - tokens)
        if is_charged:
            known_day, known = account.others
            account.others = (day, tokens) if day > known_day else (known_day, known + tokens)

    def today(self) -> int:
        """The day on which tokens are counted now, from 1970."""
        return self._today(self._monotonic())

    def keys(self) -> list[ApiKey]:
        """The keys that may be used, by name."""
        return sorted((*self._keys.values(), *self._guests.values()), key=lambda key: key.name)

    def used(self, key: ApiKey) -> tuple[int, int]:
        """What *key* has in flight, and the tokens that it has used on this day through all routers."""
        account = self._accounts[key.name]
        account.begin_day(self._today(self._monotonic()))
        return account.places, account.used()

    def spent(self) -> dict[str, tuple[int, int]]:
        """What each key has spent through this router: the day, counted from 1970, and tokens."""
        return {name: (a.day, a.spent) for name, a in self._accounts.items() if a.spent}

    def restore(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """
        Take up what `spent` gave before a restart.  Must be called before the first request.

        A day in the future counts as tomorrow at the latest: no key must wait for years because
        a wrong clock once wrote a date.
        """
        today = self._today(self._monotonic())
        for name, (day, tokens) in spent.items():
            restored = min(day, today + 1), max(0, tokens)
            if (account := self._accounts.get(name)) is not None:
                account.day, account.spent = restored
            elif day >= today:
                self._unclaimed[name] = restored

    def set_spent_by_others(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """Set what other routers have spent of every key's budget: 0 for keys that are not named."""
        for name, account in self._accounts.items():
            day, tokens = spent.get(name, (0, 0))
            account.others = (day, max(0, tokens))

    def _today(self, now: float) -> int:
        ahead = self._wall_ms() // _DAY_MS - self._day
        if ahead > 0 and (steps := int((now - self._moved) / _STEP_S)) > 0:
            self._day += min(ahead, steps)
            self._moved = now
        return self._day
