"""
``/v1/rerank`` and ``/v1/score``, as vLLM and llama.cpp serve them: how well documents answer a query.

Neither is streamed, and neither generates text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from router.model.answers import AnswerFormatError, Content
from router.model.claims import dicts, text, usage_of
from router.model.usage import Usage

_TEXTS: Final = ("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2")
"""Members of requests that hold texts."""
_Index = Annotated[int, Meta(ge=0, le=1 << 24)]


class _Ranked(Struct, frozen=True, gc=False):
    index: _Index
    relevance_score: float


class _Ranking(Struct, frozen=True, gc=False):
    results: Annotated[list[_Ranked], Meta(min_length=1)]
    usage: Any = None


class _Scored(Struct, frozen=True, gc=False):
    score: float


class _Scores(Struct, frozen=True, gc=False):
    data: Annotated[list[_Scored], Meta(min_length=1)]
    usage: Any = None


_ranking: Final = msgspec.json.Decoder(_Ranking)
_scores: Final = msgspec.json.Decoder(_Scores)


def read_ranking(body: bytes) -> Content:
    """Read the body of a ranking: documents by their index, each with a score.  Raises `AnswerFormatError`."""
    return Content(claimed=_claimed(_read(_ranking, body).usage))


def read_scores(body: bytes) -> Content:
    """Read the body of an answer with scores.  Raises `AnswerFormatError`."""
    return Content(claimed=_claimed(_read(_scores, body).usage))


def _read(decoder: Any, body: bytes) -> Any:
    try:
        if not body.isascii():
            body.decode()
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None


def _claimed(usage: Any) -> Usage | None:
    """Nothing is generated; some servers tell the sum alone."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("total_tokens"))
    return usage_of({"prompt": prompt, "completion": 0}, ("prompt",), "completion")


def prompt_text(document: Mapping[str, Any]) -> str:
    """The query and the documents, or the texts of both sides; one line each."""
    parts: list[str] = []
    for name in _TEXTS:
        value = document.get(name)
        for each in value if isinstance(value, list) else [value]:
            parts.append(text(each))
            if isinstance(each, dict):
                parts.append(text(each.get("text")))
                parts += [text(part.get("text")) for part in dicts(each.get("content"))]
    return "\n".join(part for part in parts if part)
