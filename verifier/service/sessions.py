"""The session API: the challenge–response API of Veraison, with its weaknesses removed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from attester.evidence import MAX_EVIDENCE, MEDIA_TYPE
from attester.proof import Proof
from verifier.challenges import posing
from verifier.errors import RequestError
from verifier.policy.rollout import Rollout
from verifier.schemes.context import Channel, IssuedChallenges, Node
from verifier.service import access
from verifier.service.access import Route
from verifier.service.appraiser import Appraiser
from verifier.service.credentials import check_other, has_signature
from verifier.service.front import note_failure, note_identity, spend_stranger, take_place
from verifier.service.http import integer, json_response, read_body
from verifier.service.state import BYTES_PER_REQUEST, Service, service_of
from verifier.store import appraisals, node_state, recordings, sessions
from verifier.store.database import ConflictError, Row, Tx
from verifier.store.ids import NONCE_BYTES, new_nonce
from verifier.store.node_state import StaleError
from verifier.store.sessions import StoredSession, WantedChallenge

SESSION_TYPE: Final = "application/vnd.veraison.challenge-response-session+json"
PREFIX: Final = "/challenge-response/v1"

APPRAISER: web.AppKey[Appraiser] = web.AppKey("appraiser", Appraiser)


class Signer(Struct, frozen=True):
    """The node that has signed a request, and the proof of it."""

    node: Node
    proof: Proof


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.post(f"{PREFIX}/newSession", new_session, access.NEW_SESSION, "Open a session."),
        access.post(f"{PREFIX}/session/{{id}}", submit, access.SESSION, "Submit evidence."),
        access.get(f"{PREFIX}/session/{{id}}", look, access.SESSION, "Show a session."),
        access.delete(f"{PREFIX}/session/{{id}}", drop, access.SESSION, "Drop a session."),
    ]


async def new_session(request: web.Request) -> web.Response:
    """Open a session: with challenges for a node that proves its key, with a nonce alone for anybody else."""
    service = service_of(request)
    body = await read_body(request, 0)
    nonce, channel = _nonce(request)
    _check_fence(service, channel)
    if has_signature(request):
        session = await _open_signed(request, body, nonce, channel)
    else:
        if "Authorization" in request.headers:
            await check_other(request)
        _check_named(request, None)
        session = await _seal_session(service, channel, nonce)
    asked = posing.pose(session.entries, session.exhausted, service.pool_key, session.revisions)
    service.opened.keep(session, asked)
    return json_response(
        await to_wire(service, session, asked=asked),
        status=201,
        headers={"Location": f"{PREFIX}/session/{session.id}"},
        content_type=SESSION_TYPE,
    )


async def _open_signed(
    request: web.Request, body: bytes, nonce: bytes, channel: Channel, *, will_check: bool = True
) -> StoredSession:
    """The session that a node has asked for: with its challenges, unless it has chosen the nonce."""
    service = service_of(request)
    node, proof = await service.authenticate(request, body, will_check=will_check)
    service.node_rates.spend(node.id)
    _check_named(request, node)
    if channel == Channel.BACKGROUND:
        asking, wants = None, []
    else:
        asking, channel, wants = node, Channel.ANNOUNCED, wants_for(node, walk=True)
    try:
        return await open_session(service, asking, channel, nonce, wants, Signer(node, proof))
    except StaleError:
        if not will_check:
            raise
        service.seen.drop(node.id)
        return await _open_signed(request, body, nonce, channel, will_check=False)


def _check_named(request: web.Request, node: Node | None) -> None:
    """Refuse a request that names another node than the one that has signed it."""
    if (named := request.query.get("node")) is not None and (node is None or node.id != named):
        raise RequestError(
            "only the node itself can open a session with its challenges", code="request.unauthorised"
        )


def _check_fence(service: Service, channel: Channel) -> None:
    """
    Refuse strangers' sessions for some seconds after the database was restored, and callers' nonces for longer.

    The database may have forgotten that a nonce was used: meanwhile, old evidence for it would still be fresh.
    """
    until_ms = service.fence.restored_ms
    if channel == Channel.BACKGROUND and until_ms:
        until_ms = service.fence.signed_ms + service.config.sessions.skew_s * 1000
    wait_ms = until_ms - service.now_ms()
    if wait_ms >= 0:
        raise RequestError(
            "the verifier's database was restored just now. Try again later",
            code="request.replayed",
            retry_after=wait_ms // 1000 + 1,
        )


async def _seal_session(service: Service, channel: Channel, nonce: bytes) -> StoredSession:
    """A session for anybody: it has no row until evidence for it verifies."""
    async with service.db.read() as tx:
        if channel == Channel.BACKGROUND and await sessions.is_used(tx, nonce):
            raise RequestError("this nonce was used before", code="request.replayed")
    lifetime_ms = service.config.sessions.lifetime_s * 1000
    return service.sealer.seal(channel, nonce, service.now_ms(), lifetime_ms)


async def load_session(service: Service, tx: Tx, session_id: str) -> StoredSession:
    """
    A session by its id, stored or sealed.

    Raises:
        RequestError: there is none.
    """
    sealed = service.sealer.open(session_id)
    if sealed is None or sealed.issued_ms <= service.fence.restored_ms:
        # Its row may be lost, with the result that it had.
        return await sessions.get(tx, session_id)
    return await sessions.find(tx, session_id) or sealed


async def open_session(
    service: Service,
    node: Node | None,
    channel: Channel,
    nonce: bytes,
    wants: Sequence[WantedChallenge],
    signer: Signer | None = None,
    *,
    together: int = 0,
) -> StoredSession:
    """
    Open a session in the database, and use up the proof of the request for it.

    Raises:
        RequestError: the nonce or the request was used before, or the node asks too often.
        StaleError: the signer is not any more as it was when it was authenticated.
    """

    async def open_and_use(tx: Tx) -> StoredSession:
        if signer is not None:
            await node_state.check(tx, signer.node)
            await service.use(tx, signer.proof)
        return await _open(service, tx, node, channel, nonce, wants, together=together)

    try:
        session = await service.db.write(open_and_use, of=None if node is None else node.id)
    except ConflictError:
        raise RequestError("this nonce was used before", code="request.replayed") from None
    if node is not None and channel == Channel.ANNOUNCED and session.nonce == nonce:
        service.pools.count_announced(node.operator)
    return session


def _admission(
    service: Service, node: Node | None, channel: Channel, references: Mapping[str, str]
) -> Callable[[], None]:
    """What checks, for a new session, that there are challenges for it: calls always get them."""
    if node is None or channel != Channel.ANNOUNCED:
        return lambda: None
    return partial(service.pools.check_announced, node.operator, node.models, references)


async def _open(
    service: Service,
    tx: Tx,
    node: Node | None,
    channel: Channel,
    nonce: bytes,
    wants: Sequence[WantedChallenge],
    *,
    together: int = 0,
    rollout: Rollout | None = None,
) -> StoredSession:
    references: dict[str, str] = {}
    if node is not None:
        references = await service.inputs.load_asked(tx, node, service.now_ms(), rollout)
    session = await sessions.open_session(
        tx,
        node_id=None if node is None else node.id,
        channel=channel,
        nonce=nonce,
        now_ms=service.now_ms(),
        lifetime_ms=service.config.sessions.lifetime_s * 1000,
        wants=wants,
        references=references,
        together=together,
        hourly=service.config.sessions.announced_per_hour if channel == Channel.ANNOUNCED else None,
        admit=_admission(service, node, channel, references),
        healthy_since_ms=service.duties.healthy_since_ms,
    )
    service.marks.cover(session.entries)
    return session


def wants_for(node: Node, *, walk: bool, wide: str | None = None) -> list[WantedChallenge]:
    """
    The challenges for a node: a `read` of each of its models, and a `walk` of each if *walk*.

    Args:
        wide: The one model to walk, with many rows.  No other is walked, so that the time is for it alone.
    """
    wants = [WantedChallenge(model, "read") for model in node.models]
    if wide is not None:
        return [*wants, WantedChallenge(wide, "wide", instead="walk")]
    return [*wants, *(WantedChallenge(model, "walk") for model in node.models)] if walk else wants


def _nonce(request: web.Request) -> tuple[bytes, Channel]:
    if "nonce" in request.query:
        try:
            text = request.query["nonce"].replace("-", "+").replace("_", "/")
            nonce = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("nonce must be base64") from None
        if not 8 <= len(nonce) <= 64:
            raise RequestError(f"nonce has {len(nonce)} bytes; it must have 8 to 64")
        return nonce, Channel.BACKGROUND
    size = integer(request, "nonceSize", default=NONCE_BYTES, low=8, high=64)
    return new_nonce(service_of(request).now_ms(), size), Channel.OPEN


async def submit(request: web.Request) -> web.Response:
    """Take evidence and answer with the result."""
    service = service_of(request)
    # Before the body is read: if there is no session, the body need not be read.
    session = service.opened.take(request.match_info["id"])
    if session is None:
        session = await _find_session(request)
    else:
        _note_session(service, request, session)
    wants_next = request.query.get("next") == "1" and session.channel == Channel.ANNOUNCED
    data = await read_body(request, MAX_EVIDENCE)
    if session.node_id is not None:
        service.session_rates.charge(session.id, len(data) / BYTES_PER_REQUEST)
    await take_place(request)
    answer = await request.app[APPRAISER].submit(
        session,
        request.headers.get("Content-Type", ""),
        data,
        partial(_open_next, service) if wants_next else None,
    )
    complete = replace(session, status="complete")
    wire = await to_wire(service, complete, answer.row, data, answer.asked)
    if wants_next and answer.following is not None:
        following = answer.following
        asked = posing.pose(following.entries, following.exhausted, service.pool_key, following.revisions)
        service.opened.keep(following, asked)
        wire["next"] = {"session": following.id, **await to_wire(service, following, asked=asked)}
    return json_response(wire, content_type=SESSION_TYPE)


async def _find_session(request: web.Request) -> StoredSession:
    """
    The session that a request names.

    Only the node that opened it, or was called, knows the id of its session: what is done with it is the node's, and
    never its address's.  Whatever else is named is a stranger's.

    Raises:
        RequestError: there is no such session, or too much was asked of it or by strangers.
    """
    service = service_of(request)
    session_id = request.match_info["id"]
    is_sealed = service.sealer.open(session_id) is not None
    if is_sealed:
        spend_stranger(request)
    async with service.db.read() as tx:
        try:
            session = await load_session(service, tx, session_id)
        except RequestError:
            note_failure(request)
            raise
    if not is_sealed:
        _note_session(service, request, session)
    return session


def _note_session(service: Service, request: web.Request, session: StoredSession) -> None:
    """Count a request for a stored session, as its node's if it has one."""
    if session.node_id is None:
        spend_stranger(request)
    else:
        service.spend_session(session.id)
        note_identity(request, f"node:{session.node_id}")


async def _open_next(service: Service, tx: Tx, node: Node, rollout: Rollout) -> StoredSession | None:
    """Open the session that a node may attest in next; `None` if it has opened too many."""
    try:
        service.node_rates.spend(node.id)
        nonce, wants = new_nonce(service.now_ms()), wants_for(node, walk=True)
        session = await _open(service, tx, node, Channel.ANNOUNCED, nonce, wants, rollout=rollout)
    except RequestError:
        return None
    # A transaction that is begun again counts twice: the quota is then too strict by one.
    if session.nonce == nonce:
        service.pools.count_announced(node.operator)
    return session


async def look(request: web.Request) -> web.Response:
    """Show a session."""
    service = service_of(request)
    session = await _find_session(request)
    await take_place(request)
    async with service.db.read() as tx:
        row = evidence = None
        if session.appraisal_id is not None:
            row = await appraisals.by_id(tx, session.appraisal_id)
            evidence = await recordings.evidence_of(tx, session.appraisal_id)
    return json_response(await to_wire(service, session, row, evidence), content_type=SESSION_TYPE)


async def drop(request: web.Request) -> web.Response:
    """Drop a session.  The challenges that it has taken are not used again."""
    service = service_of(request)
    session = await _find_session(request)
    await take_place(request)
    service.opened.take(session.id)
    if session.sealed:
        service.sealer.drop(session.id)
    else:
        await service.db.write(lambda tx: sessions.drop(tx, session.id, service.now_ms()), of=session.node_id)
    return web.Response(status=204)


async def to_wire(
    service: Service,
    session: StoredSession,
    result: Row | None = None,
    evidence: bytes | None = None,
    asked: Mapping[str, IssuedChallenges] | None = None,
) -> dict[str, Any]:
    """
    The session object.  The field names and encodings are those of Veraison; `challenge` is added to them.

    Args:
        asked: The session's challenges, if they were posed already.
    """
    status = session.status
    if status == "waiting" and session.expires_ms <= service.now_ms():
        status = "failed"
    wire: dict[str, Any] = {
        "nonce": base64.b64encode(session.nonce).decode(),
        "expiry": rfc3339(session.expires_ms),
        "accept": [MEDIA_TYPE],
        "status": status,
    }
    if asked is None:
        entries = session.entries
        if session.withholds_walk:
            # A node that knows whether a walk follows could answer the other calls alone.
            entries = tuple(entry for entry in entries if entry.kind == "read")
        asked = posing.pose(entries, session.exhausted, service.pool_key)
    challenge = posing.with_files(asked, await service.inputs.load_posed(service.db, asked))
    if challenge is not None:
        wire["challenge"] = challenge
    if evidence is not None:
        wire["evidence"] = {"type": MEDIA_TYPE, "value": base64.b64encode(evidence).decode()}
    if result is not None:
        wire["result"] = result["token"]
    return wire


def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 text in UTC."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
