"""Changes of the table of workloads as a resource: propose one, look at it, give it a share, promote it, take it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from attester.errors import ConfigError
from router.model.change import Bounds, By, Settings
from router.model.errors import ChangeError, UnknownChangeError
from router.model.table import MAX_TABLE
from router.service.change_view import describe, detail
from router.service.comparing import revised
from router.service.state import STATE, State
from verifier.errors import RequestError
from verifier.service.access import caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body

_LISTED: Final = 50
_MAX_BODY: Final = 2 * MAX_TABLE + MAX_JSON
"""A table as text of JSON, in which some characters take two bytes."""
_Reason = Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"\S")]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Compare(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two revisions of a model: nodes of the first are compared with nodes of the second."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    revision_from: _Digest
    revision_to: _Digest


class _Proposal(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    reason: _Reason
    table: str | None = None
    """The candidate, as a file of workloads has it."""
    compare: _Compare | None = None
    """Instead of a table: the one in force, with one revision of a model alone."""
    by: By | None = None
    bounds: Bounds | None = None


class _Step(Struct, frozen=True, forbid_unknown_fields=True):
    reason: _Reason
    anyway: bool = False


class _Share(Struct, frozen=True, forbid_unknown_fields=True):
    percent: Annotated[int, Meta(ge=0, le=100)]
    reason: _Reason
    anyway: bool = False


async def list_newest(request: web.Request) -> web.Response:
    """The newest changes."""
    state = request.app[STATE]
    found = await state.changes.list_newest(_LISTED)
    return json_response({"changes": [describe(state, change) for change in found]})


async def show(request: web.Request) -> web.Response:
    """One of them, with its steps, its differences, and both arms side by side."""
    return json_response(await _detail(request.app[STATE], request.match_info["id"]))


async def propose(request: web.Request) -> web.Response:
    """Have a table decide beside the one in force."""
    state = request.app[STATE]
    given = parse_json(await read_body(request, _MAX_BODY), _Proposal)
    if (given.table is None) == (given.compare is None):
        raise RequestError("a proposal has a table, or compares two revisions", code="request.malformed")
    section = state.config.changes
    settings = Settings(by=given.by or section.by, bounds=given.bounds or section.bounds)
    try:
        if given.compare is None:
            document = (given.table or "").encode()
        else:
            document, settings = await revised(state, settings, **msgspec.structs.asdict(given.compare))
        change = await state.change_steps.propose(document, settings, caller_of(request).name, given.reason)
    except (ConfigError, ChangeError, UnicodeError) as error:
        raise _refused(error) from None
    headers = {"Location": f"/api/v1/changes/{change.id}"}
    return json_response(await _detail(state, change.id), status=201, headers=headers)


async def share(request: web.Request) -> web.Response:
    """Give the candidate a share of the traffic, or another one."""
    given = parse_json(await read_body(request, MAX_JSON), _Share)
    state, change_id = request.app[STATE], request.match_info["id"]
    try:
        await state.change_steps.share(
            change_id, given.percent, caller_of(request).name, given.reason, anyway=given.anyway
        )
    except ChangeError as error:
        raise _refused(error) from None
    return json_response(await _detail(state, change_id))


async def promote(request: web.Request) -> web.Response:
    """Put the candidate in force."""
    given = parse_json(await read_body(request, MAX_JSON), _Step)
    state, change_id = request.app[STATE], request.match_info["id"]
    try:
        await state.change_steps.promote(
            change_id, caller_of(request).name, given.reason, anyway=given.anyway
        )
    except ChangeError as error:
        raise _refused(error) from None
    return json_response(await _detail(state, change_id))


async def abort(request: web.Request) -> web.Response:
    """Go back to the table that was in force before, at once."""
    given = parse_json(await read_body(request, MAX_JSON), _Step)
    state, change_id = request.app[STATE], request.match_info["id"]
    try:
        await state.change_steps.abort(change_id, caller_of(request).name, given.reason)
    except ChangeError as error:
        raise _refused(error) from None
    return json_response(await _detail(state, change_id))


async def _detail(state: State, change_id: str) -> Mapping[str, Any]:
    try:
        change, steps, sights = await state.changes.show(change_id)
    except ChangeError:
        raise RequestError("there is no such change", code="request.not-found") from None
    return detail(state, change, steps, sights)


def _refused(error: Exception) -> RequestError:
    if isinstance(error, UnknownChangeError):
        return RequestError(str(error), code="request.not-found")
    if isinstance(error, ChangeError):
        return RequestError(str(error), code="change.state")
    return RequestError(f"the table is refused: {error}", code="request.malformed")
