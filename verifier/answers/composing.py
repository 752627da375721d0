"""
Requests drawn to look like the traffic: the shape from a profile, the words from an operator's file or from ours.  Pure.

All choices follow from the draws of one place of the pool.  A conversation's earlier answers are not made here: the
engine that is asked gives them, as it does to a user (`Turn`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.answers import prompts
from verifier.answers.checks import COMPLETIONS, EMBEDDINGS, Operation
from verifier.answers.draws import Draws
from verifier.answers.material import Material
from verifier.answers.shapes import DEFAULTS, Shape

MAX_SEED: Final = 1 << 31
_MAX_TURNS: Final = 4
"""Questions of a conversation; each earlier one costs an answer of the engine."""
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
    def words(self) -> str:
        """The prompt as text: two requests with the same are the same."""
        parts = {name: self.body.get(name) for name in ("messages", "prompt", "input")}
        return msgspec.json.encode([self.earlier, parts], order="deterministic").decode()


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
        is_free: Whether a request with these words was never asked.

    Returns:
        `None` if all that the material has was asked.
    """
    usable = [shape for shape in shapes if shape.operation == operation] or DEFAULTS[operation]
    asked = [each for each in material.asked if each.operation == operation]
    if asked and draws.below(len(asked) + len(material.texts)) < len(asked):
        start = draws.below(len(asked))
        for step in range(len(asked)):
            own = asked[(start + step) % len(asked)]
            body = _with_seed(dict(own.body), draws)
            composed = Composed(operation=operation, body=body, streamed=own.streamed)
            if is_free(composed.words):
                return composed
        if not material.texts:
            return None
    shape = usable[draws.weighted([shape.count for shape in usable])]
    # Most often the first is free: of our own words there are very many, of a file's texts perhaps none is left.
    tries = max(len(material.texts), 1) if material.texts else _TRIES
    for number in range(tries):
        composed = _of_shape(draws, shape, material, number)
        if is_free(composed.words):
            return composed
    return None


def _of_shape(draws: Draws, shape: Shape, material: Material, number: int) -> Composed:
    low, high = shape.characters
    length = low + draws.below(high - low)
    if shape.operation == EMBEDDINGS:
        count = max(min(shape.inputs, 64), 1)
        texts = _texts(draws, material, count, length // count, number)
        body: dict[str, Any] = {"input": texts[0] if count == 1 else texts}
        return Composed(operation=shape.operation, body=body, streamed=False)
    if shape.operation == COMPLETIONS:
        body = {"prompt": _texts(draws, material, 1, length, number)[0]}
        return Composed(
            operation=shape.operation, body=_with_parameters(body, shape, draws), streamed=shape.streamed
        )
    messages: list[dict[str, str]] = []
    if shape.system:
        system = draws.pick(material.systems or prompts.SYSTEMS)
        messages.append({"role": "system", "content": system})
        length = max(length - len(system), 16)
    questions = min((shape.messages + 1) // 2 or 1, _MAX_TURNS)
    *earlier, last = _texts(draws, material, questions, length // questions, number)
    messages.append({"role": "user", "content": last})
    body = {"messages": messages}
    if shape.tools:
        body["tools"] = _tools(draws, material, shape.tools)
    return Composed(
        operation=shape.operation,
        body=_with_parameters(body, shape, draws),
        streamed=shape.streamed,
        earlier=tuple(earlier),
    )


def _texts(draws: Draws, material: Material, count: int, length: int, number: int) -> list[str]:
    if not material.texts:
        return [prompts.write(draws, length) for _ in range(count)]
    found = []
    for _ in range(count):
        if number:
            # What is near the wanted length was asked already: any other text will do.
            found.append(draws.pick(material.texts))
            continue
        candidates = [draws.pick(material.texts) for _ in range(min(_TRIES, len(material.texts)))]
        found.append(min(candidates, key=lambda text: abs(len(text) - length)))
    return found


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
