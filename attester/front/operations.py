"""
The operations of OpenAI's API that are passed on to the engine, and no other path.

A request is compared with this table byte for byte, and what the engine gets is the table's own path.  So there is
no form of a path (dots, escapes, double slashes, an absolute URL) by which one could reach anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PREFIX: Final = "/v1/"
MODELS: Final = "models"
_GENERATE: Final = ("chat/completions", "completions", "embeddings", "models")
_ALL: Final = (*_GENERATE, "messages", "rerank", "responses", "score")

BY_ADAPTER: Final[Mapping[str, tuple[str, ...]]] = {
    # An engine of the operator's own: whatever it has.
    "loopback": _ALL,
    # The routes of vLLM 0.32.  Those with a model that cannot do them answer for themselves.
    "vllm": _ALL,
    # llama.cpp's server has no /v1/score.
    "llama.cpp": (*_GENERATE, "messages", "rerank", "responses"),
    "files": _ALL,
}


def methods(adapter: str, chosen: tuple[str, ...] | None = None) -> Mapping[str, str]:
    """
    The paths that are passed on, each with its method.

    Args:
        adapter: The adapter of the engine.
        chosen: The operations that the operator has named instead.
    """
    operations = BY_ADAPTER[adapter] if chosen is None else chosen
    return {PREFIX + each: "GET" if each == MODELS else "POST" for each in operations}
