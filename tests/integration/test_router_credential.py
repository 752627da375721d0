"""The router's key of the verifier: asked for at the start, sent with each request, replaced while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attester.errors import ConfigError
from fixtures.simulator import MODEL
from router.commands.router import router as commands
from router.config import RouterConfig, VerifierSection, read_token
from router.service.setup import load
from router.state.feed_source import FeedError, FeedSource
from verifier.roles import Role
from verifier.store import api_keys


def source(verifier: Any, folder: Path) -> FeedSource:
    section = VerifierSection(verifier.url, router_token_file="router.key")
    return FeedSource(verifier.stranger, section, lambda: read_token(folder, section.router_token_file))


async def keep(verifier: Any, folder: Path, name: str, *roles: Role) -> None:
    secret = (await verifier.key(name, *roles))["Authorization"].partition(" ")[2]
    (folder / "router.key").write_text(secret)


async def everything(feed: FeedSource) -> int:
    """All that a feed reads but the keys, which are open; the newest event."""
    newest = await feed.newest_event()
    assert [page.results async for page in feed.results("")] == [[]]
    assert await feed.open_incidents() == []
    assert await feed.knows_incident("i-1") is False
    async for heard in feed.events(newest):
        assert heard.kind == "heartbeat"
        break
    return newest


async def test_a_router_with_a_key_reads_the_feed(verifier, tmp_path: Path) -> None:
    """Results, events and incidents."""
    await keep(verifier, tmp_path, "router-1", Role.ROUTER)
    await everything(source(verifier, tmp_path))


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.POLICY_AUTHOR])
async def test_a_key_of_another_role_says_so(verifier, tmp_path: Path, role: Role) -> None:
    """And not that the verifier is away."""
    more = {"operator": "acme"} if role is Role.OPERATOR else {}
    secret = (await verifier.key("x", role, **more))["Authorization"].partition(" ")[2]
    (tmp_path / "router.key").write_text(secret)
    feed = source(verifier, tmp_path)
    with pytest.raises(FeedError, match="403 for the events: the verifier does not take the router's key"):
        async for _ in feed.events(0):
            pass


async def test_a_revoked_key_is_replaced_without_a_restart(verifier, tmp_path: Path) -> None:
    """By the file."""
    await keep(verifier, tmp_path, "router-1", Role.ROUTER)
    feed = source(verifier, tmp_path)
    await feed.newest_event()
    await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "router-1", verifier.clock.ms))
    with pytest.raises(FeedError, match=r"401 for .*the verifier does not take the router's key"):
        await feed.newest_event()
    await keep(verifier, tmp_path, "router-2", Role.ROUTER)
    await feed.newest_event()
    (tmp_path / "router.key").unlink()
    with pytest.raises(FeedError, match="cannot be read"):
        await feed.newest_event()


def test_without_a_key_the_router_does_not_start(tmp_path: Path) -> None:
    """It says where to get one."""
    (tmp_path / "workloads.yaml").write_text("tiers: {s: {}}\nworkloads: {w: {model: a/b, tier: s}}\n")
    config = RouterConfig(VerifierSection("http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="touchstone verifier key create NAME --role router"):
        load(tmp_path / "router.toml", config)


def test_init_takes_the_file_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes where it is, so that `check` and `serve` find it from any folder."""
    monkeypatch.chdir(tmp_path)
    Path("router.key").write_text("touchstone_" + "A" * 43)
    given = ["init", "--config", "router.toml", "--verifier", "http://127.0.0.1:9", "--model", MODEL]
    without = CliRunner().invoke(commands, given)
    assert without.exit_code != 0
    assert "--token-file" in without.output
    assert CliRunner().invoke(commands, [*given, "--token-file", "router.key"]).exit_code == 0
    monkeypatch.chdir("/")
    checked = CliRunner().invoke(commands, ["check", "--config", str(tmp_path / "router.toml")])
    assert checked.exit_code == 0, checked.output
