"""
Where OPA breaks lines within brackets, and where it joins them (``v1/format/format.go`` of OPA 1.20).

A list whose items begin in several lines has a line for each of these, and its brackets stand apart.
A list whose items begin in the line of the bracket has one line, and so do bodies and expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from verifier.policy.tokens import CLOSE, INFIX, OPEN, Token, statements

BODY: Final = "body"
LIST: Final = "list"
COMPREHENSION: Final = "comprehension"
GROUP: Final = "group"
"""What a bracket holds; a group is an index, or an expression in parentheses."""
_JOINED_WORDS: Final = ("in", "not", "as")


@dataclass
class _Open:
    """An open bracket, and where its items begin."""

    place: int
    kind: str
    items: list[int] = field(default_factory=list)
    bar: int | None = None
    """The place of ``|`` in a comprehension."""
    is_awaited: bool = True
    """Whether the next token begins an item."""


def breaks_of(tokens: Sequence[Token], kinds: Mapping[int, str], unary: frozenset[int]) -> dict[int, bool]:
    """
    Say of tokens, by their places in the source, whether a line begins with them.  Others are left to their author.

    Args:
        tokens: All tokens without comments.
        kinds: What each bracket holds, by the place of the opening one.
        unary: The places of signs that are part of a number.
    """
    found: dict[int, bool] = {}
    stack: list[_Open] = []
    for place, token in enumerate(tokens):
        top = stack[-1] if stack else None
        is_sign = token.kind == "sign"
        if top is not None and top.is_awaited and not (is_sign and token.text in CLOSE):
            top.items.append(place)
            top.is_awaited = False
        if is_sign and token.text in OPEN:
            stack.append(_Open(place, kinds.get(token.start, GROUP)))
        elif is_sign and token.text in CLOSE and stack:
            _close(stack.pop(), place, tokens, found)
        elif is_sign and token.text == "," and top is not None:
            top.is_awaited = top.kind == LIST
            found[token.start] = False
        elif token.text == "|" and top is not None and top.kind == COMPREHENSION and top.bar is None:
            top.bar = place
            found[token.start] = False
        else:
            _join(place, tokens, unary, found)
    return found


def _join(place: int, tokens: Sequence[Token], unary: frozenset[int], found: dict[int, bool]) -> None:
    token = tokens[place]
    if place and token.kind == "sign" and token.text in INFIX and token.text != "-":
        found[token.start] = False
    is_infix = (
        token.kind == "sign" and (token.text in INFIX or token.text == ":") and token.start not in unary
    )
    is_word = (
        token.kind == "name" and token.text in _JOINED_WORDS and not (place and tokens[place - 1].text == ".")
    )
    if (is_infix or is_word) and place + 1 < len(tokens):
        found.setdefault(tokens[place + 1].start, False)


def _close(opened: _Open, end: int, tokens: Sequence[Token], found: dict[int, bool]) -> None:
    if not opened.items:
        found[tokens[end].start] = False
        return
    first = tokens[opened.items[0]]
    match opened.kind:
        case "list":
            is_apart = first.row > tokens[opened.place].end_row
            for before, item in zip(opened.items, opened.items[1:], strict=False):
                found[tokens[item].start] = tokens[item].row > tokens[before].row
                is_apart |= tokens[item].row > tokens[before].row
        case "body":
            inside = tokens[opened.place + 1 : end]
            is_apart = len({each[0].row for each in statements(inside)} | {tokens[opened.place].row}) > 1
            if not is_apart and tokens[end].row > first.row:
                is_apart = True
        case "comprehension" if opened.bar is not None:
            rows = {each[0].row for each in statements(tokens[opened.bar + 1 : end])}
            is_apart = len(rows) > 1 or min(rows, default=first.row) > first.row
            first = tokens[opened.bar + 1]
        case _:
            is_apart = False
    found[first.start] = is_apart
    found[tokens[end].start] = is_apart
