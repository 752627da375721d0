"""A verifier's database as it is after a long time: many nodes, each with many results."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from verifier.store.ids import new_id, new_nonce

_DAY_MS = 86_400_000
_LIFETIME_MS = 300_000
_TOKEN = "x" * 2000
_CLAIMS = '{"submods":{}}' + " " * 1500
_RECORD = '{"channel":"call","verdict":"right"}' + " " * 200


def fill_history(path: Path, nodes: int, results: int, now_ms: int) -> None:
    """Add nodes, and results of the last hours with their sessions, walks and events, to a verifier's SQLite file."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("PRAGMA synchronous = OFF")
        ids = [secrets.token_hex(8) for _ in range(nodes)]
        db.executemany(
            "INSERT INTO nodes (id, ueid, operator, models, hardware_class, state, enrolled_ms)"
            " VALUES (?, ?, ?, '[\"example/other\"]', 'cpu', 'active', ?)",
            (
                (i, b"\x01" + secrets.token_bytes(16), f"operator-{n % 1000}", now_ms)
                for n, i in enumerate(ids)
            ),
        )
        db.executemany(
            "INSERT INTO node_keys (kid, node_id, key, current, since_ms) VALUES (?, ?, ?, 1, ?)",
            ((secrets.token_bytes(32), i, secrets.token_bytes(77), now_ms) for i in ids),
        )
        db.executemany(
            "INSERT INTO endpoints (pin, node_id) VALUES (?, ?)", ((secrets.token_hex(32), i) for i in ids)
        )
        # The newest result of each node is live, for a day; the others are of the hours before.  Before a result
        # ends, its node is called.  If all ended within minutes, hundreds of calls a second would be measured too.
        step_ms = max(12 * 3600_000 // max(results // nodes, 1), 1)
        made = []
        for number in range(results):
            age_ms = ((results - 1 - number) // nodes) * step_ms
            at_ms = now_ms - age_ms - 1000
            made.append((new_id(at_ms), new_id(at_ms), ids[number % nodes], at_ms))
        db.executemany(
            "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted,"
            " evidence_sha256, appraisal_id) VALUES (?, ?, 'call', ?, ?, ?, 'complete', '{}', ?, ?)",
            ((s, n, new_nonce(t), t, t + 120_000, b"e" * 32, a) for s, a, n, t in made),
        )
        db.executemany(
            "INSERT INTO appraisals (id, session_id, node_id, issued_ms, expires_ms, status, token, claims,"
            f" public, origin, basis, generation) VALUES (?, ?, ?, ?, ?, 'affirming', '{_TOKEN}', '{_CLAIMS}',"
            " 1, ?, '', 1000)",
            (
                (a, s, n, t, t + (_DAY_MS if number >= results - nodes else _LIFETIME_MS), a)
                for number, (s, a, n, t) in enumerate(made)
            ),
        )
        db.executemany(
            "INSERT INTO walks (session_id, node_id, model, called, record, at_ms)"
            f" VALUES (?, ?, 'example/other', 1, '{_RECORD}', ?)",
            ((s, n, t) for s, _, n, t in made),
        )
        db.executemany(
            f"INSERT INTO events (at_ms, type, data) VALUES (?, 'result', '{{\"token\":\"{_TOKEN}\"}}')",
            ((t,) for _, _, _, t in made[-nodes:]),
        )
    db.close()
