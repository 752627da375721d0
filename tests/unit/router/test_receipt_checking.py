"""A receipt held against what somebody has: each step fails for its own reason, and the first ends the check."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from router.model.errors import ReceiptError
from router.receipts import batches, checking, payload, tokens
from router.receipts.commands import receipt as command
from router.receipts.payload import Node, digest_body
from tests.unit.router.doubles import result_key
from tests.unit.router.support import ear
from tests.unit.router.test_receipts import KEY, KEYS, PUBLIC, RECEIPT
from verifier import canonical
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, sign_checkpoint
from verifier.log.notes import Signer
from verifier.log.proofs import LogProof
from verifier.results import encode_jwt
from verifier.router_receipts import NO_ROOT, generate_key

BODY, ANSWER, SALT = b'{"model": "m"}', b"data: hello\n\ndata: [DONE]\n\n", bytes(range(16))
ORIGIN = "verifier.test/log"
LOG = Signer(ORIGIN, Ed25519PrivateKey.generate())
VERIFIER = result_key()
RESULT = ear("a")
TOKEN = encode_jwt(RESULT, VERIFIER)
MADE = structs.replace(
    RECEIPT,
    request=structs.replace(RECEIPT.request, sha256=digest_body(SALT, BODY)),
    response=structs.replace(RECEIPT.response, sha256=digest_body(SALT, ANSWER), bytes=len(ANSWER)),
    node=Node(
        id="a",
        result=RESULT.jti,
        result_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        status=str(RESULT.ear_status),
    ),
)


def logged(batch: Any, key: Signer = LOG, **more: Any) -> str:
    """The proof that a log has a batch."""
    entry = canonical.encode({"v": 1, "kind": "receipts", "at": 5, **msgspec.to_builtins(batch), **more})
    leaves = [tree.leaf_hash(b"another"), tree.leaf_hash(entry)]
    note = sign_checkpoint(Checkpoint(ORIGIN, 2, tree.root_of(leaves)), key)
    return str(LogProof(1, (leaves[0],), note, entry))


def document(receipt: Any = MADE, **more: Any) -> dict[str, Any]:
    data = payload.encode(receipt)
    leaves = [tree.leaf_hash(b"first"), tree.leaf_hash(data)]
    batch = batches.close(KEY, RECEIPT.iss, 3, leaves, prev=NO_ROOT, from_ms=1, to_ms=2)
    return {
        "receipt": tokens.sign(data, KEY),
        "result": TOKEN,
        "batch": batches.to_wire(batch),
        "index": 1,
        "path": batches.path(b"".join(leaves), 1),
        "log": logged(batch),
        "front": None,
        **more,
    }


def means(**more: Any) -> checking.Means:
    given = {
        "keys": KEYS,
        "log_key": LOG.key,
        "result_keys": {VERIFIER.kid: VERIFIER.verifying},
        "request": BODY,
        "response": ANSWER,
        "salt": SALT,
    }
    return checking.Means(**{**given, **more})


def check(found: dict[str, Any], **more: Any) -> list[checking.Step]:
    return checking.check(checking.read_document(msgspec.json.encode(found)), means(**more))[1]


def test_everything_is_right() -> None:
    steps = check(document())
    assert [step.number for step in steps if not step.is_taken] == [5]


def other_batch() -> dict[str, Any]:
    """A batch of another router's, which is signed by this router's key."""
    leaf = tree.leaf_hash(payload.encode(MADE))
    batch = batches.close(KEY, "two", 1, [leaf], prev=NO_ROOT, from_ms=1, to_ms=2)
    return {"batch": batches.to_wire(batch), "index": 0, "path": [], "log": None}


BATCH = batches.from_wire(document()["batch"])
WRONG: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "another router": (1, {}, {"keys": {}}),
    "no signature": (1, {"receipt": document()["receipt"].rpartition(".")[0] + "."}, {}),
    "one byte of the request": (2, {}, {"request": BODY.replace(b"m", b"n")}),
    "another salt": (2, {}, {"salt": bytes(16)}),
    "no salt": (2, {}, {"salt": b""}),
    "one byte of the stream": (3, {}, {"response": ANSWER.replace(b"hello", b"hellp")}),
    "a stream with another comment": (3, {}, {"response": b": x\n\n" + ANSWER}),
    "a stream without its end": (3, {}, {"response": ANSWER[:-1]}),
    "another result": (4, {"result": encode_jwt(ear("b"), VERIFIER)}, {}),
    "a result of nobody": (4, {}, {"result_keys": {}}),
    "a front of no node": (5, {"front": {"jws": "a.b.c", "agrees": True}}, {}),
    "another place": (6, {"index": 0}, {}),
    "no place": (6, {"index": None}, {}),
    "another path": (6, {"path": ["0" * 64]}, {}),
    "another root": (6, {"batch": {**document()["batch"], "root": "0" * 64}}, {}),
    "a batch of another router": (6, other_batch(), {}),
    "another log": (7, {"log": logged(BATCH, Signer(ORIGIN, Ed25519PrivateKey.generate()))}, {}),
    "an entry of another kind": (7, {"log": logged(BATCH, kind="result")}, {}),
    "an entry about another batch": (7, {"log": logged(structs.replace(BATCH, number=4))}, {}),
    "an entry with more": (7, {"log": logged(BATCH, more=1)}, {}),
    "no proof": (7, {"log": "x"}, {}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    number, changes, other = WRONG[what]
    with pytest.raises(checking.FailedCheckError) as caught:
        check(document(**changes), **other)
    assert caught.value.step.number == number
    assert [step.number for step in caught.value.taken] == list(range(1, number))


def test_a_receipt_for_another_answer_of_the_same_key_is_refused() -> None:
    """Replayed for what it is not about."""
    other = structs.replace(MADE, jti="0d" * 16, response=structs.replace(MADE.response, sha256="0" * 64))
    with pytest.raises(checking.FailedCheckError, match="about another answer"):
        check(document(other))


def test_what_is_not_there_is_not_checked() -> None:
    """And is said to be."""
    given = dict.fromkeys(("request", "response", "log_key", "result_keys"))
    steps = check({"receipt": document()["receipt"]}, **given)
    assert [step.number for step in steps if step.is_taken] == [1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"receipt": 1}',
        b'{"receipt": "a", "more": 1}',
        b'{"receipt": "a", "receipt": "b"}',
        b"\xff",
    ],
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        checking.check(checking.read_document(data), means())


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(ReceiptError, match="bytes"):
        checking.read_document(b" " * (checking.MAX_DOCUMENT + 1))


def test_the_command_ends_with_the_step_that_is_wrong(tmp_path: Any) -> None:
    """By its status too, so that a script can go by it."""
    for name, data in (("receipt", msgspec.json.encode(document())), ("keys", tokens.write_keys([PUBLIC]))):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "answer").write_bytes(ANSWER + b" ")
    (tmp_path / "other").write_bytes(tokens.write_keys([type(PUBLIC)(generate_key().public)]))
    given = ["verify", str(tmp_path / "receipt"), "--router-keys"]
    salt = ["--salt", "AAECAwQFBgcICQoLDA0ODw"]
    done = CliRunner().invoke(command, [*given, str(tmp_path / "keys"), "--log-key", str(LOG.key)])
    assert done.exit_code == 0
    assert "Not checked: 2, 3, 5." in done.output
    done = CliRunner().invoke(
        command, [*given, str(tmp_path / "keys"), "--response", str(tmp_path / "answer"), *salt]
    )
    assert done.exit_code == 1
    assert "3. it is about this answer: WRONG." in done.output
    done = CliRunner().invoke(command, [*given, str(tmp_path / "other")])
    assert done.exit_code == 1
    assert "1. the router has signed it: WRONG." in done.output
