"""Batches without what is in them: for their owners, and for people who look after a router."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from router.gateway.errors import GatewayError
from router.gateway.jobs.resources import cancel_job
from router.gateway.jobs.service import JOBS, Jobs
from router.gateway.jobs.wire import job_to_wire
from router.store import jobs
from router.store.jobs import Job
from verifier.errors import RequestError
from verifier.roles import Role
from verifier.service.access import caller_of
from verifier.service.http import json_response, page_of

_SEE_ALL: Final = frozenset({Role.AUDITOR, Role.ADMINISTRATOR})
_MAX_ID: Final = 128


def _jobs(request: web.Request) -> Jobs:
    found = request.app[JOBS]
    if found is None:
        raise RequestError("this router has no batches", code="request.not-found")
    return found


def _to_wire(job: Job) -> dict[str, Any]:
    return {**job_to_wire(job), "owner": job.owner}


async def list_all(request: web.Request) -> web.Response:
    """A page of batches, the newest first; a relying party sees its own."""
    found, caller = _jobs(request), caller_of(request)
    after, limit = page_of(request)
    async with found.db.read() as tx:
        if caller.roles.isdisjoint(_SEE_ALL):
            some = await jobs.page(tx, caller.name, after=after, limit=limit)
        else:
            some = await jobs.newest(tx, after=after, limit=limit)
    return json_response({"batches": [_to_wire(job) for job in some], "in_flight": found.runner.in_flight})


async def show(request: web.Request) -> web.Response:
    """One of them."""
    return json_response(_to_wire(await _find(request)))


async def cancel(request: web.Request) -> web.Response:
    """Cancel a batch."""
    job = await _find(request)
    try:
        return json_response(_to_wire(await cancel_job(_jobs(request), job)))
    except GatewayError as error:
        raise RequestError(str(error), code="request.replayed") from None


async def _find(request: web.Request) -> Job:
    found, caller = _jobs(request), caller_of(request)
    name = request.match_info["id"]
    job = None
    if name.isascii() and name.isprintable() and len(name) <= _MAX_ID:
        async with found.db.read() as tx:
            job = await jobs.find(tx, name)
    if job is None or (caller.roles.isdisjoint(_SEE_ALL) and job.owner != caller.name):
        raise RequestError("no such batch", code="request.not-found")
    return job
