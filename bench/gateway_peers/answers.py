"""What the backend answers: sixteen tokens, made once."""

from __future__ import annotations

from typing import Any, Final

import msgspec

MODEL: Final = "bench/tiny"
TOKENS: Final = 16
FIRST_TOKEN: Final = b'"content":"word'
AT_ONCE: Final = "all at once"
"""A prompt with these words gets its chunks in one write."""


def request(*, stream: bool = False, at_once: bool = False) -> bytes:
    """A chat completion as a client asks for it."""
    content = f"Say it {AT_ONCE}." if at_once else "Say it."
    document: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
    }
    if stream:
        document["stream"] = True
    return msgspec.json.encode(document)


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 4, "completion_tokens": TOKENS, "total_tokens": 4 + TOKENS}


def completion() -> bytes:
    """The whole answer."""
    message = {"role": "assistant", "content": "word " * TOKENS}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_795_000_000,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(),
        }
    )


def chunks() -> list[bytes]:
    """The streamed answer, one event each: the role, the tokens, why it ended, ``[DONE]``."""
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": "word "}, None)] * TOKENS
    deltas.append(({}, "stop"))
    found = []
    for delta, reason in deltas:
        document = {
            "id": "chatcmpl-bench",
            "object": "chat.completion.chunk",
            "created": 1_795_000_000,
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
        }
        found.append(b"data: " + msgspec.json.encode(document) + b"\n\n")
    return [*found, b"data: [DONE]\n\n"]


def embedding() -> bytes:
    """A vector of 384 numbers, as MiniLM gives."""
    data = [{"object": "embedding", "index": 0, "embedding": [i / 1024 for i in range(384)]}]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    return msgspec.json.encode({"object": "list", "data": data, "model": MODEL, "usage": usage})
