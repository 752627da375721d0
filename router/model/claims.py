"""Reading what nodes claim in the newer forms of answers: leniently, because nothing but the count rests on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from router.model.answers import AnswerFormatError
from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.usage import Usage

_MOST: Final = 1 << 40
_object: Final = msgspec.json.Decoder(dict[str, Any])


def usage_of(value: Any, prompt: tuple[str, ...], completion: str) -> Usage | None:
    """
    The usage in an answer; `None` if it has none that can be read.

    Args:
        value: The ``usage`` of the answer.
        prompt: The members that count tokens of the prompt; they are added up, and the first must be there.
        completion: The member that counts tokens of the answer.
    """
    if not isinstance(value, dict):
        return None
    counts = [_count(value.get(name)) for name in (*prompt, completion)]
    if counts[0] is None or counts[-1] is None:
        return None
    return Usage(sum(count or 0 for count in counts[:-1]), counts[-1])


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST else None


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that is a whole answer.  Raises `AnswerFormatError`."""
    try:
        return _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None


def read_event(data: bytes) -> tuple[str, dict[str, Any]]:
    """The type of an event of a stream, and the event.  Raises `AttemptError`."""
    try:
        event = _object.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event = {}
    kind = event.get("type")
    if not isinstance(kind, str):
        if event.get("error") is not None:
            kind = "error"
        else:
            raise AttemptError(Outcome.CORRUPTED, "an event is not part of an answer")
    if kind == "error":
        raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error")
    return kind, event


def rewrite_usage(body: bytes, change: Mapping[str, int]) -> bytes:
    """An answer whose ``usage`` has these counts instead of the node's."""
    document: dict[str, Any] = msgspec.json.decode(body)
    usage = document.get("usage")
    document["usage"] = {**(usage if isinstance(usage, dict) else {}), **change}
    return msgspec.json.encode(document)


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none of anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """A string as it is; nothing of anything else."""
    return value if isinstance(value, str) else ""
