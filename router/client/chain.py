"""
The receipts of a key, as links of a chain.  Pure.

A receipt names the one before it.  A client that shares its key with others does not see them all, and answers end
in another order than they began.  So each is held against its neighbours, as far as they are known.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Final

from msgspec import UNSET

from router.client.errors import Step, UnverifiedError
from router.receipts.payload import Receipt, digest_payload

MAX_KNOWN: Final = 10_000
"""Receipts of one key that are remembered."""
MAX_KEYS: Final = 64

_Link = tuple[str, str | None]


class Chain:
    """The receipts of the keys that a client has used."""

    def __init__(self) -> None:
        self._links: OrderedDict[tuple[str, str], dict[int, _Link]] = OrderedDict()
        """By router and key: by number, the digest of a payload, and that of the one before it."""

    def add(self, receipt: Receipt, payload: bytes, *, may_repeat: bool = False) -> str:
        """
        Hold a receipt against those that are known, and remember it.

        Args:
            may_repeat: Whether the very same receipt may come again: the caller has asked for the same answer.

        Returns:
            What was found, in words.

        Raises:
            UnverifiedError: another receipt has its number, or one of its neighbours is another than it says.
        """
        if receipt.key is UNSET or receipt.seq is UNSET:
            return "it is of no key"
        links = self._of(receipt.iss, receipt.key)
        number, own = receipt.seq, digest_payload(payload)
        prev = None if receipt.prev is UNSET else receipt.prev
        if may_repeat and number in links and links[number][0] == own:
            return f"it is number {number} of the key, again"
        if number in links:
            again = (
                "it was used before" if links[number][0] == own else "there are two receipts of this number"
            )
            raise UnverifiedError(Step.CHAIN, f"{again}: {number} of the key")
        if number - 1 in links and links[number - 1][0] != prev:
            raise UnverifiedError(Step.CHAIN, f"receipt {number} of the key does not continue {number - 1}")
        if number + 1 in links and links[number + 1][1] != own:
            raise UnverifiedError(Step.CHAIN, f"receipt {number + 1} of the key does not continue {number}")
        if len(links) >= MAX_KNOWN:
            oldest = min(links)
            if number < oldest:
                raise UnverifiedError(
                    Step.CHAIN, f"receipt {number} of the key is older than all that are known"
                )
            del links[oldest]
        links[number] = (own, prev)
        if number == 1:
            return "it is the first of the key"
        whose = "the one before" if number - 1 in links else "one that is not known here"
        return f"it is number {number} of the key, and continues {whose}"

    def missing(self, router: str, key: str) -> list[int]:
        """
        The numbers between those that are known, at most 1,000 of them.

        They are answers that others got, or that are still under way.
        """
        links = self._links.get((router, key), {})
        found: list[int] = []
        numbers = sorted(links)
        for before, after in pairwise(numbers):
            found.extend(range(before + 1, min(after, before + 1001)))
        return found[:1000]

    def _of(self, router: str, key: str) -> dict[int, _Link]:
        links = self._links.setdefault((router, key), {})
        self._links.move_to_end((router, key))
        if len(self._links) > MAX_KEYS:
            self._links.popitem(last=False)
        return links
