"""What a node holds is noticed, logged and said in this order; a change in the natural order never shows two revisions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from attester.config import AttesterConfig
from attester.errors import EngineError, EngineSilentError, VerifierError
from attester.evidence import WalkAnswer
from attester.holding import Holding, NotReadyError
from attester.model_files import ModelFiles
from attester.places import Places
from attester.revisions import Revision
from attester.weights.possession import WalkChallenge

MODEL = "org/model"
NODE = "n1"


def answer_of(name: str) -> bytes:
    """What an engine with the revision *name* answers to the practice walk."""
    return name.encode().ljust(32, b".")


@dataclass
class Engine:
    """An engine that has loaded one revision, or does not answer."""

    loaded: str = "one"
    fails: Exception | None = None
    walks: int = 0

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        self.walks += 1
        if self.fails is not None:
            raise self.fails
        return WalkAnswer(answers=(answer_of(self.loaded),), source="engine", device="cpu", micros=1)


@dataclass
class Verifier:
    """A verifier that takes some revisions, or does not tell."""

    takes: tuple[Revision, ...] | None
    said: list[dict[str, str]] = field(default_factory=list)
    fails: Exception | None = None

    async def revisions(self, model: str) -> tuple[Revision, ...] | None:
        if isinstance(self.takes, tuple) or self.takes is None:
            return self.takes
        raise self.takes

    async def say_revisions(self, node: str, held: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.said.append(dict(held))


@dataclass
class World:
    """One node: two revisions beside each other, a link to one of them, an engine and a verifier."""

    root: Path
    holding: Holding
    engine: Engine
    verifier: Verifier
    files: ModelFiles
    saved: list[dict[str, str]]
    time: list[float]
    logs: list[Any]

    def switch(self, name: str) -> None:
        """As an operator does it: the link leads elsewhere, at once."""
        new = self.root / "new"
        new.symlink_to(self.root / name)
        new.replace(self.root / "current")

    async def look(self, seconds: float = 100.0) -> bool:
        self.time[0] += seconds
        return await self.holding.look()

    @property
    def claimed(self) -> list[str]:
        return [name for said in self.verifier.said for name in names(said)]

    def shown(self) -> str:
        """The folder that evidence is made of."""
        return self.files.places[MODEL].resolve().name

    async def may_show(self, *, walks: bool = True) -> bool:
        try:
            await self.holding.check([MODEL], walks=walks)
        except NotReadyError:
            return False
        return True


DIGESTS = {"one": "1" * 64, "two": "2" * 64}


def names(said: dict[str, str]) -> list[str]:
    return [name for name, digest in DIGESTS.items() if digest in said.values()]


def folder(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.bin").write_text(f"the weights of {name}")
    return made


async def revision(
    files: ModelFiles, root: Path, name: str, state: str, *, practice: bool = True
) -> Revision:
    listed = await files.manifest_of(await files.list_files(MODEL, root / name))
    wanted = {
        f.name: {"size": f.size, "sha256": f.sha256.hex()} for f in listed.files if f.sha256 is not None
    }
    drill = {
        "seed": "0" * 64, "windows": 1, "read": "", "rows": 1, "passes": 1, "walk": [answer_of(name).hex()]
    }  # fmt: skip
    given: dict[str, Any] = {"digest": DIGESTS[name], "state": state, "files": wanted}
    return msgspec.convert({**given, "practice": drill if practice else None}, Revision)


def config(root: Path, adapter: str = "loopback") -> AttesterConfig:
    return msgspec.convert(
        {
            "verifier": {"url": "http://v"},
            "models": {MODEL: {"dir": str(root / "current")}},
            "serve": {"url": "https://n"},
            "engine": {"adapter": adapter},
        },
        AttesterConfig,
    )


async def make(root: Path, *, before: str | None = None, adapter: str = "loopback", at: str = "one") -> World:
    for name in ("one", "two", "three"):
        if not (root / name).exists():
            folder(root, name)
    (root / "current").unlink(missing_ok=True)
    (root / "current").symlink_to(root / at)
    given = config(root, adapter)
    files = ModelFiles(given, places=Places(given.folders))
    takes = tuple(
        [await revision(files, root, n, s) for n, s in (("one", "in-force"), ("two", "rolling-out"))]
    )
    # The files are made by the test's own clock: by that of the node they are old.
    engine, verifier, saved, time = Engine(), Verifier(takes), [], [4e9]
    holding = Holding(
        given, NODE, files, engine, verifier,
        before=None if before is None else {MODEL: DIGESTS[before]},
        save=lambda held: saved.append(dict(held)), now=lambda: time[0], monotonic=lambda: time[0],
    )  # fmt: skip
    return World(root, holding, engine, verifier, files, saved, time, [])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[World]:
    """A node that has claimed the first revision."""
    made = await make(tmp_path)
    with capture_logs() as logs:
        made.logs = logs
        await made.look()
        yield made


def logged(node: World, event: str) -> list[Any]:
    return [entry for entry in node.logs if event in entry["event"]]


async def test_a_node_says_at_its_start_what_it_holds(node: World) -> None:
    """What a verifier knows of no node's past, it is told."""
    assert node.claimed == ["one"]
    assert node.saved[-1] == {MODEL: DIGESTS["one"]}
    assert node.engine.walks == 0


async def test_it_logs_plainly_what_it_will_claim_before_it_does(node: World) -> None:
    """Model, old and new digest, and what the verifier says of it: `touchstone attester` sees a new folder."""
    node.engine.loaded = "two"
    node.switch("two")
    seen: list[int] = []

    async def say(_: str, held: Any) -> None:
        seen.append(len(logged(node, "going to claim")))

    node.verifier.say_revisions = say  # type: ignore[method-assign]
    assert await node.look() is True
    entry = logged(node, "going to claim")[-1]
    assert (entry["model"], entry["old"], entry["new"]) == (MODEL, DIGESTS["one"], DIGESTS["two"])
    assert entry["verifier"] == "rolling out"
    assert seen == [2]


async def test_nothing_is_said_twice(node: World) -> None:
    """A folder that stays the same is looked at, and no more."""
    assert [await node.look() for _ in range(3)] == [False] * 3
    assert node.claimed == ["one"]


async def test_a_link_that_is_switched_first_changes_nothing_until_the_engine_has_the_new_one(
    node: World,
) -> None:
    """The usual order: switch the link, then start the engine again.  The engine serves the old one meanwhile."""
    node.switch("two")
    assert await node.look() is False
    assert node.claimed == ["one"]
    assert node.shown() == "one"
    assert not node.holding.is_blocked
    assert await node.may_show()
    node.engine.loaded = "two"
    assert await node.look() is True
    assert node.claimed == ["one", "two"]
    assert node.shown() == "two"


async def test_an_engine_that_is_stopped_first_is_waited_for(node: World) -> None:
    """The other order: stop the engine, switch the link, start it.  Nothing is shown while there is no engine."""
    node.engine.fails = EngineSilentError("no answer")
    node.switch("two")
    await node.look()
    assert node.holding.is_blocked
    assert node.claimed == ["one"]
    node.engine.fails, node.engine.loaded = None, "two"
    assert await node.look() is True
    assert not node.holding.is_blocked


async def test_an_engine_that_has_the_new_one_answers_no_challenge_for_the_old_one(node: World) -> None:
    """It was started between two looks: the walk would be wrong, and nobody has lied."""
    node.switch("two")
    node.engine.loaded = "two"
    assert await node.may_show(walks=False)
    assert not await node.may_show(walks=True)


async def test_back_again_is_a_change_as_any_other(node: World) -> None:
    """A roll-out the other way."""
    for name in ("two", "one"):
        node.engine.loaded = name
        node.switch(name)
        assert await node.look() is True
    assert node.claimed == ["one", "two", "one"]


async def test_files_that_are_replaced_where_they_lie_are_never_shown_by_half(node: World) -> None:
    """Neither the old nor the new one is whole, so the node shows nothing, and is away for a while."""
    (node.root / "one" / "model.bin").write_text("half of")
    assert not await node.may_show(walks=False)
    await node.look()
    assert node.holding.is_blocked
    assert node.claimed == ["one"]
    assert "differ: model.bin" in logged(node, "not claimed yet")[-1]["why"]


async def test_a_partial_file_is_waited_for(node: World) -> None:
    """`*.incomplete` in the new folder: it must not be claimed, and the node says so and looks again."""
    node.engine.loaded = "two"
    part = node.root / "two" / "more.bin.incomplete"
    part.write_text("…")
    node.switch("two")
    assert await node.look() is False
    assert "more.bin.incomplete" in logged(node, "not claimed yet")[-1]["why"]
    part.unlink()
    assert await node.look() is True


async def test_a_folder_that_still_changes_is_waited_for(node: World) -> None:
    """Until nothing in it has changed for some seconds."""
    node.engine.loaded = "two"
    node.time[0] = (node.root / "two" / "model.bin").stat().st_ctime
    node.switch("two")
    assert await node.look(1) is False
    assert "may still be copied" in logged(node, "not claimed yet")[-1]["why"]
    assert await node.look(4.5) is True


async def test_a_folder_settles_although_its_clock_is_ahead(node: World) -> None:
    """On another machine's file system, say: what does not change from look to look is whole."""
    node.engine.loaded = "two"
    node.time[0] = (node.root / "two" / "model.bin").stat().st_ctime - 86_400
    node.switch("two")
    assert await node.look(0) is False
    assert await node.look(6) is True


async def test_an_upgrade_before_its_roll_out_waits_for_it(node: World) -> None:
    """The natural mistake: the node is upgraded before the verifier takes the revision.  Nobody is quarantined."""
    node.engine.loaded = "three"
    node.switch("three")
    assert await node.look() is False
    assert "none that the verifier takes" in logged(node, "not claimed yet")[-1]["why"]
    assert not await node.may_show()
    takes = node.verifier.takes
    assert takes is not None
    DIGESTS["three"] = "3" * 64
    try:
        node.verifier.takes = (*takes, await revision(node.files, node.root, "three", "rolling-out"))
        assert await node.look() is True
    finally:
        del DIGESTS["three"]


async def test_a_node_started_again_with_another_folder_waits_for_its_engine(tmp_path: Path) -> None:
    """What was claimed last is kept over a restart, so this is a change and no new node."""
    node = await make(tmp_path, before="one", at="two")
    await node.look()
    assert (node.claimed, node.holding.is_blocked) == ([], True)
    node.engine.loaded = "two"
    assert await node.look() is True
    assert (node.claimed, node.holding.is_blocked) == (["two"], False)


async def test_a_node_started_again_with_the_same_folder_asks_nobody(tmp_path: Path) -> None:
    """It says it again, which changes nothing, and its engine works for others."""
    node = await make(tmp_path, before="one")
    assert await node.look() is False
    assert (node.claimed, node.holding.is_blocked) == (["one"], False)


async def test_a_new_node_with_wrong_files_is_for_the_verifier_to_judge(tmp_path: Path) -> None:
    """Its attester logs what it is, claims nothing, and answers as it always did."""
    node = await make(tmp_path, at="three")
    with capture_logs() as logs:
        await node.look()
    assert (node.claimed, node.holding.is_blocked) == ([], False)
    assert await node.may_show()
    assert any("no revision" in entry["event"] for entry in logs)


async def test_an_earlier_verifier_is_told_nothing(tmp_path: Path) -> None:
    """It answers 404: everything goes on as before, also after a change."""
    node = await make(tmp_path)
    node.verifier.takes = None
    assert await node.look() is False
    node.switch("two")
    assert await node.look() is False
    assert (node.claimed, node.shown(), node.holding.is_blocked) == ([], "two", False)
    assert await node.may_show()


async def test_an_adapter_that_walks_files_asks_no_engine(tmp_path: Path) -> None:
    """Its engine shows nothing of what it has loaded."""
    node = await make(tmp_path, adapter="files")
    await node.look()
    node.switch("two")
    assert await node.look() is True
    assert node.engine.walks == 0


async def test_a_claim_that_is_refused_is_made_again(node: World) -> None:
    """The roll-out may have ended meanwhile; what was claimed before stands."""
    node.engine.loaded = "two"
    node.switch("two")
    node.verifier.fails = VerifierError("no", status=409, code="revision.unknown")
    with pytest.raises(VerifierError):
        await node.look()
    assert node.shown() == "one"
    node.verifier.fails = None
    assert await node.look() is True


async def test_an_engine_is_not_asked_all_the_time(node: World) -> None:
    """A walk takes time from its work: nine tenths of it are left."""
    node.switch("two")
    slow = node.engine.walk

    async def walk(model: str, challenge: WalkChallenge) -> WalkAnswer:
        node.time[0] += 1
        return await slow(model, challenge)

    node.engine.walk = walk  # type: ignore[method-assign]
    await node.look(0)
    asked = node.engine.walks
    node.engine.loaded = "two"
    assert await node.look(5) is False
    assert await node.look(6) is True
    assert asked >= 1


async def test_an_engine_that_cannot_walk_yet_is_no_other_revision(node: World) -> None:
    """It is loading, or asleep."""
    node.engine.fails = EngineError("asleep")
    node.switch("two")
    assert await node.look() is False
    assert "cannot walk yet: asleep" in logged(node, "not claimed yet")[-1]["why"]


async def test_one_session_sees_one_revision(node: World) -> None:
    """The claim waits until no session is answered."""
    node.engine.loaded = "two"
    node.switch("two")
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def between() -> AsyncIterator[None]:
        order.append(node.shown())
        yield
        order.append(node.shown())

    node.time[0] += 100
    await node.holding.look(between)
    assert order == ["one", "two"]


async def test_a_folder_that_is_gone_is_looked_for_again(node: World) -> None:
    """An unmounted disk is no revision."""
    (node.root / "current").unlink()
    await node.look()
    assert await node.may_show(walks=False)
    node.switch("one")
    await node.look()
    assert node.claimed == ["one"]


async def test_a_verifier_that_is_brought_up_to_date_is_told_soon(tmp_path: Path) -> None:
    """No restart of the attester, and no change of the folder."""
    node = await make(tmp_path)
    takes, node.verifier.takes = node.verifier.takes, None
    await node.look()
    node.verifier.takes = takes
    await node.look(299)
    assert node.claimed == []
    await node.look(2)
    assert node.claimed == ["one"]


async def test_a_new_nodes_files_that_become_valid_are_claimed(tmp_path: Path) -> None:
    """It was there before its reference value."""
    node = await make(tmp_path)
    takes, node.verifier.takes = node.verifier.takes, ()
    await node.look()
    assert (node.claimed, node.holding.is_blocked) == ([], False)
    node.verifier.takes = takes
    await node.look(301)
    assert node.claimed == ["one"]


async def test_an_unclaimed_folder_that_changes_is_no_new_node(tmp_path: Path) -> None:
    """Its engine is waited for, as for any change."""
    node = await make(tmp_path)
    takes, node.verifier.takes = node.verifier.takes, None
    await node.look()
    node.verifier.takes = takes
    node.switch("two")
    await node.look()
    assert node.claimed == []
    assert node.shown() == "one"
    node.engine.loaded = "two"
    assert await node.look() is True
