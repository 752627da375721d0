"""Files and jobs in the form that OpenAI's clients know, and their requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from router.gateway.errors import GatewayError
from router.gateway.jobs.lines import endpoints
from router.store.files import StoredFile
from router.store.jobs import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    Job,
)

MIN_KEPT_S: Final = 3600
MAX_KEPT_S: Final = 2_592_000
"""How long a caller may have a file kept, as OpenAI's API bounds it."""
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([hd])\Z")
_LEAST_HOURS: Final = 24
_TIMES: Final = (IN_PROGRESS, FINALIZING, COMPLETED, FAILED, EXPIRED, CANCELLING, CANCELLED)


class ExpiresAfter(Struct, frozen=True, forbid_unknown_fields=True):
    """``output_expires_after``."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=MIN_KEPT_S, le=MAX_KEPT_S)]


class CreateBatch(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/batches``."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=128)]
    endpoint: Annotated[str, Meta(max_length=128)]
    completion_window: Annotated[str, Meta(max_length=16)]
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None


def read_create(data: bytes, max_hours: int) -> tuple[CreateBatch, int]:
    """
    Read the body of a request for a batch.

    Returns:
        The request, and its completion window in milliseconds.

    Raises:
        GatewayError: it does not have the form.
    """
    try:
        asked = msgspec.json.decode(data, type=CreateBatch)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise invalid(str(error)) from None
    if asked.endpoint not in endpoints():
        raise invalid(f"endpoint must be one of {', '.join(endpoints())}", param="endpoint")
    found = _WINDOW.match(asked.completion_window)
    hours = 0 if found is None else int(found[1]) * (24 if found[2] == "d" else 1)
    if not _LEAST_HOURS <= hours <= max_hours:
        what = f"completion_window must be {_LEAST_HOURS}h to {max_hours}h, or as many days, such as 2d"
        raise invalid(what, param="completion_window")
    return asked, hours * 3_600_000


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> GatewayError:
    """A request that does not have the form."""
    return GatewayError(400, "invalid_request_error", message, param=param, code=code)


def no_such(what: str, name: str) -> GatewayError:
    """There is none, or it is another's: which of the two is not told."""
    return GatewayError(404, "invalid_request_error", f"no such {what}: {name[:64]!r}", param="id")


def file_to_wire(file: StoredFile) -> dict[str, Any]:
    """A file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": None if file.expires_ms is None else file.expires_ms // 1000,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def list_to_wire(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list; one more than *limit* was looked for."""
    shown = list(found[:limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }


def job_to_wire(job: Job) -> dict[str, Any]:
    """A batch."""
    errors = None
    if job.errors:
        data = [
            {"code": each.code, "line": each.line, "message": each.message, "param": each.param}
            for each in job.errors
        ]
        errors = {"object": "list", "data": data}
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": job.model,
        "errors": errors,
        "input_file_id": job.input_file,
        "completion_window": job.completion_window,
        "status": job.status,
        "output_file_id": job.output_file,
        "error_file_id": job.error_file,
        "created_at": job.created_ms // 1000,
        "expires_at": job.expires_ms // 1000,
        **{f"{status}_at": _seconds(job.times.get(status)) for status in _TIMES},
        "request_counts": {"total": job.total, "completed": job.completed, "failed": job.failed},
        "usage": {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": job.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.prompt_tokens + job.completion_tokens,
        },
        "metadata": job.metadata or None,
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
