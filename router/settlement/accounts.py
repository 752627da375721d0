"""
What each operator's nodes have done in a period, summed from receipts into lines.  Pure.

Each receipt counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from router.receipts.payload import MOST
from router.settlement.amounts import exact, rounded
from router.settlement.exchanges import Exchange
from router.settlement.periods import Period
from verifier.log import tree

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Amount = Annotated[str, Meta(pattern=r"^-?(0|[1-9][0-9]{0,40})\Z")]
"""In millionths of a millionth of the unit, as text: it may be more than every reader of JSON has exactly."""
Tokens = Annotated[int, Meta(ge=0, le=MOST)]
Name = Annotated[str, Meta(max_length=2048)]


class LineKey(NamedTuple):
    """What tells one line from another."""

    node: str
    model: str
    workload: str
    tier: str
    input: int
    output: int


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one node did with one model at one price."""

    number: Tokens
    """From 1."""
    node: Name
    model: Name
    workload: Name
    tier: Name
    price_input: Tokens
    price_output: Tokens
    """In millionths of the unit for a million tokens."""
    exchanges: Tokens
    completed: Tokens
    """Of these, the answers that were completed; the others were broken off, and are paid as far as they came."""
    prompt: Tokens
    completion: Tokens
    """Tokens, by the router."""
    amount: Amount
    amount_exact: Name
    amount_rounded: Name
    receipts_root: Digest
    """The root of the tree (RFC 9162 §2.1) over the line's receipts, in the order of their ids."""


def key_of(line: Line) -> LineKey:
    """What tells a line from the others of its statement."""
    return LineKey(line.node, line.model, line.workload, line.tier, line.price_input, line.price_output)


class Accounts:
    """What each operator's nodes have done in a period, summed while receipts are read.  Each receipt counts once."""

    def __init__(self, period: Period) -> None:
        self.period = period
        self.unreadable = self.missing = 0
        self._lines: defaultdict[str, dict[LineKey, _Account]] = defaultdict(dict)

    @property
    def operators(self) -> list[str]:
        """Those that are paid something, or were given work."""
        return sorted(self._lines)

    def add(self, exchange: Exchange) -> None:
        """Add what one receipt says."""
        if not exchange.node or not self.period.from_ms <= exchange.at_ms < self.period.to_ms:
            return
        price = exchange.price
        key = LineKey(
            exchange.node, exchange.model, exchange.workload, exchange.tier, price.input, price.output
        )
        lines = self._lines[exchange.operator]
        account = lines.get(key)
        if account is None:
            account = lines[key] = _Account()
        account.add(exchange)

    def lines(self, operator: str, decimals: int) -> tuple[Line, ...]:
        """The lines of an operator, in their order."""
        found = sorted(self._lines.get(operator, {}).items())
        return tuple(account.line(n, key, decimals) for n, (key, account) in enumerate(found, 1))

    def receipts(self, operator: str) -> list[tuple[str, int]]:
        """The ids of the receipts behind an operator's lines, each with the number of its line."""
        found = sorted(self._lines.get(operator, {}).items())
        return [(receipt, n) for n, (_, account) in enumerate(found, 1) for receipt in sorted(account.leaves)]

    def line_numbers(self, operator: str) -> Mapping[LineKey, int]:
        """Which number each line has."""
        return {key: n for n, key in enumerate(sorted(self._lines.get(operator, {})), 1)}


class _Account:
    __slots__ = ("amount", "completed", "completion", "leaves", "prompt")

    def __init__(self) -> None:
        self.prompt = self.completion = self.amount = self.completed = 0
        self.leaves: dict[str, bytes] = {}
        """By the id of the receipt: a receipt that comes twice, from the store and from the archive, is one."""

    def add(self, exchange: Exchange) -> None:
        if exchange.id in self.leaves:
            return
        self.leaves[exchange.id] = exchange.leaf
        self.prompt += exchange.counted.prompt
        self.completion += exchange.counted.completion
        self.amount += exchange.amount
        self.completed += exchange.is_completed

    def line(self, number: int, key: LineKey, decimals: int) -> Line:
        leaves = [self.leaves[each] for each in sorted(self.leaves)]
        return Line(
            number=number,
            node=key.node,
            model=key.model,
            workload=key.workload,
            tier=key.tier,
            price_input=key.input,
            price_output=key.output,
            exchanges=len(leaves),
            completed=self.completed,
            prompt=self.prompt,
            completion=self.completion,
            amount=str(self.amount),
            amount_exact=exact(self.amount),
            amount_rounded=rounded(self.amount, decimals),
            receipts_root=tree.root_of(leaves).hex(),
        )
