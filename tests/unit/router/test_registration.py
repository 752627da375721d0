"""A router's identity and its registration: the file, the loop's state, and whose fault a refusal is."""

from __future__ import annotations

import asyncio
import base64
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from attester.cose import PrivateKey
from attester.errors import ConfigError
from attester.identity import key_to_pem
from fixtures.router_identities import AT, identity
from router.model.outcomes import Failure
from router.state.identity import Identity, find_identity, identity_path
from router.state.registration import FRESH_S, LEARNED_IN_S, RENEW_EVERY_S, Registrar
from tests.unit.router.doubles import FakeVerifier, Moved, fake_verifier
from verifier.router_certificates import read_certificate, statement
from verifier.store.api_keys import digest_of

# The file.


def test_it_is_made_once_and_read_again(tmp_path: Path) -> None:
    """Only its owner can read it, and nothing else is left in the folder."""
    path = tmp_path / "router-identity.pem"
    made = Identity.load_or_make(path, AT)
    again = Identity.load_or_make(path, AT)
    assert (again.certificate, again.key.public) == (made.certificate, made.key.public)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_two_routers_in_one_folder_are_two(tmp_path: Path) -> None:
    """Each has its configuration, and a key beside it; none is where the key of the verifier may be."""
    one, two = (identity_path(tmp_path / f"{name}.toml", None) for name in ("router", "router-b"))
    assert one == tmp_path / "router-identity.pem"
    spkis = {Identity.load_or_make(path, AT).certificate.spki_sha256 for path in (one, two)}
    assert len(spkis) == 2


def test_the_setting_names_another_place(tmp_path: Path) -> None:
    """Relative to the configuration, or absolute."""
    config = tmp_path / "a" / "router.toml"
    assert identity_path(config, "keys/x.pem") == tmp_path / "a" / "keys" / "x.pem"
    assert identity_path(config, "/var/x.pem") == Path("/var/x.pem")


def test_in_a_folder_that_cannot_be_written_it_says_what_to_do(tmp_path: Path) -> None:
    """The setting that names another place."""
    with pytest.raises(ConfigError, match=r"cannot be written.*identity_file in \[gateway\]"):
        Identity.load_or_make(tmp_path / "missing" / "router-identity.pem", AT)


def test_nothing_is_made_where_it_is_only_looked_for(tmp_path: Path) -> None:
    """A check of the configuration writes nothing."""
    assert find_identity(tmp_path / "router.toml", None, makes_it=False) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """It may have been copied."""
    path = tmp_path / "x.pem"
    Identity.load_or_make(path, AT)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        Identity.load(path, AT)


def pem_of(made: Identity) -> bytes:
    certificate = x509.load_der_x509_certificate(made.certificate.der)
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


BROKEN: dict[str, Callable[[Identity], bytes]] = {
    "empty": lambda _: b"",
    "a token": lambda _: b"touchstone_x",
    "no certificate": lambda made: key_to_pem(made.key),
    "no key": pem_of,
    "the key of another": lambda made: key_to_pem(PrivateKey.generate()) + pem_of(made),
    "an Ed25519 key": lambda made: key_to_pem(PrivateKey.generate(-19)) + pem_of(made),
    "cut": lambda made: made.to_pem()[:-40],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_with_something_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    """It says how to get a new one, and never makes one over it."""
    path = tmp_path / "x.pem"
    path.write_bytes(BROKEN[name](identity()))
    path.chmod(0o600)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="makes a new one"):
        Identity.load_or_make(path, AT)
    assert path.read_bytes() == before


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """After ten years."""
    path = tmp_path / "x.pem"
    Identity.load_or_make(path, AT)
    with pytest.raises(ConfigError, match="valid from"):
        Identity.load(path, AT + timedelta(days=3660))


@given(st.text(max_size=80), st.text(min_size=1, max_size=80))
def test_what_it_signs_is_the_statement(issuer: str, token: str) -> None:
    """Any verifier and any credential."""
    made = identity()
    sent = msgspec.json.decode(made.registration(issuer, token))
    der = base64.b64decode(sent["certificate"])
    assert read_certificate(der, AT) == made.certificate
    made.key.public.verify(
        base64.b64decode(sent["signature"]), statement(issuer, digest_of(token), made.certificate.der)
    )


# Registration.


@pytest.fixture
async def verifier() -> AsyncIterator[FakeVerifier]:
    async with fake_verifier(Moved()) as made:
        yield made


@pytest.fixture
async def registrar(verifier: FakeVerifier) -> AsyncIterator[Registrar]:
    async with aiohttp.ClientSession() as http:
        yield Registrar(
            http, verifier.url, Identity.make(datetime.now(UTC)), verifier.clock.clock(), lambda: "t"
        )


async def test_it_is_registered_until_the_verifier_says_otherwise(verifier, registrar) -> None:
    """What the verifier cannot do now changes nothing; a refusal does."""
    assert registrar.to_wire()["registered"] is False
    await registrar.register()
    assert registrar.to_wire() | {"spki_sha256": "", "certificate_ends": ""} == {
        "spki_sha256": "",
        "certificate_ends": "",
        "registered": True,
        "registered_as": "router-1",
        "registered_for_s": 0,
        "problem": None,
    }
    verifier.bodies["routers"] = lambda: web.Response(status=503)
    await registrar.register()
    assert registrar.is_registered
    assert registrar.to_wire()["problem"] == "the verifier answers 503"
    verifier.bodies["routers"] = lambda: web.json_response({"detail": "revoked\x1b"}, status=401)
    await registrar.register()
    assert not registrar.is_registered
    assert registrar.to_wire()["problem"] == "the verifier answers 401: revoked"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"name": "x"}',
        b'{"name": "x", "registered_for_s": -1, "expires_in_s": 1}',
        b"x" * 70_000,
    ],
)
async def test_what_is_no_answer_of_a_verifier_registers_nothing(verifier, registrar, answer: bytes) -> None:
    """Whatever it is."""
    verifier.bodies["routers"] = lambda: web.Response(body=answer)
    await registrar.register()
    assert not registrar.is_registered
    assert registrar.to_wire()["problem"]


async def test_a_verifier_of_an_earlier_version_is_named(verifier, registrar) -> None:
    """And nodes that ask for no certificate are served as before."""
    verifier.bodies["routers"] = lambda: web.Response(status=404)
    await registrar.register()
    assert "earlier version" in registrar.to_wire()["problem"]
    assert await registrar.judge_refusal() is Failure.NOT_REGISTERED


async def test_it_ends_with_its_time(verifier, registrar) -> None:
    """If the verifier is away for so long."""
    await registrar.register()
    verifier.clock.forward(86399)
    assert registrar.is_registered
    verifier.clock.forward(1)
    assert not registrar.is_registered


async def test_a_credential_that_cannot_be_read_is_a_problem(verifier) -> None:
    """It is read anew each time."""

    def broken() -> str:
        raise ConfigError("router.key: the token cannot be read")

    async with aiohttp.ClientSession() as http:
        made = Registrar(http, verifier.url, Identity.make(datetime.now(UTC)), verifier.clock.clock(), broken)
        await made.register()
        assert made.to_wire()["problem"] == "router.key: the token cannot be read"
    assert verifier.registrations == []


async def test_a_refusal_is_the_nodes_only_if_the_verifier_says_so(verifier, registrar) -> None:
    """Two minutes after the registration, and by a word that is fresh."""
    assert await registrar.judge_refusal() is Failure.NOT_REGISTERED
    assert verifier.registrations == []
    await registrar.register()
    assert await registrar.judge_refusal() is Failure.CERTIFICATE_NEW
    verifier.registered_for_s = int(LEARNED_IN_S)
    verifier.clock.forward(FRESH_S + 1)
    assert await registrar.judge_refusal() is Failure.CERTIFICATE_REFUSED
    verifier.bodies["routers"] = lambda: web.Response(status=503)
    verifier.clock.forward(FRESH_S + 1)
    assert await registrar.judge_refusal() is Failure.CERTIFICATE_NEW


async def test_many_refusals_at_once_are_one_question(verifier, registrar) -> None:
    """And a verifier that does not answer is not asked by each of them."""
    verifier.registered_for_s = 1000
    await registrar.register()
    verifier.clock.forward(FRESH_S + 1)
    found = await asyncio.gather(*(registrar.judge_refusal() for _ in range(20)))
    assert set(found) == {Failure.CERTIFICATE_REFUSED}
    assert len(verifier.registrations) == 2
    verifier.bodies["routers"] = lambda: web.Response(status=503)
    verifier.clock.forward(FRESH_S + 1)
    await asyncio.gather(*(registrar.judge_refusal() for _ in range(20)))
    before = len(verifier.registrations)
    await asyncio.gather(*(registrar.judge_refusal() for _ in range(20)))
    assert len(verifier.registrations) == before


async def test_it_renews_every_hour_and_earlier_if_it_ends_earlier(verifier, registrar) -> None:
    """With a token that lives for minutes, by half of them; after failures soon, but not at once."""
    await registrar.register()
    assert 0.9 * RENEW_EVERY_S <= registrar._pause_s() <= RENEW_EVERY_S
    short = {"name": "x", "registered_for_s": 0, "expires_in_s": 600}
    verifier.bodies["routers"] = lambda: web.json_response(short)
    await registrar.register()
    assert 270 <= registrar._pause_s() <= 300
    verifier.bodies["routers"] = lambda: web.Response(status=503)
    pauses = []
    for _ in range(12):
        await registrar.register()
        pauses.append(registrar._pause_s())
    assert 0.9 <= pauses[0] <= 1
    assert all(each <= 60 for each in pauses)
    assert pauses[-1] >= 54


async def test_a_router_that_was_dropped_is_back_when_a_node_refuses_it(verifier, registrar) -> None:
    """By a restore of the verifier's database, for example: it registers anew, and nodes have to learn of it."""
    verifier.registered_for_s = 1000
    await registrar.register()
    verifier.clock.forward(FRESH_S + 1)
    verifier.registered_for_s = 0
    assert await registrar.judge_refusal() is Failure.CERTIFICATE_NEW
    assert len(verifier.registrations) == 2
