"""Keys of routers: made, listed and revoked by commands, while routers run; and routers without any."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.postgres import drop_database, make_database, url_of
from router.commands.maintenance import PACKAGE
from router.config import ApiKey
from router.model.errors import KeyStepError
from router.model.usage import UsageMismatch
from router.service.state import STATE
from router.store import decisions, forgetting, keys
from tests.integration.gateway import CHAT, Fleet, RouterProcess, ask, by, key, opened
from tests.integration.maintenance import Ended, touchstone
from tests.integration.test_router_restart import Place, at, eventually
from tests.unit.router.doubles import until
from verifier.roles import Role
from verifier.store.database import Database
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")
INIT = ("init", "--verifier", "http://127.0.0.1:9", "--token-file", "router.token", "--model", "a/b")


@pytest.fixture(params=STORES)
async def url(request: Any) -> AsyncIterator[str]:
    """The store's URL; empty for a file."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgres")
    name = await make_database(server)
    yield url_of(server, name)
    await drop_database(server, name)


@pytest.fixture
async def db(tmp_path: Path, url: str) -> AsyncIterator[Database]:
    async with open_database(url, tmp_path / "keys.db", schema=PACKAGE) as db:
        yield db


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with at(tmp_path) as place:
        yield place


def key_of(name: str, **given: Any) -> ApiKey:
    return msgspec.convert(key(name, **given), ApiKey)


async def does(config: Path, *arguments: str) -> Ended:
    return await touchstone("router", *arguments, "--config", config)


async def made(config: Path, *arguments: str) -> str:
    """The secret of a new key."""
    done = await does(config, "key", "create", *arguments)
    assert done.status == 0, done.said
    return done.said.splitlines()[0]


# While routers run.


async def test_keys_come_and_go_at_all_routers_of_a_store(place: Place, url: str) -> None:
    """Without a restart of any."""
    await place.node()
    store = {"url": url} if url else {"path": str(place.folder / "shared.db")}
    routers = [place.router(name, store={**store, "flush_s": 0.2}) for name in ("one", "two")]
    await asyncio.gather(*(each.start() for each in routers))

    async def all_answer(status: int, secret: str) -> bool:
        headers = {"Authorization": f"Bearer {secret}"}
        heard = [await ask(place.fleet.http, each.url, CHAT, **headers) for each in routers]
        return [each.status for each in heard] == [status] * 2

    secret = await made(routers[0].config, "web")
    await eventually(lambda: all_answer(200, secret))
    assert (await does(routers[1].config, "key", "revoke", "web")).status == 0
    await eventually(lambda: all_answer(401, secret))
    # So does one that was written into the configurations.
    assert await all_answer(200, "sk-ada")
    assert (await does(routers[0].config, "key", "revoke", "ada")).status == 0
    await eventually(lambda: all_answer(401, "sk-ada"))
    await routers[0].end()
    await routers[0].start()
    assert await all_answer(401, "sk-ada")


# Routers without keys.


async def test_a_router_without_keys_does_not_start(place: Place) -> None:
    """It says how to make one, and that there is another way."""
    router = closed(place)
    status, said = await router.touchstone("serve", "--config", str(router.config))
    assert status == 1
    assert "Make one: touchstone router key create NAME" in said
    assert "open = true in [gateway]" in said
    assert "Traceback" not in said


async def test_a_router_whose_only_key_is_revoked_does_not_start(place: Place) -> None:
    """It is as if there were none."""
    router = closed(place)
    await made(router.config, "web")
    assert (await does(router.config, "key", "revoke", "web")).status == 0
    status, said = await router.touchstone("serve", "--config", str(router.config))
    assert (status, "there is no API key" in said) == (1, True)


async def test_a_router_starts_with_a_key_of_its_store_alone(place: Place) -> None:
    """And the gateway is closed to everybody else, and the log does not call it open."""
    await place.node()
    router = closed(place)
    secret = await made(router.config, "web")
    await router.start()
    found = [
        (await ask(place.fleet.http, router.url, CHAT, Authorization=f"Bearer {shown}")).status
        for shown in (secret, "sk-ada")
    ]
    assert (found, "is open" in router.logged()) == ([200, 401], False)
    status, said = await router.touchstone("status", "--key", secret)
    assert (status, json.loads(said)["anyone_may_send_work"]) == (0, False)
    status, said = await router.touchstone("status")
    assert (status, "the router answers 401" in said) == (1, True)


async def test_an_open_gateway_says_so_at_each_start(place: Place) -> None:
    """In the log."""
    router = closed(place, gateway={"open": True})
    for _ in range(2):
        await router.start()
        assert "the gateway is open: anyone who reaches it may send work without a key" in router.logged()
        await router.end()


def closed(place: Place, **sections: Any) -> RouterProcess:
    """A router without any key."""
    router = place.router(**{"gateway": {"open": False}, **sections})
    text = router.config.read_text()
    router.config.write_text(text[: text.index("[[keys]]")])
    return router


# The commands.


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    """The configuration that `init` writes."""
    path = tmp_path / "router.toml"
    done = await does(path, *INIT)
    assert done.status == 0, done.said
    return path


def add_entry(config: Path, **given: Any) -> None:
    """A key in the configuration."""
    entry = {"name": "old", "sha256": "ab" * 32, **given}
    lines = "".join(f'{name} = "{value}"\n' for name, value in entry.items())
    config.write_text(f"{config.read_text()}\n[[keys]]\n{lines}")


def contents(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.iterdir())


async def listed(config: Path) -> dict[str, Any]:
    done = await does(config, "key", "list", "--json")
    assert done.status == 0, done.said
    return {each["name"]: each for each in json.loads(done.said)}


async def test_init_makes_a_first_key_and_shows_it_once(tmp_path: Path) -> None:
    """An administrator's; only its digest is kept."""
    path = tmp_path / "router.toml"
    done = await does(path, *INIT)
    (secret,) = [word for word in done.said.split() if word.startswith("touchstone_")]
    found = await listed(path)
    assert found["administrator"]["roles"] == ["administrator"]
    assert found["administrator"]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.encode() not in contents(tmp_path)


async def test_init_leaves_the_keys_of_a_store_that_is_there(config: Path) -> None:
    """The configuration was lost, and the store was not."""
    before = await listed(config)
    for name in ("router.toml", "workloads.yaml"):
        config.with_name(name).unlink()
    done = await does(config, *INIT)
    assert (done.status, "The store has keys already" in done.said, await listed(config)) == (0, True, before)


async def test_init_makes_no_key_for_an_open_gateway(tmp_path: Path) -> None:
    """Where anyone may send work; that is in the configuration, too."""
    path = tmp_path / "router.toml"
    done = await does(path, *INIT, "--open")
    assert (done.status, "touchstone_" in done.said, "The gateway is open" in done.said) == (0, False, True)
    assert "open = true" in path.read_text()
    assert await listed(path) == {}


async def test_a_key_is_what_it_was_made_as(config: Path) -> None:
    """With its roles, its limits and its end."""
    await made(
        config, "eve", "--role", "operator", "--role", "relying-party", "--operator", "acme", "--workload", "b",
        "--requests-per-minute", "5", "--concurrency", "2", "--tokens-per-day", "9", "--may-dispatch", "--days", "3",
    )  # fmt: skip
    found = (await listed(config))["eve"]
    assert found["expires_ms"] - found["created_ms"] == 3 * 86_400_000
    about = (
        "roles",
        "operator",
        "workloads",
        "requests_per_minute",
        "concurrency",
        "tokens_per_day",
        "may_dispatch",
    )
    assert [found[each] for each in about] == [["operator", "relying-party"], "acme", ["b"], 5, 2, 9, True]
    assert (found["state"], found["in"]) == ("live", "the store")


async def test_a_key_goes_to_a_file_of_its_owner(config: Path, tmp_path: Path) -> None:
    """It is not printed then; and no file is left of a key that could not be made."""
    out = tmp_path / "web.key"
    done = await does(config, "key", "create", "web", "--out", str(out))
    assert (done.status, done.said) == (0, f"Made the key web, in {out}.\n")
    secret, mode = out.read_text().strip(), out.stat().st_mode & 0o777
    assert ((await listed(config))["web"]["sha256"], mode) == (
        hashlib.sha256(secret.encode()).hexdigest(),
        0o600,
    )
    before = await listed(config)
    for name, file in (("other", out), ("web", tmp_path / "again.key")):
        assert (await does(config, "key", "create", name, "--out", str(file))).status == 1
    assert (await listed(config), (tmp_path / "again.key").exists(), out.read_text().strip()) == (
        before,
        False,
        secret,
    )


async def test_the_list_names_every_key_for_people(config: Path) -> None:
    """Those of the configuration, too, and what became of each."""
    add_entry(config, role="reviewer")
    await made(config, "web")
    for name in ("web", "old"):
        assert (await does(config, "key", "revoke", name)).status == 0
    said = (await does(config, "key", "list")).said.splitlines()
    assert "web  revoked  relying-party  (in the store)" in said
    assert "old  revoked  relying-party, reviewer  (in the configuration)" in said
    assert "administrator  live  administrator  (in the store)" in said


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a name that was given": (("create", "administrator"), "Names are never given again"),
    "a name that was revoked": (("create", "gone"), "Names are never given again"),
    "a name of the configuration": (("create", "old"), "Choose another"),
    "the name of nobody": (("create", "anonymous"), "Choose another"),
    "no name": (("create", "a b"), "the key cannot be made"),
    "an operator of nobody": (("create", "x", "--role", "operator"), "needs the name of its operator"),
    "an unknown key": (("revoke", "nobody"), "there is no key nobody"),
    "one that is revoked": (("revoke", "gone"), "gone is revoked already"),
}


@pytest.mark.parametrize(("arguments", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_is_refused_in_a_sentence(
    config: Path, arguments: tuple[str, ...], why: str
) -> None:
    """And nothing is changed."""
    add_entry(config)
    await made(config, "gone")
    await does(config, "key", "revoke", "gone")
    before = await listed(config)
    done = await does(config, "key", *arguments)
    assert (done.status, why in done.said, await listed(config)) == (1, True, before), done.said


async def test_without_a_store_there_are_no_keys_by_command(tmp_path: Path) -> None:
    """It says what to do."""
    config = tmp_path / "router.toml"
    config.write_text('[verifier]\nurl = "http://127.0.0.1:9"\n')
    done = await does(config, "key", "create", "web")
    assert (done.status, "Set path or url in [store], or write [[keys]]" in done.said) == (1, True)


async def test_a_restore_leaves_revoked_what_was_revoked(config: Path, tmp_path: Path) -> None:
    """A key of before the backup, and one that the backup does not know."""
    await made(config, "web")
    assert (await does(config, "backup", str(tmp_path / "b.db"))).status == 0
    await made(config, "later")
    await made(config, "lost")
    for name in ("web", "later"):
        await does(config, "key", "revoke", name)
    done = await does(config, "restore", str(tmp_path / "b.db"), "--replace", "--yes")
    assert done.status == 0, done.said
    states = {name: each["state"] for name, each in (await listed(config)).items()}
    assert states == {"administrator": "live", "web": "revoked", "later": "revoked"}


# The store.


async def test_a_row_that_cannot_be_read_lets_nobody_in(db: Database) -> None:
    """Not even whose key the configuration has, too."""
    await db.write(lambda tx: keys.add(tx, key_of("eve", roles=["administrator"]), 1))
    await db.write(lambda tx: tx.execute("UPDATE api_keys SET settings = ?", b"\xff"))
    async with db.read() as tx:
        (found,) = await keys.list_all(tx)
    assert (found.key.name, found.key.sha256, found.state(2)) == ("eve", key("eve")["sha256"], "revoked")


async def test_the_columns_count_not_what_is_beside_them(db: Database) -> None:
    """A row that was tampered with is the key of its digest and has the name that is unique."""
    await db.write(lambda tx: keys.add(tx, key_of("eve"), 1))
    other = msgspec.json.encode(key_of("root"))
    await db.write(lambda tx: tx.execute("UPDATE api_keys SET settings = ?", other))
    async with db.read() as tx:
        (found,) = await keys.list_all(tx)
    assert (found.key.name, found.key.sha256) == ("eve", key("eve")["sha256"])


async def test_each_step_has_a_higher_number(db: Database) -> None:
    """So a router that looks at the number alone misses none."""
    seen = []
    for step in (
        lambda tx: keys.add(tx, key_of("a"), 1),
        lambda tx: keys.add(tx, key_of("b"), 1),
        lambda tx: keys.revoke(tx, "a", 2),
        lambda tx: keys.revoke(tx, "c", 2, key_of("c")),
    ):
        await db.write(step)
        async with db.read() as tx:
            seen.append(await keys.revision(tx))
    assert seen == [1, 2, 3, 4]


async def test_there_are_not_too_many(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers have all of them in memory."""
    monkeypatch.setattr(keys, "MAX_KEYS", 2)
    for name in "ab":
        await db.write(lambda tx, name=name: keys.add(tx, key_of(name), 1))
    with pytest.raises(KeyStepError, match="no more"):
        await db.write(lambda tx: keys.add(tx, key_of("c"), 1))


async def test_a_flood_of_decisions_drops_its_own(db: Database) -> None:
    """In the store, too, where all routers write."""
    few = [(f"a{n}", n, "ada", b"{}") for n in range(5)]
    many = [(f"f{n:03}", 1000 + n, "flood", b"{}") for n in range(200)]
    await db.write(lambda tx: decisions.save(tx, "one", [*few, *many]))
    async with db.read() as tx:
        surplus = await forgetting.find_surplus(tx, "decisions", 50)
    assert [caller for caller, _ in surplus] == ["flood"]
    for caller, until_ms in surplus:
        steps = 1
        while await db.write(
            lambda tx, c=caller, u=until_ms: forgetting.forget_of(tx, "decisions", c, u, limit=30)
        ):
            steps += 1
        assert steps > 3
    async with db.read() as tx:
        left = {row["id"] for row in await tx.all("SELECT id FROM decisions")}
    assert left == {each[0] for each in few} | {each[0] for each in many[-45:]}


# Two persons.


async def test_two_persons_are_two_keys(tmp_path: Path) -> None:
    """The actor is the key, whatever the body says: a body that names one is refused."""
    async with opened(tmp_path) as fleet:
        hold = await held(fleet)
        said = []
        for who, body in (
            ("rae", {"reason": "looked"}),
            ("rae", {"reason": "looked", "actor": "sam"}),
            ("rae", {"reason": "looked"}),
            ("ada", {"reason": "looked"}),
            ("sam", {"reason": "looked"}),
        ):
            status, answer, _ = await fleet.post(body, f"/api/v1/incidents/{hold}/release", **by(who))
            said.append((status, answer.get("awaiting_second")))
        assert said == [(200, True), (400, None), (200, True), (403, None), (200, False)]
        _, shown = await fleet.get(f"/api/v1/incidents/{hold}", **by("rae"))
        assert [(each["step"], each["actor"]) for each in shown["history"]] == [
            ("hold", "router"), ("propose-release", "rae"), ("propose-release", "rae"), ("release", "sam")
        ]  # fmt: skip


async def held(fleet: Fleet) -> str:
    """A hold of a router that asks for two persons."""
    fleet.verifier.trust("a")
    reviewers = [key(name, roles=[Role.REVIEWER]) for name in ("rae", "sam")]
    await fleet.start(sections={"keys": [*reviewers, key("ada")], "review": {"two_person": True}})
    holds = fleet.app[STATE].holds
    mismatch = UsageMismatch(
        answers=20, what="answers", claimed=1000, allowed=10, is_confirmed=True, router_is_wrong=False
    )
    holds.report_mismatch("a", "acme", mismatch)
    await until(lambda: holds._known)
    (hold,) = await holds.list_open()
    return hold.id
