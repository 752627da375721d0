"""A verifier whose certificate an authority of its own has signed: attester, router and commands believe it, alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from attester import config as attester_config
from attester.authorities import client_context
from attester.commands import attester as attester_commands
from attester.errors import ConfigError, VerifierError
from attester.running import opened
from fixtures.fleet import free_port
from router.commands.router import router as router_commands
from router.config import RouterConfig
from router.model.table import read_table
from router.service.app import running
from router.service.setup import RouterSetup, load
from tests.integration.front import Served, served, until
from tests.integration.test_tls import Authority, settings_of
from tests.unit.router.doubles import Moved
from verifier.commands.status import _ask, _trust
from verifier.commands.verifier import verifier as verifier_commands
from verifier.config import Home

TABLE = read_table(b"tiers: {s: {}}\nworkloads: {w: {model: org/tiny, tier: s}}\n")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
async def verifier(authority: Authority, tmp_path: Path) -> AsyncIterator[Served]:
    async with served("verifier", tmp_path, **settings_of(authority.issue("server"))) as service:
        yield service


def url_of(verifier: Served) -> str:
    return f"https://127.0.0.1:{verifier.port}"


def attester(folder: Path, section: Mapping[str, Any]) -> attester_config.Home:
    home = attester_config.Home(folder / "attester")
    given = {
        "verifier": section,
        "models": {"org/tiny": {"dir": str(folder)}},
        "serve": {"url": "https://127.0.0.1:9"},
    }
    home.create(msgspec.convert(given, attester_config.AttesterConfig))
    return home


async def discover(home: attester_config.Home) -> Mapping[str, Any]:
    async with opened(home, home.config()) as (client, _, _):
        return await client.discover()


@pytest.mark.parametrize("name", ["pki/authority.pem", "pki/server.pem"])
async def test_an_attester_believes_the_file(verifier: Served, tmp_path: Path, name: str) -> None:
    """An authority, or the verifier's one certificate; names are relative to the home."""
    home = attester(tmp_path, {"url": url_of(verifier), "ca_file": f"../{name}"})
    assert (await discover(home))["issuer"]


async def test_without_the_file_an_attester_says_what_to_set(verifier: Served, tmp_path: Path) -> None:
    """The system does not know the authority."""
    home = attester(tmp_path, {"url": url_of(verifier)})
    with pytest.raises(VerifierError, match=r"its certificate is not believed .*ca_file under \[verifier\]"):
        await discover(home)


async def test_another_authority_is_not_believed(
    verifier: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stands in the place of all others, also of those that the system knows."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pki/authority.pem"))
    assert (await discover(attester(tmp_path / "known", {"url": url_of(verifier)})))["issuer"]
    other = Authority(tmp_path / "other", "other")
    home = attester(tmp_path, {"url": url_of(verifier), "ca_file": str(other.path)})
    with pytest.raises(VerifierError, match="its certificate is not believed"):
        await discover(home)


async def test_a_certificate_for_another_host_is_not_believed(verifier: Served, tmp_path: Path) -> None:
    """Also of the right authority."""
    url = f"https://localhost:{verifier.port}"
    home = attester(tmp_path, {"url": url, "ca_file": str(tmp_path / "pki/authority.pem")})
    with pytest.raises(VerifierError, match="its certificate is not believed"):
        await discover(home)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_a_file_without_a_certificate_is_said(tmp_path: Path, content: bytes | None) -> None:
    """Before anything is sent."""
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    home = attester(tmp_path, {"url": "https://127.0.0.1:9", "ca_file": str(tmp_path / "ca.pem")})
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used as ca_file"):
        await discover(home)


def router(folder: Path, section: Mapping[str, Any]) -> RouterSetup:
    (folder / "router.key").write_text((folder / "verifier" / "router.token").read_text())
    given = {
        "verifier": {"router_token_file": "router.key", **section},
        "gateway": {"open": True, "probe_every_s": 0},
    }
    return RouterSetup(msgspec.convert(given, RouterConfig), TABLE, folder)


async def test_a_router_follows_by_the_file(verifier: Served, tmp_path: Path) -> None:
    """Relative to the folder of its configuration."""
    setup = router(tmp_path, {"url": url_of(verifier), "ca_file": "pki/authority.pem"})
    async with running(setup, Moved().clock()) as (state, _):
        await until(lambda: state.fleet.silent_s < 60)


async def test_without_the_file_a_router_says_what_to_set(
    verifier: Served, tmp_path: Path, capsys: Any
) -> None:
    """In the log, and it goes on trying."""
    setup = router(tmp_path, {"url": url_of(verifier)})
    said = ""
    async with running(setup, Moved().clock()):
        async with asyncio.timeout(10):
            while "ca_file under [verifier]" not in said:
                await asyncio.sleep(0.02)
                captured = capsys.readouterr()
                said += captured.out + captured.err


def test_a_router_does_not_start_with_a_file_that_it_cannot_use(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "workloads.yaml").write_text("tiers: {s: {}}\nworkloads: {w: {model: a/b, tier: s}}\n")
    (tmp_path / "router.key").write_text("x")
    section = {"url": "https://127.0.0.1:9", "ca_file": "ca.pem", "router_token_file": "router.key"}
    config = msgspec.convert({"verifier": section}, RouterConfig)
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be used as ca_file"):
        load(tmp_path / "router.toml", config)


async def test_the_status_believes_the_certificate_of_its_own_home(verifier: Served, tmp_path: Path) -> None:
    """No setting is needed for that."""
    home = Home(tmp_path / "verifier")
    context = _trust(home.config(), home.path)
    assert (await _ask(url_of(verifier), context))["state"] == "READY"


@pytest.mark.parametrize("kind", [attester_config.AttesterConfig, RouterConfig])
def test_the_file_needs_https(kind: Any) -> None:
    """Without it the setting would say more than is so."""
    given = {
        "verifier": {"url": "http://127.0.0.1:9", "ca_file": "ca.pem"},
        "models": {"a/b": {"dir": "/"}},
        "serve": {"url": "https://127.0.0.1:9"},
    }
    if kind is RouterConfig:
        given = {"verifier": given["verifier"]}
    with pytest.raises(msgspec.ValidationError, match="ca_file needs a url with https"):
        msgspec.convert(given, kind)


def test_init_of_attester_and_router_writes_it(tmp_path: Path) -> None:
    """As an absolute path: it is given relative to where one is."""
    (tmp_path / "router.key").write_text("x")
    common = ["--verifier", "https://v.example", "--ca-file", "ca.pem"]
    node = [*common, "--model", "a/b=/", "--serve", "https://n.example", "--home", str(tmp_path / "node")]
    assert CliRunner().invoke(attester_commands, ["init", *node]).exit_code == 0
    config = tmp_path / "router.toml"
    rest = [*common, "--model", "a/b", "--token-file", str(tmp_path / "router.key"), "--config", str(config)]
    assert CliRunner().invoke(router_commands, ["init", *rest]).exit_code == 0
    expected = f'ca_file = "{Path("ca.pem").absolute()}"'
    for path in (tmp_path / "node" / "attester.toml", config):
        assert expected in path.read_text()


async def test_who_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    """By address and cause, without what the library calls it."""
    found = await _ask(f"https://127.0.0.1:{free_port()}", client_context(None))
    assert re.fullmatch(
        r"no connection to 127\.0\.0\.1:\d+ \(Connect(ion refused| call failed).*\)", found["why"]
    )


def test_init_with_a_certificate_speaks_tls(tmp_path: Path) -> None:
    """The verifier's URL follows, and names are absolute; the router's `init` takes the same."""
    (tmp_path / "router.key").write_text("x")
    pair = ["--tls-certificate", "tls.pem", "--tls-key", "tls.key"]
    home = tmp_path / "home"
    assert CliRunner().invoke(verifier_commands, ["init", *pair, "--home", str(home)]).exit_code == 0
    assert Home(home).config().service.url == "https://127.0.0.1:8440"
    config = tmp_path / "router.toml"
    rest = ["--verifier", "https://v.example", "--model", "a/b", "--token-file", str(tmp_path / "router.key")]
    done = CliRunner().invoke(router_commands, ["init", *pair, *rest, "--config", str(config)])
    assert done.exit_code == 0
    for path in (home / "verifier.toml", config):
        assert f'tls_certificate = "{Path("tls.pem").absolute()}"' in path.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tls-key", "tls.key"], "tls_certificate and tls_key go together"),
        (["--url", "verifier.example"], "--url must begin with https:// or http://"),
        (["--url", "https://v.example/path"], "service.url"),
    ],
)
def test_init_says_what_cannot_be(tmp_path: Path, given: list[str], said: str) -> None:
    """Without a trace, and nothing is made."""
    done = CliRunner().invoke(verifier_commands, ["init", *given, "--home", str(tmp_path / "home")])
    assert done.exit_code != 0
    assert said in done.output
    assert not (tmp_path / "home").exists()
