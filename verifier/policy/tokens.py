"""
The tokens of Rego source, with nothing left out: what is laid out anew must be the same tokens.

The engine's own tree is not enough for that.  It has no comments, and its spans do not always say
where an expression begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from verifier.errors import BundleError

OPEN: Final = ("(", "[", "{")
CLOSE: Final = {")": "(", "]": "[", "}": "{"}
KEYWORDS: Final = frozenset(
    ("as", "contains", "default", "else", "every", "if", "import", "in", "not", "package", "some", "with")
)
INFIX: Final = frozenset((":=", "=", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "|", "&"))
_TOKEN: Final = re.compile(
    r"""
    (?P<space>[ \t\r]+)
  | (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
  | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign>:=|==|!=|<=|>=|[][(){},;:.=<>+*/%|&-])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A token: ``comment``, ``string``, ``number``, ``name`` or ``sign``."""

    kind: str
    text: str
    start: int
    """Its place in the source, in characters."""
    row: int
    """Its line, from 0."""
    is_glued: bool
    """Whether nothing stands between it and the token before it."""

    @property
    def end_row(self) -> int:
        """The line in which it ends: a raw string may have several."""
        return self.row + self.text.count("\n")

    @property
    def is_keyword(self) -> bool:
        """Whether it is a word that is no name, unless it stands behind a dot."""
        return self.kind == "name" and self.text in KEYWORDS

    @property
    def ends_operand(self) -> bool:
        """Whether an expression may end with it."""
        if self.kind == "sign":
            return self.text in CLOSE
        return self.kind in ("string", "number") or (self.kind == "name" and not self.is_keyword)


def tokens_of(file: str, source: str) -> list[Token]:
    """
    All tokens of a source, comments among them.

    Raises:
        BundleError: the source has something else; names file and line.
    """
    found: list[Token] = []
    place = row = end = 0
    while place < len(source):
        match = _TOKEN.match(source, place)
        if match is None:
            raise BundleError(
                f"{file}:{row + 1}: {source[place]!r} is no part of Rego, or a string does not end"
            )
        kind, text = str(match.lastgroup), match[0]
        if kind not in ("space", "newline"):
            shown = text.rstrip() if kind == "comment" else text
            found.append(Token(kind, shown, start=place, row=row, is_glued=place == end))
            end = match.end()
        row += text.count("\n")
        place = match.end()
    return found


def statements(tokens: Sequence[Token]) -> list[list[Token]]:
    """
    Split the tokens of a body into its statements, at semicolons and at the ends of lines outside of brackets.

    An expression that goes on in the next line is one statement.
    """
    found: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "comment":
            continue
        last = found[-1][-1] if found[-1] else None
        if depth == 0 and token.text == ";":
            found.append([])
            continue
        if depth == 0 and last is not None and token.row > last.end_row and not _goes_on(last, token):
            found.append([])
        depth += (token.text in OPEN and token.kind == "sign") - (
            token.text in CLOSE and token.kind == "sign"
        )
        found[-1].append(token)
    return [statement for statement in found if statement]


def _goes_on(last: Token, token: Token) -> bool:
    """Whether an expression goes on from the end of one line into the next."""
    if token.text in ("with", "as") or (
        token.kind == "sign" and token.text in (*INFIX, ",", ".", ":") and token.text != "-"
    ):
        return True
    return not last.ends_operand
