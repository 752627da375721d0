"""What callers require of nodes, and their part in the choice: over real sockets, from the request to the replay."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner

from router.choose.explaining import explanation
from router.state import narrowings
from tests.integration.gateway import CHAT, STREAM, WORK, Fleet, by, key, official, opened
from tests.unit.router.doubles import answers
from tests.unit.router.support import MODEL
from touchstone import main

DIGEST, OTHER = "ab" * 32, "cd" * 32
VECTORS_PATH = "/v1/embeddings"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def two(fleet: Fleet) -> None:
    """Two nodes: `a` has another revision than `b`, and comes first."""
    for name, revision in (("a", OTHER), ("b", DIGEST)):
        node = await fleet.node(name)
        fleet.verifier.trust(name, endpoint=node.endpoint, revision=revision, operator=f"of-{name}")
    await fleet.start()


def requiring(body: dict[str, Any] = WORK, **required: Any) -> dict[str, Any]:
    return {**body, "provider": {"touchstone": required}}


async def served_by(fleet: Fleet, headers: dict[str, str]) -> list[str]:
    return [attempt["node"] for attempt in await fleet.record(headers)]


# Requirements.


async def test_work_goes_to_a_node_that_meets_them(fleet: Fleet) -> None:
    await two(fleet)
    for _ in range(5):
        status, _, headers = await fleet.post(requiring(reference=[DIGEST]))
        assert (status, await served_by(fleet, headers)) == (200, ["b"])


async def test_the_official_client_sends_them(fleet: Fleet) -> None:
    """As an extra member of the body, or as a header."""
    await two(fleet)
    async with official(fleet) as client:
        for extra in (
            {"extra_body": {"provider": {"touchstone": {"nodes": ["b"]}}}},
            {"extra_headers": {"X-Touchstone-Require": '{"nodes": ["b"]}'}},
        ):
            raw = await client.embeddings.with_raw_response.create(
                model=MODEL, input="x", encoding_format="float", **extra
            )
            assert await served_by(
                fleet, {"X-Touchstone-Decision": raw.headers["x-touchstone-decision"]}
            ) == ["b"]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.embeddings.create(
                model=MODEL, input="x", extra_body={"provider": {"touchstone": {"nodes": ["c"]}}}
            )
    assert (caught.value.status_code, caught.value.code) == (412, "requirements.unmet")


async def test_no_node_sees_them(fleet: Fleet) -> None:
    """Other members of ``provider`` go on as they did."""
    node = await fleet.node("a")
    await fleet.start()
    await fleet.post(requiring(nodes=["a"]), **{"X-Touchstone-Require": '{"max_age_s": 100}'})
    await fleet.post({**WORK, "provider": {"touchstone": {"nodes": ["a"]}, "order": ["x"]}})
    await fleet.post({**WORK, "provider": {"order": ["x"]}})
    bodies = [json.loads(body) for body in node.bodies]
    assert [body.get("provider") for body in bodies] == [None, {"order": ["x"]}, {"order": ["x"]}]
    assert not any(b"touchstone" in body for body in node.bodies)
    assert not any("X-Touchstone-Require" in request.headers for request in node.requests)


async def test_unmet_by_every_node_is_412_with_the_reasons(fleet: Fleet) -> None:
    """By gate, as a 503 has them, with what nodes lack; in OpenAI's form; and no node was asked."""
    await two(fleet)
    status, document, headers = await fleet.post(requiring(reference=["ef" * 32], assurance="confidential"))
    error = document["error"]
    assert (status, error["code"], error["type"]) == (412, "requirements.unmet", "invalid_request_error")
    assert "2 requirements.assurance" in error["message"]
    assert "2 nodes: model/example/tiny is challenged, and confidential is required" in error["message"]
    assert (await served_by(fleet, headers), "Retry-After" in headers) == ([], False)


async def test_a_stream_that_nobody_may_serve_is_412_too(fleet: Fleet) -> None:
    """Not a stream that ends with an error."""
    await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(requiring(STREAM, nodes=["z"]))
    assert (heard.status, heard.json["error"]["code"]) == (412, "requirements.unmet")


async def test_if_nobody_may_work_at_all_it_is_503(fleet: Fleet) -> None:
    """That may pass, and the requirements are not the cause."""
    fleet.verifier.trust("a", platform={"instance-identity": 97, "configuration": 2})
    await fleet.start()
    status, document, _ = await fleet.post(requiring(nodes=["a"]))
    assert (status, document["error"]["type"]) == (503, "service_unavailable")


@pytest.mark.parametrize(
    ("required", "code", "param"),
    [
        ({"max_age": 5}, "requirements.malformed", "provider.touchstone.max_age"),
        ({"max_age_s": "5"}, "requirements.malformed", "provider.touchstone.max_age_s"),
        ({"max_age_s": 301}, "requirements.contradiction", "provider.touchstone.max_age_s"),
        ({"reference": [OTHER]}, "requirements.contradiction", "provider.touchstone.reference"),
        ({"assurance": "declared"}, "requirements.contradiction", "provider.touchstone.assurance"),
        ({}, "requirements.malformed", "provider.touchstone"),
        (None, "requirements.malformed", "provider.touchstone"),
        ([], "requirements.malformed", "provider.touchstone"),
    ],
    ids=str,
)
async def test_what_cannot_be_taken_is_400_and_names_the_member(
    fleet: Fleet, required: Any, code: str, param: str
) -> None:
    """It is never passed over."""
    node = await fleet.node("a")
    fleet.verifier.trust("a", endpoint=node.endpoint, revision=DIGEST)
    await fleet.start({"digests": [DIGEST]})
    status, document, _ = await fleet.post({**WORK, "provider": {"touchstone": required}})
    error = document["error"]
    assert (status, error["code"], error["param"]) == (400, code, param)
    assert param in error["message"]
    assert node.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        {"provider": {"Touchstone": {"nodes": ["z"]}}},
        {"provider": {"TOUCHSTONE": {"nodes": ["z"]}, "touchstone": {"nodes": ["a"]}}},
        {"Provider": {"touchstone": {"nodes": ["z"]}}},
        {"touchstone": {"nodes": ["z"]}},
    ],
    ids=str,
)
async def test_requirements_that_would_be_passed_over_are_refused(fleet: Fleet, body: dict[str, Any]) -> None:
    """Whoever writes them relies on them."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post({**WORK, **body})
    assert (status, node.bodies) == (400, [])


@pytest.mark.parametrize(
    "header", ["{", "", "[]", "null", '{"nodes": ["a"], "nodes": ["b"]}', '{"x": 1}'], ids=repr
)
async def test_a_header_that_cannot_be_taken_is_400(fleet: Fleet, header: str) -> None:
    node = await fleet.node("a")
    await fleet.start()
    status, document, _ = await fleet.post(WORK, **{"X-Touchstone-Require": header})
    assert (status, document["error"]["code"], node.bodies) == (400, "requirements.malformed", [])


async def test_two_headers_are_400(fleet: Fleet) -> None:
    """A proxy has read one of them."""
    await fleet.node("a")
    await fleet.start()
    headers = [("X-Touchstone-Require", '{"nodes": ["a"]}'), ("X-Touchstone-Require", '{"nodes": ["b"]}')]
    async with fleet.http.post(fleet.url + VECTORS_PATH, json=WORK, headers=headers) as response:
        assert response.status == 400


async def test_header_and_body_hold_together(fleet: Fleet) -> None:
    await two(fleet)
    header = {"X-Touchstone-Require": '{"operators": ["of-b"]}'}
    _, _, headers = await fleet.post(requiring(nodes=["a", "b"]), **header)
    assert await served_by(fleet, headers) == ["b"]
    status, _, _ = await fleet.post(requiring(nodes=["a"]), **header)
    assert status == 412
    status, document, _ = await fleet.post(requiring(operators=["of-a"]), **header)
    assert (status, document["error"]["code"]) == (400, "requirements.contradiction")


async def test_a_pin_is_that_of_the_connection(fleet: Fleet) -> None:
    """The node behind it is the one that the work reaches, or none."""
    await two(fleet)
    pin = fleet.router.view("b").endpoint
    assert pin is not None
    _, _, headers = await fleet.post(requiring(spki_sha256=[pin[1]]))
    assert await served_by(fleet, headers) == ["b"]


async def test_the_signer_of_results_may_be_required(fleet: Fleet) -> None:
    await two(fleet)
    kid = fleet.verifier.key.kid
    status, _, _ = await fleet.post(requiring(kids=[kid]))
    assert status == 200
    status, document, _ = await fleet.post(requiring(kids=["another"]))
    assert (status, "2 requirements.kid" in document["error"]["message"]) == (412, True)


async def test_the_age_of_a_walk_is_that_which_the_result_names(fleet: Fleet) -> None:
    """A result without one is no recent one."""
    node = await fleet.node("a")
    at = (fleet.clock.seconds - 100) * 1000
    fleet.verifier.trust("a", endpoint=node.endpoint, iat=fleet.clock.seconds, measured={"walk_at_ms": at})
    await fleet.start()
    assert (await fleet.post(requiring(max_walk_age_s=110)))[0] == 200
    assert (await fleet.post(requiring(max_walk_age_s=90)))[0] == 412


# No silent downgrade.


async def test_a_further_attempt_keeps_them(fleet: Fleet) -> None:
    """Of three nodes two meet them; if both fail, the third is not asked."""
    nodes = [await fleet.node(name) for name in "abc"]
    for node, revision in zip(nodes, (DIGEST, DIGEST, OTHER), strict=True):
        fleet.verifier.trust(node.name, endpoint=node.endpoint, revision=revision)
    nodes[0].act = nodes[1].act = answers(500)
    await fleet.start()
    status, _, headers = await fleet.post(requiring(reference=[DIGEST]))
    assert (status, sorted(await served_by(fleet, headers))) == (502, ["a", "b"])
    assert nodes[2].bodies == []


async def test_a_node_that_ceases_to_meet_them_before_its_attempt_is_passed_over(fleet: Fleet) -> None:
    """The second was ranked; while the first was tried, it came to another revision."""
    first, second = [await fleet.node(name) for name in "ab"]
    for node in (first, second):
        fleet.verifier.trust(node.name, endpoint=node.endpoint, revision=DIGEST)

    async def fail_late(request: Any) -> Any:
        fleet.verifier.trust("b", endpoint=second.endpoint, revision=OTHER, jti="11" * 16)
        fleet.verifier.send("result", node="b", token=fleet.verifier.results["b"])
        for _ in range(400):
            if fleet.router.view("b").revision(MODEL) == OTHER:
                break
            await asyncio.sleep(0.005)
        return await answers(500)(request)

    first.act = fail_late
    await fleet.start()
    _, _, headers = await fleet.post(requiring(reference=[DIGEST]))
    attempts = await fleet.record(headers)
    assert [(each["node"], each["outcome"]) for each in attempts][1:] == [("b", "skipped")]
    assert attempts[1]["detail"] == "requirements.reference"
    assert second.bodies == []


async def test_an_idempotent_answer_is_not_given_under_other_requirements(fleet: Fleet) -> None:
    """It was made by a node that may not meet them."""
    await two(fleet)
    again = {"Idempotency-Key": "once"}
    assert (await fleet.post(WORK, **again))[0] == 200
    status, document, _ = await fleet.post(requiring(nodes=["b"]), **again)
    assert status == 422, document


# Records.


async def test_the_record_has_them_and_explains_who_did_not_meet_them(fleet: Fleet) -> None:
    await two(fleet)
    _, _, headers = await fleet.post(requiring(reference=[DIGEST], max_age_s=200))
    _, record = await fleet.get(f"/api/v1/decisions/{headers['X-Touchstone-Decision']}")
    assert record["required"] == {"max_age_s": 200, "reference": [DIGEST]}
    assert (record["met"], record["closed"]) == (1, {"requirements.reference": 1})
    assert record["excluded"]["a"]["code"] == "requirements.reference"
    text = "\n".join(explanation(record))
    assert f"reference: {DIGEST}" in text
    assert "max_age_s: 200" in text
    assert "1 requirements.reference" in text


async def test_who_asks_for_a_decision_may_require_too(fleet: Fleet) -> None:
    await two(fleet)
    given = {"model": MODEL, "require": {"nodes": ["b"]}}
    status, document, _ = await fleet.post(given, "/api/v1/decisions")
    assert (status, [each["node"] for each in document["ranked"]]) == (201, ["b"])
    given["require"] = {"node": ["b"]}
    status, document, _ = await fleet.post(given, "/api/v1/decisions")
    assert (status, document["error"]["param"]) == (400, "provider.touchstone.node")


async def test_too_many_different_ones_are_429(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowings, "CHECKS_PER_MINUTE", 4)
    await two(fleet)
    statuses = [(await fleet.post(requiring(max_age_s=age)))[0] for age in (10, 11, 12, 10)]
    assert statuses == [200, 200, 429, 200]


# The choice.


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def nonce_for(commitment: str) -> str:
    return f"{commitment.partition('.')[0]}.{b64url(secrets.token_bytes(32))}"


async def test_every_answer_commits_to_the_next_choice(fleet: Fleet) -> None:
    """Whole or streamed, an error, a refusal or none of a decision at all."""
    await fleet.engine("a")
    await fleet.start()
    given = [
        (await fleet.ask(STREAM)).headers,
        (await fleet.ask(CHAT)).headers,
        (await fleet.ask({"model": "unknown"})).headers,
        (await fleet.ask(requiring(CHAT, nodes=["z"]))).headers,
    ]
    async with fleet.http.get(fleet.url + "/v1/models") as response:
        given.append(dict(response.headers))
    commitments = [headers["X-Touchstone-Commitment"] for headers in given]
    assert len(set(commitments)) == 5
    assert all(len(each.partition(".")[2]) == 64 for each in commitments)


async def test_the_seed_follows_from_commitment_and_nonce(fleet: Fleet, tmp_path: Path) -> None:
    """From the answer to a request, by the next request, to the command that checks it with what the caller holds."""
    for name in "abcd":
        await fleet.engine(name)
    await fleet.start()
    commitment = (await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"]
    nonce = nonce_for(commitment)
    heard = await fleet.ask(CHAT, **{"X-Touchstone-Nonce": nonce})
    assert heard.status == 200
    _, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}")
    assert f"{record['choice']['id']}.{record['choice']['commitment']}" == commitment
    assert f"{record['choice']['id']}.{record['choice']['nonce']}" == nonce
    assert "the seed follows from the router's commitment" in "\n".join(explanation(record))
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    held = ["--commitment", commitment, "--nonce", nonce]
    done = CliRunner().invoke(main, ["router", "replay", str(file), *held])
    assert (done.exit_code, "The seed follows" in done.output) == (0, True), done.output
    other = (await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"]
    done = CliRunner().invoke(main, ["router", "replay", str(file), "--commitment", other])
    assert (done.exit_code, "another commitment" in done.output) == (1, True)
    file.write_text(json.dumps({**record, "seed": record["seed"] ^ 1}))
    done = CliRunner().invoke(main, ["router", "replay", str(file), *held])
    assert (done.exit_code, "does not follow" in done.output) == (1, True)


async def test_without_a_nonce_the_router_draws_alone_and_says_so(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(CHAT)
    _, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}")
    assert "this router drew the seed alone" in "\n".join(explanation(record))
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    done = CliRunner().invoke(main, ["router", "replay", str(file)])
    assert (done.exit_code, "This router drew the seed alone" in done.output) == (0, True)
    done = CliRunner().invoke(main, ["router", "replay", str(file), "--nonce", "x.y"])
    assert done.exit_code == 1


async def test_commitments_can_be_asked_for(fleet: Fleet) -> None:
    """Several at once, for requests that go out together."""
    await fleet.engine("a")
    await fleet.start()
    status, found = await fleet.get("/api/v1/commitments?count=3")
    assert (status, len(set(found["commitments"]))) == (200, 3)
    # By a key of its own, whose they are.
    heard = await fleet.ask(CHAT, **{"X-Touchstone-Nonce": nonce_for(found["commitments"][0])})
    assert heard.error["code"] == "choice.commitment.other-caller"
    for count in ("0", "65", "x", "-1", "999"):
        assert (await fleet.get(f"/api/v1/commitments?count={count}"))[0] == 400


async def refusal(fleet: Fleet, nonce: str, **headers: str) -> tuple[int, str]:
    heard = await fleet.ask(CHAT, **{"X-Touchstone-Nonce": nonce, **headers})
    return heard.status, heard.error["code"] if heard.status != 200 else ""


async def test_a_repeated_nonce_is_refused(fleet: Fleet) -> None:
    node = await fleet.engine("a")
    await fleet.start()
    first, second = [(await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"] for _ in range(2)]
    nonce = nonce_for(first)
    assert await refusal(fleet, nonce) == (200, "")
    asked = node.engine.requests
    repeated = f"{second.partition('.')[0]}.{nonce.partition('.')[2]}"
    assert await refusal(fleet, repeated) == (409, "choice.nonce.repeated")
    assert node.engine.requests == asked


async def test_a_repeated_commitment_is_refused(fleet: Fleet) -> None:
    await fleet.engine("a")
    await fleet.start()
    commitment = (await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"]
    assert await refusal(fleet, nonce_for(commitment)) == (200, "")
    assert await refusal(fleet, nonce_for(commitment)) == (409, "choice.commitment.used")


async def test_a_commitment_of_another_router_is_refused(fleet: Fleet) -> None:
    await fleet.engine("a")
    await fleet.start()
    another = fleet.another()
    await another.start()
    commitment = (await another.ask(CHAT)).headers["X-Touchstone-Commitment"]
    assert await refusal(fleet, nonce_for(commitment)) == (400, "choice.commitment.other-router")


async def test_a_commitment_of_another_caller_is_refused(fleet: Fleet) -> None:
    await fleet.engine("a")
    await fleet.start(sections={"keys": [key("one"), key("two")]})
    commitment = (await fleet.ask(CHAT, **by("one"))).headers["X-Touchstone-Commitment"]
    assert await refusal(fleet, nonce_for(commitment), **by("two")) == (400, "choice.commitment.other-caller")
    assert await refusal(fleet, nonce_for(commitment), **by("one")) == (200, "")


async def test_a_commitment_that_has_expired_is_refused(fleet: Fleet) -> None:
    await fleet.engine("a")
    await fleet.start()
    commitment = (await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"]
    fleet.clock.forward(40)
    fleet.verifier.beat()
    for _ in range(7):
        fleet.clock.forward(40)
        fleet.verifier.beat()
    assert await refusal(fleet, nonce_for(commitment)) == (400, "choice.commitment.expired")


@pytest.mark.parametrize("nonce", ["", "x", "x.y", "x." + "A" * 22], ids=repr)
async def test_a_malformed_nonce_is_refused(fleet: Fleet, nonce: str) -> None:
    await fleet.engine("a")
    await fleet.start()
    assert await refusal(fleet, nonce) == (400, "choice.malformed")


async def test_requirements_that_are_refused_use_up_no_nonce(fleet: Fleet) -> None:
    """The caller mends them, and sends the same again."""
    await fleet.engine("a")
    await fleet.start()
    nonce = nonce_for((await fleet.ask(CHAT)).headers["X-Touchstone-Commitment"])
    headers = {"X-Touchstone-Nonce": nonce}
    assert (await fleet.ask(requiring(CHAT, x=1), **headers)).status == 400
    assert (await fleet.ask(requiring(CHAT, nodes=["a"]), **headers)).status == 200


async def test_who_asks_for_a_decision_may_bring_a_nonce(fleet: Fleet) -> None:
    """The answer commits to the next one too."""
    await fleet.engine("a")
    await fleet.start()
    _, _, headers = await fleet.post({"model": MODEL}, "/api/v1/decisions")
    nonce = nonce_for(headers["X-Touchstone-Commitment"])
    status, document, _ = await fleet.post(
        {"model": MODEL}, "/api/v1/decisions", **{"X-Touchstone-Nonce": nonce}
    )
    assert (status, document["choice"]["id"]) == (201, nonce.partition(".")[0])
    status, document, _ = await fleet.post(
        {"model": MODEL}, "/api/v1/decisions", **{"X-Touchstone-Nonce": nonce}
    )
    assert (status, document["error"]["code"]) == (409, "choice.commitment.used")
