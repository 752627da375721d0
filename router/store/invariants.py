"""What must hold in the routers' database, as queries for the rows that break it."""

from __future__ import annotations

from typing import Final

from verifier.store.checking import MAX_SHOWN, Check

_LIMIT: Final = f"LIMIT {MAX_SHOWN + 1}"

CHECKS: Final = (
    Check(
        "no node is held twice for the same",
        "SELECT coalesce(node, '') AS node, kind FROM holds WHERE state = 'open'"
        f" GROUP BY coalesce(node, ''), kind HAVING count(*) > 1 {_LIMIT}",
    ),
    Check(
        "every hold is open or released",
        f"SELECT id AS hold, state FROM holds WHERE state NOT IN ('open', 'released') {_LIMIT}",
    ),
    Check(
        "the steps of each hold are numbered from 1",
        "SELECT hold, count(*) AS steps, max(number) AS last FROM hold_steps"
        f" GROUP BY hold HAVING max(number) <> count(*) OR min(number) <> 1 {_LIMIT}",
    ),
    Check(
        "every revision of a standing is one that routers count to",
        f"SELECT node, tier, router, revision FROM standings WHERE revision < 1 OR revision >= {1 << 62} {_LIMIT}",
    ),
    Check(
        "nothing negative was spent of a budget",
        f"SELECT router, name, tokens FROM budgets WHERE tokens < 0 OR day < 0 {_LIMIT}",
    ),
    Check(
        "a batch that has not ended has as many results as it counts",
        "SELECT id AS batch, completed, failed FROM jobs WHERE is_open = 1 AND completed + failed <>"
        f" (SELECT count(*) FROM job_lines WHERE job_lines.job = jobs.id) {_LIMIT}",
    ),
    Check(
        "each line of a range that is done has a result, while its batch has not ended",
        "SELECT r.job AS batch, r.number FROM job_ranges r JOIN jobs j ON j.id = r.job AND j.is_open = 1"
        " WHERE r.is_done = 1 AND r.lines <> (SELECT count(*) FROM job_lines l WHERE l.job = r.job"
        f" AND l.line >= r.first_line AND l.line < r.first_line + r.lines) {_LIMIT}",
    ),
)
