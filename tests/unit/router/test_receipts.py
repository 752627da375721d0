"""Receipts: one form of each, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from attester import cose
from attester.cose import PrivateKey
from attester.errors import ConfigError
from attester.identity import create_key
from router.config import RouterConfig, StoreSection, VerifierSection
from router.model.errors import ReceiptError
from router.receipts import batches, payload, tokens
from router.receipts.payload import Node, Receipt, Request, Response, Usage, read_salt
from router.state.receipt_key import find_receipt_key
from router.state.receipts import STRANGER, ReceiptBook
from verifier import canonical
from verifier.errors import CanonicalError, RequestError
from verifier.log import tree
from verifier.result_keys import b64url, unb64url
from verifier.router_receipts import (
    NO_ROOT,
    ReceiptKey,
    check_key_statement,
    generate_key,
    key_statement,
    read_batch,
)

KEY = generate_key()
PUBLIC = ReceiptKey(KEY.public)
KEYS = {PUBLIC.kid: PUBLIC}
RECEIPT = Receipt(
    v=1,
    iss="gpu-1/0.0.0.0:8450",
    jti="0a" * 16,
    iat=1_795_000_000_000,
    key="ab" * 32,
    seq=2,
    prev="cd" * 32,
    request=Request(method="POST", path="/v1/chat/completions", salted=True, sha256="11" * 32),
    response=Response(bytes=5, complete=True, sha256="22" * 32, status=200, streamed=False),
    model="m",
    workload="w",
    decision="0b" * 16,
    outcome="completed",
    node=Node(id="n", result="j", result_sha256="33" * 32, status="affirming", walk_at=7, request="0c" * 16),
    usage=Usage(prompt=1, completion=2, by="router"),
)
DATA = payload.encode(RECEIPT)
TOKEN = tokens.sign(DATA, KEY)


def signed(data: bytes, header: dict[str, Any] | None = None, key: PrivateKey = KEY) -> str:
    """A JWS over anything."""
    head = (
        {"alg": "Ed25519", "kid": ReceiptKey(key.public).kid, "typ": tokens.TYPE}
        if header is None
        else header
    )
    text = f"{b64url(json.dumps(head, separators=(',', ':')).encode())}.{b64url(data)}"
    return f"{text}.{b64url(key.sign(text.encode()))}"


def changed(**members: Any) -> bytes:
    """The payload with other members; `None`: without one."""
    document = {**json.loads(DATA), **members}
    kept = {name: value for name, value in document.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"), sort_keys=True).encode()


def test_the_fast_form_is_the_canonical_one() -> None:
    """The members of the structs stand in the order of their names."""
    assert canonical.encode(RECEIPT) == DATA
    assert payload.decode(DATA) == RECEIPT


def test_a_signed_receipt_is_read() -> None:
    verified = tokens.verify(TOKEN, KEYS)
    assert (verified.receipt, verified.payload) == (RECEIPT, DATA)


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in leaves(part, (*path, name))]
    return [path]


@pytest.mark.parametrize("path", leaves(json.loads(DATA)), ids=".".join)
def test_each_member_is_signed(path: tuple[str, ...]) -> None:
    """One that is altered is found, though all the rest is the router's."""
    document = json.loads(DATA)
    part = document
    for name in path[:-1]:
        part = part[name]
    value = part[path[-1]]
    part[path[-1]] = (
        (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else value[::-1] + "0"
    )
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    head, _, tail = TOKEN.split(".")
    with pytest.raises(ReceiptError, match="the signature is wrong"):
        tokens.verify(f"{head}.{b64url(data)}.{tail}", KEYS)


@pytest.mark.parametrize(
    "data",
    [
        changed(more=1),
        changed(v=2),
        changed(jti="0A" * 16),
        changed(seq=None),
        changed(prev=None),
        changed(seq=1),
        changed(key=None),
        changed(iat=1.0),
        changed(iat=-1),
        changed(iat=1 << 53),
        changed(outcome=""),
        changed(outcome="é"),
        changed(tried={"id": "n"}),
        changed(node={"id": "n", "more": 1}),
        changed(response=None),
        json.dumps(json.loads(DATA), sort_keys=True).encode(),
        json.dumps(dict(reversed(json.loads(DATA).items())), separators=(",", ":")).encode(),
        DATA[:-1] + b',"v":1}',
        DATA.replace(b'"usage":{', b'"usage":null,"usagf":{'),
        DATA.replace(b"POST", b"P\\u004fST"),
        b"[]",
        b"",
        b"\xff",
    ],
)  # fmt: skip
def test_another_form_is_refused_though_it_is_signed(data: bytes) -> None:
    """Unknown members, other spellings and orders, members twice, and what contradicts itself."""
    with pytest.raises(ReceiptError, match="payload is refused"):
        tokens.verify(signed(data), KEYS)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": PUBLIC.kid, "typ": tokens.TYPE},
        {"alg": "EdDSA", "kid": PUBLIC.kid, "typ": tokens.TYPE},
        {"alg": "HS256", "kid": PUBLIC.kid, "typ": tokens.TYPE},
        {"alg": "Ed25519", "kid": PUBLIC.kid, "typ": "JWT"},
        {"alg": "Ed25519", "kid": PUBLIC.kid},
        {"alg": "Ed25519", "typ": tokens.TYPE},
        {"alg": "Ed25519", "kid": PUBLIC.kid, "typ": tokens.TYPE, "crit": []},
        {"alg": "Ed25519", "jwk": PUBLIC.jwk(), "kid": PUBLIC.kid, "typ": tokens.TYPE},
        {"kid": PUBLIC.kid, "alg": "Ed25519", "typ": tokens.TYPE},
    ],
)  # fmt: skip
def test_another_header_is_refused_though_it_is_signed(header: dict[str, Any]) -> None:
    with pytest.raises(ReceiptError):
        tokens.verify(signed(DATA, header), KEYS)


def test_a_receipt_of_another_router_is_refused() -> None:
    with pytest.raises(ReceiptError, match="not one of this router's"):
        tokens.verify(signed(DATA, key=generate_key()), KEYS)


def test_another_routers_signature_under_this_ones_name_is_refused() -> None:
    with pytest.raises(ReceiptError, match="signature is wrong"):
        tokens.verify(
            signed(DATA, {"alg": "Ed25519", "kid": PUBLIC.kid, "typ": tokens.TYPE}, generate_key()), KEYS
        )


@pytest.mark.parametrize(
    "token", ["", "a.b", TOKEN + ".", TOKEN + "=", TOKEN[:-1], "." * 2, "x" * 20_000, TOKEN + "\n"]
)
def test_what_is_no_jws_is_refused(token: str) -> None:
    with pytest.raises(ReceiptError):
        tokens.verify(token, KEYS)


@given(st.integers(0, len(TOKEN) - 1), st.integers(1, 127))
def test_one_changed_character_is_refused(at: int, by: int) -> None:
    other = chr((ord(TOKEN[at]) + by) % 128)
    with pytest.raises(ReceiptError):
        tokens.verify(TOKEN[:at] + other + TOKEN[at + 1 :], KEYS)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        payload.decode(data)


@given(st.text(max_size=100))
def test_a_salt_has_one_spelling(text: str) -> None:
    """What is read is written again as it was."""
    try:
        salt = read_salt(text)
    except ReceiptError:
        return
    assert b64url(salt) == text
    assert 16 <= len(salt) <= 64


# Keys.


def test_keys_are_read_as_they_are_written() -> None:
    assert tokens.read_keys(tokens.write_keys([PUBLIC])) == KEYS


@pytest.mark.parametrize(
    "jwk",
    [
        {**PUBLIC.jwk(), "kid": "x"},
        {**PUBLIC.jwk(), "alg": "ES256"},
        {**PUBLIC.jwk(), "use": "enc"},
        {**PUBLIC.jwk(), "d": "x"},
        {**PUBLIC.jwk(), "x": PUBLIC.x + "="},
        {**PUBLIC.jwk(), "x": b64url(b"\x00" * 32)},
        {**PUBLIC.jwk(), "x": b64url(b"\x01" + b"\x00" * 31)},
        {"kty": "EC"},
        [],
    ],
)
def test_a_key_that_cannot_have_signed_is_refused(jwk: Any) -> None:
    """Another use, another kid, a private one, a point of small order."""
    with pytest.raises(RequestError):
        ReceiptKey.from_jwk(jwk)
    with pytest.raises(ReceiptError):
        tokens.read_keys(json.dumps({"keys": [jwk]}).encode())


def test_the_kid_is_the_thumbprint_of_rfc_8037() -> None:
    """Appendix A.3."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert ReceiptKey.from_bytes(unb64url(x)).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_key_is_registered_by_its_router_alone() -> None:
    """The identity vouches for it, and the key itself has signed."""
    identity, x = PrivateKey.generate(cose.ES256), PUBLIC.public.point
    statement = key_statement("https://v", b"c" * 32, "one", x)
    right = {"signature": identity.sign(statement), "possession": KEY.sign(statement)}
    check_key_statement(statement, identity.public, PUBLIC, **right)
    for wrong in (
        {**right, "signature": PrivateKey.generate(cose.ES256).sign(statement)},
        {**right, "possession": generate_key().sign(statement)},
        {**right, "possession": b""},
    ):
        with pytest.raises(RequestError):
            check_key_statement(statement, identity.public, PUBLIC, **wrong)
    for other in (
        ("https://w", b"c" * 32, "one"),
        ("https://v", b"d" * 32, "one"),
        ("https://v", b"c" * 32, "two"),
    ):
        with pytest.raises(RequestError):
            check_key_statement(key_statement(*other, x), identity.public, PUBLIC, **right)


def config(**more: Any) -> RouterConfig:
    return RouterConfig(
        verifier=VerifierSection(url="https://v"), store=StoreSection(path="router.db"), **more
    )


def test_the_receipt_key_is_made_once(tmp_path: Path) -> None:
    """In a file that only its owner can read, beside the configuration."""
    path = tmp_path / "router.toml"
    assert find_receipt_key(path, config(), makes_it=False) is None
    made = find_receipt_key(path, config(), makes_it=True)
    file = tmp_path / "router-receipts.pem"
    assert file.stat().st_mode & 0o777 == 0o600
    again = find_receipt_key(path, config(), makes_it=True)
    assert made is not None
    assert again is not None
    assert made.public == again.public


def test_a_receipt_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    find_receipt_key(tmp_path / "router.toml", config(), makes_it=True)
    (tmp_path / "router-receipts.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        find_receipt_key(tmp_path / "router.toml", config(), makes_it=True)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "router-receipts.pem", cose.ES256)
    with pytest.raises(ConfigError, match="Ed25519"):
        find_receipt_key(tmp_path / "router.toml", config(), makes_it=True)


def test_a_router_without_a_store_keeps_no_key(tmp_path: Path) -> None:
    """Its chains end with the process; another process must not give their numbers again."""
    kept = structs.replace(config(), store=StoreSection())
    assert find_receipt_key(tmp_path / "router.toml", kept, makes_it=True) is None
    assert list(tmp_path.iterdir()) == []


# Batches.

LEAVES = [tree.leaf_hash(b"%d" % n) for n in range(6)]
BATCH = batches.close(KEY, "one", 1, [*LEAVES, tree.leaf_hash(DATA)], prev=NO_ROOT, from_ms=1, to_ms=2)
PATH = batches.path(b"".join([*LEAVES, tree.leaf_hash(DATA)]), 6)


def test_a_receipt_is_in_its_batch() -> None:
    BATCH.check(PUBLIC)
    batches.check_path(DATA, 6, BATCH, PATH)
    assert read_batch(BATCH.encode()) == BATCH
    assert batches.from_wire(batches.to_wire(BATCH)) == BATCH


@pytest.mark.parametrize("wrong", ["payload", "index", "root", "hash", "short", "long", "no hash", "order"])
def test_an_altered_path_is_refused(wrong: str) -> None:
    data, index, batch, path = DATA, 6, BATCH, list(PATH)
    match wrong:
        case "payload":
            data = DATA + b" "
        case "index":
            index = 5
        case "root":
            batch = structs.replace(BATCH, root="0" * 64)
        case "hash":
            path[0] = "0" * 64
        case "short":
            path = path[:-1]
        case "long":
            path = [*path, "0" * 64]
        case "no hash":
            path[0] = "x"
        case _:
            path = path[::-1]
    with pytest.raises(ReceiptError, match="not in its batch"):
        batches.check_path(data, index, batch, path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("router", "two"),
        ("number", 2),
        ("size", 8),
        ("root", "1" * 64),
        ("prev", "1" * 64),
        ("from_ms", 0),
        ("to_ms", 3),
    ],
)
def test_each_member_of_a_batch_is_signed(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match="not signed"):
        structs.replace(BATCH, **{name: value}).check(PUBLIC)


@given(st.integers(1, 40), st.data())
def test_every_leaf_has_a_path(size: int, data: st.DataObject) -> None:
    made = [tree.leaf_hash(b"%d" % n) for n in range(size)]
    batch = batches.close(KEY, "one", 1, made, prev=NO_ROOT, from_ms=1, to_ms=1)
    index = data.draw(st.integers(0, size - 1))
    batches.check_path(b"%d" % index, index, batch, batches.path(b"".join(made), index))


# The book.


def end(book: ReceiptBook, caller: str, now_ms: int = 5) -> str:
    receipt_id = book.new_id(now_ms)
    book.end(
        receipt_id, caller, now_ms,
        {"outcome": "completed", "request": RECEIPT.request, "response": RECEIPT.response},
    )  # fmt: skip
    return receipt_id


def test_a_flood_loses_its_own_receipts() -> None:
    """Who made few still has them, whatever others do; what is lost is counted."""
    lost: list[None] = []
    book = ReceiptBook(KEY, "one", writes=True, lost=lambda: lost.append(None), max_unwritten=10)
    few = [end(book, "ada") for _ in range(4)]
    for _ in range(50):
        end(book, "flood")
    assert all(book.get(each) for each in few)
    assert len(book.drain()[0]) == 10
    assert len(lost) == 44


def test_strangers_lose_their_own_receipts() -> None:
    book = ReceiptBook(KEY, "one", writes=False, in_memory=10)
    few = [end(book, "ada") for _ in range(4)]
    for _ in range(50):
        end(book, STRANGER)
    assert all(book.get(each) for each in few)


def test_a_batch_has_an_end_while_the_store_is_out() -> None:
    """Then receipts are in no batch, and are counted as lost."""
    lost: list[None] = []
    book = ReceiptBook(KEY, "one", writes=True, lost=lambda: lost.append(None), max_open=3)
    ids = [end(book, "ada") for _ in range(5)]
    opened = book.take_open()
    assert opened is not None
    assert len(opened.leaves) == 3
    assert [book.get(each).batch for each in ids] == [1, 1, 1, 0, 0]
    assert len(lost) == 2


def test_what_could_not_be_written_is_given_back() -> None:
    """With the chains, which stay as they are by now."""
    book = ReceiptBook(KEY, "one", writes=True)
    first = end(book, "ada")
    receipts, chains = book.drain()
    second = end(book, "ada")
    book.requeue(receipts, chains)
    receipts, chains = book.drain()
    assert {each.id for each in receipts} == {first, second}
    assert [chain.seq for chain in chains.values()] == [2]


def test_a_pseudonym_is_of_one_router() -> None:
    """Nobody can tell whose it is without the router's key, nor follow a caller from one router to another."""
    one, other = ReceiptBook(KEY, "one", writes=True), ReceiptBook(generate_key(), "one", writes=True)
    assert one.pseudonym("ada") != other.pseudonym("ada")
    assert one.pseudonym("ada") != one.pseudonym("bob")
    assert one.pseudonym("ada") == ReceiptBook(KEY, "two", writes=True).pseudonym("ada")


# Canonical JSON.

VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(min_codepoint=32, max_codepoint=126)), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_canonical_json_is_that_of_rfc_8785(value: Any) -> None:
    """For what it takes: Python's own encoder, told to sort and to leave out spaces, writes the same."""
    assert canonical.encode(value) == json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize("value", [None, 1.5, "é", "\n", {1: 2}, 1 << 53, b"x", {"é": 1}, float("nan")])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical.encode(value)


def test_deep_nesting_is_refused() -> None:
    value: Any = 1
    for _ in range(40):
        value = [value]
    with pytest.raises(CanonicalError):
        canonical.encode(value)


def test_ed25519_signatures_are_the_same_each_time() -> None:
    """So a receipt that is signed when it is asked for is the same one each time."""
    native = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
    assert tokens.sign(DATA, PrivateKey(native)) == tokens.sign(DATA, PrivateKey(native))
