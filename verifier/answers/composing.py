"""
Requests drawn to look like the traffic: the shape from a profile, the words from an operator's file or from ours.  Pure.

All choices follow from the draws of one place of the pool.  A conversation's earlier answers are not made here: the
engine that is asked gives them, as it does to a user (`Turn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.answers import prompts
from verifier.answers.checks import COMPLETIONS, EMBEDDINGS, Operation
from verifier.answers.draws import Draws
from verifier.answers.material import Asked, Material
from verifier.answers.shapes import DEFAULTS, Shape

MAX_SEED: Final = 1 << 31
_MAX_TURNS: Final = 4
"""Questions of a conversation; each earlier one costs an answer of the engine."""
_EARLIER_CHARACTERS: Final = 200
"""About so long is an answer earlier in a conversation."""
_LEAST_CHARACTERS: Final = 16
_TRIES: Final = 24
"""Texts that are looked at for one of the wanted length."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A request to be minted."""

    operation: Operation
    body: dict[str, Any]
    """Of a conversation, with the last question alone after the system prompt; see `earlier`."""
    streamed: bool
    earlier: tuple[str, ...] = ()
    """Questions before the last one: the engine's own answers go between them."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the user writes in it: none of it is ever asked again.  System prompts and tools are."""
        return (*self.earlier, *_texts_of(self.body))


def _texts_of(body: dict[str, Any]) -> Iterator[str]:
    messages = [each for each in body.get("messages", ()) if isinstance(each, dict)]
    asked = [each.get("content") for each in messages if each.get("role") == "user"]
    given = body.get("input", ())
    asked += given if isinstance(given, list) else [given] if given else []
    asked += [body["prompt"]] if "prompt" in body else []
    for each in asked or [messages]:
        yield each if isinstance(each, str) else msgspec.json.encode(each, order="deterministic").decode()


def compose(
    draws: Draws,
    shapes: Sequence[Shape],
    material: Material,
    is_free: Callable[[str], bool],
    operation: Operation,
) -> Composed | None:
    """
    Compose one request.

    Args:
        shapes: Of the model; if there are none, a guess.
        is_free: Whether a text was never asked.

    Returns:
        `None` if all that the material has was asked.
    """
    usable = [shape for shape in shapes if shape.operation == operation] or DEFAULTS[operation]
    asked = [each for each in material.asked if each.operation == operation]
    bodies_first = bool(asked) and draws.below(len(asked) + len(material.texts)) < len(asked)
    source = _Source(draws, material, is_free)
    if bodies_first and (composed := source.body(asked)) is not None:
        return composed
    left = list(usable) if material.texts or not asked else []
    while left:
        # Most often the first will do; where few texts are left, a shape that needs fewer may.
        shape = left.pop(draws.weighted([shape.count for shape in left]))
        if (composed := _of_shape(draws, shape, source)) is not None:
            return composed
    return source.body(asked)


@dataclass(frozen=True)
class _Source:
    """Where words come from: what was asked already is passed over."""

    draws: Draws
    material: Material
    is_free: Callable[[str], bool]

    def body(self, asked: Sequence[Asked]) -> Composed | None:
        """A request of the operator's."""
        start = self.draws.below(len(asked)) if asked else 0
        for step in range(len(asked)):
            own = asked[(start + step) % len(asked)]
            composed = Composed(
                operation=own.operation, body=_with_seed(dict(own.body), self.draws), streamed=own.streamed
            )
            if all(map(self.is_free, composed.texts)):
                return composed
        return None

    def texts(self, count: int, low: int, high: int) -> list[str] | None:
        """So many texts, together of *low* to *high* characters if there are such; `None` if there are none."""
        found: list[str] = []
        for left in range(count, 0, -1):
            text = self._text(low // left, max(high // left, 1), found)
            if text is None:
                return None
            found.append(text)
            low, high = max(low - len(text), 0), max(high - len(text), 1)
        return found

    def _text(self, low: int, high: int, taken: Sequence[str]) -> str | None:
        length = low + self.draws.below(max(high - low, 1))
        if not self.material.texts:
            length = max(length, min(low + prompts.LEFT_OUT, high - 1))
            tries = (prompts.write(self.draws, length) for _ in range(_TRIES))
            return next((text for text in tries if text not in taken and self.is_free(text)), None)
        texts = self.material.texts
        drawn = {self.draws.pick(texts) for _ in range(min(_TRIES, len(texts)))}
        candidates = sorted(text for text in drawn if text not in taken and self.is_free(text))
        if candidates:
            return min(candidates, key=lambda text: (not low <= len(text) < high, abs(len(text) - length)))
        # Few are left: the next one, whatever its length.
        start = self.draws.below(len(texts))
        following = (texts[(start + step) % len(texts)] for step in range(len(texts)))
        return next((text for text in following if text not in taken and self.is_free(text)), None)


def _of_shape(draws: Draws, shape: Shape, source: _Source) -> Composed | None:
    low, high = shape.characters
    if shape.operation == EMBEDDINGS:
        texts = source.texts(max(min(shape.inputs, 64), 1), low, high)
        if texts is None:
            return None
        body: dict[str, Any] = {"input": texts[0] if shape.inputs <= 1 else texts}
        return Composed(operation=shape.operation, body=body, streamed=False)
    if shape.operation == COMPLETIONS:
        texts = source.texts(1, low, high)
        if texts is None:
            return None
        body = _with_parameters({"prompt": texts[0]}, shape, draws)
        return Composed(operation=shape.operation, body=body, streamed=shape.streamed)
    questions = min((shape.messages + 1) // 2 or 1, _MAX_TURNS)
    messages: list[dict[str, str]] = []
    known = (questions - 1) * _EARLIER_CHARACTERS
    if shape.system:
        messages.append({"role": "system", "content": draws.pick(source.material.systems or prompts.SYSTEMS)})
        known += len(messages[0]["content"])
    low = max(low - known, _LEAST_CHARACTERS)
    texts = source.texts(questions, low, max(high - known, low + _LEAST_CHARACTERS))
    if texts is None:
        return None
    *earlier, last = texts
    messages.append({"role": "user", "content": last})
    body = {"messages": messages}
    if shape.tools:
        body["tools"] = _tools(draws, source.material, shape.tools)
    return Composed(
        operation=shape.operation,
        body=_with_parameters(body, shape, draws),
        streamed=shape.streamed,
        earlier=tuple(earlier),
    )


def _tools(draws: Draws, material: Material, count: int) -> list[dict[str, Any]]:
    known = list(material.tools or prompts.TOOLS)
    chosen: list[dict[str, Any]] = []
    while known and len(chosen) < count:
        chosen.append(known.pop(draws.below(len(known))))
    return chosen


def _with_parameters(body: dict[str, Any], shape: Shape, draws: Draws) -> dict[str, Any]:
    given = {"temperature": shape.temperature, "top_p": shape.top_p, shape.limit: shape.max_tokens}
    body |= {name: value for name, value in given.items() if value is not None}
    if shape.seed:
        body["seed"] = draws.below(MAX_SEED)
    return _with_seed(body, draws)


def _with_seed(body: dict[str, Any], draws: Draws) -> dict[str, Any]:
    """With a seed, if the answer is drawn: without one it cannot be known beforehand."""
    if "input" not in body and is_drawn(body):
        body.setdefault("seed", draws.below(MAX_SEED))
    return body


def is_drawn(body: dict[str, Any]) -> bool:
    """Whether the answer to a request is drawn: without a temperature the engine's own default counts."""
    return body.get("temperature") != 0
