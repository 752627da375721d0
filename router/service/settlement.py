"""Statements, claims, reports of work that was dispatched elsewhere, and disputes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta, Struct

from attester.usage_claims import MAX_CLAIM
from router.config import ApiKey
from router.gateway.openai import KEY
from router.model.errors import SettlementError
from router.service.state import STATE, State
from router.settlement import dispatched, exchanges, pages, statements
from router.settlement.dispatched import MAX_RECEIPT
from router.state.records import decode_record
from router.store import settlement as store
from router.store.settlement import OPEN, BehindRow, Dispute, StoredStatement
from verifier.errors import RequestError
from verifier.log.tree import leaf_hash
from verifier.roles import Role
from verifier.service.access import caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body

DISPUTE: Final = "settlement-dispute"
DISPATCH_FAILURES: Final = "dispatch-failures"
_SEE_ALL: Final = frozenset({Role.AUDITOR, Role.ADMINISTRATOR})
_MOST_LISTED: Final = 500
_PAGE: Final = 1000
_MOST_OPEN: Final = 20
"""Open disputes of one caller."""
_REPORTED_MS: Final = 7 * 86_400_000
"""Reports that are this old bring nobody to look at a node."""
_FORMS: Final = ("json", "csv", "html", "jws")


class _DisputeBody(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(min_length=1, max_length=statements.MAX_REASON)]
    statement: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] = ""
    line: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    receipt: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] = ""

    def __post_init__(self) -> None:
        if bool(self.statement) == bool(self.receipt):
            raise ValueError("name a statement and a line, or a receipt")


class _ResolveBody(Struct, frozen=True, forbid_unknown_fields=True):
    outcome: Literal["upheld", "rejected"]
    reason: Annotated[str, Meta(min_length=1, max_length=statements.MAX_REASON)]


async def list_statements(request: web.Request) -> web.Response:
    """The newest statements.  An operator sees its own."""
    only = caller_of(request).only_operator
    async with request.app[STATE].db.read() as tx:
        found = await store.list_statements(tx, only, _MOST_LISTED)
    return json_response({"statements": [_summary(each) for each in found]})


async def show(request: web.Request) -> web.Response:
    """A statement: JSON, or by ``form`` as CSV, as a page, or as it is signed."""
    form = request.query.get("form", "json")
    if form not in _FORMS:
        raise RequestError(f"form is one of {', '.join(_FORMS)}")
    state = request.app[STATE]
    found = await _find(request)
    async with state.db.read() as tx:
        disputes = await store.disputes_of(tx, found.id)
    if form == "jws":
        return web.Response(text=found.token, content_type="application/jwt")
    statement = _content(found)
    disputed = frozenset(each.line for each in disputes if each.state == OPEN)
    if form == "csv":
        return _download(pages.to_csv(found.id, statement, disputed), "text/csv", f"{found.period}.csv")
    if form == "html":
        page = pages.to_html(found.id, statement, disputed)
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return web.Response(text=page, content_type="text/html", headers=policy)
    sees_all = not caller_of(request).roles.isdisjoint(_SEE_ALL)
    listed = [_dispute(each, with_actor=sees_all) for each in disputes]
    return json_response(pages.to_json(found.id, statement, found.token, listed))


async def show_receipts(request: web.Request) -> web.Response:
    """
    The receipts behind a statement, or one line of it, in pages; ``after`` is the last id of the page before.

    Auditors get payloads.  An operator gets what each comes to and the hash by which the log has it: a payload has the
    pseudonym of who asked, by which a node could tell whose requests, and which checks, are one caller's.
    """
    found = await _find(request)
    line = request.query.get("line", "0")
    after, _, at = request.query.get("after", ".0").partition(".")
    if not (_is_number(line) and _is_number(at)) or len(after) > 64 or not after.isascii():
        raise RequestError("line is a number, and after is what the page before has as next")
    async with request.app[STATE].db.scan() as tx:
        rows = await store.receipts_behind(tx, found.id, (after, int(at)), _PAGE, int(line) or None)
    sees_all = not caller_of(request).roles.isdisjoint(_SEE_ALL)
    nodes = {each.number: each.node for each in _content(found).lines}
    listed = [_behind(row, nodes[row.line], with_payload=sees_all) for row in rows]
    next_page = f"{rows[-1].id}.{rows[-1].line}" if len(rows) == _PAGE else None
    return json_response({"receipts": listed, "next": next_page})


async def take_claim(request: web.Request) -> web.Response:
    """A node's usage claim, for operators whose node this router cannot ask."""
    data = await read_body(request, MAX_CLAIM)
    try:
        is_new = await request.app[STATE].claims.take(data, only_operator=caller_of(request).only_operator)
    except SettlementError as error:
        raise _refusal(error) from None
    return json_response({"new": is_new}, status=201 if is_new else 200)


async def take_report(request: web.Request) -> web.Response:
    """The receipt of a relying party for work that it has dispatched by a decision of this router."""
    state, key = request.app[STATE], request[KEY]
    if not key.may_dispatch or key.receipt_key is None:
        raise RequestError("the key may not dispatch, or has no receipt_key", code="settlement.never-routed")
    token = (await read_body(request, MAX_RECEIPT)).decode("ascii", "replace").strip()
    try:
        receipt = dispatched.open_signed(token, dispatched.read_key(key.receipt_key))
        dispatched.check_decision(receipt, await _decision(state, receipt.decision), key.name)
    except SettlementError as error:
        raise _refusal(error) from None
    kept = await state.db.write(
        lambda tx: store.add_report(
            tx,
            decision=receipt.decision,
            node=receipt.node,
            caller=key.name,
            party=_party(key),
            at_ms=state.clock.now_ms(),
            completed=receipt.outcome == "completed",
            receipt=token,
        )
    )
    if kept is not None and kept != token:
        raise RequestError(
            "another receipt is kept for this decision and node: the first one stays",
            code="settlement.conflict",
        )
    if kept is None:
        await _look_at(state, receipt.node, key)
    return json_response({"new": kept is None}, status=201 if kept is None else 200)


async def _look_at(state: State, node: str, key: ApiKey) -> None:
    operator = state.fleet.view(node).operator
    if key.operator is not None and key.operator == operator:
        return
    async with state.db.read() as tx:
        reported = await store.reports(tx, node, state.clock.now_ms() - _REPORTED_MS)
    # Who has nodes itself has its own reasons to speak well or ill of others'; it counts as one party.
    if dispatched.asks_for_review([each for each in reported if each.party != f"operator:{operator}"]):
        failed = sum(each.failed for each in reported)
        many = failed + sum(each.completed for each in reported)
        detail = (
            f"{len(reported)} relying parties report {failed} failures of {many} answers that they dispatched"
        )
        evidence = {"reports": many, "failed": failed, "parties": len(reported)}
        state.holds.ask(DISPATCH_FAILURES, detail, evidence, node=node, operator=operator)


async def dispute(request: web.Request) -> web.Response:
    """Dispute a line of a statement, or the receipt of an own answer.  A person looks; nothing changes by it."""
    state, caller = request.app[STATE], caller_of(request)
    given = parse_json(await read_body(request, MAX_JSON), _DisputeBody)
    if given.receipt:
        name, line = await _settled(request, given.receipt)
    else:
        if caller.roles.isdisjoint({Role.OPERATOR, *_SEE_ALL}):
            raise RequestError("name the receipt of an answer of yours", code="request.forbidden")
        name, line = given.statement, given.line
    found = await _find(request, name, is_own=bool(given.receipt))
    lines = {each.number: each for each in _content(found).lines}
    if line not in lines:
        raise RequestError(f"the statement has the lines 1 to {len(lines)}")
    made = Dispute(
        id=f"d-{secrets.token_hex(8)}",
        statement=found.id,
        line=line,
        receipt=given.receipt,
        actor=caller.name,
        reason=given.reason,
        opened_ms=state.clock.now_ms(),
    )
    async with state.db.read() as tx:
        if await store.open_disputes(tx, caller.name) >= _MOST_OPEN:
            raise RequestError(f"{_MOST_OPEN} disputes of yours are open", code="settlement.conflict")
    if not await state.db.write(lambda tx: store.add_dispute(tx, made)):
        raise RequestError("you dispute this already", code="settlement.conflict")
    detail = f"line {line} of the statement of {found.operator} for {found.period} is disputed"
    evidence = {"dispute": made.id, "statement": found.id, "line": line, "receipt": given.receipt}
    state.holds.ask(DISPUTE, detail, evidence, node=lines[line].node, operator=found.operator)
    return json_response(_dispute(made, with_actor=True), status=201)


async def resolve(request: web.Request) -> web.Response:
    """Say what became of a dispute, and why.  A correction of the statement is a step of its own."""
    state, caller = request.app[STATE], caller_of(request)
    given = parse_json(await read_body(request, MAX_JSON), _ResolveBody)
    name = request.match_info["id"][:64]
    async with state.db.read() as tx:
        found = await store.find_dispute(tx, name)
    if found is None:
        raise RequestError("there is no such dispute", code="settlement.unknown")
    if not given.reason.strip():
        raise RequestError("a resolution needs a reason")
    if found.actor == caller.name:
        raise RequestError("another person must decide a dispute", code="request.forbidden")
    done = await state.db.write(
        lambda tx: store.resolve_dispute(
            tx,
            name,
            state=given.outcome,
            resolver=caller.name,
            resolution=given.reason,
            now_ms=state.clock.now_ms(),
        )
    )
    if not done:
        raise RequestError(f"it is {found.state} already", code="settlement.conflict")
    async with state.db.read() as tx:
        changed = await store.find_dispute(tx, name)
    assert changed is not None
    return json_response(_dispute(changed, with_actor=True))


async def _settled(request: web.Request, receipt: str) -> tuple[str, int]:
    """The statement and the line that rest on a receipt of the caller's."""
    state, caller = request.app[STATE], caller_of(request)
    kept = None if state.receipts is None else await state.receipts.keeper.find(receipt)
    sees_all = not caller.roles.isdisjoint(_SEE_ALL)
    async with state.db.read() as tx:
        found = await store.settled_in(tx, receipt)
    if kept is None or found is None or not (sees_all or kept.caller == caller.name):
        raise RequestError("no such receipt of yours is settled", code="settlement.unknown")
    return found


async def _find(request: web.Request, name: str | None = None, *, is_own: bool = False) -> StoredStatement:
    only = caller_of(request).only_operator
    async with request.app[STATE].db.read() as tx:
        found = await store.find_statement(tx, (name or request.match_info["id"])[:64])
    if found is None or not (is_own or only in (None, found.operator)):
        # The same for both: which statements others have is not told.
        raise RequestError("there is no such statement", code="settlement.unknown")
    return found


async def _decision(state: State, record_id: str) -> Mapping[str, Any] | None:
    data = state.records.get(record_id) or await state.persistence.find(record_id)
    try:
        return None if data is None else decode_record(data)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _content(found: StoredStatement) -> statements.Statement:
    """What was signed, by this store's own word."""
    return statements.content(found.token)


def _summary(found: StoredStatement) -> dict[str, Any]:
    statement = _content(found)
    return {
        "id": found.id,
        "operator": found.operator,
        "period": found.period,
        "number": found.number,
        "made_ms": found.made_ms,
        "previous": statement.previous,
        "total_exact": statement.total_exact,
        "total_rounded": statement.total_rounded,
        "unit": statement.unit,
    }


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 7


def _behind(row: BehindRow, node: str, *, with_payload: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.id, "line": row.line}
    if row.payload is None:
        return {**shown, "archived": True}
    exchange = next(each for each in exchanges.read(row.payload) if each.node == node)
    shown |= {
        "at_ms": exchange.at_ms,
        "prompt": exchange.counted.prompt,
        "completion": exchange.counted.completion,
        "amount": str(exchange.amount),
        "leaf": leaf_hash(row.payload).hex(),
        "kid": row.kid,
        "batch": row.batch,
        "place": row.place,
        "log_entry": row.entry,
    }
    return {**shown, "payload": row.payload.decode("ascii")} if with_payload else shown


def _dispute(found: Dispute, *, with_actor: bool) -> dict[str, Any]:
    shown = {name: getattr(found, name) for name in Dispute.__struct_fields__}
    return shown if with_actor else {k: v for k, v in shown.items() if k not in ("actor", "resolver")}


def _party(key: ApiKey) -> str:
    """Callers that may act together are one: as for claims, all keys of one operator of nodes."""
    return f"key:{key.name}" if key.operator is None else f"operator:{key.operator}"


def _download(text: str, kind: str, name: str) -> web.Response:
    headers = {hdrs.CONTENT_DISPOSITION: f'attachment; filename="{name}"'}
    return web.Response(text=text, content_type=kind, headers=headers)


def _refusal(error: SettlementError) -> RequestError:
    return RequestError(str(error), code=error.code)
