"""
Whatever changes what the verifier has decided is logged in the same transaction: no writer is left out.

Each table has a row here: what it is logged as, or why not.  Each function that writes a table that is logged calls
`verifier.store.log.append`, by itself or by what it calls; or all that call it do.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import pytest

import verifier
from verifier.store import log
from verifier.store.scripts import read_scripts

ROOT = Path(verifier.__file__).parent
LOGGED = {
    # A restore ends all live results at once.
    "appraisals": ("result", "revocation", "database", "archive"),
    "policies": ("policy",),
    "changes": ("policy", "reference", "block", "router", "database"),
    "reference_values": ("reference",),
    "reference_sources": ("reference",),
    "model_rollouts": ("reference",),
    "blocks": ("block",),
    "incidents": ("incident", "release"),
    "incident_steps": ("incident", "release"),
    "incident_causes": ("incident",),
    "proposals": ("incident", "release"),
    "nodes": ("node",),
    "node_keys": ("node",),
    "signing_keys": ("key",),
    "api_keys": ("key",),
    "routers": ("router",),
    "receipt_keys": ("router-key",),
    "receipt_batches": ("receipts",),
    "usual_answers": ("reference",),
    "logs": ("log",),
}
"""By table, the kinds of entries that say what happens to it."""
NOT_LOGGED = {
    "sessions": "what was asked; what came of it is a result",
    "pool": "challenges are secret until they are used",
    "pool_counts": "a count of the pool",
    "pool_indexes": "a count of the pool",
    "batches": "when challenges were minted",
    "walks": "answers, which results rest on",
    "recordings": "evidence, which results rest on; it is not public",
    "tallies": "which operators passed where; what follows is an incident",
    "incident_reports": "the words of routers; what follows is an incident",
    "endpoints": "who holds a TLS key; it is in the result",
    "devices": "who has declared a device; what follows is an incident",
    "tokens": "a token says what may be enrolled; who used it is enrolled",
    "seen_requests": "signed requests that are not taken again",
    "events": "what routers follow; each comes with what it announces",
    "answer_batches": "runs of minting; the answers stay secret until they are asked",
    "minted_answers": "secrets of the pool",
    "answer_prompts": "digests under a key, so that no prompt comes twice",
    "answer_checks": "single checks; what follows from them is a suspicion, or an incident",
    "answer_scores": "verdicts on answers; what follows is a suspicion, or an incident",
    "operator_scores": "verdicts on answers; a person looks at them",
    "answer_differences": "what was asked and answered; it is for reviewers alone",
    "peer_reports": "what nodes say of other nodes' answers; a person looks at it",
    "answer_days": "counts of checks by day; what follows is an incident, or a review by a person",
    "node_drift": "scores of checks; what follows is a review by a person, which its operator must not learn of",
    "version_drift": "scores of checks; what follows is an incident of ours",
    "node_prompting": "which templates and defaults results have named; the results are logged",
    "peer_scores": "what nodes say of other nodes' answers; a person looks at it",
    "review_decisions": "how long reviews took and what people found; who decided what is in the history, and logged",
    "suspicions": "for which lane routers take a node; who quarantines makes an incident",
    "leases": "which replica does what",
    "channels": "which replica holds a node's channel",
    "totals": "sums, and moments of a restore, which is logged",
    "shadow_counts": "what a policy would have judged; nothing follows from it",
    "shadow_differences": "what a policy would have judged; nothing follows from it",
    "second_opinions": "what a second engine said; nothing follows from it",
    "second_opinion_differences": "what a second engine said; nothing follows from it",
    "node_revisions": "what a node says that it has; what it showed is in its result",
    "log_pending": "the log itself",
    "log_entries": "the log itself",
    "log_tiles": "the log itself",
    "log_checkpoints": "the log itself",
}
CHANGES_NOTHING = {
    (
        "appraisals.mark_current",
        "appraisals",
    ): "a result stays as it is under a newer change, which is logged",
    ("appraisals.prune", "appraisals"): "age",
    ("results.remove", "appraisals"): "age: the file that they are in was logged before",
    ("routers.prune", "routers"): "age: a registration that has ended",
    ("incident_transitions._count", "incidents"): "one more finding of the same; its state stays",
    ("incident_transitions._rest_on", "incident_causes"): "what a finding rests on; its incident is logged",
    ("log_tree.end_all", "logs"): "the restore, or the log that is begun, is logged",
}
"""Statements that end or change nothing that anybody decided, and why."""
_WRITES = re.compile(r"\b(?:INSERT INTO|DELETE FROM|UPDATE) ([a-z_]+)\b")
_CREATES = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+)")
_RENAMES = re.compile(r"ALTER TABLE ([a-z_]+) RENAME TO ([a-z_]+)")


class Code:
    """The functions of the verifier: what each writes, and what it calls."""

    def __init__(self) -> None:
        self.writes: dict[str, set[str]] = defaultdict(set)
        self.calls: dict[str, set[str]] = defaultdict(set)
        self.kinds: dict[str, set[str]] = defaultdict(set)
        """By function that appends to the log, the kinds of entries that it names."""
        self.store: set[str] = set()
        """The functions of `verifier.store`."""
        for path in sorted(ROOT.rglob("*.py")):
            self._read(path)
        self.callers: dict[str, set[str]] = defaultdict(set)
        for caller, called in self.calls.items():
            for name in called:
                self.callers[name].add(caller)

    def _read(self, path: Path) -> None:
        tree = ast.parse(path.read_text())
        names = {
            alias.asname or alias.name: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        origins = {
            alias.asname or alias.name: (node.module or "").rpartition(".")[2]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.stem}.{node.name}"
                self._read_function(name, node, path.stem, names, origins)
                if path.parent.name == "store":
                    self.store.add(name)
                if "log.append" in self.calls[name]:
                    words = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                    self.kinds[name] |= words & set(log.SUBJECTS)

    def _read_function(
        self,
        name: str,
        node: ast.AST,
        module: str,
        names: dict[str, str],
        origins: dict[str, str],
    ) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                self.writes[name] |= set(_WRITES.findall(part.value))
            # Also what is only named: it may be handed on to be called.
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                self.calls[name].add(f"{names.get(part.value.id, part.value.id)}.{part.attr}")
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                home = origins.get(part.id, module)
                self.calls[name].add(f"{home}.{names.get(part.id, part.id)}")

    def logs(self, name: str, kinds: Collection[str], seen: frozenset[str] = frozenset()) -> bool:
        """Whether a function logs an entry of one of *kinds*, by itself or by what it calls."""
        if name in seen:
            return False
        return bool(self.kinds.get(name, set()) & set(kinds)) or any(
            self.logs(each, kinds, seen | {name}) for each in self.calls.get(name, set()) & self.store
        )

    def is_covered(self, name: str, kinds: Collection[str], seen: frozenset[str] = frozenset()) -> bool:
        """Whether a function logs, or all functions of the store that call it do."""
        if self.logs(name, kinds):
            return True
        callers = self.callers.get(name, set()) & self.store - {name}
        return bool(callers) and all(
            each not in seen and self.is_covered(each, kinds, seen | {name}) for each in callers
        )


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


def tables() -> set[str]:
    """The tables of the newest schema."""
    found: set[str] = set()
    for script in read_scripts("verifier.store", "migrations"):
        found |= set(_CREATES.findall(script.text))
        for old, new in _RENAMES.findall(script.text):
            found = (found - {old}) | {new}
    return {name for name in found if not name.endswith("_new")}


def test_every_table_is_logged_or_says_why_not() -> None:
    assert tables() == set(LOGGED) | set(NOT_LOGGED)
    assert not set(LOGGED) & set(NOT_LOGGED)


def test_every_kind_of_entry_belongs_to_a_table() -> None:
    assert {kind for kinds in LOGGED.values() for kind in kinds} == set(log.SUBJECTS)


def test_whoever_writes_a_logged_table_logs(code: Code) -> None:
    """A statement that is added later is found here."""
    missing = [
        (name, table)
        for name, written in sorted(code.writes.items())
        for table in sorted(written & set(LOGGED))
        if (name, table) not in CHANGES_NOTHING and not code.is_covered(name, LOGGED[table])
    ]
    assert missing == []


def test_each_exception_is_one(code: Code) -> None:
    """An exception whose statement has gone, goes too."""
    assert all(table in code.writes[name] for name, table in CHANGES_NOTHING)


def test_a_writer_that_logs_nothing_is_found(code: Code) -> None:
    """The search itself: a function without a call of `log.append` on any path."""
    assert code.writes["appraisals.prune"] == {"appraisals"}
    assert not code.is_covered("appraisals.prune", LOGGED["appraisals"])
    assert code.is_covered("appraisals._insert", LOGGED["appraisals"])
    assert not code.is_covered("appraisals._insert", LOGGED["blocks"])
    assert not code.logs("incident_transitions._count", LOGGED["incidents"])
