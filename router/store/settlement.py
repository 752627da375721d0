"""Claims of nodes, reports of relying parties, statements and disputes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from router.settlement.dispatched import Reports
from router.settlement.reconciling import Gap
from router.store.batches import in_batches
from verifier.store.database import Row, Tx

OPEN: Final = "open"
UPHELD: Final = "upheld"
REJECTED: Final = "rejected"


class StoredClaim(NamedTuple):
    """A claim as it was signed."""

    operator: str
    claim: bytes


class StoredStatement(NamedTuple):
    """A statement as it was signed."""

    id: str
    operator: str
    period: str
    number: int
    made_ms: int
    token: str


class Dispute(Struct, frozen=True, kw_only=True):
    """What somebody disputes of a statement, and what became of it."""

    id: str
    statement: str
    line: int
    receipt: str
    actor: str
    reason: str
    opened_ms: int
    state: str = OPEN
    resolver: str = ""
    resolution: str = ""
    resolved_ms: int | None = None


class BehindRow(NamedTuple):
    """A receipt behind a statement, as far as the store still has it."""

    id: str
    line: int
    kid: str | None
    batch: int | None
    place: int | None
    payload: bytes | None
    entry: str | None
    """The entry of its batch in the verifier's log."""


async def add_claim(
    tx: Tx, *, node: str, router: str, day: str, operator: str, at_ms: int, claim: bytes
) -> bytes | None:
    """Keep a claim; gives the one that is kept already for this node, router and day, if there is one."""
    added = await tx.execute(
        "INSERT INTO usage_claims (node, router, day, operator, at_ms, claim) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        node, router, day, operator, at_ms, claim,
    )  # fmt: skip
    if added:
        return None
    row = await tx.one(
        "SELECT claim FROM usage_claims WHERE node = ? AND router = ? AND day = ?", node, router, day
    )
    return None if row is None else bytes(row["claim"])


async def claimed_days(tx: Tx, node: str, router: str, since: str) -> set[str]:
    """The days that a node has claimed from a router."""
    rows = await tx.all(
        "SELECT day FROM usage_claims WHERE node = ? AND router = ? AND day >= ?", node, router, since
    )
    return {row["day"] for row in rows}


async def claims(tx: Tx, first: str, last: str) -> list[StoredClaim]:
    """The claims of the days from *first* to *last*."""
    rows = await tx.all(
        "SELECT operator, claim FROM usage_claims WHERE day >= ? AND day <= ? ORDER BY day, node, router",
        first, last,
    )  # fmt: skip
    return [StoredClaim(row["operator"], bytes(row["claim"])) for row in rows]


async def add_report(
    tx: Tx, *, decision: str, node: str, caller: str, party: str, at_ms: int, completed: bool, receipt: str
) -> str | None:
    """Keep what a relying party reports; gives what is kept already for this decision and node, if there is."""
    added = await tx.execute(
        "INSERT INTO dispatch_receipts (decision, node, caller, party, at_ms, completed, receipt)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        decision, node, caller, party, at_ms, int(completed), receipt,
    )  # fmt: skip
    if added:
        return None
    row = await tx.one(
        "SELECT receipt FROM dispatch_receipts WHERE decision = ? AND node = ?", decision, node
    )
    return None if row is None else str(row["receipt"])


async def reports(tx: Tx, node: str, since_ms: int) -> list[Reports]:
    """What parties have reported of a node."""
    rows = await tx.all(
        "SELECT party, sum(completed) AS completed, count(*) AS many FROM dispatch_receipts"
        " WHERE node = ? AND at_ms >= ? GROUP BY party ORDER BY party",
        node, since_ms,
    )  # fmt: skip
    return [
        Reports(row["party"], int(row["completed"]), int(row["many"]) - int(row["completed"])) for row in rows
    ]


async def page_of_receipts(tx: Tx, after: str, until: str, limit: int) -> list[Row]:
    """Receipts in the order of their ids."""
    return await tx.all(
        "SELECT id, caller, kid, batch, place, payload FROM receipts WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
        after, until, limit,
    )  # fmt: skip


async def add_statement(tx: Tx, made: StoredStatement, receipts: Sequence[tuple[str, int]]) -> bool:
    """Write a statement and the receipts behind it; returns `False` if there is one of this number."""
    added = await tx.execute(
        "INSERT INTO statements (id, operator, period, number, made_ms, token) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        *made,
    )
    if not added:
        return False
    rows = [(made.id, receipt, line) for receipt, line in receipts]
    for marks, values in in_batches(rows):
        await tx.execute(f"INSERT INTO statement_receipts (statement, receipt, line) VALUES {marks}", *values)
    return True


async def find_statement(tx: Tx, statement_id: str) -> StoredStatement | None:
    """A statement."""
    row = await tx.one("SELECT * FROM statements WHERE id = ?", statement_id)
    return None if row is None else _statement(row)


async def newest_statement(tx: Tx, operator: str, period: str) -> StoredStatement | None:
    """The newest statement of an operator for a period."""
    row = await tx.one(
        "SELECT * FROM statements WHERE operator = ? AND period = ? ORDER BY number DESC LIMIT 1",
        operator, period,
    )  # fmt: skip
    return None if row is None else _statement(row)


async def list_statements(tx: Tx, operator: str | None, limit: int) -> list[StoredStatement]:
    """The newest statements, of one operator or of all."""
    if operator is None:
        rows = await tx.all("SELECT * FROM statements ORDER BY made_ms DESC, id DESC LIMIT ?", limit)
    else:
        rows = await tx.all(
            "SELECT * FROM statements WHERE operator = ? ORDER BY period DESC, number DESC LIMIT ?",
            operator, limit,
        )  # fmt: skip
    return [_statement(row) for row in rows]


async def receipts_behind(
    tx: Tx, statement_id: str, after: tuple[str, int], limit: int, line: int | None = None
) -> list[BehindRow]:
    """The receipts behind a statement, or behind one line of it, by id and line, those after a place."""
    rows = await tx.all(
        "SELECT s.receipt, s.line, r.kid, r.batch, r.place, r.payload, b.entry FROM statement_receipts s"
        " LEFT JOIN receipts r ON r.id = s.receipt"
        " LEFT JOIN receipt_batches b ON b.kid = r.kid AND b.number = r.batch"
        " WHERE s.statement = ? AND (s.receipt, s.line) > (?, ?) AND (? = 0 OR s.line = ?)"
        " ORDER BY s.receipt, s.line LIMIT ?",
        statement_id, *after, line or 0, line or 0, limit,
    )  # fmt: skip
    return [
        BehindRow(
            row["receipt"],
            row["line"],
            row["kid"],
            row["batch"],
            row["place"],
            None if row["payload"] is None else bytes(row["payload"]),
            row["entry"],
        )
        for row in rows
    ]


async def settled_in(tx: Tx, receipt: str) -> tuple[str, int] | None:
    """The newest statement that rests on a receipt, and in which of its lines that is."""
    row = await tx.one(
        "SELECT r.statement, r.line FROM statement_receipts r JOIN statements s ON s.id = r.statement"
        " WHERE r.receipt = ? ORDER BY s.number DESC LIMIT 1",
        receipt,
    )
    return None if row is None else (row["statement"], int(row["line"]))


async def open_disputes(tx: Tx, actor: str) -> int:
    """How many disputes of a person are open."""
    row = await tx.one("SELECT count(*) AS many FROM disputes WHERE actor = ? AND state = 'open'", actor)
    return 0 if row is None else int(row["many"])


async def add_dispute(tx: Tx, dispute: Dispute) -> bool:
    """Write a dispute; returns `False` if the same person has an open one about this."""
    added = await tx.execute(
        "INSERT INTO disputes (id, statement, line, receipt, actor, reason, opened_ms, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        dispute.id, dispute.statement, dispute.line, dispute.receipt, dispute.actor, dispute.reason,
        dispute.opened_ms, dispute.state,
    )  # fmt: skip
    return added > 0


async def find_dispute(tx: Tx, dispute_id: str) -> Dispute | None:
    """A dispute."""
    row = await tx.one("SELECT * FROM disputes WHERE id = ?", dispute_id)
    return None if row is None else Dispute(**row)


async def disputes_of(tx: Tx, statement_id: str) -> list[Dispute]:
    """What is disputed of a statement, and was."""
    rows = await tx.all("SELECT * FROM disputes WHERE statement = ? ORDER BY line, id", statement_id)
    return [Dispute(**row) for row in rows]


async def resolve_dispute(
    tx: Tx, dispute_id: str, *, state: str, resolver: str, resolution: str, now_ms: int
) -> bool:
    """Write what became of an open dispute; returns `False` if it is not open."""
    changed = await tx.execute(
        "UPDATE disputes SET state = ?, resolver = ?, resolution = ?, resolved_ms = ?"
        " WHERE id = ? AND state = 'open'",
        state, resolver, resolution, now_ms, dispute_id,
    )  # fmt: skip
    return changed > 0


async def add_gap(tx: Tx, gap: Gap) -> None:
    """Note when a router may have lost receipts."""
    await tx.execute(
        "INSERT INTO receipt_gaps (router, from_ms, to_ms, lost, why) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        gap.router, gap.from_ms, gap.to_ms, gap.lost, gap.why,
    )  # fmt: skip


async def gaps(tx: Tx, from_ms: int, to_ms: int) -> list[Gap]:
    """When routers may have lost receipts, in a time."""
    rows = await tx.all(
        "SELECT router, from_ms, to_ms, lost, why FROM receipt_gaps WHERE to_ms >= ? AND from_ms < ?"
        " ORDER BY from_ms, router",
        from_ms, to_ms,
    )  # fmt: skip
    return [Gap(**row) for row in rows]


def _statement(row: Row) -> StoredStatement:
    return StoredStatement(
        row["id"], row["operator"], row["period"], row["number"], row["made_ms"], row["token"]
    )
