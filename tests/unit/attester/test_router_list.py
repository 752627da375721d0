"""The list of routers: strictly read, from the verifier and from the home."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from attester import cose, identity, router_list
from attester.client import VerifierClient
from attester.errors import VerifierError
from attester.front.clients import create_client_certificate
from attester.proof import Proof, Request
from attester.router_list import KnownRouter

KEY = cose.PrivateKey.generate()
DER = x509.load_pem_x509_certificate(create_client_certificate(KEY, "router")).public_bytes(
    serialization.Encoding.DER
)
SPKI = hashlib.sha256(identity.spki(KEY)).hexdigest()
ROW = {"name": "router-1", "certificate": base64.b64encode(DER).decode(), "spki_sha256": SPKI}
KNOWN = KnownRouter("router-1", DER, SPKI)


def body(*rows: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"routers": list(rows), **more})


def test_a_list_is_read() -> None:
    """Members that are newer than this version are left alone."""
    assert router_list.parse(body(ROW)) == (KNOWN,)
    assert router_list.parse(body({**ROW, "since": 1}, next=None)) == (KNOWN,)
    assert router_list.parse(body()) == ()


def test_one_key_is_one_router() -> None:
    """Whatever the list says twice."""
    assert router_list.parse(body(ROW, ROW)) == (KNOWN,)


def certificate_of(key: Any, *, ca: bool | None = False) -> dict[str, str]:
    """A row of a certificate of another kind."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "router")])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    )  # fmt: skip
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    der = builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        **ROW,
        "certificate": base64.b64encode(der).decode(),
        "spki_sha256": hashlib.sha256(spki).hexdigest(),
    }


P256 = ec.generate_private_key(ec.SECP256R1())
BAD = {
    "no list": b"{}",
    "no JSON": b"[",
    "another form": b'{"routers": {}}',
    "a row without a name": body({**ROW, "name": ""}),
    "a row without a certificate": body({"name": "x", "spki_sha256": SPKI}),
    "a certificate that is not base64": body({**ROW, "certificate": "%%%%"}),
    "a certificate that is none": body({**ROW, "certificate": base64.b64encode(b"x").decode()}),
    "a digest of another key": body({**ROW, "spki_sha256": "0" * 64}),
    "a digest in capitals": body({**ROW, "spki_sha256": "A" * 64}),
    "an authority": body(certificate_of(P256, ca=True)),
    "no word of authority": body(certificate_of(P256, ca=None)),
    "an RSA key": body(certificate_of(rsa.generate_private_key(65537, 2048))),
    "another curve": body(certificate_of(ec.generate_private_key(ec.SECP384R1()))),
    "an Ed25519 key": body(certificate_of(ed25519.Ed25519PrivateKey.generate())),
    "more rows than may be": body(*[ROW] * 257),
    "more bytes than may be": body(ROW, more="x" * router_list.MAX_LIST_BYTES),
    "a certificate and something behind it": body(
        {**ROW, "certificate": base64.b64encode(DER + b"x").decode()}
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_list_is_refused_whole(name: str) -> None:
    """So that no router is left out without a word."""
    with pytest.raises(VerifierError):
        router_list.parse(BAD[name])


@given(st.binary(max_size=400) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["routers", "name", "certificate", "spki_sha256", "x"]), inner, max_size=4
    ),
    max_leaves=12,
).map(msgspec.json.encode))  # fmt: skip
def test_reading_anything_gives_a_list_or_one_error(data: bytes) -> None:
    """Whatever comes."""
    try:
        found = router_list.parse(data)
    except VerifierError:
        return
    assert all(isinstance(each, KnownRouter) for each in found)


@given(
    st.lists(st.text(min_size=1, max_size=128).filter(str.isprintable), max_size=1),
    st.integers(0, 1 << 53),
)
def test_what_is_kept_is_read_as_it_was(names: list[str], fetched: int) -> None:
    """With the time at which it was fetched."""
    routers = tuple(KnownRouter(name, DER, SPKI) for name in names)
    assert router_list.read(router_list.write(routers, fetched)) == (fetched, routers)


def test_a_name_cannot_control_a_terminal() -> None:
    """It is shown to operators."""
    (found,) = router_list.parse(body({**ROW, "name": "a\x1b[2Jb"}))
    assert found.name == "a?[2Jb"


async def test_the_client_asks_as_the_node() -> None:
    """A real server that answers as the contract says, and checks who asks."""
    node = cose.PrivateKey.generate()

    async def routers(request: web.Request) -> web.Response:
        proof = Proof.decode(request.headers["Authorization"])
        asked = Request("GET", request.headers["Host"], request.raw_path)
        proof.verify(asked, node.public, now=1000, skew=5)
        return web.Response(body=body(ROW), content_type="application/json")

    app = web.Application()
    app.router.add_get("/api/v1/routers", routers)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        url = str(server.make_url("")).rstrip("/")
        client = VerifierClient(http, url, node, now=lambda: 1000.0)
        assert await client.routers() == (KNOWN,)
