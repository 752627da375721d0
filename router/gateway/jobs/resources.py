"""``/v1/files`` and ``/v1/batches``: a caller's own, and nobody else's."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Final

import msgspec
from aiohttp import hdrs, web

from router.config import ApiKey
from router.gateway.errors import GatewayError, json_answer
from router.gateway.handler import IDEMPOTENCY_HEADER
from router.gateway.idempotency import CachedResponse, IdempotencyError
from router.gateway.jobs.guests import write_guest
from router.gateway.jobs.service import JOBS, MAX_UPLOADS, Jobs
from router.gateway.jobs.uploads import PURPOSE, Upload
from router.gateway.jobs.wire import (
    file_to_wire,
    invalid,
    job_to_wire,
    list_to_wire,
    no_such,
    read_create,
)
from router.gateway.keys import ANONYMOUS
from router.gateway.openai import DRAFT, KEY
from router.gateway.receipting import ANSWERED
from router.model.errors import LostLeaseError
from router.store import files, jobs
from router.store.files import StoredFile
from router.store.jobs import CANCELLED, CANCELLING, FINALIZING, IN_PROGRESS, VALIDATING, Job
from verifier.errors import RequestError, StoreError
from verifier.service.http import MAX_JSON, read_body
from verifier.service.problem import status_of
from verifier.store.database import RETRY_AFTER_S, Tx

_DAY_MS: Final = 86_400_000
_MAX_FILES: Final = 10_000
"""Of one page."""
_MAX_JOBS: Final = 100
_LEAST_PACE: Final = 64 << 10
"""Bytes per second that a client must take."""
_MAX_KEPT: Final = 10_000
"""Batches of a key, ended ones included."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")

Handler = Callable[[web.Request, Jobs, ApiKey], Awaitable[web.StreamResponse]]


def _resource(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A resource of callers that have a key of their own, at a router that keeps what it is given."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            found, key = _admitted(request)
            return await handler(request, found, key)
        except GatewayError as error:
            return _closing(request, error.response())
        except RequestError as error:
            status = status_of(error.code)
            return _closing(request, GatewayError(status, "invalid_request_error", str(error)).response())
        except StoreError:
            what = "the store cannot be used now"
            answer = GatewayError(503, "service_unavailable", what, retry_after=RETRY_AFTER_S).response()
            return _closing(request, answer)

    return answer


def _admitted(request: web.Request) -> tuple[Jobs, ApiKey]:
    """The router's jobs, and the caller's key.  Raises `GatewayError`."""
    found, key = request.app[JOBS], request[KEY]
    if found is None:
        what = "this router has no batches: they need a store, and enabled = true in [batches]"
        raise GatewayError(501, "invalid_request_error", what, code="batches_unavailable")
    if key is ANONYMOUS:
        what = "files and batches need an API key: otherwise anybody could read them"
        raise GatewayError(403, "invalid_request_error", what, code="insufficient_permissions")
    draft = request.get(DRAFT)
    if draft is not None:
        draft.check_salt()
    return found, key


def _closing(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End the connection with the answer if the request's body was not read."""
    if not request.content.is_eof():
        response.force_close()
    return response


# Files.


@_resource
async def upload(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """Keep a file."""
    if found.uploads >= MAX_UPLOADS:
        raise GatewayError(503, "service_unavailable", "too many uploads at a time", retry_after=5)
    found.uploads += 1
    try:
        with Upload(request, found.config) as given:
            await given.read()
            now_ms = found.runner.ranges.now_ms()
            keep_s = given.keep_s
            expires_ms = now_ms + (found.config.keep_days * _DAY_MS if keep_s is None else keep_s * 1000)
            file = StoredFile(
                id=f"file-{jobs.new_id(now_ms)}",
                owner=key.name,
                purpose=PURPOSE,
                name=given.name,
                bytes=given.size,
                created_ms=now_ms,
                expires_ms=expires_ms,
            )
            await found.keep(file, given.data)
    finally:
        found.uploads -= 1
    return json_answer(200, file_to_wire(file))


@_resource
async def list_files(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """A page of the caller's files."""
    query = request.query
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order must be asc or desc", param="order")
    limit = _limit(request, _MAX_FILES, _MAX_FILES)
    async with found.db.read() as tx:
        some = await files.page(
            tx,
            key.name,
            after=_id_in(request, "after"),
            limit=limit + 1,
            rising=order == "asc",
            purpose=_id_in(request, "purpose"),
        )
    return json_answer(200, list_to_wire([file_to_wire(file) for file in some], limit))


async def _file(request: web.Request, found: Jobs, key: ApiKey) -> StoredFile:
    name = _id(request, "file")
    async with found.db.read() as tx:
        file = await files.find(tx, name, key.name)
    if file is None or (file.expires_ms is not None and file.expires_ms <= found.runner.ranges.now_ms()):
        raise no_such("file", name)
    return file


@_resource
async def show_file(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """One of the caller's files."""
    return json_answer(200, file_to_wire(await _file(request, found, key)))


@_resource
async def delete_file(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """Delete one of the caller's files."""
    file = await _file(request, found, key)

    async def delete(tx: Tx) -> bool:
        if await jobs.is_read(tx, file.id):
            return False
        await files.begin_deleting(tx, file.id, key.name)
        return True

    if not await found.db.write(delete):
        what = "a batch reads this file: cancel the batch, or wait for its end"
        raise GatewayError(409, "invalid_request_error", what, code="file_in_use")
    found.delete_soon()
    return json_answer(200, {"id": file.id, "object": "file", "deleted": True})


@_resource
async def show_content(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """What is in one of the caller's files."""
    file = await _file(request, found, key)
    response = web.StreamResponse(
        headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
    )
    response.content_length = file.bytes
    if request.method == hdrs.METH_HEAD:
        return response
    draft = request.get(DRAFT)
    if draft is not None:
        draft.claim(key.name)
        draft.name(response)
    try:
        await _send(request, response, found, file)
    except TimeoutError:
        # A client that reads nothing is given up.
        if request.transport is not None:
            request.transport.abort()
    finally:
        if draft is not None:
            draft.end(ANSWERED)
    return response


async def _send(request: web.Request, response: web.StreamResponse, found: Jobs, file: StoredFile) -> None:
    """Send what is in a file.  Raises `TimeoutError` if the client does not read it."""
    draft, patience_s = request.get(DRAFT), found.gateway.config.write_timeout_s
    await response.prepare(request)
    async for data in _content(found, file):
        async with asyncio.timeout(patience_s + len(data) / _LEAST_PACE):
            await response.write(data)
        if draft is not None:
            draft.note_sent(data)
    await response.write_eof()
    if draft is not None:
        draft.is_complete = True


async def _content(found: Jobs, file: StoredFile) -> AsyncIterator[bytes]:
    if file.job is None:
        for number in range((file.bytes + files.PART - 1) // files.PART):
            async with found.db.read() as tx:
                part = await files.parts(tx, file.id, number, number)
            if not part:
                return
            yield part[0]
        return
    after = 0
    while True:
        async with found.db.read() as tx:
            lines = await files.result_lines(tx, file.job, file.side, after)
        if not lines:
            return
        after = lines[-1][0]
        yield b"".join(data for _, data in lines)


# Batches.


@_resource
async def create(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """Begin a batch."""
    data = await read_body(request, MAX_JSON)
    header = request.headers.get(IDEMPOTENCY_HEADER)
    replays = found.gateway.replays
    if header is None:
        return json_answer(200, await _create(data, found, key))
    try:
        cached = replays.begin(key.name, header, hashlib.sha256(b"/v1/batches\n" + data).digest())
    except IdempotencyError as error:
        raise GatewayError(
            error.status, "invalid_request_error", str(error), code=error.code, retry_after=error.retry_after
        ) from None
    if cached is not None:
        return web.Response(status=200, body=cached.body, content_type="application/json")
    try:
        body = msgspec.json.encode(await _create(data, found, key))
        replays.keep(key.name, header, CachedResponse(200, "application/json", (), body))
    finally:
        replays.forget(key.name, header)
    return web.Response(status=200, body=body, content_type="application/json")


async def _create(data: bytes, found: Jobs, key: ApiKey) -> dict[str, object]:
    asked, window_ms = read_create(data, found.config.max_window_hours)
    now_ms = found.runner.ranges.now_ms()
    is_guest = found.gateway.keyring.is_guest(key)
    job = Job(
        id=f"batch_{jobs.new_id(now_ms)}",
        owner=key.name,
        guest=write_guest(key) if is_guest else None,
        endpoint=asked.endpoint,
        input_file=asked.input_file_id,
        completion_window=asked.completion_window,
        created_ms=now_ms,
        expires_ms=now_ms + window_ms,
        metadata=asked.metadata or {},
        keep_output_s=None if asked.output_expires_after is None else asked.output_expires_after.seconds,
    )

    async def add(tx: Tx) -> str:
        file = await files.find(tx, job.input_file, key.name)
        if file is None or file.purpose != PURPOSE or (file.expires_ms or now_ms + 1) <= now_ms:
            return "file"
        still, kept = await jobs.count(tx, key.name)
        if still >= found.config.max_open:
            return f"the key has {still} batches that have not ended"
        if kept >= _MAX_KEPT:
            return f"the key has {kept} batches, which are kept for {found.config.keep_days} days"
        await jobs.add(tx, job)
        return ""

    refused = await found.db.write(add)
    if refused == "file":
        raise GatewayError(
            404,
            "invalid_request_error",
            f"there is no file {job.input_file[:64]!r} with the purpose {PURPOSE}",
            param="input_file_id",
        )
    if refused:
        raise GatewayError(429, "rate_limit_error", refused, code="too_many_batches", retry_after=60)
    found.duties.wake.set()
    return job_to_wire(job)


@_resource
async def list_jobs(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """A page of the caller's batches, the newest first."""
    limit = _limit(request, 20, _MAX_JOBS)
    after = _id_in(request, "after")
    async with found.db.read() as tx:
        some = await jobs.page(tx, key.name, after=after, limit=limit + 1)
    return json_answer(200, list_to_wire([job_to_wire(job) for job in some], limit))


@_resource
async def show(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """One of the caller's batches."""
    return json_answer(200, job_to_wire(await _job(request, found, key)))


@_resource
async def cancel(request: web.Request, found: Jobs, key: ApiKey) -> web.StreamResponse:
    """Cancel one of the caller's batches: what is done stays, and no further line is begun."""
    job = await _job(request, found, key)
    return json_answer(200, job_to_wire(await cancel_job(found, job)))


async def cancel_job(found: Jobs, job: Job) -> Job:
    """
    Cancel a job.

    Raises:
        GatewayError: it has ended.
    """
    now_ms = found.runner.ranges.now_ms()

    async def cancel(tx: Tx) -> Job | None:
        newest = await jobs.find(tx, job.id)
        if newest is None or newest.status in (CANCELLING, CANCELLED):
            return newest
        if newest.status not in (VALIDATING, IN_PROGRESS, FINALIZING):
            return None
        await jobs.move(tx, newest, CANCELLING, now_ms)
        return await jobs.find(tx, job.id)

    try:
        cancelled = await found.db.write(cancel)
    except LostLeaseError:
        cancelled = None
    if cancelled is None:
        what = "the batch has ended already"
        raise GatewayError(409, "invalid_request_error", what, code="batch_ended")
    found.duties.wake.set()
    return cancelled


async def _job(request: web.Request, found: Jobs, key: ApiKey) -> Job:
    name = _id(request, "batch")
    async with found.db.read() as tx:
        job = await jobs.find(tx, name)
    if job is None or job.owner != key.name:
        raise no_such("batch", name)
    return job


def _id(request: web.Request, what: str) -> str:
    """The id in the path.  Raises `GatewayError` if there can be none."""
    name = request.match_info["id"]
    if _ID.match(name) is None:
        raise no_such(what, name)
    return name


def _id_in(request: web.Request, name: str) -> str:
    """An id, or a word, in the query; empty if it is missing.  Raises `GatewayError`."""
    text = request.query.get(name, "")
    if text and _ID.match(text) is None:
        raise invalid(f"{name} is malformed", param=name)
    return text


def _limit(request: web.Request, default: int, most: int) -> int:
    text = request.query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 1 <= int(text) <= most):
        raise invalid(f"limit must be 1 to {most}", param="limit")
    return int(text)
