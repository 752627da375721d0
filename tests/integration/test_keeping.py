"""`touchstone challenges keep`: the pool is filled while others use it up, whatever happens to the keeper."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from attester.weights import reference
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from fixtures.demo import CONFIG
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from tests.integration.revisions import mint, resaved
from verifier.challenges import keeping, minting
from verifier.challenges.demand import AlikeNodes, demand_of
from verifier.challenges.keeping import LOW_SHARE, Keeper, KeptModels
from verifier.challenges.minting import Minter
from verifier.references import measured
from verifier.store import model_rollouts, pool, references
from verifier.store.database import Database, Tx
from verifier.store.model_rollouts import ModelRollout
from verifier.store.policies import ChangeAuthor

pytestmark = pytest.mark.usefixtures("only_our_calls")

ROOT = Path(__file__).parents[2]
GROUP = 8
HOURS = 0.04
"""Of calls to one node, at the demo's rates: some 60 reads and 37 walks, of which 30 and 20 are there."""
WHO = ChangeAuthor("test", "measured")


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """The rates of the demo."""
    rates = {"per_node_per_minute": 100_000}
    return {
        # Three reads and two walks in a hundredth of an hour, and groups of eight: so few challenges are quickly minted.
        "calls": CONFIG["calls"],
        "pool": CONFIG["pool"],
        "results": CONFIG["results"],
        "sessions": {"lifetime_s": 15, **rates},
        "policy": {"workers": 1},
    }


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of a few challenges."""
    monkeypatch.setattr(keeping, "_GROUP", {"read": GROUP, "walk": GROUP, "wide": GROUP})
    monkeypatch.setattr(minting, "WALKS_PER_GROUP", GROUP)


async def no_wide_classes(_tx: Tx) -> tuple[str, ...]:
    return ()


def keeper_of(verifier, *folders: Path, hours: float = HOURS, wide: bool = False) -> Keeper:
    async def cpu(_tx: Tx) -> tuple[str, ...]:
        return ("cpu",)

    config = verifier.service.config
    return Keeper(
        verifier.service.db,
        KeptModels(folders={MODEL: folders or (verifier.model_folder,)}, hours=hours, calls=config.calls),
        key=verifier.service.pool_key,
        kernel=kernel("numpy"),
        wide_classes=cpu if wide else no_wide_classes,
        cache=None,
        now_ms=lambda: verifier.clock.ms,
        monotonic=lambda: verifier.clock.ticks,
    )


async def fill(keeper: Keeper) -> int:
    """Mint until nothing is low."""
    total = 0
    while minted := await keeper.round():
        total += minted
    return total


async def free(db: Database) -> dict[str, int]:
    async with db.read() as tx:
        return await pool.free_of(tx, await in_force(tx))


async def in_force(tx: Tx) -> str:
    row = await references.active(tx, MODEL)
    assert row is not None
    return str(row["digest"])


async def take(verifier, kind: str, count: int) -> None:
    """Use challenges up."""

    async def use(tx: Tx) -> None:
        await tx.execute(
            "UPDATE pool_counts SET taken = taken + ? WHERE kind = ? AND batch = (SELECT max(id) FROM batches)",
            count,
            kind,
        )

    async with transaction(verifier.service.db) as tx:
        await use(tx)


def hour(verifier, kind: str) -> Any:
    """The rate of one cpu node."""
    return demand_of(verifier.service.config.calls, [AlikeNodes("", (MODEL,), "cpu", 1)], ())[MODEL].rate(
        kind
    )


async def test_it_fills_up_to_the_hours_and_then_rests(verifier) -> None:
    """No more than a group above what is wanted."""
    await verifier.enrol()
    await fill(keeper_of(verifier))
    found = await free(verifier.service.db)
    for kind in ("read", "walk"):
        wanted = hour(verifier, kind).within(HOURS)
        assert wanted <= found[kind] < wanted + GROUP
    assert "wide" not in found


async def test_without_nodes_nothing_is_minted(verifier) -> None:
    """Nobody uses anything."""
    assert await keeper_of(verifier).round() == 0


async def test_it_begins_at_half_and_ends_at_the_goal(verifier) -> None:
    """So it works in long runs, and not at each call."""
    await verifier.enrol()
    keeper = keeper_of(verifier)
    await fill(keeper)
    wanted = hour(verifier, "read").within(HOURS)
    low = hour(verifier, "read").within(HOURS * LOW_SHARE)
    left = (await free(verifier.service.db))["read"]
    await take(verifier, "read", left - low - 1)
    assert await keeper.round() == 0
    await take(verifier, "read", 2)
    assert await fill(keeper) >= wanted - low
    assert (await free(verifier.service.db))["read"] >= wanted


async def test_what_runs_out_first_is_minted_first(verifier) -> None:
    """Group by group."""
    await verifier.enrol()
    keeper = keeper_of(verifier, hours=0.1)
    before = await free(verifier.service.db)
    hours = {kind: hour(verifier, kind).hours_of(before[kind]) for kind in before}
    assert await keeper.round() == GROUP
    after = await free(verifier.service.db)
    assert [kind for kind in after if after[kind] > before[kind]] == [min(hours, key=hours.__getitem__)]


async def test_wide_walks_are_kept_for_classes_that_can_be_asked_them(verifier) -> None:
    """And only then."""
    await verifier.enrol()
    await fill(keeper_of(verifier, wide=True))
    assert (await free(verifier.service.db))["wide"] >= 4


async def test_the_sizes_are_those_of_the_last_run(verifier) -> None:
    """An operator's passes and windows go on."""
    await verifier.enrol()
    async with transaction(verifier.service.db) as tx:
        goal = '{"read":{"windows":5},"walk":{"rows":9,"passes":2}}'
        await pool.open_batch(tx, MODEL, await in_force(tx), verifier.clock.ms, goal)
    await fill(keeper_of(verifier))
    found = await verifier.rows("SELECT DISTINCT kind, parameters FROM pool WHERE batch > 1 ORDER BY kind")
    assert [(row["kind"], row["parameters"]) for row in found] == [
        ("read", '{"windows":5}'),
        ("walk", '{"rows":9,"passes":2}'),
    ]


async def test_the_groups_of_a_day_are_one_batch(verifier) -> None:
    """The table of batches stays small."""
    await verifier.enrol()
    for hours in (0.06, 0.12):
        await fill(keeper_of(verifier, hours=hours))
    assert len(await verifier.rows("SELECT id FROM batches")) == 1
    verifier.clock.forward(25 * 3600)
    await keeper_of(verifier, hours=0.3).round()
    assert len(await verifier.rows("SELECT id FROM batches")) == 2


async def test_spot_checks_go_on_over_groups(verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group and every sixteenth after it, as in one run."""
    await verifier.enrol()
    checked = []
    monkeypatch.setattr(Minter, "_spot_check", lambda *arguments: checked.append(arguments))
    monkeypatch.setattr(keeping, "_GROUP", {"read": 300, "walk": 1, "wide": 1})
    monkeypatch.setattr(minting, "WALKS_PER_GROUP", 1)
    keeper = keeper_of(verifier)
    await fill(keeper)
    groups = keeper._groups[(await digest_of(verifier)), "walk"]
    assert 17 <= groups <= 32
    assert len(checked) == 2


async def digest_of(verifier) -> str:
    async with verifier.service.db.read() as tx:
        return await in_force(tx)


async def test_a_kernel_that_computes_wrongly_stores_nothing(
    verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once an hour, and tried again."""
    await verifier.enrol()
    monkeypatch.setattr(reference, "walk_row", lambda *_: bytes(32))
    keeper = keeper_of(verifier)
    with capture_logs() as logs:
        await fill(keeper)
        await fill(keeper)
    found = await free(verifier.service.db)
    assert (found["walk"], found["read"] > 30) == (20, True)
    said = [entry["why"] for entry in logs if entry["log_level"] == "warning"]
    assert len(said) == 1
    assert "disagrees with the kernel in a spot check" in said[0]


async def test_a_folder_that_is_away_comes_back(verifier, tmp_path: Path) -> None:
    """It is said once an hour; nothing ends."""
    await verifier.enrol()
    folder = tmp_path / "mounted"
    keeper = keeper_of(verifier, folder)
    with capture_logs() as logs:
        assert [await keeper.round() for _ in range(3)] == [0, 0, 0]
        verifier.clock.forward(3600)
        assert await keeper.round() == 0
    said = [(e["kind"], e["why"]) for e in logs if e["log_level"] == "warning"]
    once = said[: len(said) // 2]
    assert said == once * 2
    assert len({kind for kind, _ in once}) == len(once) > 0
    assert {why for _, why in said} == {f"{folder} does not exist"}
    shutil.copytree(verifier.model_folder, folder)
    assert await keeper.round() == GROUP


async def other_value(verifier, folder: Path, *, replace: bool) -> str:
    """A folder with other weights, and its reference value."""
    shutil.copytree(verifier.model_folder, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    document = measured.measure_folder(MODEL, open_folder(folder))
    async with transaction(verifier.service.db) as tx:
        await references.add(
            tx, document, references.Provenance(), WHO, verifier.clock.ms, replace=replace, grace_ms=1000
        )
    return document.digest


async def minted_for(verifier, digest: str) -> dict[str, int]:
    async with verifier.service.db.read() as tx:
        return await pool.free_of(tx, digest)


async def test_a_value_that_is_replaced_is_minted_from_its_own_folder(verifier, tmp_path: Path) -> None:
    """The keeper goes on with the new value as soon as it has its weights."""
    await verifier.enrol()
    keeper = keeper_of(verifier, verifier.model_folder, tmp_path / "new")
    await keeper.round()
    digest = await other_value(verifier, tmp_path / "new", replace=True)
    await fill(keeper)
    found = await minted_for(verifier, digest)
    assert found["read"] >= hour(verifier, "read").within(HOURS)


async def test_a_replaced_value_in_the_same_folder_is_followed(verifier, tmp_path: Path) -> None:
    """The folder is compared before each group: challenges are never minted from other files."""
    await verifier.enrol()
    folder = tmp_path / "weights"
    shutil.copytree(verifier.model_folder, folder)
    keeper = keeper_of(verifier, folder)
    assert await keeper.round() == GROUP
    digest = await other_value(verifier, tmp_path / "new", replace=True)
    assert await keeper.round() == 0
    shutil.copytree(tmp_path / "new", folder, dirs_exist_ok=True)
    assert await keeper.round() == GROUP
    assert sum((await minted_for(verifier, digest)).values()) == GROUP


async def test_a_candidate_is_minted_ahead_of_time(verifier, tmp_path: Path) -> None:
    """After the value in force, so that both have theirs when it comes into force."""
    await verifier.enrol()
    digest = await other_value(verifier, tmp_path / "new", replace=False)
    keeper = keeper_of(verifier, tmp_path / "new", verifier.model_folder)
    await keeper.round()
    assert await minted_for(verifier, digest) == {}
    await fill(keeper)
    assert (await minted_for(verifier, digest))["read"] >= hour(verifier, "read").within(HOURS)


async def test_two_keepers_disturb_each_other_little(verifier) -> None:
    """Whoever is second loses a group, and no index is minted twice."""
    await verifier.enrol()
    one, two = keeper_of(verifier), keeper_of(verifier)
    for _ in range(6):
        await one.round()
        await two.round()
    rows = await verifier.rows("SELECT kind, idx FROM pool ORDER BY kind, idx")
    for kind in ("read", "walk"):
        indexes = [row["idx"] for row in rows if row["kind"] == kind]
        assert indexes == list(range(len(indexes)))


async def test_the_demo_serves_after_an_hour(verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the demo's rates the first challenges last a node two minutes; kept, it is affirming for an hour."""
    monkeypatch.setattr(keeping, "_GROUP", {"read": 128, "walk": 64, "wide": 64})
    monkeypatch.setattr(minting, "WALKS_PER_GROUP", 64)
    node = await verifier.enrol()
    async with transaction(verifier.service.db) as tx:
        await pool.open_batch(tx, MODEL, await in_force(tx), verifier.clock.ms, '{"read":{"windows":4}}')
    keeper = keeper_of(verifier, hours=0.2)
    rates = {kind: hour(verifier, kind) for kind in ("read", "walk")}
    steps, taken = 12, dict.fromkeys(rates, 0)
    for step in range(1, steps + 1):
        await fill(keeper)
        for kind, rate in rates.items():
            # The calls between those that are made here.
            due = int(rate.mean * step / steps) - taken[kind]
            await burn(verifier, kind, due)
            taken[kind] += due
        verifier.clock.forward(3600 / steps)
        claims = await verifier.attest(node)
        model = claims["submods"][f"model/{MODEL}"]
        assert (claims["ear_status"], model["ear_verifier_claims"].get("reasons", [])) == ("affirming", [])
    assert taken["read"] > 1000
    assert taken["walk"] > 500


async def burn(verifier, kind: str, count: int) -> None:
    """Take challenges as sessions do, all in one transaction."""

    async def use(tx: Tx) -> None:
        digest = await in_force(tx)
        for _ in range(count):
            assert await pool.take(tx, MODEL, kind, digest, sink, verifier.clock.ms) is not None

    session = await verifier.call(verifier.nodes[0], walk=False)
    sink = session.id
    await verifier.http.delete(f"{verifier.url}/challenge-response/v1/session/{session.id}")
    async with transaction(verifier.service.db) as tx:
        await use(tx)


async def test_both_revisions_of_a_roll_out_are_kept(verifier, tmp_path: Path) -> None:
    """What lasts shorter comes first, whether it is in force or rolled out; a value that only waits comes last."""
    await verifier.enrol()
    newer, third = (resaved(verifier.model_folder, tmp_path / str(byte), byte=byte) for byte in (-40, -39))
    new = await mint(verifier, newer, reads=0, walks=0)
    await mint(verifier, third, reads=0, walks=0)
    keeper = keeper_of(verifier, verifier.model_folder, newer, third, hours=0.04)
    async with transaction(verifier.service.db) as tx:
        rollout = ModelRollout(model=MODEL, old=await in_force(tx), new=new, started_ms=1, until_ms=None)
        await model_rollouts.begin(tx, rollout, WHO)
        await tx.execute("UPDATE pool_counts SET taken = minted")
    places = sorted(await keeper._low_places(), key=lambda place: not place.is_active)
    assert {place.document.digest for place in places if place.is_active} == {rollout.old, new}
    await keeper.round()
    await fill(keeper)
    async with verifier.service.db.read() as tx:
        for digest in (rollout.old, new):
            assert (await pool.free_of(tx, digest))["read"] >= 30
