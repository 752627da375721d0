"""
What an operator gives to make prompts from: JSON lines of texts and of OpenAI requests.  Pure.

A line is a string, ``{"text": …}``, ``{"system": …}``, ``{"tool": {…}}``, or the body of a request: with ``messages``,
``prompt`` or ``input``.  Of a body only the members are kept that decide its answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.answers.checks import CHAT, COMPLETIONS, EMBEDDINGS, Operation
from verifier.errors import RequestError

MAX_FILE: Final = 256 << 20
"""Bytes."""
MAX_LINE: Final = 1 << 18
MAX_LINES: Final = 1_000_000
KEPT: Final = frozenset(
    {
        "messages", "prompt", "input", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "tools",
        "tool_choice", "frequency_penalty", "presence_penalty", "seed", "response_format", "dimensions",
    }
)  # fmt: skip
"""The members of a body that are asked again."""
_DROPPED: Final = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "n",
        "user",
        "metadata",
        "store",
        "encoding_format",
    }
)
"""Members that say nothing about the answer, or that the check itself sets."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of the operator's, as it is."""

    operation: Operation
    body: dict[str, Any]
    streamed: bool


@dataclass(frozen=True, kw_only=True)
class Material:
    """What prompts are made from."""

    texts: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    asked: tuple[Asked, ...] = ()


def read_material(lines: Iterable[bytes]) -> Material:
    """
    Read the lines of a file.

    Raises:
        RequestError: a line is too long or of no known form; it says which.
    """
    texts: list[str] = []
    systems: list[str] = []
    tools: list[dict[str, Any]] = []
    asked: list[Asked] = []
    for number, line in enumerate(lines, 1):
        if number > MAX_LINES or len(line) > MAX_LINE:
            raise RequestError(
                f"line {number}: a file may have {MAX_LINES} lines, each of {MAX_LINE} bytes at most"
            )
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"line {number}: {error}") from None
        match value:
            case str(text) | {"text": str(text)} if text.strip():
                texts.append(text)
            case {"system": str(text)} if text.strip():
                systems.append(text)
            case {"tool": {"type": "function", "function": {"name": str()}} as tool}:
                tools.append(tool)
            case dict() if body := _read_body(value, number):
                asked.append(body)
            case _:
                raise RequestError(
                    f"line {number} is no text, no system prompt, no tool and no request. Write a string, "
                    '{"text": …}, {"system": …}, {"tool": {…}}, or a body with messages, prompt or input'
                )
    return Material(texts=tuple(texts), systems=tuple(systems), tools=tuple(tools), asked=tuple(asked))


def _read_body(value: dict[str, Any], number: int) -> Asked | None:
    """A request, if it is one of a kind that is checked; `None` if it is no request."""
    operation: Operation
    match value:
        case {"messages": [_, *_]}:
            operation = CHAT
        case {"prompt": str()}:
            operation = COMPLETIONS
        case {"input": str() | [_, *_]}:
            operation = EMBEDDINGS
        case _:
            return None
    unknown = sorted(value.keys() - KEPT - _DROPPED)
    if unknown:
        raise RequestError(f"line {number}: requests with {unknown[0][:40]!r} cannot be minted")
    if value.get("n") not in (None, 1):
        raise RequestError(f"line {number}: only requests for one answer can be minted")
    body = {name: part for name, part in value.items() if name in KEPT}
    return Asked(operation=operation, body=body, streamed=value.get("stream") is True)
