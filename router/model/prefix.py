"""
How a request begins: what engines keep of its prompt, they keep for requests that begin alike.  Pure.

The head is short.  Two requests that differ within it would share less than `HEAD` characters, which is some blocks of an
engine's prefix cache; and who sees that two requests have one head has seen that in the requests themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

HEAD: Final = 256
"""Characters."""
_MAX_PARTS: Final = 64
"""Messages, and parts of them, that are looked at: empty ones must not hold up the loop."""


def head_of(document: Mapping[str, Any]) -> bytes:
    """The first characters of a prompt: of its messages with their roles, of its text, or of its token ids."""
    found, left = [], HEAD
    for part in _parts(document):
        found.append(part[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    return "\0".join(found).encode(errors="surrogatepass")


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    for name in ("system", "instructions"):
        yield from _texts(document.get(name))
    for message in _some(document.get("messages")):
        if isinstance(message, dict):
            yield str(message.get("role"))[:HEAD]
            yield from _texts(message.get("content"))
    for name in ("prompt", "input"):
        yield from _texts(document.get(name))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in _some(value):
        if isinstance(part, int):
            yield str(part)
        elif isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            text = part.get("text")
            content = part.get("content") if text is None else text
            if isinstance(content, str):
                yield content
            else:
                # An image, or a message of the newer form.
                yield str(part.get("type"))[:HEAD]


def _some(value: Any) -> list[Any]:
    return value[:_MAX_PARTS] if isinstance(value, list) else []
