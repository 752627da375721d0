"""
What the traffic of each model looks like, without a word of anybody's text: bounded counts of forms of requests.  Pure.

Minted requests are drawn from it (`verifier.answers.shapes`), and a check that looks like nobody's request, or that
would be commoner among checks than it is among requests, is not sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from router.model.uniform import Added, essential
from verifier.answers.shapes import MAX_SHAPES, Profile, Shape

ENOUGH: Final = 50
"""After so many requests that checks may be like, something is known of the traffic."""
_MOST: Final = 1 << 16
"""Requests after which all counts are halved, so that what the traffic was fades."""
_SLACK: Final = 2.0
"""Standard deviations by which a kind of request may be commoner among checks, by chance."""
_MAX_TOKENS: Final = 1 << 20
_MAX_COUNT: Final = 1000
_MAX_OTHERS: Final = 16
_MAX_NAME: Final = 64
_COMMON: Final = frozenset(
    {"model", "stream", "stream_options", "temperature", "top_p", "seed", "logprobs", "top_logprobs"}
)
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "messages": _COMMON | {"messages", "max_tokens", "max_completion_tokens", "tools"},
    "prompt": _COMMON | {"prompt", "max_tokens"},
    "input": _COMMON | {"input", "encoding_format"},
}
"""By the member with the text, those that a `Shape` can tell of; a request with others is like no check."""
_ROLES: Final = frozenset({"user", "assistant", "tool"})
_SYSTEM: Final = frozenset({"system", "developer"})


class Kind(Struct, frozen=True, kw_only=True):
    """What a node sees at a glance of a request: a coarser `Shape`, with how its answer is to be written."""

    operation: str
    streamed: bool
    temperature: float | None
    top_p: float | None
    limit: str
    """The member that bounds its answer; empty if none does."""
    system: bool
    has_tools: bool
    has_seed: bool
    """Whether there is one, whoever has given it."""
    encoding: str
    """Of vectors."""
    others: tuple[str, ...]
    """Members that no `Shape` tells of: only a check from an operator's own file has them."""


def describe(document: Mapping[str, Any], checked_as: str, added: Added) -> tuple[Shape | None, Kind] | None:
    """
    The form of a request, as far as a `Shape` can tell of it, and its kind; `None` if it has what no check has.

    Args:
        document: As it came, or in the one form (`router.model.uniform`).
        checked_as: The verifier's name of the operation; empty if it is none that nodes are asked about.
        added: What was added to it.
    """
    if not checked_as:
        return None
    document = essential(document)
    held_by = next((name for name in _KNOWN if name in document), None)
    if held_by is None:
        return None
    others = tuple(sorted(document.keys() - _KNOWN[held_by]))
    if len(others) > _MAX_OTHERS or any(len(name) > _MAX_NAME for name in others):
        return None
    texts = (
        _messages_of(document["messages"]) if held_by == "messages" else _texts_of(document[held_by], held_by)
    )
    limit = "max_completion_tokens" if "max_completion_tokens" in document else "max_tokens"
    most = document.get(limit)
    encoding = document.get("encoding_format", "")
    temperature, top_p = _rounded(document.get("temperature"), 2), _rounded(document.get("top_p"), 1)
    is_plain = most is None or (type(most) is int and 1 <= most <= _MAX_TOKENS)
    if texts is None or not is_plain or not isinstance(encoding, str) or top_p == 0:
        return None
    if temperature is _ODD or top_p is _ODD:
        return None
    characters, messages, has_system, inputs = texts
    tools = document.get("tools") or ()
    has_seed = "seed" in document and not added.seed
    streamed = document.get("stream") is True
    shape = Shape(
        count=1,
        operation=checked_as,  # type: ignore[arg-type]  # by the table of operations
        streamed=streamed,
        temperature=temperature,
        top_p=top_p,
        max_tokens=most,
        limit=limit,  # type: ignore[arg-type]  # one of the two
        messages=messages,
        system=has_system,
        tools=min(len(tools), _MAX_COUNT) if isinstance(tools, (list, tuple)) else 0,
        inputs=inputs,
        characters=_power_of_two(characters),
        seed=has_seed,
    )
    kind = _kind_of(shape, encoding=encoding, others=others, has_seed="seed" in document)
    return None if others else shape, kind


def _kind_of(shape: Shape, *, encoding: str, others: tuple[str, ...], has_seed: bool) -> Kind:
    return Kind(
        operation=shape.operation,
        streamed=shape.streamed,
        temperature=shape.temperature,
        top_p=shape.top_p,
        limit="" if shape.max_tokens is None else shape.limit,
        system=shape.system,
        has_tools=bool(shape.tools),
        has_seed=has_seed,
        encoding=encoding,
        others=others,
    )


_ODD: Final = -1.0


def _rounded(value: Any, most: float) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= most:
        return _ODD
    return float(round(value, 2))


def _power_of_two(characters: int) -> tuple[int, int]:
    high = 1 << max(characters, 1).bit_length()
    return high >> 1, high


def _texts_of(text: Any, held_by: str) -> tuple[int, int, bool, int] | None:
    """Characters, messages without system, whether there is a system prompt, inputs; `None` if not all is text."""
    if isinstance(text, str):
        return len(text), 0, False, 1 if held_by == "input" else 0
    if held_by == "input" and isinstance(text, list) and text and set(map(type, text)) == {str}:
        return sum(map(len, text)), 0, False, len(text)
    return None


def _messages_of(messages: Any) -> tuple[int, int, bool, int] | None:
    if not isinstance(messages, list) or len(messages) > _MAX_COUNT:
        return None
    characters = said = 0
    has_system = False
    for message in messages:
        if not isinstance(message, dict):
            return None
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) or len(message) != 2:
            # Parts, images, calls of tools and their results.
            return None
        characters += len(content)
        has_system |= role in _SYSTEM
        said += role in _ROLES
    return characters, said, has_system, 0


class ModelTraffic:
    """The traffic of one model."""

    __slots__ = ("_checks", "_kinds", "_shapes", "requests", "undescribed")

    def __init__(self) -> None:
        self._shapes: Counter[Shape] = Counter()
        self._kinds: Counter[Kind] = Counter()
        self._checks: Counter[Kind] = Counter()
        self.requests = 0
        """Of late, those without a form included."""
        self.undescribed = 0
        """Those that no shape tells of."""

    def note(self, found: tuple[Shape | None, Kind] | None) -> None:
        """Count a request."""
        self.requests += 1
        if found is None or found[0] is None:
            self.undescribed += 1
        if found is not None:
            self._count(*found)
        if self.requests >= _MOST:
            self.requests //= 2
            self.undescribed //= 2
            for counts in (self._shapes, self._kinds, self._checks):
                _halve(counts)

    def _count(self, shape: Shape | None, kind: Kind) -> None:
        if kind in self._kinds or len(self._kinds) < MAX_SHAPES:
            self._kinds[kind] += 1
        if shape is None:
            return
        shapes = self._shapes
        if shape not in shapes and len(shapes) >= MAX_SHAPES:
            # The rarest makes room and leaves its count: of what is common none is lost (Metwally, "Space-Saving", 2005).
            rarest = min(shapes, key=shapes.__getitem__)
            shapes[shape] = shapes.pop(rarest)
        shapes[shape] += 1

    def forget_kinds(self) -> None:
        """Begin to count anew what nodes see: requests have another form from now on."""
        self._kinds.clear()

    def shapes(self) -> tuple[Shape, ...]:
        """The forms with their counts, the commonest first."""
        ordered = sorted(self._shapes.items(), key=lambda item: (-item[1], repr(item[0])))
        return tuple(_counted(shape, count) for shape, count in ordered)

    def operations(self) -> dict[str, int]:
        """How many requests each operation had, by the verifier's names, of those that checks may be like."""
        found: dict[str, int] = {}
        for kind, count in self._kinds.items():
            found[kind.operation] = found.get(kind.operation, 0) + count
        return found

    def encodings(self, operation: str) -> dict[str, int]:
        """How often each encoding of vectors was asked for."""
        found: dict[str, int] = {}
        for kind, count in self._kinds.items():
            if kind.operation == operation:
                found[kind.encoding] = found.get(kind.encoding, 0) + count
        return found

    def admits(self, kind: Kind) -> bool:
        """Whether one more check of this kind makes it no commoner among checks than it is among requests."""
        seen = self._kinds.total()
        if seen < ENOUGH:
            return False
        share = self._kinds[kind] / seen
        expected = share * (self._checks.total() + 1)
        return share > 0 and self._checks[kind] + 1 <= expected + _SLACK * math.sqrt(expected) + 1

    def note_check(self, kind: Kind) -> None:
        """Count a check that is sent."""
        self._checks[kind] += 1


def _halve(counts: Counter[Any]) -> None:
    for key in list(counts):
        counts[key] //= 2
        if not counts[key]:
            del counts[key]


def _counted(shape: Shape, count: int) -> Shape:
    values = {name: getattr(shape, name) for name in Shape.__struct_fields__}
    return Shape(**{**values, "count": count})


def profile_of(models: Iterable[tuple[str, ModelTraffic]]) -> Profile:
    """The profile that is minted by."""
    return Profile(models={model: traffic.shapes() for model, traffic in models if traffic.shapes()})
