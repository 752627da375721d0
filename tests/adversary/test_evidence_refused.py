"""
Hostile evidence, one defect each: refused by name, counted, nothing consumed, nobody framed.

Everything here is sent to a running verifier over a real socket.  After each refusal the
session must still take the honest evidence: a refusal leaves no trace in state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from prometheus_client import REGISTRY

from attester import cbor, cose
from attester.cose import PrivateKey
from attester.evidence import COSE_TYP, MAX_EVIDENCE
from attester.kinds import write_submod
from fixtures.simulator import SimulatedNode

Mutate = Callable[[bytes], bytes]


def retag(data: bytes, *tags: int) -> bytes:
    message = cbor2.loads(data).value.value
    value: Any = list(message)
    for tag in reversed(tags):
        value = cbor2.CBORTag(tag, value)
    return cbor2.dumps(value)


def with_payload(data: bytes, key: PrivateKey, change: Callable[[dict[int, Any]], bytes]) -> bytes:
    payload = change(dict(cbor2.loads(cbor2.loads(data).value.value[2])))
    return cose.sign(payload, key, header={cose.TYP: COSE_TYP}, tags=(cose.TAG_CWT, cose.TAG_SIGN1))


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


MALFORMED: dict[str, tuple[Mutate, int, str]] = {
    "empty": (lambda e: b"", 400, "evidence.malformed"),
    "not CBOR": (lambda e: b"\xff\xff\xff", 400, "evidence.malformed"),
    "JSON": (lambda e: b'{"eat_profile": 1}', 400, "evidence.malformed"),
    "truncated": (lambda e: e[:-1], 400, "evidence.malformed"),
    "trailing bytes": (lambda e: e + b"\x00", 400, "evidence.malformed"),
    "indefinite length": (lambda e: b"\x9f" + e + b"\xff", 400, "evidence.malformed"),
    "nesting bomb": (lambda e: b"\x81" * 100_000 + b"\x00", 400, "evidence.malformed"),
    "tag bomb": (lambda e: b"\xc6" * 100_000 + b"\x00", 400, "evidence.malformed"),
    "array of 2^63": (lambda e: b"\x9b" + b"\x7f" + b"\xff" * 7, 400, "evidence.malformed"),
    "no CWT tag": (lambda e: retag(e, 18), 400, "evidence.malformed"),
    "no COSE tag": (lambda e: retag(e, 61), 400, "evidence.malformed"),
    "untagged": (retag, 400, "evidence.malformed"),
    "tags swapped": (lambda e: retag(e, 18, 61), 400, "evidence.malformed"),
    "COSE_Mac0": (lambda e: retag(e, 61, 17), 400, "evidence.malformed"),
    "non-minimal integer": (lambda e: e.replace(b"\xd8\x3d", b"\xd9\x00\x3d", 1), 400, "evidence.malformed"),
    "signature flipped": (flip_last_bit, 403, "evidence.signature"),
    "too large": (lambda e: b"\x00" * (MAX_EVIDENCE + 1), 413, "request.too-large"),
}


async def refused(verifier, session, data: bytes, status: int, code: str, **kwargs: Any) -> dict[str, Any]:
    """Check a refusal: status, code, counted, nothing consumed."""
    before = REGISTRY.get_sample_value("touchstone_refused_total", {"code": code}) or 0
    got, body = await verifier.post(session, data, **kwargs)
    assert (got, body["type"].rpartition("#")[2]) == (status, code)
    assert body["status"] == status
    assert body["title"]
    assert body["hint"]
    assert REGISTRY.get_sample_value("touchstone_refused_total", {"code": code}) == before + 1
    (row,) = await verifier.rows("SELECT status FROM sessions WHERE id = ?", session.id)
    assert row["status"] == "waiting"
    assert await verifier.rows("SELECT * FROM appraisals") == []
    assert await verifier.rows("SELECT * FROM incidents") == []
    return body


async def then_honest_evidence_still_passes(verifier, session, node) -> None:
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    assert claims["submods"]["platform"]["ear_status"] == "affirming"


@pytest.mark.parametrize("defect", MALFORMED)
async def test_malformed_evidence_names_nobody_and_consumes_nothing(verifier, defect: str) -> None:
    """Up to the signature, whatever fails is held against no node."""
    mutate, status, code = MALFORMED[defect]
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    await refused(verifier, session, mutate(evidence), status, code)
    await then_honest_evidence_still_passes(verifier, session, node)


async def test_a_body_that_says_it_is_too_long_is_refused_before_it_is_read(verifier) -> None:
    """413 on the header alone: the body is never waited for."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    host, _, port = verifier.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /challenge-response/v1/session/{session.id} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/eat+cwt\r\nContent-Length: {1 << 40}\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    assert b" 413 " in line


PAYLOADS: dict[str, tuple[Callable[[dict[int, Any]], bytes], str]] = {
    "wrong profile": (lambda c: cbor.encode({**c, 265: "tag:example.org,2026:other"}), "evidence.profile"),
    "no profile": (lambda c: cbor.encode({k: v for k, v in c.items() if k != 265}), "evidence.profile"),
    "no nonce": (lambda c: cbor.encode({k: v for k, v in c.items() if k != 10}), "evidence.malformed"),
    "nonce as text": (lambda c: cbor.encode({**c, 10: "text"}), "evidence.malformed"),
    "iat as float": (lambda c: cbor2.dumps({**c, 6: 1.5}), "evidence.malformed"),
    "iat as boolean": (lambda c: cbor.encode({**c, 6: True}), "evidence.malformed"),
    "iat negative": (lambda c: cbor.encode({**c, 6: -1}), "evidence.malformed"),
    "unknown claim": (lambda c: cbor.encode({**c, 4711: 1}), "evidence.malformed"),
    "no submodules": (lambda c: cbor.encode({**c, 266: {}}), "evidence.malformed"),
    "submodules as a list": (lambda c: cbor.encode({**c, 266: []}), "evidence.malformed"),
    "65 submodules": (
        lambda c: cbor.encode({**c, 266: {f"model/{i}": {} for i in range(65)}}),
        "evidence.malformed",
    ),
    "not a map": (lambda c: cbor.encode([1, 2]), "evidence.malformed"),
    "duplicate key": (lambda c: b"\xa2\x06\x01\x06\x02", "evidence.malformed"),
    "keys out of order": (lambda c: b"\xa2\x06\x01\x03\x61\x78", "evidence.malformed"),
    "null payload": (lambda c: b"", "evidence.malformed"),
}


@pytest.mark.parametrize("defect", PAYLOADS)
async def test_a_signed_token_of_the_wrong_form_is_refused(verifier, defect: str) -> None:
    """The token's own claims are read strictly, before anything is believed."""
    change, code = PAYLOADS[defect]
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    await refused(verifier, session, with_payload(evidence, node.key, change), 400, code)
    await then_honest_evidence_still_passes(verifier, session, node)


async def test_another_media_type_is_415(verifier) -> None:
    """Only what the session's accept list names."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    for kind in ("application/cbor", "application/json", 'application/eat+cwt; eat_profile="other"'):
        await refused(verifier, session, evidence, 415, "evidence.media-type", content_type=kind)


async def test_an_unknown_key_is_refused(verifier) -> None:
    """Evidence of a stranger, well signed."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    stranger = SimulatedNode(verifier.model_folder, ueid=node.ueid, audience=node.audience)
    evidence = stranger.evidence(session, iat=verifier.clock.seconds)
    await refused(verifier, session, evidence, 403, "evidence.key")
    await then_honest_evidence_still_passes(verifier, session, node)


async def test_a_kid_that_is_not_the_signers_is_refused(verifier) -> None:
    """A stranger's signature under the node's kid."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    message = cbor2.loads(evidence).value.value
    stranger = PrivateKey.generate()
    forged = stranger.sign(cbor.encode(["Signature1", message[0], b"", message[2]]))
    value = cbor2.CBORTag(61, cbor2.CBORTag(18, [message[0], {}, message[2], forged]))
    await refused(verifier, session, cbor.encode(value), 403, "evidence.signature")


async def test_an_algorithm_that_was_not_enrolled_is_refused(verifier) -> None:
    """The header says Ed25519 where the key was enrolled for ES256."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    message = cbor2.loads(evidence).value.value
    header = cbor.encode({**cbor2.loads(message[0]), cose.ALG: cose.ED25519})
    signature = node.key.sign(cbor.encode(["Signature1", header, b"", message[2]]))
    value = cbor2.CBORTag(61, cbor2.CBORTag(18, [header, {}, message[2], signature]))
    await refused(verifier, session, cbor.encode(value), 403, "evidence.algorithm")


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that the CBOR library is given to read."""
    sizes: list[int] = []
    load: Callable[..., Any] = cbor2.load

    def spy(stream: Any, **options: Any) -> Any:
        sizes.append(len(stream.getvalue()))
        return load(stream, **options)

    monkeypatch.setattr(cbor2, "load", spy)
    return sizes


MUCH = cbor.encode({266: {"model/a": {-80003: {number: {} for number in range(29_000)}}}}) + bytes(120_000)
"""29,000 maps, of which each is expensive to read."""


def by_a_stranger(node: SimulatedNode) -> bytes:
    return cose.sign(
        MUCH, PrivateKey.generate(), header={cose.TYP: COSE_TYP}, tags=(cose.TAG_CWT, cose.TAG_SIGN1)
    )


def under_the_nodes_kid(node: SimulatedNode) -> bytes:
    protected = cbor.encode({cose.ALG: cose.ES256, cose.KID: node.key.public.kid, cose.TYP: COSE_TYP})
    signature = PrivateKey.generate().sign(cbor.encode(["Signature1", protected, b"", MUCH]))
    return cbor.encode(cbor2.CBORTag(61, cbor2.CBORTag(18, [protected, {}, MUCH, signature])))


def in_the_envelope(node: SimulatedNode) -> bytes:
    maps = b"\x9a\x00\x03\x0d\x40" + b"\xa0" * 200_000
    return b"\xd8\x3d\xd2\x84\x40\xa0" + maps + b"\x40"


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (by_a_stranger, 403, "evidence.key"),
        (under_the_nodes_kid, 403, "evidence.signature"),
        (in_the_envelope, 400, "evidence.malformed"),
    ],
)
async def test_a_stranger_buys_no_parsing(
    verifier, read_sizes: list[int], make: Callable[[SimulatedNode], bytes], status: int, code: str
) -> None:
    """200 kB and more of what is expensive to read, without the key of a node: the reader is given next to nothing."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    data = make(node)
    read_sizes.clear()
    await refused(verifier, session, data, status, code)
    assert sum(read_sizes) < 100
    await then_honest_evidence_still_passes(verifier, session, node)


async def test_the_same_payload_is_read_if_the_node_signed_it(verifier, read_sizes: list[int]) -> None:
    """Without the signature in between, the whole of it is what a stranger would have bought."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    data = cose.sign(MUCH, node.key, header={cose.TYP: COSE_TYP}, tags=(cose.TAG_CWT, cose.TAG_SIGN1))
    read_sizes.clear()
    await refused(verifier, session, data, 400, "evidence.malformed")
    assert max(read_sizes) == len(MUCH)


async def test_evidence_with_two_faults_is_refused_for_its_key(verifier) -> None:
    """The payload is the last that is read: a stranger learns nothing about how it is judged."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    for change, _ in PAYLOADS.values():
        await refused(
            verifier, session, with_payload(evidence, PrivateKey.generate(), change), 403, "evidence.key"
        )
    await then_honest_evidence_still_passes(verifier, session, node)


@pytest.mark.parametrize(
    "header",
    [
        {cose.TYP: "application/cwt"},
        {cose.TYP: COSE_TYP, cose.CONTENT_TYPE: "application/cwt"},
        {cose.TYP: COSE_TYP, cose.CRIT: [99], 99: 1},
        {cose.TYP: COSE_TYP, cose.KID: b"short"},
        {cose.TYP: COSE_TYP, cose.ALG: -8},
    ],
    ids=["typ", "extra header", "crit", "short kid", "deprecated alg"],
)
async def test_another_header_than_the_profiles_is_refused(verifier, header: dict[int, Any]) -> None:
    """Exactly alg, kid and typ, all protected."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    payload = cbor2.loads(node.evidence(session, iat=verifier.clock.seconds)).value.value[2]
    data = cose.sign(payload, node.key, header=header, tags=(cose.TAG_CWT, cose.TAG_SIGN1))
    await refused(verifier, session, data, 400, "evidence.malformed")


async def test_an_unprotected_header_is_refused(verifier) -> None:
    """What is not signed is not read."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    message = cbor2.loads(node.evidence(session, iat=verifier.clock.seconds)).value.value
    value = cbor2.CBORTag(61, cbor2.CBORTag(18, [message[0], {99: 1}, message[2], message[3]]))
    await refused(verifier, session, cbor.encode(value), 400, "evidence.malformed")


async def test_another_sessions_nonce_is_refused(verifier) -> None:
    """Evidence made for one session is worth nothing in another."""
    node = await verifier.enrol()
    announced = await verifier.client(node).open_session()
    called = await verifier.call(node)
    evidence = node.evidence(announced, iat=verifier.clock.seconds)
    await refused(verifier, called, evidence, 422, "evidence.nonce")
    await then_honest_evidence_still_passes(verifier, announced, node)


async def test_a_used_nonce_is_refused(verifier) -> None:
    """Replayed evidence does not fit a new session."""
    node = await verifier.enrol()
    first = await verifier.client(node).open_session()
    evidence = node.evidence(first, iat=verifier.clock.seconds)
    await verifier.submit(first, evidence, node)
    second = await verifier.client(node).open_session()
    status, body = await verifier.post(second, evidence)
    assert (status, body["type"].rpartition("#")[2]) == (422, "evidence.nonce")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iat": +31}, "evidence.time"),
        ({"iat": -31}, "evidence.time"),
        ({"iat": +10_000_000}, "evidence.time"),
        ({"aud": "https://other.example"}, "evidence.audience"),
        ({"ueid": b"\x01" + bytes(16)}, "evidence.ueid"),
    ],
)
async def test_signed_for_another_time_verifier_or_node(verifier, changes: dict[str, Any], code: str) -> None:
    """The right key and nonce are not enough."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    if "iat" in changes:
        changes = {"iat": verifier.clock.seconds + changes["iat"]}
    evidence = node.evidence(session, **{"iat": verifier.clock.seconds, **changes})
    await refused(verifier, session, evidence, 422, code)
    await then_honest_evidence_still_passes(verifier, session, node)


async def test_ten_thousand_files_in_a_manifest(verifier) -> None:
    """Signed and beyond the bound: contraindicated, by name."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    claims = node.claims(session.nonce, node.answers(session))
    raw = {name: write_submod(submod) for name, submod in claims.items()}
    file = {"name": "f", "size": 1, "sha256": bytes(32)}
    raw["model/example/tiny"][-80003] = {"files": [{**file, "name": f"{i}"} for i in range(10_000)]}
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    result = await verifier.submit(session, data, node)
    model = result["submods"]["model/example/tiny"]
    assert model["ear_status"] == "contraindicated"
    assert "weights.manifest.malformed" in [r["code"] for r in model["ear_verifier_claims"]["reasons"]]
