"""
Amounts: whole numbers of millionths of a millionth of the unit of account.  Pure.

All sums are exact.  Only what is shown is rounded, once, at the end of a line, half to even.
"""

from __future__ import annotations

import re
from typing import Final

from router.model.errors import SettlementError

DECIMALS: Final = 12
"""Of the unit, in an exact amount."""
_FORM: Final = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]{1,12}))?", re.ASCII)


def read_amount(text: str) -> int:
    """
    Read an amount in units of account, such as ``-0.25``.

    Raises:
        SettlementError: it is none, or has more than 12 decimals.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise SettlementError(
            f"{text[:40]!r} is no amount: give units with at most 12 decimals, such as -0.25"
        )
    sign, whole, decimals = found.groups()
    amount = int(whole) * 10**DECIMALS + int((decimals or "").ljust(DECIMALS, "0"))
    return -amount if sign else amount


def exact(amount: int) -> str:
    """An amount in units of account, with all its decimals: ``0.000000001000``."""
    sign, digits = ("-" if amount < 0 else ""), str(abs(amount)).rjust(DECIMALS + 1, "0")
    return f"{sign}{digits[:-DECIMALS]}.{digits[-DECIMALS:]}"


def rounded(amount: int, decimals: int) -> str:
    """
    An amount in units of account with fewer decimals, rounded half to even (IEEE 754 §4.3.1).

    Args:
        decimals: 0 to 12.
    """
    step = 10 ** (DECIMALS - decimals)
    whole, rest = divmod(amount, step)
    if 2 * rest > step or (2 * rest == step and whole % 2):
        whole += 1
    if not decimals:
        return str(whole)
    sign, digits = ("-" if whole < 0 else ""), str(abs(whole)).rjust(decimals + 1, "0")
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"


def share(amount: int, count: int) -> str:
    """What one of *count* comes to, rounded half to even to all 12 decimals; empty if there are none."""
    if not count:
        return ""
    whole, rest = divmod(amount, count)
    if 2 * rest > count or (2 * rest == count and whole % 2):
        whole += 1
    return exact(whole)
