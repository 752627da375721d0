"""
The review queue: the router's holds and the verifier's incidents, with what is known of each.

People look here, and release a node to probation with a reason.  A hold of the router is
released at once; an incident of the verifier by the verifier's API, if the router has a token for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from attester.bounded import read_all
from router.config import read_token
from router.model.errors import HoldError
from router.service import standing
from router.service.state import STATE, State
from router.state.holds import ROUTER
from router.store.holds import Hold
from verifier import triage
from verifier.errors import RequestError
from verifier.service.access import caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.triage import Fault

_MAX_ANSWER: Final = 16 << 20
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)


class _ReleaseBody(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    fault: Fault | None = None
    """Whose fault it was, if the person says so: later reviews of the same kind go by it."""


async def list_open(request: web.Request) -> web.Response:
    """What waits for a person, the router's own holds first; of these, what costs most to leave as it is."""
    state = request.app[STATE]
    now_ms = state.clock.now_ms()
    own = [
        {**triage.to_wire(waiting, priority, now_ms), **_wire(hold, now_ms)}
        for hold, waiting, priority in await state.holds.queue()
    ]
    known = {hold["incident"] for hold in own}
    try:
        page = await _ask(state, "GET", "?open=1&limit=500")
        listed = [each for each in page.get("incidents", []) if each.get("id") not in known]
        error = None
    except RequestError as failure:
        listed, error = [], str(failure)
    theirs = [{**each, "held_by": "verifier"} for each in listed]
    return json_response({"incidents": [*own, *theirs], "verifier_error": error})


async def show(request: web.Request) -> web.Response:
    """One of them, with its evidence, its history, and what the router measured of the node."""
    state = request.app[STATE]
    which = request.match_info["id"]
    try:
        hold, steps = await state.holds.show(which)
    except HoldError:
        document = {**await _ask(state, "GET", f"/{_plain(which)}"), "held_by": "verifier"}
    else:
        history = [{**step, "automatic": step["actor"] == ROUTER} for step in steps]
        document = {**_wire(hold, state.clock.now_ms()), "history": history}
    node = document.get("node")
    if isinstance(node, str) and node in state.fleet:
        document["seen"] = standing.standing_of(state, node, tells_suspicion=True)
    return json_response(document)


async def release(request: web.Request) -> web.Response:
    """Release a node to probation.  The credential names the person; the body says why, and never who."""
    actor = caller_of(request).name
    state = request.app[STATE]
    given = parse_json(await read_body(request, MAX_JSON), _ReleaseBody)
    which = request.match_info["id"]
    try:
        hold, _ = await state.holds.show(which)
    except HoldError:
        return json_response(await _release_theirs(state, which, actor, given))
    if not given.reason.strip():
        raise RequestError("a release needs a reason")
    if hold.state != "open":
        raise RequestError(f"it is {hold.state} already", code="incident.state")
    if hold.incident is not None:
        # It was reported to the verifier, which must release it too; its decision comes back by the feed.
        answer = await _release_theirs(state, hold.incident, actor, given)
        if answer.get("awaiting_second"):
            return json_response({**_wire(hold, state.clock.now_ms()), "awaiting_second": True})
    try:
        done = await state.holds.release(which, actor, given.reason, given.fault)
    except HoldError as error:
        if hold.incident is None:
            raise RequestError(str(error), code="incident.state") from None
        # The verifier's decision came by the feed before its answer.
        done = True
    shown, _ = await state.holds.show(which)
    return json_response({**_wire(shown, state.clock.now_ms()), "awaiting_second": not done})


async def _release_theirs(state: State, incident: str, actor: str, given: _ReleaseBody) -> dict[str, Any]:
    token = read_token(state.folder, state.config.verifier.admin_token_file)
    if token is None:
        hint = "decide it at the verifier: touchstone verifier incidents step"
        raise RequestError(
            f"this router may not release the verifier's incidents; {hint}", code="request.forbidden"
        )
    body = msgspec.json.encode(
        {"actor": actor, "reason": given.reason, **({} if given.fault is None else {"fault": given.fault})}
    )
    return await _ask(state, "POST", f"/{_plain(incident)}/release", body, token)


async def _ask(
    state: State, method: str, path: str, body: bytes | None = None, token: str | None = None
) -> dict[str, Any]:
    """Ask the verifier, as the router itself if no other *token* is given."""
    token = token or read_token(state.folder, state.config.verifier.router_token_file)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"{state.config.verifier.url}/api/v1/incidents{path}"
    try:
        async with state.to_verifier.request(
            method, url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
        ) as response:
            data = await read_all(response.content, _MAX_ANSWER)
            answer = msgspec.json.decode(data or b"", type=dict[str, Any])
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeError) as error:
        raise RequestError(
            f"the verifier cannot be asked ({type(error).__name__})", code="store.refused"
        ) from None
    if response.status == 404:
        raise RequestError("no such incident", code="request.not-found")
    if response.status != 200:
        raise RequestError(f"the verifier answers {response.status}", code="incident.state")
    return answer


def _plain(name: str) -> str:
    if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= 64):
        raise RequestError("no such incident", code="request.not-found")
    return name


def _wire(hold: Hold, now_ms: int) -> dict[str, Any]:
    return {
        "id": hold.id,
        "held_by": "router",
        "node": hold.node,
        "operator": hold.operator,
        "kind": hold.kind,
        "code": hold.code,
        "state": hold.state,
        "holding": hold.holding,
        "detail": hold.detail,
        "evidence": hold.evidence,
        "incident": hold.incident,
        "opened": hold.opened_ms // 1000,
        "review_due_in_s": (hold.due_ms - now_ms) // 1000,
    }
