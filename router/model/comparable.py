"""
Which requests make the claim of their answer comparable with the router's own count.

An engine bills every token that it makes, and the router sees text.  The two are equal only if
every token becomes text that the client gets: no bias towards tokens without text, no candidates
that are thrown away, no end of text that is made and then cut off.  So there is a list of what is
known to keep them equal.  A request with anything else is counted by the router alone: its claim
says nothing of the node, because the client may have caused any difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
_MAX_TEMPERATURE: Final = 1.0
"""Above it a model makes tokens that no text of theirs would be cut into again."""


def _is_any(_: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_one(value: Any) -> bool:
    # The texts of several answers are counted together, and each has an end that is billed and not shown.
    return type(value) is int and value == 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_stream_options(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= {"include_usage"}


def _are_messages(value: Any) -> bool:
    """Whether they are plain: images, calls of tools and their answers become tokens in ways of the model."""
    return isinstance(value, list) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"role", "content"}:
        return False
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        return False
    return isinstance(content, str) or (isinstance(content, list) and all(map(_is_text_part, content)))


def _is_text_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"type", "text"}
        and value.get("type") == "text"
        and isinstance(value.get("text"), str)
    )


_KEEPS_EQUAL: Final[Mapping[str, Callable[[Any], bool]]] = {
    "model": _is_text,
    "messages": _are_messages,
    "system": _is_text,
    "prompt": _is_text,
    "input": _is_text,
    "instructions": _is_text,
    "store": _is_flag,
    "stream": _is_flag,
    "stream_options": _are_stream_options,
    "n": _is_one,
    "max_tokens": _is_count,
    "max_completion_tokens": _is_count,
    "max_output_tokens": _is_count,
    "temperature": lambda value: type(value) in (int, float) and 0 <= value <= _MAX_TEMPERATURE,
    "top_p": _is_share,
    "seed": lambda value: type(value) is int,
    "user": _is_text,
    "logprobs": _is_any,
    "top_logprobs": _is_any,
}
"""Members of a request, with the values at which an engine bills what it shows.  ``null`` is the default."""


def is_comparable(document: Mapping[str, Any]) -> bool:
    """Whether every token that an engine bills for the request becomes text that the router counts."""
    return all(
        (check := _KEEPS_EQUAL.get(name)) is not None and (value is None or check(value))
        for name, value in document.items()
    )
