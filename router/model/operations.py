"""
The operations that the gateway serves, one value for each endpoint: OpenAI's API, and what engines add to it.

Here is how endpoints differ: the path, the bounds, how a whole answer and a stream are read,
which text is the prompt.  A new endpoint is a new value in `OPERATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import structs

from router.model import messages, responses, scores
from router.model.answers import (
    Answer,
    AnswerFormatError,
    ChunkReader,
    Content,
    StreamReader,
    is_json_object,
    read_completion,
    read_embeddings,
    with_usage,
)
from router.model.outcomes import Outcome, of_status
from router.model.tokens import prompt_text
from router.model.usage import Usage
from router.model.wishes import Form, Wishes, check_whole

_REFUSED: Final = msgspec.json.encode(
    {
        "error": {
            "message": "the node refused the request",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
)
"""What the client gets if a node refuses in a form that clients cannot read."""


_MAX_VALUES: Final = 1 << 22
"""Values in a whole answer, such as the numbers of embeddings."""
_MAX_LISTS: Final = 1 << 20
"""Lists and objects in a whole answer: they take longest to read."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One endpoint, and how its requests and answers are read."""

    name: str
    """As in ``workloads.yaml``: the path below ``/v1/``."""
    read_whole: Callable[[bytes], Content]
    """Reads the body of an answer with status 200; raises `AnswerFormatError`."""
    read_stream: Callable[[], StreamReader] | None = None
    """Makes the reader of one stream; `None` if the operation is not streamed."""
    chunk_object: str = ""
    """Of a stream of chunks, the ``object`` of those that the router itself adds; other streams have typed events."""
    last_event: tuple[bytes, bytes] | None = None
    """Name and data of the last typed event, which the router adds if the node left only that out."""
    has_choices: bool = False
    """Whether ``n``, and a list in ``prompt``, ask for several answers."""
    limits: tuple[str, ...] = ()
    """The members of a request that bound the tokens of an answer; none if no text is generated."""
    prepare: Callable[[dict[str, Any]], None] | None = None
    """Changes a request to what nodes are to get; raises `RequestFormError` for what cannot be served."""
    write_usage: Callable[[bytes, Usage], bytes] = with_usage
    """A whole answer with another usage."""
    error_members: Mapping[str, str] = field(default_factory=dict)
    """What its clients want to see in every error, beside ``error``."""
    prompt_text: Callable[[Mapping[str, Any]], str] = prompt_text
    """The text of a request that counts as its prompt."""
    checked_as: str = ""
    """What the verifier calls it, if nodes are asked what it has answered already; empty if they are not."""
    form: Form | None = None
    """The form of its answers, if they are held against what their requests ask of them."""
    is_metered: bool = True
    """Whether the usage that nodes claim is compared with the router's own count."""
    in_batches: bool = False
    """Whether lines of batches may be such requests."""
    max_request: int = 16 << 20
    """Bytes of a request."""
    max_values: int = 1 << 18
    """Values in a request: items of lists and members of objects, token ids included."""
    max_answer: int = 64 << 20
    """Bytes of a whole answer."""

    @property
    def path(self) -> str:
        """The endpoint's path, here and at nodes."""
        return f"/v1/{self.name}"

    def judge(self, status: int, body: bytes) -> Answer:
        """
        The outcome of a whole answer, and what the client gets of it.

        A 200 must hold what the operation is for.  A refusal counts as the client's fault,
        however the node words it: a client must not be able to have nodes ejected by what they
        refuse.
        """
        outcome, detail = of_status(status), f"status {status}"
        if outcome is Outcome.REFUSED:
            body = body if is_json_object(body) else _REFUSED
            return Answer(status=status, body=body, outcome=outcome, detail=detail)
        if outcome is not Outcome.COMPLETED:
            return Answer(status=status, body=b"", outcome=outcome, detail=detail)
        if _has_too_many_values(body):
            detail = "an answer of too many values"
            return Answer(status=status, body=b"", outcome=Outcome.CORRUPTED, detail=detail)
        try:
            content = self.read_whole(body)
        except AnswerFormatError as error:
            return Answer(status=status, body=b"", outcome=Outcome.CORRUPTED, detail=str(error))
        if content.is_empty:
            outcome, detail = Outcome.EMPTY, "a whole answer with nothing in it"
        return Answer(status=status, body=body, outcome=outcome, detail=detail, content=content)

    @property
    def has_typed_events(self) -> bool:
        """Whether events of its streams have names and types, and the node's own last event is the last."""
        return not self.chunk_object

    def judge_against(self, wishes: Wishes, status: int, body: bytes) -> Answer:
        """`judge`, and whether the answer keeps to what its request asks of its form."""
        answer = self.judge(status, body)
        if answer.outcome is not Outcome.COMPLETED or self.form is None:
            return answer
        kept = check_whole(wishes, self.form, body, answer.content.claimed)
        if kept.unhonoured is None:
            return answer if kept.calls_are_valid is None else structs.replace(answer, kept=kept)
        return structs.replace(answer, kept=kept, outcome=Outcome.UNHONOURED, detail=kept.sentence)

    def empty_chunk(self, model: str, record_id: str) -> dict[str, Any]:
        """An event without text, for what the router adds to a stream."""
        if self.has_typed_events:
            return {"type": "touchstone"}
        return {
            "id": record_id,
            "object": self.chunk_object,
            "created": 0,
            "model": model,
            "choices": [],
        }


def _has_too_many_values(body: bytes) -> bool:
    """By the bytes alone.  What is in strings counts too, and is never so much: the bounds are for hostile nodes."""
    lists = body.count(b"[") + body.count(b"{")
    return lists > _MAX_LISTS or lists + body.count(b",") > _MAX_VALUES


_LIMITS: Final = ("max_tokens", "max_completion_tokens")

OPERATIONS: Final[dict[str, Operation]] = {
    operation.name: operation
    for operation in (
        Operation(
            name="embeddings",
            in_batches=True,
            read_whole=read_embeddings,
            form=Form.VECTORS,
            checked_as="embeddings",
            is_metered=False,
            max_values=1 << 19,
        ),
        Operation(
            name="chat/completions",
            in_batches=True,
            read_whole=partial(read_completion, is_chat=True),
            read_stream=ChunkReader,
            chunk_object="chat.completion.chunk",
            checked_as="chat.completions",
            has_choices=True,
            limits=_LIMITS,
            form=Form.TEXTS,
        ),
        Operation(
            name="completions",
            in_batches=True,
            read_whole=partial(read_completion, is_chat=False),
            read_stream=ChunkReader,
            chunk_object="text_completion",
            checked_as="completions",
            form=Form.TEXTS,
            has_choices=True,
            limits=_LIMITS,
        ),
        Operation(
            name="responses",
            read_whole=responses.read_response,
            read_stream=responses.ResponseReader,
            prompt_text=responses.prompt_text,
            limits=("max_output_tokens",),
            prepare=responses.prepare_request,
            write_usage=responses.with_usage,
        ),
        Operation(
            name="messages",
            read_whole=messages.read_message,
            read_stream=messages.MessageReader,
            prompt_text=messages.prompt_text,
            limits=("max_tokens",),
            write_usage=messages.with_usage,
            last_event=(b"message_stop", b'{"type":"message_stop"}'),
            error_members={"type": "error"},
        ),
        Operation(
            name="rerank", read_whole=scores.read_ranking, prompt_text=scores.prompt_text, is_metered=False
        ),
        Operation(
            name="score", read_whole=scores.read_scores, prompt_text=scores.prompt_text, is_metered=False
        ),
    )
}
"""By name, in the order in which workloads without a list of their own have them."""
