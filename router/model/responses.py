"""
``/v1/responses`` of OpenAI's API, as vLLM and llama.cpp serve it: requests, whole answers, and the events of a stream.

An answer is a list of items: messages, reasoning, calls of functions, and others that the router need not
understand.  What a server would keep from one request to the next cannot be had here: the next request may go
to another node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from router.model.answers import DONE, AnswerFormatError, Content, StreamPart
from router.model.claims import dicts, read_event, read_object, rewrite_usage, text, usage_of
from router.model.errors import AttemptError, RequestFormError
from router.model.outcomes import Outcome
from router.model.usage import Usage

STATE_MEMBERS: Final = frozenset({"store", "background", "previous_response_id", "conversation"})
"""Members of a request about what a server keeps."""
_KEPT_ELSEWHERE: Final = ("previous_response_id", "conversation")
_ENDS: Final = frozenset({"completed", "incomplete"})
_TEXT_DELTAS: Final = frozenset(
    f"response.{what}.delta"
    for what in (
        "output_text",
        "refusal",
        "reasoning",
        "reasoning_text",
        "reasoning_summary_text",
        "function_call_arguments",
        "custom_tool_call_input",
        "mcp_call_arguments",
    )
)
"""Events whose ``delta`` is text that the model generated."""
_CALLS: Final = frozenset({"function_call", "custom_tool_call"})


def prepare_request(document: dict[str, Any]) -> None:
    """
    Refuse what needs a server's memory, and tell nodes to keep nothing.

    Raises:
        RequestFormError: the request builds on an earlier one, or is to be kept.
    """
    for name in _KEPT_ELSEWHERE:
        if document.get(name) is not None:
            raise _no_state(
                f"{name} cannot be used: each request may go to another node. Send the whole input"
            )
    if document.get("background"):
        raise _no_state(
            "background cannot be used: nothing of a response is kept here. Wait for it, or stream it"
        )
    if document.get("store"):
        raise _no_state("store cannot be true: no response is kept here. Leave it out, or send false")
    if any(item.get("type") == "item_reference" for item in dicts(document.get("input"))):
        raise _no_state(
            "input has an item_reference: nothing of earlier responses is kept here. Send the item"
        )
    document["store"] = False


def _no_state(message: str) -> RequestFormError:
    return RequestFormError(message, code="state_not_kept")


def prompt_text(document: Mapping[str, Any]) -> str:
    """The instructions and the input, one line each."""
    parts = [text(document.get("instructions")), text(document.get("input"))]
    for item in dicts(document.get("input")):
        parts.append(text(item.get("content")))
        parts += [text(part.get("text")) for part in dicts(item.get("content"))]
        parts += [text(item.get(name)) for name in ("arguments", "output")]
    return "\n".join(part for part in parts if part)


def read_response(body: bytes) -> Content:
    """
    Read the body of a response.

    Raises:
        AnswerFormatError: it is not one, or it has not come to its end.
    """
    document = read_object(body)
    output, status = document.get("output"), document.get("status", "completed")
    if not isinstance(output, list) or len(dicts(output)) != len(output):
        raise AnswerFormatError("status 200 with a body that is not such an answer")
    if status not in _ENDS:
        raise AnswerFormatError("a response that has not come to its end")
    found = "".join([part for item in output for part in _texts(item)])
    # An item of a kind that the router does not know is something too.
    is_empty = not found and all(item.get("type") in ("message", "reasoning") for item in output)
    return Content(found, _claimed(document), is_empty=is_empty)


def _texts(item: Mapping[str, Any]) -> Iterator[str]:
    kind = item.get("type")
    if kind in _CALLS:
        yield text(item.get("name"))
        yield text(item.get("arguments")) or text(item.get("input"))
    elif kind == "message":
        content = item.get("content")
        if not isinstance(content, list):
            raise AnswerFormatError("a message lacks its content")
        for part in dicts(content):
            yield text(part.get("text")) or text(part.get("refusal"))
    elif kind == "reasoning":
        for part in dicts(item.get("summary")) + dicts(item.get("content")):
            yield text(part.get("text"))


def _claimed(document: Mapping[str, Any]) -> Usage | None:
    return usage_of(document.get("usage"), ("input_tokens",), "output_tokens")


def with_usage(body: bytes, counted: Usage) -> bytes:
    """A response with the usage that the router counted."""
    counts = {
        "input_tokens": counted.prompt,
        "output_tokens": counted.completion,
        "total_tokens": counted.total,
    }
    return rewrite_usage(body, counts)


class ResponseReader:
    """A `StreamReader` of responses: typed events, the last of which holds the whole response again."""

    __slots__ = ("is_done",)

    def __init__(self) -> None:
        self.is_done = False

    @property
    def is_finished(self) -> bool:
        """See `StreamReader`."""
        return self.is_done

    def read(self, data: bytes) -> StreamPart:
        """See `StreamReader`."""
        if data == DONE:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")
        kind, event = read_event(data)
        response = event.get("response")
        if kind in ("response.failed", "response.cancelled"):
            raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error")
        if kind in ("response.completed", "response.incomplete"):
            self.is_done = True
            return StreamPart("", data, _claimed(response) if isinstance(response, dict) else None)
        if kind in _TEXT_DELTAS:
            return StreamPart(text(event.get("delta")), data, None)
        item = event.get("item")
        if kind == "response.output_item.added" and isinstance(item, dict) and item.get("type") in _CALLS:
            return StreamPart(text(item.get("name")), data, None)
        return StreamPart("", data, None)
