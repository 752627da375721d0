"""The parts of the client: the trust file, the chain of receipts, what is held back of a stream, the page's policy."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.settings import is_loopback
from router.client.bundles import parse_bundle
from router.client.chain import MAX_KEYS, Chain
from router.client.client import as_document
from router.client.config import ClientConfig
from router.client.errors import Step, TrustError, UnreachableError, UnverifiedError
from router.client.exchanges import Digest, model_of
from router.client.offline import read_material
from router.client.page import policy_of, read_page, with_policy
from router.client.proxy import _PATH, HeldBack
from router.client.trust import load_trust, parse_trust, write_trust
from router.client.trusting import as_policy
from router.receipts.payload import digest_body
from tests.unit.router.receipted import World, links

WORLD = World()
FILE: dict[str, Any] = msgspec.json.decode(write_trust(WORLD.trust_file()))


def test_a_trust_file_is_read_as_it_was_written() -> None:
    assert parse_trust(write_trust(WORLD.trust_file())).file == WORLD.trust_file()


def changed(*path: str, value: Any) -> bytes:
    document = msgspec.json.decode(msgspec.json.encode(FILE))
    part = document
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return msgspec.json.encode(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version": 1, "version": 1}',
        b"[" * 100_000,
        changed("version", value=2),
        changed("more", value=1),
        changed("router", "keys", value=[]),
        changed("router", "keys", value=[{"kty": "RSA"}]),
        changed("router", "gives_receipts", value="no"),
        changed("verifier", "keys", value=[]),
        changed("verifier", "keys", value=FILE["router"]["keys"]),
        changed("verifier", "issuer", value="verifier.test"),
        changed("log", "policy", value="quorum none\nquorum none\n"),
        changed("log", value=None),
        changed("require", "log", value="perhaps"),
        changed("require", "model_claims", value=[]),
        changed("require", "model_claims", value=["kindness"]),
        changed("require", "assurance", value="great"),
    ],
    ids=range(19),
)
def test_a_trust_file_that_is_not_clear_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse_trust(data)


def test_no_trust_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="touchstone client trust"):
        load_trust(tmp_path / "trust.json")


def test_no_receipts_only_where_a_person_has_written_that() -> None:
    assert not WORLD.trust(gives_receipts=False, keys=()).router.gives_receipts
    with pytest.raises(TrustError, match="no receipt key"):
        WORLD.trust(keys=())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_nothing_but_a_trust_file_is_one(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse_trust(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
_MEMBERS = (
    "receipt",
    "result",
    "batch",
    "index",
    "path",
    "log",
    "front",
    "bundle",
    "salt",
    "request",
    "response",
)


@given(st.dictionaries(st.sampled_from(_MEMBERS), _JSON).map(msgspec.json.encode) | st.binary(max_size=100))
def test_a_bundle_is_read_or_refused(data: bytes) -> None:
    """Whatever a router gives: no other error gets out."""
    for read in (parse_bundle, read_material):
        with contextlib.suppress(UnverifiedError):
            read(data)


def test_the_links_of_a_chain_come_in_any_order() -> None:
    made = list(links(WORLD, 5))
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        chain = Chain()
        for place in order:
            chain.add(*made[place])
        assert chain.missing("router-1", made[0][0].key) == []


def test_answers_that_others_got_are_missing() -> None:
    made = list(links(WORLD, 6))
    chain = Chain()
    for place in (0, 3, 5):
        chain.add(*made[place])
    assert chain.missing("router-1", made[0][0].key) == [2, 3, 5]


def refused(chain: Chain, link: Any) -> str:
    with pytest.raises(UnverifiedError) as caught:
        chain.add(*link)
    assert caught.value.step is Step.CHAIN
    return caught.value.reason


def test_a_receipt_is_used_once() -> None:
    chain, (link,) = Chain(), list(links(WORLD, 1))
    chain.add(*link)
    assert "before" in refused(chain, link)


def test_two_receipts_of_one_number() -> None:
    """A router that shows its caller two stories."""
    chain = Chain()
    chain.add(*next(iter(links(WORLD, 1))))
    assert "two receipts" in refused(chain, next(iter(links(WORLD, 1))))


def test_a_receipt_that_does_not_continue_the_one_before() -> None:
    chain, mine, other = Chain(), list(links(WORLD, 2)), list(links(WORLD, 2))
    chain.add(*mine[0])
    assert "does not continue" in refused(chain, other[1])


def test_a_receipt_that_the_next_one_does_not_continue() -> None:
    chain, mine, other = Chain(), list(links(WORLD, 3)), list(links(WORLD, 3))
    chain.add(*mine[2])
    assert "does not continue" in refused(chain, other[1])


def test_what_is_remembered_of_chains_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.client.chain.MAX_KNOWN", 3)
    chain, made = Chain(), list(links(WORLD, 6))
    for link in made[1:]:
        chain.add(*link)
    assert "older than all" in refused(chain, made[0])
    for n in range(2 * MAX_KEYS):
        receipt, data = made[0]
        chain.add(msgspec.structs.replace(receipt, key=f"{n:064x}"), data)
    assert chain.missing("router-1", made[0][0].key) == []


@given(
    st.lists(st.sampled_from([b"data: 1\n\n", b": sign of life\n\n", b"data: [DONE]\n\n", b"x"])), st.data()
)
def test_all_but_the_last_event_goes_on_as_it_comes(blocks: list[bytes], data: st.DataObject) -> None:
    """However the bytes are cut: nothing is lost, and `[DONE]` is held back with all that follows it."""
    stream, held, passed, at = b"".join(blocks), HeldBack(), b"", 0
    while at < len(stream):
        size = data.draw(st.integers(1, 20))
        passed += held.feed(stream[at : at + size])
        at += size
    assert passed + held.rest() == stream
    assert not passed.startswith(b"data: [DONE]")
    assert b"\n\ndata: [DONE]" not in passed


def test_an_event_without_an_end_is_not_waited_for() -> None:
    held = HeldBack()
    assert held.feed(b"x" * (2 << 20)) == b""
    with pytest.raises(UnreachableError):
        held.feed(b"x")


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/models/ORG/NAME-1.5", "/v1/models/a%20b", "/v1/responses/x.y~z"],
)
def test_paths_below_v1_are_passed_on(path: str) -> None:
    assert _PATH.match(path)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/", "/v2/models", "/api/v1/status", "/v1/../api/v1/status", "/v1/%2e%2e/api", "/v1/.%2E/api",
        "/v1/./x", "/v1/a/..", "/v1//x", "/v1/a%2f..%2f..", "/v1/a\\..\\b", "/v1/a%5c", "/v1/a%00", "/v1/a\n", "/v1x/y",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_v1(path: str) -> None:
    assert not _PATH.match(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "10.0.0.1", "localhost.evil.test", "127.0.0.1.evil.test", "::"]
)
def test_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_beyond_loopback_callers_need_a_key() -> None:
    with pytest.raises(ValueError, match="caller_key_file"):
        ClientConfig(listen="0.0.0.0:4180")
    assert ClientConfig(listen="0.0.0.0:4180", caller_key_file="callers.key").listen


def test_a_vkey_alone_is_a_log_without_witnesses() -> None:
    assert as_policy(f"{WORLD.log.key}\n") == f"log {WORLD.log.key}\nquorum none\n"
    assert as_policy(WORLD.policy()) == WORLD.policy()
    with pytest.raises(TrustError):
        as_policy("verifier.test/log+00000000+AAAA")


@given(st.binary(max_size=64), st.lists(st.binary(max_size=50)))
def test_a_digest_in_pieces_is_that_of_the_whole(salt: bytes, pieces: list[bytes]) -> None:
    digest = Digest(salt)
    for piece in pieces:
        digest.add(piece)
    assert (digest.hex(), digest.size) == (digest_body(salt, b"".join(pieces)), len(b"".join(pieces)))


@given(st.binary(max_size=100) | _JSON.map(msgspec.json.encode))
def test_any_body_has_a_model_or_none(body: bytes) -> None:
    assert isinstance(model_of(body), str)


def test_members_of_an_answer_are_attributes() -> None:
    answer = as_document(b'{"choices":[{"message":{"content":"hello"}}]}')
    assert answer.choices[0].message.content == "hello"
    with pytest.raises(AttributeError, match="usage"):
        _ = answer.usage


@given(st.binary(max_size=100))
def test_any_answer_is_a_document_or_an_error(data: bytes) -> None:
    with contextlib.suppress(UnreachableError):
        assert isinstance(as_document(data), dict)


PAGE = read_page().decode()


def test_the_page_allows_itself_and_nothing_else() -> None:
    """Its policy is that of its own text: python -m router.client.page writes it anew."""
    assert with_policy(PAGE) == PAGE
    policy = policy_of(PAGE)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_the_page_is_one_file() -> None:
    """It loads nothing, and makes no markup of text."""
    assert "http://" not in PAGE.replace("http-equiv", "")
    assert "https://" not in PAGE
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttp",
        "import(",
    ):
        assert word not in PAGE
    assert " src=" not in PAGE
    assert " on" + "click=" not in PAGE


def test_the_page_is_plain_text() -> None:
    assert set(PAGE) <= {*string.printable}, sorted({*PAGE} - {*string.printable})
