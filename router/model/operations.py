"""
The operations of OpenAI's API that the gateway serves, one value for each endpoint.

Here is how endpoints differ: the path, the bounds, how a whole answer and a stream are read,
which text is the prompt.  A new endpoint is a new value in `OPERATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import structs

from router.model.answers import (
    Answer,
    AnswerFormatError,
    ChunkReader,
    Content,
    StreamReader,
    is_json_object,
    read_completion,
    read_embeddings,
)
from router.model.outcomes import Outcome, of_status
from router.model.tokens import prompt_text
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
    """Of a stream, the ``object`` of chunks that the router itself adds."""
    prompt_text: Callable[[Mapping[str, Any]], str] = prompt_text
    """The text of a request that counts as its prompt."""
    form: Form | None = None
    """The form of its answers, if they are held against what their requests ask of them."""
    is_metered: bool = True
    """Whether the usage that nodes claim is compared with the router's own count."""
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
        """A chunk without choices, for what the router adds to a stream."""
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


OPERATIONS: Final[dict[str, Operation]] = {
    operation.name: operation
    for operation in (
        Operation(
            name="embeddings",
            read_whole=read_embeddings,
            form=Form.VECTORS,
            is_metered=False,
            max_values=1 << 19,
        ),
        Operation(
            name="chat/completions",
            read_whole=partial(read_completion, is_chat=True),
            read_stream=ChunkReader,
            chunk_object="chat.completion.chunk",
            form=Form.TEXTS,
        ),
        Operation(
            name="completions",
            read_whole=partial(read_completion, is_chat=False),
            read_stream=ChunkReader,
            chunk_object="text_completion",
            form=Form.TEXTS,
        ),
    )
}
"""By name, in the order in which workloads without a list of their own have them."""
