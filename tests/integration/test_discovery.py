"""What anyone can ask of a verifier: discovery, keys, reference values, levels, counters, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.config import AttesterConfig, Enrolment, Home
from attester.errors import VerifierError
from attester.evidence import MEDIA_TYPE
from attester.revisions import recognise
from attester.selftest import run_checks
from attester.weights.folder import open_folder
from attester.weights.manifest import measure
from fixtures.simulator import MODEL, SimulatedNode, tiny_model
from verifier import result_keys
from verifier.service.sweep import sweep


async def test_discovery_is_veraisons_document(verifier) -> None:
    """Key, media types, state and endpoints where Veraison has them."""
    status, body = await verifier.get("/.well-known/veraison/verification")
    assert status == 200
    assert body["ear-verification-key"] == verifier.service.signing_key.verifying.jwk()
    assert body["media-types"] == [MEDIA_TYPE]
    assert body["service-state"] == "READY"
    assert body["api-endpoints"]["newChallengeResponseSession"] == "/challenge-response/v1/newSession"
    assert body["issuer"] == verifier.url


async def test_the_jwks_lists_every_key_and_no_private_part(verifier) -> None:
    """With kid, alg and use."""
    async with verifier.http.get(verifier.url + "/.well-known/jwks.json") as response:
        data = await response.read()
        assert response.headers["Cache-Control"] == "max-age=60"
        assert response.headers["Content-Type"] == "application/jwk-set+json"
    keys = json.loads(data)["keys"]
    assert [set(key) for key in keys] == [{"kty", "crv", "x", "y", "kid", "alg", "use"}]
    assert set(result_keys.read_jwks(data)) == {verifier.service.signing_key.kid}


async def test_a_reference_value_comes_with_its_practice_challenge(verifier) -> None:
    """Public, for self-tests before enrolling."""
    _, listed = await verifier.get("/api/v1/reference-values")
    assert [entry["model"] for entry in listed["reference_values"]] == [MODEL]
    _, body = await verifier.get(f"/api/v1/reference-values/{MODEL}")
    assert body["digest"] == listed["reference_values"][0]["digest"]
    assert len(body["practice"]["walk"]) == body["practice"]["rows"]
    status, _ = await verifier.get("/api/v1/reference-values/nobody/knows")
    assert status == 404


async def test_how_many_challenges_are_left(verifier) -> None:
    """Free, of how many, and whether that is low."""
    node = await verifier.enrol()
    await verifier.attest(node)
    _, body = await verifier.get("/api/v1/challenges")
    hours = [pool.pop("hours") for pool in body["pools"]]
    assert body["pools"] == [
        {"model": MODEL, "kind": "read", "free": 29, "in_force": 29, "minted": 30, "low": True},
        {"model": MODEL, "kind": "walk", "free": 19, "in_force": 19, "minted": 20, "low": True},
    ]
    assert all(left > 0 for left in hours)
    await sweep(verifier.service)
    async with verifier.http.get(verifier.url + "/metrics") as response:
        text = await response.text()
    assert f'touchstone_pool_free{{kind="read",model="{MODEL}"}} 29.0' in text
    assert 'touchstone_appraisals_total{status="affirming"}' in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v1/nodes/x", 404),
        ("GET", "/api/v1/nodes/x/result", 404),
        ("GET", "/api/v1/results/x", 404),
        ("GET", "/api/v1/incidents/x", 404),
        ("GET", "/challenge-response/v1/session/x", 404),
        ("DELETE", "/challenge-response/v1/session/x", 404),
        ("POST", "/challenge-response/v1/session/x", 404),
        ("PUT", "/api/v1/nodes", 405),
        ("GET", "/api/v1/nodes?limit=0", 400),
        ("GET", "/api/v1/nodes?limit=501", 400),
        ("GET", "/api/v1/results?limit=x", 400),
        ("GET", "/api/v1/nodes/x/calls", 403),
        ("POST", "/api/v1/calls/x/answers", 403),
        ("DELETE", "/api/v1/nodes/x", 404),
        ("POST", "/api/v1/incidents", 400),
    ],
)
async def test_every_refusal_is_a_problem_document(verifier, method: str, path: str, status: int) -> None:
    """With a stable type, and never a trace."""
    async with verifier.http.request(method, verifier.url + path) as response:
        body = await response.json(content_type=None)
        assert response.status == status
        assert response.content_type == "application/problem+json"
    assert body["type"].startswith("tag:github.com,2026:touchstone/problem#")
    assert "Traceback" not in str(body)


async def test_lists_page_by_cursor(verifier) -> None:
    """Every node once, whatever the page's size."""
    enrolled = {(await verifier.enrol()).id for _ in range(5)}
    seen: list[str] = []
    after = ""
    while after is not None:
        _, body = await verifier.get(f"/api/v1/nodes?limit=2&after={after}")
        seen += [node["node"] for node in body["nodes"]]
        after = body["next"]
    assert (len(seen), set(seen)) == (5, enrolled)


class Collector:
    """A node's collector that answers from a folder."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node

    async def describe(self):
        raise VerifierError("the engine is away")

    async def check_quantisation(self) -> str:
        return "none"

    async def answer(self, challenge):
        return self.node.answer(challenge)

    async def recognise(self, _model, revisions):
        return recognise(measure(open_folder(self.node.folder)).to_claim(), revisions)


async def test_the_self_test_says_what_is_wrong_and_goes_on(verifier, tmp_path) -> None:
    """One failing check does not hide the others; the practice challenge is really answered."""
    node = SimulatedNode(verifier.model_folder)
    config = msgspec.convert(
        {
            "verifier": {"url": verifier.url},
            "models": {MODEL: {"dir": str(verifier.model_folder)}},
            "serve": {"url": "https://127.0.0.1:9"},
        },
        AttesterConfig,
    )
    home = Home(tmp_path / "attester")
    home.create(config)
    found = await run_checks(
        home, config, verifier.client(node), Collector(node), lambda: verifier.clock.seconds
    )
    assert {what: good for good, what, _ in found} == {
        "node key": True,
        "enrolment": False,
        "engine": False,
        "endpoint": False,
        "verifier": True,
        "clock": True,
        "quantisation": True,
        f"folder of {MODEL}": True,
        f"practice challenge of {MODEL}": False,
        f"what {MODEL} can earn": True,
    }
    (detail,) = [detail for _, what, detail in found if what.startswith("practice")]
    assert detail.startswith("this cannot be checked yet")


async def test_an_enrolled_node_answers_the_practice_challenge(verifier, tmp_path) -> None:
    """Really, with what it has."""
    node = await verifier.enrol()
    home, config = await enrolled(verifier, node, verifier.model_folder, tmp_path)
    found = await run_checks(
        home, config, verifier.client(node), Collector(node), lambda: verifier.clock.seconds
    )
    assert {what: good for good, what, _ in found}[f"practice challenge of {MODEL}"] is True


async def enrolled(
    verifier: Any, node: SimulatedNode, folder: Path, tmp_path: Path
) -> tuple[Home, AttesterConfig]:
    """The home of a node that the verifier knows."""
    config = msgspec.convert(
        {
            "verifier": {"url": verifier.url},
            "models": {MODEL: {"dir": str(folder)}},
            "serve": {"url": "https://127.0.0.1:9"},
        },
        AttesterConfig,
    )
    home = Home(tmp_path / "attester")
    home.create(config)
    home.save_enrolment(
        Enrolment(node=node.id, ueid=node.ueid, operator="acme", models=(MODEL,), verifier=verifier.url)
    )
    return home, config


async def test_the_self_test_finds_other_weights(verifier, tmp_path) -> None:
    """Before the verifier does, and without an incident."""
    folder = tiny_model(tmp_path / "other")
    (folder / "config.json").write_text("{}")
    node = await verifier.enrol(SimulatedNode(folder))
    home, config = await enrolled(verifier, node, folder, tmp_path)
    found = await run_checks(
        home, config, verifier.client(node), Collector(node), lambda: verifier.clock.seconds
    )
    (detail,) = [detail for good, what, detail in found if what.startswith("practice") and not good]
    assert "the files differ" in detail
    assert await verifier.rows("SELECT * FROM incidents") == []
