"""
Periods of UTC: a day ``2026-11-30``, a week ``2026-W49``, a month ``2026-11``, a quarter ``2026-Q4``.  Pure.

An exchange belongs to the period in which the ``iat`` of its receipt lies: when its answer had ended, by the router's
clock.  The begin belongs to a period, and the end to the next one.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from router.model.errors import SettlementError

Kind: TypeAlias = Literal["day", "week", "month", "quarter"]
DAY_MS: Final = 86_400_000
_FORMS: Final = (
    ("day", re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)),
    ("week", re.compile(r"(\d{4})-W(\d{2})", re.ASCII)),
    ("quarter", re.compile(r"(\d{4})-Q([1-4])", re.ASCII)),
    ("month", re.compile(r"(\d{4})-(\d{2})", re.ASCII)),
)
_EPOCH: Final = dt.date(1970, 1, 1)


class Period(Struct, frozen=True):
    """Whole days of UTC."""

    name: str
    first: dt.date
    after: dt.date
    """The day after the last."""

    @property
    def from_ms(self) -> int:
        """Its first millisecond since 1970."""
        return (self.first - _EPOCH).days * DAY_MS

    @property
    def to_ms(self) -> int:
        """The first millisecond after it."""
        return (self.after - _EPOCH).days * DAY_MS

    @property
    def days(self) -> list[str]:
        """Its days, as claims name them."""
        return [(self.first + dt.timedelta(n)).isoformat() for n in range((self.after - self.first).days)]

    @property
    def day_before(self) -> str:
        """The day before the first."""
        return (self.first - dt.timedelta(1)).isoformat()

    @property
    def day_after(self) -> str:
        """The day after the last."""
        return self.after.isoformat()


def read_period(name: str) -> Period:
    """
    Read the name of a period.

    Raises:
        SettlementError: it is none.
    """
    for kind, form in _FORMS:
        found = form.fullmatch(name)
        if found is None:
            continue
        numbers = [int(each) for each in found.groups()]
        try:
            first, after = _bounds(kind, numbers)
        except (ValueError, OverflowError):
            break
        if first >= _EPOCH:
            return Period(name, first, after)
    raise SettlementError(
        f"{name[:40]!r} is no period: give a day 2026-11-30, a week 2026-W49, a month 2026-11 or a quarter 2026-Q4"
    )


def _bounds(kind: str, numbers: list[int]) -> tuple[dt.date, dt.date]:
    if kind == "day":
        first = dt.date(*numbers)
        return first, first + dt.timedelta(1)
    if kind == "week":
        first = dt.date.fromisocalendar(numbers[0], numbers[1], 1)
        return first, first + dt.timedelta(7)
    months = 3 if kind == "quarter" else 1
    start = numbers[0] * 12 + (numbers[1] - 1) * months
    if not 1 <= numbers[1] <= 12:
        raise ValueError("no such month")
    return _month(start), _month(start + months)


def _month(number: int) -> dt.date:
    return dt.date(number // 12, number % 12 + 1, 1)


def last_whole(kind: Kind, now_ms: int) -> Period:
    """The last period of a kind that is over at a time."""
    today = _EPOCH + dt.timedelta(now_ms // DAY_MS)
    if kind == "day":
        return read_period((today - dt.timedelta(1)).isoformat())
    if kind == "week":
        year, week, _ = (today - dt.timedelta(7)).isocalendar()
        return read_period(f"{year:04d}-W{week:02d}")
    if kind == "month":
        before = today.replace(day=1) - dt.timedelta(1)
        return read_period(f"{before.year:04d}-{before.month:02d}")
    before = _month(today.year * 12 + (today.month - 1) // 3 * 3) - dt.timedelta(1)
    return read_period(f"{before.year:04d}-Q{(before.month - 1) // 3 + 1}")


def day_of(at_ms: int) -> str:
    """The day in which a moment lies."""
    return (_EPOCH + dt.timedelta(at_ms // DAY_MS)).isoformat()
