"""The steps by which a client verifies an answer: each refuses what it is there for, and names itself."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, structs

from attester import identity
from attester.cose import PrivateKey
from attester.front import receipts as front_receipts
from attester.front.receipts import Served
from router.client import checking
from router.client.errors import Step, UnverifiedError
from router.client.offline import Material, read_material, verify_offline
from router.client.trust import Required
from router.receipts import payload, tokens
from tests.unit.router.receipted import ANSWER, BODY, SALT, World, digest, exchange, parsed
from tests.unit.router.support import MODEL, NOW
from verifier.router_receipts import generate_key

WORLD = World()


def refused(step: Step, bundle: dict[str, Any], world: World = WORLD, **seen: Any) -> str:
    """Why an answer is refused, at that step and no other."""
    with pytest.raises(UnverifiedError) as caught:
        checking.verify(parsed(bundle), world.trust(), exchange(**seen))
    assert caught.value.step is step, caught.value
    return caught.value.reason


def test_a_right_answer_passes_every_step() -> None:
    bundle, receipt = WORLD.whole()
    checked = checking.verify(parsed(bundle), WORLD.trust(), exchange())
    checked.steps[Step.BATCH] = checking.check_batch(parsed(bundle), checked, WORLD.trust())
    checked.steps[Step.LOG] = checking.check_log(parsed(bundle), WORLD.trust())
    assert checked.receipt == receipt
    assert list(checked.steps) == [
        Step.RECEIPT, Step.REQUEST, Step.RESPONSE, Step.RESULT, Step.MODEL, Step.AGE, Step.BATCH, Step.LOG,
    ]  # fmt: skip
    assert "11" in checked.steps[Step.LOG]


def test_another_key_has_signed_the_receipt() -> None:
    bundle, receipt = WORLD.whole()
    bundle["receipt"] = tokens.sign(payload.encode(receipt), generate_key())
    assert "not one of this router's" in refused(Step.RECEIPT, bundle)


def test_another_router_of_the_same_keys() -> None:
    bundle, _ = WORLD.whole(iss="router-2")
    assert "router-2" in refused(Step.RECEIPT, bundle)


def test_the_receipt_of_another_request() -> None:
    """Also that of the same question, asked before: the salt is of this request alone."""
    bundle, _ = WORLD.whole()
    refused(Step.REQUEST, bundle, request_sha256=digest(bytes(32) + BODY))


@pytest.mark.parametrize("seen", [{"path": "/v1/completions"}, {"method": "GET"}, {"model": "example/other"}])
def test_the_receipt_of_a_request_to_another_place(seen: dict[str, Any]) -> None:
    bundle, _ = WORLD.whole()
    refused(Step.REQUEST, bundle, **seen)


def test_a_receipt_without_the_salt_that_was_sent() -> None:
    """The router has ignored it, so the receipt may be an old one."""
    request = payload.Request(method="POST", path="/v1/chat/completions", salted=False, sha256=digest(BODY))
    bundle, _ = WORLD.whole(request=request)
    assert "without one" in refused(Step.REQUEST, bundle)


@pytest.mark.parametrize(
    "seen",
    [{"response_sha256": digest(SALT + ANSWER + b" ")}, {"response_bytes": len(ANSWER) + 1}, {"status": 201}],
    ids=["digest", "length", "status"],
)
def test_another_answer(seen: dict[str, Any]) -> None:
    bundle, _ = WORLD.whole()
    refused(Step.RESPONSE, bundle, **seen)


def test_an_answer_that_was_cut_short() -> None:
    response = payload.Response(
        status=200, sha256=digest(SALT + ANSWER), bytes=len(ANSWER), complete=False, streamed=True
    )
    bundle, _ = WORLD.whole(response=response)
    refused(Step.RESPONSE, bundle)


@pytest.mark.parametrize("iat", [NOW * 1000 - 60_001, NOW * 1000 + 60_601])
def test_a_router_whose_clock_is_wrong(iat: int) -> None:
    """What it says of ages would mean nothing."""
    bundle, _ = WORLD.whole(iat=iat)
    assert "clock" in refused(Step.AGE, bundle)


def test_an_answer_that_no_node_has_given() -> None:
    """The router cannot answer in the place of a node."""
    bundle, _ = WORLD.whole(node=UNSET)
    assert "no node" in refused(Step.RESULT, bundle)


def test_a_refusal_needs_no_node() -> None:
    response = payload.Response(
        status=503, sha256=digest(SALT + ANSWER), bytes=len(ANSWER), complete=True, streamed=False
    )
    bundle, _ = WORLD.whole(node=UNSET, response=response, outcome="refused")
    checked = checking.verify(parsed(bundle), WORLD.trust(), exchange(status=503))
    assert checked.result is None


def test_a_list_of_the_routers_own_needs_no_node() -> None:
    request = payload.Request(method="GET", path="/v1/models", salted=True, sha256=digest(SALT))
    bundle, _ = WORLD.whole(node=UNSET, request=request, model=UNSET)
    seen = exchange(method="GET", path="/v1/models", request_sha256=digest(SALT), model="")
    assert checking.verify(parsed(bundle), WORLD.trust(), seen).result is None


def test_the_result_is_kept_back() -> None:
    bundle, _ = WORLD.whole()
    bundle["result"] = None
    refused(Step.RESULT, bundle)


def test_the_result_of_another_node() -> None:
    bundle, _ = WORLD.whole()
    bundle["result"] = WORLD.token(WORLD.ear(jti="other"))
    assert "not the one" in refused(Step.RESULT, bundle)


def test_a_receipt_that_gives_the_result_another_id() -> None:
    token = WORLD.token()
    receipt = WORLD.receipt(token)
    assert receipt.node is not UNSET
    altered = structs.replace(receipt, node=structs.replace(receipt.node, result="other"))
    assert "another one than" in refused(Step.RESULT, WORLD.bundle(altered, token))


def test_a_receipt_of_an_answer_by_no_model() -> None:
    """What the result says would be held against nothing."""
    bundle, _ = WORLD.whole(model=UNSET)
    assert "names no model" in refused(Step.MODEL, bundle)


def judged(step: Step, result: Any, world: World = WORLD, **given: Any) -> str:
    """Why an answer by a node with that result is refused."""
    token = world.token(result)
    return refused(step, world.bundle(world.receipt(token, **given), token), world)


def test_a_result_that_another_verifier_has_signed() -> None:
    other = World(receipt_key=WORLD.receipt_key)
    token = other.token()
    bundle = other.bundle(other.receipt(token), token)
    assert "unknown key" in refused(Step.RESULT, bundle)


def test_a_result_of_another_issuer() -> None:
    judged(Step.RESULT, WORLD.ear(issuer="https://other.test"))


def test_a_result_that_had_expired_before_the_request() -> None:
    assert "expired" in judged(Step.RESULT, WORLD.ear(iat=NOW - 400, exp=NOW - 61))


def test_a_result_that_is_younger_than_the_answer() -> None:
    assert "younger" in judged(Step.RESULT, WORLD.ear(iat=NOW + 70))


def test_a_result_that_does_not_affirm_the_model() -> None:
    assert "executables" in judged(Step.MODEL, WORLD.ear(weights={"file-system": 2, "executables": 33}))


def test_a_result_without_a_conclusion() -> None:
    """A claim that is absent satisfies nothing."""
    assert "executables" in judged(Step.MODEL, WORLD.ear(weights={"file-system": 2}))


@pytest.mark.parametrize("submod", ["platform", f"model/{MODEL}"])
def test_a_result_that_says_nothing(submod: str) -> None:
    token = WORLD.token()
    receipt = WORLD.receipt(token)
    silent = WORLD.token(WORLD.ear(without=(submod,), jti="silent"))
    assert receipt.node is not UNSET
    node = structs.replace(receipt.node, result="silent", result_sha256=digest(silent.encode()))
    bundle = WORLD.bundle(structs.replace(receipt, node=node), silent)
    assert f"says nothing of {submod}" in refused(Step.MODEL, bundle)


def test_a_result_that_does_not_know_the_node() -> None:
    assert "instance-identity" in judged(Step.MODEL, WORLD.ear(platform={"configuration": 2}))


def test_a_result_of_less_assurance() -> None:
    assert "declared" in judged(Step.MODEL, WORLD.ear(model_assurance="declared"))


def test_a_result_of_another_reference_value_than_is_asked() -> None:
    world = World(require=Required(references=("cd" * 32,)))
    judged(Step.MODEL, world.ear(), world)


@pytest.mark.parametrize(
    "member",
    [{"spki_sha256": "cd" * 32}, {"reference": "cd" * 32}, {"assurance": "confidential"}, {"status": "none"}],
)
def test_a_receipt_that_makes_more_of_the_node_than_its_result(member: dict[str, str]) -> None:
    token = WORLD.token()
    receipt = WORLD.receipt(token)
    assert receipt.node is not UNSET
    altered = structs.replace(receipt, node=structs.replace(receipt.node, **member))
    refused(Step.MODEL, WORLD.bundle(altered, token))


def test_a_result_that_is_too_old() -> None:
    world = World(require=Required(max_age_s=10))
    assert "29 s old" in judged(Step.AGE, world.ear(iat=NOW - 30, exp=NOW + 270), world)


def test_a_walk_that_is_too_old() -> None:
    world = World(require=Required(max_walk_age_s=60))
    assert "119 s old" in judged(Step.AGE, world.ear(), world)


def test_a_walk_of_which_the_verifier_says_nothing() -> None:
    """The router's word for it is not enough."""
    world = World(require=Required(max_walk_age_s=600))
    judged(Step.AGE, world.ear(measured={}), world)


def test_a_walk_that_the_router_makes_younger() -> None:
    token = WORLD.token()
    receipt = WORLD.receipt(token)
    assert receipt.node is not UNSET
    altered = structs.replace(receipt, node=structs.replace(receipt.node, walk_at=NOW * 1000))
    refused(Step.AGE, WORLD.bundle(altered, token))


ENDPOINT = PrivateKey.generate()
REQUESTED = "ef" * 16


def fronted(answer: bytes = ANSWER, requested: str = REQUESTED, world: World = WORLD) -> dict[str, Any]:
    """A bundle with what the front of the node has signed: that it sent these bytes, to this request."""
    pin = hashlib.sha256(identity.spki(ENDPOINT)).hexdigest()
    token = world.token(world.ear(endpoint={"url": "https://192.0.2.1", "spki_sha256": pin}))
    receipt = world.receipt(token)
    assert receipt.node is not UNSET
    node = structs.replace(receipt.node, request=REQUESTED, spki_sha256=pin)
    served = Served(requested)
    served.take_request(BODY, is_whole=True)
    served.take_answer(answer)
    served.end(ENDPOINT, 200, NOW * 1000, is_complete=True)
    bundle = world.bundle(structs.replace(receipt, node=node), token)
    return {**bundle, "front": {"jws": front_receipts.sign(served, NOW * 1000)}}


def test_what_the_front_has_signed_agrees() -> None:
    checked = checking.verify(parsed(fronted()), WORLD.trust(), exchange())
    assert "signed by the key of the node's endpoint" in checked.steps[Step.FRONT]


def test_a_front_that_sent_another_answer() -> None:
    """The router has put something else in its place."""
    assert "another answer" in refused(Step.FRONT, fronted(answer=b"another"))


def test_what_the_front_has_signed_of_another_request() -> None:
    assert "another request" in refused(Step.FRONT, fronted(requested="ab" * 16))


def test_a_front_is_required_where_the_trust_file_says_so() -> None:
    world = World(require=Required(has_front=True))
    bundle, _ = world.whole()
    assert "signed nothing" in refused(Step.FRONT, bundle, world)
    checking.verify(parsed(fronted(world=world)), world.trust(), exchange())


def of_several(world: World, **changed: Any) -> dict[str, Any]:
    """An answer that another node has begun."""
    _, receipt = world.whole()
    assert receipt.node is not UNSET
    first = structs.replace(receipt.node, id="first", **changed)
    part = payload.Continued(completion=6, node=first, outcome="truncated")
    bundle, _ = world.whole(continued=(part,))
    return bundle


def test_an_answer_of_several_nodes_is_refused_unless_the_trust_file_takes_it() -> None:
    assert "first" in refused(Step.CONTINUED, of_several(WORLD))


def test_an_answer_of_several_nodes_passes_where_the_trust_file_takes_it() -> None:
    world = World(require=Required(continued=True))
    checked = checking.verify(parsed(of_several(world)), world.trust(), exchange())
    assert "first 6 tokens are of first" in checked.steps[Step.CONTINUED]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"reference": "cd" * 32}, "another revision"),
        ({"reference": UNSET}, "another revision"),
        ({"assurance": "declared"}, "less assurance"),
        ({"assurance": UNSET}, "less assurance"),
    ],
)
def test_a_part_of_a_node_that_the_client_would_not_take(changed: dict[str, Any], why: str) -> None:
    world = World(require=Required(continued=True))
    assert why in refused(Step.CONTINUED, of_several(world, **changed), world)


def test_no_front_has_signed_an_answer_of_several_nodes() -> None:
    world = World(require=Required(continued=True, has_front=True))
    assert "no front" in refused(Step.CONTINUED, of_several(world), world)


def unlogged(bundle: dict[str, Any], world: World = WORLD) -> UnverifiedError:
    with pytest.raises(UnverifiedError) as caught:
        verify_offline(Material(msgspec.json.encode(bundle)), world.trust())
    return caught.value


def test_the_batch_of_another_router() -> None:
    bundle, _ = WORLD.whole()
    bundle["batch"]["router"] = "router-2"
    assert unlogged(bundle).step is Step.BATCH


@pytest.mark.parametrize("member", ["number", "from_ms", "to_ms"])
def test_a_batch_that_the_router_has_not_signed(member: str) -> None:
    bundle, _ = WORLD.whole()
    bundle["batch"][member] += 1
    assert unlogged(bundle).step is Step.BATCH


def test_a_batch_that_the_log_has_otherwise() -> None:
    """Both are signed by the router: it has told two stories."""
    bundle, _ = WORLD.whole()
    other, _ = WORLD.whole()
    assert unlogged({**bundle, "log": other["log"]}).step is Step.LOG


def test_a_path_of_another_receipt() -> None:
    bundle, _ = WORLD.whole()
    bundle["index"] = 1
    assert unlogged(bundle).step is Step.BATCH


def test_a_log_that_is_not_trusted() -> None:
    bundle, _ = WORLD.whole()
    assert (
        unlogged(bundle, World(WORLD.receipt_key, WORLD.result_key, witness=WORLD.witness)).step is Step.LOG
    )


def test_a_witness_that_has_not_signed() -> None:
    bundle, _ = WORLD.whole()
    bundle["log"] = bundle["log"].rpartition("— witness")[0]
    assert unlogged(bundle).step is Step.LOG


def test_a_batch_that_somebody_else_put_into_the_log() -> None:
    """The verifier could: it has the key of the log.  It does not have that of the router."""
    bundle, receipt = WORLD.whole()
    mallory = World(result_key=WORLD.result_key, log=WORLD.log, witness=WORLD.witness)
    forged = mallory.bundle(receipt, bundle["result"])
    error = unlogged({**forged, "receipt": bundle["receipt"]})
    assert error.step is Step.BATCH
    assert "not trusted" in error.reason
    error = unlogged({**bundle, "log": forged["log"]})
    assert error.step is Step.LOG


def test_what_is_missing_is_named() -> None:
    bundle, _ = WORLD.whole()
    bundle |= {"batch": None, "index": None, "path": None, "log": None}
    outcome = verify_offline(Material(msgspec.json.encode(bundle)), WORLD.trust())
    assert {Step.REQUEST, Step.RESPONSE, Step.BATCH, Step.LOG} <= set(outcome.missing)
    assert not outcome.checked.is_logged


def test_files_alone_are_enough() -> None:
    bundle, _ = WORLD.whole()
    outcome = verify_offline(Material(msgspec.json.encode(bundle), SALT, BODY, ANSWER), WORLD.trust())
    assert outcome.checked.is_logged
    assert set(outcome.missing) == {Step.FRONT}


@pytest.mark.parametrize(("salt", "says"), [(b"", "salt is missing"), (bytes(32), "another request")])
def test_the_wrong_salt(salt: bytes, says: str) -> None:
    bundle, _ = WORLD.whole()
    with pytest.raises(UnverifiedError, match=says) as caught:
        verify_offline(Material(msgspec.json.encode(bundle), salt, BODY, ANSWER), WORLD.trust())
    assert caught.value.step is Step.REQUEST


def test_a_kept_file_has_the_receipt_inside() -> None:
    bundle, _ = WORLD.whole()
    kept = {
        "version": 1,
        "salt": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "bundle": bundle,
        "request": BODY,
    }
    material = read_material(msgspec.json.encode(kept))
    assert (material.salt, material.request, material.response) == (SALT, BODY, None)
    assert verify_offline(material, WORLD.trust()).checked.receipt.model == MODEL


def altered(text: str) -> list[str]:
    """A text with one character changed, at each place."""
    return [f"{text[:n]}{'A' if text[n] != 'A' else 'B'}{text[n + 1 :]}" for n in range(len(text))]


def right(bundle: dict[str, Any], **bodies: Any) -> bool:
    try:
        material = Material(
            msgspec.json.encode(bundle), **{"salt": SALT, "request": BODY, "response": ANSWER, **bodies}
        )
        verify_offline(material, WORLD.trust())
    except UnverifiedError:
        return False
    return True


@pytest.mark.parametrize("member", ["receipt", "result", "log"])
def test_one_changed_byte_anywhere_is_refused(member: str) -> None:
    """Every byte of what is signed, and of the proof."""
    bundle, _ = WORLD.whole()
    assert right(bundle)
    assert [n for n, text in enumerate(altered(bundle[member])) if right({**bundle, member: text})] == []


def test_one_changed_byte_of_a_path_is_refused() -> None:
    bundle, _ = WORLD.whole()
    for place, each in enumerate(bundle["path"]):
        for text in [*altered(each), each.upper()]:
            path = [*bundle["path"]]
            path[place] = text
            assert text == each or not right({**bundle, "path": path})


def test_one_changed_byte_of_request_or_answer_is_refused() -> None:
    bundle, _ = WORLD.whole()
    for n in range(len(BODY)):
        assert not right(bundle, request=BODY[:n] + bytes([BODY[n] ^ 1]) + BODY[n + 1 :])
    for n in range(len(ANSWER)):
        assert not right(bundle, response=ANSWER[:n] + bytes([ANSWER[n] ^ 1]) + ANSWER[n + 1 :])
