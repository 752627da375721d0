"""What an older version stored is read by this one: recordings, results, incidents, decisions, standings, holds."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.transactions import transaction
from router.choose.decision import Decision, replay
from router.config import ReviewSection, StoreSection
from router.gateway.keys import Keyring
from router.model.clock import Clock
from router.model.errors import ReplayError
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.persistence import Persistence
from router.state.records import Records
from tests.unit.router.support import MODEL
from verifier import appraisal, recording
from verifier.policy import engine
from verifier.policy.engine import Limits
from verifier.service.inputs import InputLoader, StoredLookup
from verifier.store import incidents, recordings
from verifier.store.recordings import Window
from verifier.store.sqlite import SqliteDatabase

STORED = Path(__file__).parents[2] / "fixtures" / "stored"
RESULTS: list[dict[str, Any]] = json.loads((STORED / "results.json").read_text())
DECISIONS: list[dict[str, Any]] = json.loads((STORED / "decisions.json").read_text())
STANDINGS: dict[str, Any] = json.loads((STORED / "standings.json").read_text())
NOW_MS = 1_795_000_000_000


def unpacked(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((STORED / f"{name}.gz").read_bytes()))
    return path


def meaning(value: Any) -> Any:
    """What a program reads: the JSON of a value, without the sentences that are for people."""
    if isinstance(value, dict):
        return {name: meaning(each) for name, each in value.items() if name != "detail"}
    return [meaning(each) for each in value] if isinstance(value, list) else value


def json_meaning(value: Any) -> Any:
    """The same of a record."""
    return meaning(msgspec.json.decode(msgspec.json.encode(value)))


@pytest.fixture
async def verifier_db(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with SqliteDatabase(unpacked(tmp_path, "verifier.db")) as db:
        yield db


@pytest.fixture
async def router_db(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with SqliteDatabase(unpacked(tmp_path, "router.db"), schema="router.store") as db:
        yield db


@pytest.mark.parametrize("claims", RESULTS, ids=["a gpu", "honest", "a wrong walk"])
async def test_a_recorded_appraisal_replays_claim_for_claim(
    verifier_db: SqliteDatabase, claims: dict[str, Any]
) -> None:
    """From the bytes that were received, under the policy and the reference values that were stored with it."""
    lookup = StoredLookup(verifier_db, InputLoader())
    async with verifier_db.read() as tx:
        recorded = await recordings.of_appraisal(tx, claims["jti"])
    assert recorded is not None
    record = recorded.record
    bundle = await lookup.bundle(record.basis.policy)
    references = {model: await lookup.reference(name) for model, name in record.basis.references.items()}
    context = record.context(references, {}, bundle.thresholds, record.basis.blocks)
    checked = recording.examine(recorded, context)
    assert json_meaning(checked.submods) == json_meaning(record.checked)
    assert checked.policy_input(context) == recorded.input
    async with engine.opened(bundle, Limits(workers=1)) as pool:
        answer = engine.decode(await pool.ask(recorded.input))
    outcome = appraisal.read_outcome(answer, checked.submods)
    result = recording.conclude(record, checked, outcome, context, record.policy_id)
    assert json_meaning(result.to_claims()) == meaning(claims)


async def test_a_trial_reads_the_recordings(verifier_db: SqliteDatabase) -> None:
    """Their summaries say what each result came to."""
    window = Window(since_ms=0, until_ms=NOW_MS * 2)
    heads = [head async for page in recordings.pages(verifier_db, window) for head in page]
    found = {head.appraisal_id: {n: s.vector for n, s in head.summary.submods.items()} for head in heads}
    assert found == {
        each["jti"]: {name: submod["ear_trustworthiness_vector"] for name, submod in each["submods"].items()}
        for each in RESULTS
    }


async def test_the_incident_is_open(verifier_db: SqliteDatabase) -> None:
    """With its history; a person can still take it under review."""
    async with transaction(verifier_db) as tx:
        (row,) = await incidents.page(tx, open_only=True, after="", limit=10)
        steps = await incidents.steps(tx, row["id"])
        moved = await incidents.take_step(
            tx, row["id"], "release", "kim", "looked at", NOW_MS + 1, two_person=False
        )
    assert (row["kind"], row["code"]) == ("model-integrity-failure", "weights.walk.wrong")
    assert [step["state"] for step in steps] == [row["state"]]
    assert moved["state"] == "released"


@pytest.mark.parametrize("record", DECISIONS, ids=range(len(DECISIONS)))
def test_a_decision_replays(record: dict[str, Any]) -> None:
    """From its record alone; and a record with another seed is found out."""
    decision = Decision.from_wire(record)
    again = replay(decision)
    assert (again.ranked, again.chosen) == (decision.ranked, decision.chosen)
    with pytest.raises(ReplayError):
        replay(msgspec.structs.replace(decision, ranked=decision.ranked[::-1]))


async def test_a_router_goes_on_from_its_standings_and_holds(router_db: SqliteDatabase) -> None:
    """As it stopped: the same counts, and the held node held."""
    clock = Clock(lambda: NOW_MS, lambda: 0.0)
    fleet = Fleet(Table([Workload(MODEL, name="tiny", tier="small")]), clock)
    keyring = Keyring((), wall_ms=clock.now_ms, monotonic=clock.monotonic)
    persistence = Persistence(
        router_db,
        "old",
        StoreSection(path="router.db"),
        clock,
        fleet=fleet,
        records=Records(writes=True),
        budgets=keyring,
    )
    await persistence.load()
    await Holds(router_db, fleet, clock, ReviewSection()).sync()
    found = {
        node: {tier: msgspec.to_builtins(each.own) for tier, each in fleet.statistics_by_tier(node).items()}
        for node in "abc"
    }
    # What older routers did not count is nothing.
    newer = {"calls": 0.0, "bad_calls": 0.0}
    assert json.loads(json.dumps(found)) == {
        node: {tier: {**newer, **each} for tier, each in STANDINGS.get(node, {}).items()} for node in "abc"
    }
    assert [bool(fleet.view(node).incidents) for node in "abc"] == [False, False, True]


async def test_stored_decisions_replay(router_db: SqliteDatabase) -> None:
    """All that the router wrote."""
    async with router_db.read() as tx:
        rows = await tx.all("SELECT record FROM decisions ORDER BY at_ms")
    assert len(rows) == 12
    for row in rows:
        replay(Decision.from_wire(msgspec.json.decode(row["record"])))


def test_the_files_say_what_made_them() -> None:
    """No machine's path is in them."""
    text = (STORED / "README.md").read_text()
    assert {path.name for path in STORED.iterdir()} - {"README.md"} == set(
        re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    )
