"""What must hold in a verifier's database, as queries for the rows that break it."""

from __future__ import annotations

from typing import Final

from verifier.store.checking import MAX_SHOWN, Check

_HOUR_MS: Final = 3600 * 1000
_LIMIT: Final = f"LIMIT {MAX_SHOWN + 1}"


def checks_of(kept_since_ms: int) -> list[Check]:
    """
    Give the invariants.

    Args:
        kept_since_ms: Results from before may have been deleted.
    """
    # The sweep deletes results in the order of their numbers, which is nearly that of their times.
    since_ms = kept_since_ms + _HOUR_MS
    return [*_SESSIONS, _result_of_session(since_ms), *_CHALLENGES, *_COUNTERS, *_CHANGES, *_ROUTERS, *_LOG]


def _result_of_session(since_ms: int) -> Check:
    return Check(
        "every complete session has its one result",
        "SELECT s.id AS session FROM sessions s WHERE s.status = 'complete' AND s.issued_ms >= ?"
        " AND (SELECT count(*) FROM appraisals a WHERE a.session_id = s.id AND a.origin = a.id"
        f"  AND a.id = s.appraisal_id) <> 1 {_LIMIT}",
        (since_ms,),
    )


_SESSIONS: Final = (
    Check(
        "every result is the one of a complete session, or follows from it",
        "SELECT a.id AS result, a.session_id AS session FROM appraisals a JOIN sessions s ON s.id = a.session_id"
        f" WHERE s.status <> 'complete' OR (a.origin = a.id AND s.appraisal_id <> a.id) {_LIMIT}",
    ),
    Check(
        "no nonce was used twice",
        f"SELECT nonce, count(*) AS sessions FROM sessions GROUP BY nonce HAVING count(*) > 1 {_LIMIT}",
    ),
    Check(
        "no node has two sessions of a kind that wait",
        "SELECT node_id AS node, channel FROM sessions WHERE status = 'waiting' AND node_id IS NOT NULL"
        f" GROUP BY node_id, channel HAVING count(*) > 1 {_LIMIT}",
    ),
    Check(
        "no signed request was accepted twice",
        f"SELECT kid, random FROM seen_requests GROUP BY kid, random HAVING count(*) > 1 {_LIMIT}",
    ),
    Check(
        "every node has one current key",
        "SELECT n.id AS node FROM nodes n"
        f" WHERE (SELECT count(*) FROM node_keys k WHERE k.node_id = n.id AND k.current = 1) <> 1 {_LIMIT}",
    ),
)

_CHALLENGES: Final = (
    Check(
        "no challenge serves two sessions",
        "SELECT model, kind, idx, count(*) AS times FROM pool GROUP BY model, kind, idx"
        f" HAVING count(*) > 1 {_LIMIT}",
    ),
    Check(
        "every challenge that is taken names its session",
        "SELECT p.model, p.kind, p.idx, p.session_id AS session FROM pool p WHERE p.session_id IS NOT NULL"
        f" AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = p.session_id) {_LIMIT}",
    ),
    Check(
        "no index of a challenge can come twice (pool_indexes)",
        "SELECT m.model, m.kind, m.highest, i.next_idx FROM"
        " (SELECT model, kind, max(idx) AS highest FROM pool GROUP BY model, kind) m"
        " LEFT JOIN pool_indexes i ON i.model = m.model AND i.kind = m.kind"
        f" WHERE i.next_idx IS NULL OR i.next_idx <= m.highest {_LIMIT}",
    ),
    Check(
        "no index of a minted answer can come twice (pool_indexes)",
        "SELECT m.model, m.highest, i.next_idx FROM"
        " (SELECT model, max(idx) AS highest FROM minted_answers GROUP BY model) m"
        " LEFT JOIN pool_indexes i ON i.model = m.model AND i.kind = 'answ'"
        f" WHERE i.next_idx IS NULL OR i.next_idx <= m.highest {_LIMIT}",
    ),
    Check(
        "every minted answer that is taken is of a check that waits for it",
        "SELECT a.model, a.idx, a.check_id AS taken_by FROM minted_answers a WHERE a.check_id IS NOT NULL"
        f" AND NOT EXISTS (SELECT 1 FROM answer_checks c WHERE c.id = a.check_id AND c.state = 'open') {_LIMIT}",
    ),
)

_COUNTED: Final = (
    "(SELECT batch, kind, CAST(sum(CASE WHEN session_id IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS free,"
    " CAST(sum(CASE WHEN session_id IS NULL THEN 0 ELSE 1 END) AS BIGINT) AS taken FROM pool GROUP BY batch, kind)"
)
_COUNTERS: Final = (
    Check(
        "the counts of free challenges are right (pool_counts)",
        "SELECT c.batch, c.kind, c.minted - c.taken AS counted, coalesce(p.free, 0) AS free FROM pool_counts c"
        f" LEFT JOIN {_COUNTED} p ON p.batch = c.batch AND p.kind = c.kind"
        f" WHERE c.minted - c.taken <> coalesce(p.free, 0) {_LIMIT}",
    ),
    Check(
        "no more challenges are taken than were counted (pool_counts)",
        # Those that were taken long ago are deleted, and stay counted.
        f"SELECT p.batch, p.kind, p.taken, c.taken AS counted FROM {_COUNTED} p"
        " LEFT JOIN pool_counts c ON c.batch = p.batch AND c.kind = p.kind"
        f" WHERE c.taken IS NULL OR p.taken > c.taken {_LIMIT}",
    ),
    Check(
        "the counts of free answers are right (answer_batches)",
        "SELECT b.id AS batch, b.minted - b.taken AS counted, coalesce(p.free, 0) AS free FROM answer_batches b"
        " LEFT JOIN (SELECT batch, count(*) AS free FROM minted_answers WHERE check_id IS NULL GROUP BY batch) p"
        f" ON p.batch = b.id WHERE b.minted - b.taken <> coalesce(p.free, 0) {_LIMIT}",
    ),
    Check(
        "the size of the recordings is right (totals)",
        "SELECT counted, size FROM (SELECT (SELECT value FROM totals WHERE name = 'recordings') AS counted,"
        " CAST(coalesce(sum(size), 0) AS BIGINT) AS size FROM recordings) AS t"
        " WHERE counted IS NULL OR counted <> size",
    ),
)

_CHANGES: Final = (
    Check(
        "generations grow with the changes, and each is the number of a change",
        "SELECT c.seq, c.generation FROM (SELECT seq, generation, max(generation) OVER"
        " (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier FROM changes) AS c"
        " WHERE c.generation > c.seq OR c.generation < coalesce(c.earlier, 0)"
        " OR (c.generation <> 0 AND NOT EXISTS (SELECT 1 FROM changes g WHERE g.seq = c.generation))"
        f" {_LIMIT}",
    ),
    Check(
        "no result is of a later generation than the newest change",
        "SELECT a.id AS result, a.generation FROM appraisals a"
        f" WHERE a.generation > coalesce((SELECT max(generation) FROM changes), 0) {_LIMIT}",
    ),
)

_ROUTERS: Final = (
    Check(
        "every router is registered by the key whose name it has",
        "SELECT r.spki, r.name, k.name AS holder FROM routers r JOIN api_keys k ON k.digest = r.credential"
        f" WHERE k.name <> r.name {_LIMIT}",
    ),
    Check(
        "every router is registered for a time after its renewal, which is after its beginning",
        f"SELECT spki, name FROM routers WHERE until_ms < renewed_ms OR renewed_ms < since_ms {_LIMIT}",
    ),
)

_LOG: Final = (
    Check(
        "every result since the log began is in it, or waits to be",
        "SELECT a.id AS result FROM appraisals a WHERE a.issued_ms > (SELECT min(begun_ms) FROM logs)"
        " AND NOT EXISTS (SELECT 1 FROM log_entries e WHERE e.kind = 'result' AND e.subject = a.id)"
        f" AND NOT EXISTS (SELECT 1 FROM log_pending p WHERE p.kind = 'result' AND p.subject = a.id) {_LIMIT}",
    ),
    Check(
        "the places of a log have no gaps, and its newest checkpoint has them all",
        "SELECT l.number AS log, e.entries, e.places, c.size FROM logs l"
        " LEFT JOIN (SELECT log, count(*) AS entries, max(place) + 1 AS places FROM log_entries GROUP BY log) e"
        "  ON e.log = l.number LEFT JOIN (SELECT log, max(size) AS size FROM log_checkpoints GROUP BY log) c"
        "  ON c.log = l.number WHERE coalesce(e.entries, 0) <> coalesce(e.places, 0)"
        f" OR coalesce(e.places, 0) <> coalesce(c.size, 0) {_LIMIT}",
    ),
)
