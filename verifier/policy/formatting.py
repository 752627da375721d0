"""
Lay out Rego source as ``opa fmt`` does, without changing a token.

Tabs, spaces between tokens, blank lines, indentation and the lines of lists become OPA's.  Where
`opa fmt` would write other tokens (a comma after the last item, imports in order, a body of one
expression without braces), the source keeps its own.  What comes out is compared with what went
in: the same tokens, the same comments, and the same meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from verifier.errors import BundleError
from verifier.policy import rules
from verifier.policy.line_breaks import BODY, COMPREHENSION, GROUP, LIST, breaks_of
from verifier.policy.syntax import kind_of
from verifier.policy.tokens import CLOSE, INFIX, OPEN, Token, tokens_of

_MAX_LINE: Final = 1000


def lay_out(file: str, source: str, parse: Callable[[str, str], Any]) -> str:
    """
    Lay out a source, and check that it is the same source.

    Args:
        file: Its name, for messages.
        source: The source.
        parse: Makes a syntax tree of a file's name and text, as regorus gives it.

    Raises:
        BundleError: the source has tokens that this does not know, or cannot be laid out without a change.
    """
    module = parse(file, source)
    text = format_source(file, source, module)
    before, after = (
        [(name, meaning) for name, meaning, _ in rules.of([each])[file]]
        for each in (module, parse(file, text))
    )
    if before != after or _texts(file, text) != _texts(file, source):
        raise BundleError(
            f"{file}: it cannot be laid out without changing it. Leave it as it is, and report it"
        )
    return text


def _texts(file: str, source: str) -> list[tuple[str, str]]:
    return [(token.kind, token.text) for token in tokens_of(file, source)]


def format_source(file: str, source: str, module: Any) -> str:
    """Lay out a source, of which *module* is the syntax tree.  Raises `BundleError`."""
    tokens = tokens_of(file, source)
    shape = _Shape(tokens)
    text = _written(tokens, shape, shape.breaks, _items_of(module))
    if max(map(len, text.splitlines()), default=0) > _MAX_LINE:
        # The engine reads no longer lines, so nothing is joined.
        text = _written(tokens, shape, {}, _items_of(module))
    return text


def _written(tokens: Sequence[Token], shape: _Shape, breaks: Mapping[int, bool], items: _Items) -> str:
    lines = _lines(tokens, breaks)
    _indent(lines, shape)
    written: list[str] = []
    for number, line in enumerate(lines):
        if number and _is_blank_before(lines, number, items):
            written.append("")
        written.append("\t" * line.level + shape.text(line.tokens))
    return "\n".join(written) + "\n"


class _Shape:
    """What the tokens of a module are for: which brackets hold bodies, and which signs are of a number."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.kinds: dict[int, str] = {}
        """What each bracket holds, by the places of both its ends."""
        self._fields: set[int] = set()
        """Names behind a dot, which are no keywords."""
        self._unary: set[int] = set()
        open_brackets: list[Token] = []
        every: list[int] = []
        """The depths at which `every` waits for its body."""
        last: Token | None = None
        for token in tokens:
            if token.kind == "comment":
                continue
            if last is not None and last.text == ".":
                self._fields.add(token.start)
            elif token.kind == "name" and token.text == "every":
                every.append(len(open_brackets))
            elif token.kind == "sign" and token.text == "-" and not self._ends_operand(last):
                self._unary.add(token.start)
            if token.kind == "sign" and token.text in OPEN:
                is_body = token.text == "{" and self._expects_body(last)
                if (
                    token.text == "{"
                    and every
                    and every[-1] == len(open_brackets)
                    and self._ends_operand(last)
                ):
                    every.pop()
                    is_body = True
                is_group = token.text != "{" and (token.text == "(") != self._is_glued(last, token)
                self.kinds[token.start] = BODY if is_body else GROUP if is_group else LIST
                open_brackets.append(token)
            elif token.kind == "sign" and token.text in CLOSE and open_brackets:
                self.kinds[token.start] = self.kinds[open_brackets.pop().start]
            elif token.text == "|" and open_brackets and open_brackets[-1].text != "(":
                opened = open_brackets[-1].start
                self.kinds[opened] = COMPREHENSION if self.kinds[opened] == LIST else self.kinds[opened]
            last = token
        code = [token for token in tokens if token.kind != "comment"]
        self.breaks = breaks_of(code, self.kinds, frozenset(self._unary))
        """Where OPA begins a line, and where it joins two, by the places of tokens."""

    def text(self, tokens: Sequence[Token]) -> str:
        """The tokens of a line, with the spaces between them."""
        parts = [tokens[0].text]
        for last, token in pairwise(tokens):
            parts += [" ", token.text] if self._has_space(last, token) else [token.text]
        return "".join(parts)

    def _ends_operand(self, token: Token | None) -> bool:
        return token is not None and (token.ends_operand or token.start in self._fields)

    def _expects_body(self, token: Token | None) -> bool:
        return token is not None and token.text in ("if", "else") and token.start not in self._fields

    def _has_space(self, last: Token, token: Token) -> bool:
        if token.kind == "comment":
            return True
        if last.start in self._unary or last.text == "." or (last.kind == "sign" and last.text in OPEN):
            return self.kinds.get(last.start) == BODY and token.text != "}"
        if token.kind == "sign" and token.text in (",", ";", ":", "."):
            return False
        if token.kind == "sign" and token.text in CLOSE:
            return self.kinds.get(token.start) == BODY
        if token.kind == "sign" and token.text in ("(", "["):
            return not self._is_glued(last, token)
        return True

    def _is_glued(self, last: Token | None, token: Token) -> bool:
        """Whether a bracket is a call or an index: glued to an operand, and not apart from it."""
        return token.is_glued and last is not None and (self._ends_operand(last) or last.text == "contains")


@dataclass
class _Bracket:
    kind: str
    level: int
    """The level of the lines in it."""
    is_empty: bool = True
    """Whether no line in it has begun."""


@dataclass
class _Line:
    tokens: list[Token]
    is_blank_before: bool
    """Whether the source has a blank line before it."""
    level: int = 0
    context: str = ""
    """What the bracket holds in which it begins; empty at the top."""
    is_first: bool = False
    """Whether it is the first in its bracket."""
    goes_on: bool = False
    """Whether it goes on with an expression of the line before."""

    @property
    def is_comment(self) -> bool:
        return self.tokens[0].kind == "comment"

    @property
    def closes(self) -> bool:
        return self.tokens[0].kind == "sign" and self.tokens[0].text in CLOSE

    @property
    def row(self) -> int:
        return self.tokens[0].row

    @property
    def end_row(self) -> int:
        return self.tokens[-1].end_row


def _lines(tokens: Sequence[Token], breaks: Mapping[int, bool]) -> list[_Line]:
    lines: list[_Line] = []
    last: Token | None = None
    for token in tokens:
        begins = last is None or token.row > last.end_row
        if last is not None and last.kind != "comment" and token.kind != "comment":
            begins = breaks.get(token.start, begins)
        if begins:
            lines.append(_Line([], last is not None and token.row > last.end_row + 1))
        lines[-1].tokens.append(token)
        last = token
    return lines


def _indent(lines: Sequence[_Line], shape: _Shape) -> None:
    stack: list[_Bracket] = []
    last: Token | None = None
    for line in lines:
        top = stack[-1] if stack else None
        line.context = top.kind if top else ""
        line.is_first = top is not None and top.is_empty
        line.level = top.level if top else 0
        if line.closes:
            line.level -= 1
        elif not line.is_comment:
            line.goes_on = _goes_on(last, line.tokens[0], line.context)
            line.level += line.goes_on
            # Where OPA breaks the line before the term of a comprehension, it does not indent the term.
            line.level -= (
                line.is_first and line.context == COMPREHENSION and last is not None and last.text != "|"
            )
        if top is not None:
            top.is_empty = False
        for token in line.tokens:
            if token.kind == "sign" and token.text in OPEN:
                stack.append(_Bracket(shape.kinds[token.start], line.level + 1))
            elif token.kind == "sign" and token.text in CLOSE and stack:
                stack.pop()
            elif token.text == "|" and stack and stack[-1].kind == COMPREHENSION:
                # The body of a comprehension begins.
                stack[-1].is_empty = True
            last = last if token.kind == "comment" else token


def _goes_on(last: Token | None, first: Token, context: str) -> bool:
    """Whether a line goes on with the expression of the line before it."""
    if last is None or (last.kind == "sign" and last.text in (*OPEN, ",", ";")):
        # A list of names goes on where nothing is open: some a,
        return last is not None and last.text == "," and context in ("", BODY)
    if last.text == "|" and context == COMPREHENSION:
        return False
    if (last.kind == "sign" and last.text in (*INFIX, ":", ".")) or last.is_keyword:
        return True
    return (first.kind == "name" and first.text == "with") or (
        first.kind == "sign" and first.text in INFIX and first.text != "-"
    )


@dataclass(frozen=True)
class _Items:
    """Where the items of a module begin: their lines, from 0."""

    imports: frozenset[int]
    rules: frozenset[int]
    groupable: frozenset[int]
    """Rules that may stand together without blank lines, if they have one line each."""


def _items_of(module: Any) -> _Items:
    rules, groupable = set(), set()
    for rule in module["ast"]["rules"]:
        kind, content = kind_of(rule)
        row = content["span"]["line"] - 1
        rules.add(row)
        if (
            kind != "Default"
            and len((content["bodies"] or [{"query": {"stmts": ()}}])[0]["query"]["stmts"]) <= 1
        ):
            groupable.add(row)
    imports = frozenset(imported["span"]["line"] - 1 for imported in module["ast"]["imports"])
    return _Items(imports, frozenset(rules), frozenset(groupable))


def _is_blank_before(lines: Sequence[_Line], number: int, items: _Items) -> bool:
    line, last = lines[number], lines[number - 1]
    if line.goes_on:
        return False
    if line.is_comment and last.is_comment:
        return line.is_blank_before or _begins_metadata(lines, number)
    if last.is_comment:
        return line.is_blank_before
    if line.context == "":
        return _is_blank_at_top(line, last, items)
    if line.is_first or line.closes or line.context in (LIST, GROUP):
        return False
    if line.is_comment:
        # OPA keeps apart what a comment introduces, and not a comment at the end.
        following = next((other for other in lines[number:] if not other.is_comment), line)
        return not following.closes
    return line.is_blank_before


def _is_blank_at_top(line: _Line, last: _Line, items: _Items) -> bool:
    if line.closes:
        return False
    if line.is_comment:
        return True
    if line.tokens[0].text == "else":
        return True
    if line.row in items.imports:
        return last.row not in items.imports or line.is_blank_before
    if line.row not in items.rules:
        return False
    adjacent = last.row in items.groupable and line.row in items.groupable and line.row == last.row + 1
    return not adjacent


def _begins_metadata(lines: Sequence[_Line], number: int) -> bool:
    """Whether a block of metadata begins right behind another one, from which OPA keeps it apart."""
    if not _is_metadata(lines[number]):
        return False
    for line in reversed(lines[:number]):
        if not line.is_comment:
            return False
        if _is_metadata(line):
            return True
        if line.is_blank_before:
            return False
    return False


def _is_metadata(line: _Line) -> bool:
    return line.tokens[0].text[1:].strip() == "METADATA"
