"""The claims table: what is written is read back, and everything else is refused by name."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cbor, evidence, kinds
from attester.cose import PrivateKey
from attester.errors import CBORError, ClaimError
from attester.evidence import (
    Benchmark,
    Capabilities,
    Endpoint,
    Exposure,
    File,
    Inventory,
    Manifest,
    Measure,
    ReadAnswer,
    Runtime,
    Token,
    WalkAnswer,
)
from attester.kinds import kind_of, read_submod, write_submod

# Private claims that others write, and the keys that RFC 8392 and RFC 9711 registered.
OTHERS = {
    "AIR": range(-65549, -65536),
    "Veraison": range(-70002, -69999),
    "messous": range(-75012, -75000),
    "TEEP": range(65000, 65001),
    "EAT-based drafts": range(3802, 3809),
}

COUNTS = st.integers(0, 1 << 62)
DIGESTS = st.binary(min_size=32, max_size=32)
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
NAMES = st.text(PRINTABLE, min_size=1, max_size=128)
LINES = st.text(PRINTABLE, max_size=200)
FILES = st.builds(File, name=st.text(min_size=1, max_size=40), size=COUNTS, sha256=DIGESTS)

CLAIMS = {
    "manifest": st.builds(Manifest, files=st.lists(FILES, min_size=1, max_size=5).map(tuple)),
    "read": st.builds(ReadAnswer, answer=DIGESTS, micros=COUNTS),
    "walk": st.builds(
        WalkAnswer,
        answers=st.lists(DIGESTS, min_size=1, max_size=5).map(tuple),
        source=st.sampled_from(["engine", "file"]),
        device=LINES,
        micros=COUNTS,
    ),
    "endpoint": st.builds(
        Endpoint,
        url=st.sampled_from(["https://a", "https://a.example:8000", "https://[2001:db8::1]:443"]),
        spki=st.binary(min_size=1, max_size=512),
        signature=st.binary(min_size=64, max_size=64),
    ),
    "runtime": st.builds(
        Runtime,
        engine=NAMES,
        version=NAMES,
        arguments=st.dictionaries(
            NAMES, st.one_of(LINES, st.integers(-(1 << 60), 1 << 60), st.booleans(), st.none()), max_size=4
        ),
        packages=st.dictionaries(NAMES, NAMES, max_size=4),
        python=NAMES,
        kernel=LINES,
        container=st.one_of(st.none(), LINES),
        driver=st.one_of(st.none(), LINES),
    ),
    "capabilities": st.builds(
        Capabilities,
        hardware_class=NAMES,
        memory_bytes=COUNTS,
        context_length=COUNTS,
        quantisation=NAMES,
        features=st.lists(NAMES, max_size=4).map(tuple),
        region=st.one_of(st.none(), NAMES),
    ),
    "exposure": st.builds(Exposure, reached=st.booleans(), routes=st.lists(NAMES, max_size=4).map(tuple)),
    "inventory": st.builds(
        Inventory,
        model=NAMES,
        uuid=NAMES,
        memory_bytes=COUNTS,
        serial=st.one_of(st.none(), NAMES),
        pci=st.one_of(st.none(), NAMES),
        driver=st.one_of(st.none(), NAMES),
        vbios=st.one_of(st.none(), NAMES),
        ecc=st.one_of(st.none(), st.booleans()),
        mig=st.one_of(st.none(), st.booleans()),
        confidential=st.one_of(st.none(), NAMES),
    ),
    "benchmark": st.builds(
        Benchmark,
        device=LINES,
        at=st.integers(0, 1 << 53),
        code=NAMES,
        versions=st.dictionaries(NAMES, NAMES, max_size=4),
        measures=st.lists(
            st.builds(
                Measure,
                name=NAMES,
                unit=NAMES,
                median=COUNTS,
                spread=COUNTS,
                repeats=st.integers(1, 100_000),
                warm_up=st.integers(0, 100_000),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda measure: measure.name,
        ).map(tuple),
        conditions=st.dictionaries(NAMES, COUNTS, max_size=4),
    ),
}
PLACES = {claim.name: place for place, claims in kinds.claims_by_place().items() for claim in claims}
ALL_CLAIMS = [claim for claims in kinds.claims_by_place().values() for claim in claims]
SUBMOD = {"platform": "platform", "model": "model/a", "gpu": "gpu/0"}
KEY_OF = {claim.name: claim.key for claim in ALL_CLAIMS}

VALID = {
    "manifest": {"files": [{"name": "a", "size": 1, "sha256": bytes(32)}]},
    "read": {"answer": bytes(32), "micros": 1},
    "walk": {"answers": [bytes(32)], "source": "engine", "device": "cpu", "micros": 1},
    "endpoint": {"url": "https://a", "spki": b"k", "signature": bytes(64)},
    "runtime": {
        "engine": "e",
        "version": "1",
        "arguments": {"seed": 1},
        "packages": {"numpy": "2"},
        "python": "3",
        "kernel": "Linux",
    },
    "capabilities": {
        "hardware_class": "cpu",
        "memory_bytes": 1,
        "context_length": 1,
        "quantisation": "none",
    },
    "exposure": {"reached": True},
    "inventory": {"model": "GPU", "uuid": "GPU-1", "memory_bytes": 1},
    "benchmark": {
        "device": "cpu",
        "at": 1,
        "code": "1",
        "versions": {"torch": "2"},
        "measures": [{"name": "a", "unit": "bytes/s", "median": 1, "spread": 0, "repeats": 1, "warm_up": 0}],
    },
}


def read(name: str, **changes: object) -> object:
    """One claim through the wire, with members replaced; a member that is `...` is left out."""
    raw = {k: v for k, v in {**VALID[name], **changes}.items() if v is not ...}
    submod = cbor.decode(cbor.encode({KEY_OF[name]: raw}), max_size=1 << 20)
    return read_submod(SUBMOD[PLACES[name]], submod)[name]


def test_each_claim_has_a_key_of_its_own():
    """One key never means two things, wherever it stands."""
    twice = [key for key, count in Counter(claim.key for claim in ALL_CLAIMS).items() if count > 1]
    assert twice == []


def test_each_claim_has_a_name_of_its_own():
    """Names are unique over all places: writing looks keys up by name alone."""
    twice = [name for name, count in Counter(claim.name for claim in ALL_CLAIMS).items() if count > 1]
    assert twice == []


@pytest.mark.parametrize("others", OTHERS)
def test_no_claim_has_a_key_of_others(others):
    """Whoever reads both kinds of evidence takes none of ours for theirs."""
    assert [claim.name for claim in ALL_CLAIMS if claim.key in OTHERS[others]] == []


def test_the_registered_keys_are_those_of_the_standards():
    """RFC 8392 and RFC 9711 fix these, so that other readers find them."""
    registered = {claim.name: claim.key for claim in ALL_CLAIMS if claim.key > 0}
    assert registered == {
        "aud": 3, "iat": 6, "eat_nonce": 10, "ueid": 256, "eat_profile": 265, "submods": 266,
    }  # fmt: skip


def test_every_claim_of_ours_is_private():
    """What no standard registered is below −65536 (RFC 8392 §9.1)."""
    ours = [claim.key for claim in ALL_CLAIMS if PLACES[claim.name] != "token"]
    assert [key for key in ours if key >= -65536] == []


def test_every_claim_is_tried_here():
    """A claim that is added to the table comes under these tests."""
    assert CLAIMS.keys() == VALID.keys() == {name for name, place in PLACES.items() if place != "token"}


@pytest.mark.parametrize("name", CLAIMS)
@given(data=st.data())
@settings(max_examples=50)
def test_a_claim_is_read_as_it_was_written(name, data):
    """Every claim survives CBOR, with its defaults and its optional members."""
    claim = data.draw(CLAIMS[name])
    wire = cbor.encode(write_submod({name: claim}))
    assert read_submod(SUBMOD[PLACES[name]], cbor.decode(wire, max_size=1 << 20)) == {name: claim}


@pytest.mark.parametrize("name", VALID)
def test_the_smallest_form_of_a_claim_is_read(name):
    """What the negative cases below start from is itself accepted."""
    assert isinstance(read(name), {c.name: c.type for c in ALL_CLAIMS}[name])


@pytest.mark.parametrize("name", VALID)
def test_a_member_too_many_is_refused(name):
    """No room for what is signed and not read."""
    with pytest.raises(ClaimError, match=f"{name}: .*unknown field"):
        read(name, surprise=1)


@pytest.mark.parametrize(("name", "member"), [(name, member) for name in VALID for member in VALID[name]])
def test_a_member_too_few_is_refused(name, member):
    """Every member that has no default is due."""
    with pytest.raises(ClaimError, match=f"missing required field `{member}`"):
        read(name, **{member: ...})


@pytest.mark.parametrize(("name", "member"), [(name, member) for name in VALID for member in VALID[name]])
@pytest.mark.parametrize("value", [None, True, [], {"a": {}}], ids=["null", "true", "list", "map"])
def test_a_member_of_another_type_is_refused(name, member, value):
    """Types are the table's: nothing is converted to fit."""
    if type(value) is type(VALID[name][member]) is bool:
        value = 1
    with pytest.raises(ClaimError):
        read(name, **{member: value})


@pytest.mark.parametrize(
    ("name", "member", "text"),
    [
        ("read", "answer", "A" * 32),
        ("read", "answer", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("endpoint", "spki", "aw=="),
        ("endpoint", "signature", "A" * 64),
        ("endpoint", "signature", "A" * 86 + "=="),
    ],
)
def test_text_where_bytes_are_due_is_refused(name, member, text):
    """Base64 is not decoded on the side: one value has one encoding."""
    with pytest.raises(ClaimError):
        read(name, **{member: text})


@pytest.mark.parametrize(
    ("name", "member", "value"),
    [
        ("runtime", "engine", b"vllm"),
        ("endpoint", "url", b"https://a"),
        ("walk", "device", b"cpu"),
        ("capabilities", "hardware_class", b"cpu"),
    ],
)
def test_bytes_where_text_is_due_are_refused(name, member, value):
    """Nor the other way round."""
    with pytest.raises(ClaimError):
        read(name, **{member: value})


WRONG = {
    "digest of 31 bytes": ("manifest", {"files": [{"name": "a", "size": 1, "sha256": bytes(31)}]}),
    "digest of 33 bytes": ("manifest", {"files": [{"name": "a", "size": 1, "sha256": bytes(33)}]}),
    "digest as text": ("manifest", {"files": [{"name": "a", "size": 1, "sha256": "0" * 32}]}),
    "negative size": ("manifest", {"files": [{"name": "a", "size": -1, "sha256": bytes(32)}]}),
    "size beyond 2^62": ("manifest", {"files": [{"name": "a", "size": (1 << 62) + 1, "sha256": bytes(32)}]}),
    "size true": ("manifest", {"files": [{"name": "a", "size": True, "sha256": bytes(32)}]}),
    "file without a name": ("manifest", {"files": [{"name": "", "size": 1, "sha256": bytes(32)}]}),
    "file with a long name": ("manifest", {"files": [{"name": "a" * 1025, "size": 1, "sha256": bytes(32)}]}),
    "file with a mode": ("manifest", {"files": [{"name": "a", "size": 1, "sha256": bytes(32), "mode": 1}]}),
    "file as a list": ("manifest", {"files": [["a", 1, bytes(32)]]}),
    "no files": ("manifest", {"files": []}),
    "files as a map": ("manifest", {"files": {"a": bytes(32)}}),
    "answer short": ("read", {"answer": bytes(31)}),
    "answer long": ("read", {"answer": bytes(33)}),
    "micros negative": ("read", {"micros": -1}),
    "micros huge": ("read", {"micros": (1 << 64) - 1}),
    "no answers": ("walk", {"answers": []}),
    "one answer short": ("walk", {"answers": [bytes(32), bytes(31)]}),
    "one answer null": ("walk", {"answers": [None]}),
    "answers as one string": ("walk", {"answers": bytes(64)}),
    "source gpu": ("walk", {"source": "gpu"}),
    "source empty": ("walk", {"source": ""}),
    "source capital": ("walk", {"source": "Engine"}),
    "device with a newline": ("walk", {"device": "cpu\n"}),
    "device with an escape": ("walk", {"device": "\x1b[2J"}),
    "device long": ("walk", {"device": "x" * 513}),
    "spki empty": ("endpoint", {"spki": b""}),
    "spki long": ("endpoint", {"spki": bytes(513)}),
    "signature short": ("endpoint", {"signature": bytes(63)}),
    "signature long": ("endpoint", {"signature": bytes(72)}),
    "argument a list": ("runtime", {"arguments": {"a": [1]}}),
    "argument a map": ("runtime", {"arguments": {"a": {}}}),
    "argument bytes": ("runtime", {"arguments": {"a": b"x"}}),
    "argument without a name": ("runtime", {"arguments": {"": 1}}),
    "argument's name a number": ("runtime", {"arguments": {1: 1}}),
    "257 arguments": ("runtime", {"arguments": {str(i): 1 for i in range(257)}}),
    "513 packages": ("runtime", {"packages": {str(i): "1" for i in range(513)}}),
    "package without a version": ("runtime", {"packages": {"numpy": ""}}),
    "package null": ("runtime", {"packages": {"numpy": None}}),
    "memory negative": ("capabilities", {"memory_bytes": -1}),
    "65 features": ("capabilities", {"features": ["x"] * 65}),
    "feature empty": ("capabilities", {"features": [""]}),
    "region empty": ("capabilities", {"region": ""}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_out_of_its_range_is_refused(case):
    """Lengths, ranges and choices are the table's."""
    name, changes = WRONG[case]
    with pytest.raises(ClaimError):
        read(name, **changes)


SPOILT = {
    "newline at the end": "vllm\n",
    "newline inside": "v\nllm",
    "carriage return": "vllm\r",
    "tab": "v\tllm",
    "NUL": "vllm\x00",
    "escape": "\x1b[31mvllm",
    "delete": "vllm\x7f",
    "C1 control": "vllm\x9b2J",
    "no-break space": "vl\xa0lm",
    "right-to-left override": "vl\u202elm",
    "zero width": "vl\u200blm",
    "line separator": "vllm\u2028",
    "Cyrillic": "vllм",
    "fullwidth": "ｖllm",
    "combining": "e\u0301",
    "emoji": "🦙",
    "empty": "",
    "129 characters": "x" * 129,
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize(
    ("name", "member"),
    [("runtime", "engine"), ("runtime", "version"), ("runtime", "python"), ("capabilities", "region")],
)
def test_a_name_that_could_deceive_a_reader_is_refused(case, name, member):
    """What a node is called is printable ASCII to its last character."""
    with pytest.raises(ClaimError):
        read(name, **{member: SPOILT[case]})


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("member", ["arguments", "packages"])
def test_a_key_that_could_deceive_a_reader_is_refused(case, member):
    """The names of arguments and packages are names too."""
    with pytest.raises(ClaimError):
        read("runtime", **{member: {SPOILT[case]: "1"}})


def test_an_error_does_not_repeat_control_characters():
    """What a node sent does not write on the operator's screen from a message."""
    with pytest.raises(ClaimError) as refusal:
        read("walk", **{"\x1b[2J\n": 1})
    assert str(refusal.value).isprintable()


def test_an_error_does_not_repeat_at_length():
    """Nor does it fill the log."""
    with pytest.raises(ClaimError) as refusal:
        read("walk", **{"x" * 10_000: 1})
    assert len(str(refusal.value)) < 250


URLS_REFUSED = {
    "http": "http://a",
    "capital scheme": "HTTPS://a",
    "no scheme": "a:443",
    "another scheme": "file://a",
    "leading space": " https://a",
    "leading newline": "\nhttps://a",
    "no host": "https://",
    "port alone": "https://:443",
    "user": "https://user@a",
    "user and password": "https://user:pw@a",
    "empty user": "https://@a",
    "path": "https://a/b",
    "root": "https://a/",
    "query": "https://a?b",
    "fragment": "https://a#b",
    "backslash": "https://a\\@b",
    "newline at the end": "https://a\n",
    "newline before the port": "https://a\n:443",
    "NUL": "https://a\x00",
    "tab": "https://a\t",
    "space": "https://a b",
    "percent": "https://a%2fb",
    "ideographic dot": "https://a\u3002b",
    "fullwidth dot": "https://a\uff0eb",
    "fullwidth solidus": "https://a\uff0fb",
    "Cyrillic host": "https://аpple.example",
    "Kelvin sign": "https://\u212aelvin",
    "Arabic digits in the port": "https://a:٤٤٣",
    "empty port": "https://a:",
    "port of six digits": "https://a:123456",
    "negative port": "https://a:-1",
    "two ports": "https://a:1:2",
    "bare IPv6": "https://2001:db8::1",
    "open bracket": "https://[::1",
    "zone": "https://[fe80::1%eth0]",
    "host of 254": "https://" + "a" * 254,
    "empty": "",
}


@pytest.mark.parametrize("case", URLS_REFUSED)
def test_an_endpoint_is_scheme_host_and_port(case):
    """Nothing that a resolver or a client would have to interpret."""
    with pytest.raises(ClaimError, match="endpoint"):
        read("endpoint", url=URLS_REFUSED[case])


@pytest.mark.parametrize(
    "url", ["https://a", "https://A-b.example:1", "https://127.0.0.1:65535", "https://[::1]:8443"]
)
def test_an_endpoint_that_is_meant(url):
    """Names, IPv4 and IPv6, with or without a port."""
    assert read("endpoint", url=url).url == url


KINDS = {
    "platform": "platform",
    "platform/": None,
    "platform/x": None,
    "Platform": None,
    "": None,
    "model": None,
    "model/": None,
    "model//a": None,
    "model/a": "model",
    "model/a/": None,
    "model/a/b": "model",
    "model/a//b": None,
    "model/a/b/c": "model",
    "model/..": None,
    "model/../a": None,
    "model/a/../b": None,
    "model/a/..": None,
    "model/a/.": None,
    "model/.a": None,
    "model/-a": None,
    "model/_a": None,
    "model/a..b": "model",
    "model/a.": "model",
    "model/0": "model",
    "model/a b": None,
    "model/a\n": None,
    "model/a\x00": None,
    "model/ä": None,
    "model/a\\b": None,
    "model/a:b": None,
    "model/a@b": None,
    "model/~": None,
    "model/%2e%2e": None,
    "model/" + "a" * 128: "model",
    "model/" + "a" * 129: None,
    "model/" + "a/" * 64 + "a": None,
    "Model/a": None,
    " model/a": None,
    "gpu/0": "gpu",
    "gpu/99": "gpu",
    "gpu/100": None,
    "gpu/00": None,
    "gpu/-1": None,
    "gpu/a": None,
    "gpu/": None,
    "gpu": None,
    "gpu/0/0": None,
    "gpu/0\n": None,
    "gpu/٣": None,
    "root/tpm": None,
}


@pytest.mark.parametrize("name", KINDS, ids=[ascii(name)[:30] for name in KINDS])
def test_the_kind_of_a_submodule(name):
    """Names that are paths stay paths below their folder; everything else has no kind."""
    assert kind_of(name) == KINDS[name]


def test_a_submodule_without_a_kind_is_not_read():
    """Even with claims that would be good elsewhere."""
    with pytest.raises(ClaimError, match="no such submodule"):
        read_submod("model/../a", {KEY_OF["read"]: VALID["read"]})


@pytest.mark.parametrize("raw", [None, [], b"", "", 1, True], ids=repr)
def test_a_submodule_that_is_no_claims_set_is_refused(raw):
    """A submodule is a map."""
    with pytest.raises(ClaimError, match="must be a claims-set"):
        read_submod("platform", raw)


@pytest.mark.parametrize("key", [0, -80000, -80006, 265, "manifest", b"x", "-80003"], ids=repr)
def test_an_unknown_claim_is_refused(key):
    """By its key, and only by its key."""
    with pytest.raises(ClaimError, match="unknown claim"):
        read_submod("model/a", {key: VALID["manifest"]})


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, "platform" if place == "model" else "model/a") for name, place in PLACES.items()],
)
def test_a_claim_in_another_place_is_refused(name, place):
    """A claim has its meaning where the table puts it, and none elsewhere."""
    with pytest.raises(ClaimError, match="unknown claim"):
        read_submod(place, {KEY_OF[name]: VALID.get(name)})


TOKEN = {265: evidence.PROFILE, 10: bytes(32), 256: bytes(17), 6: 1, 3: "https://v", 266: {"platform": {}}}


def from_payload(**changes: object) -> Token:
    raw = {**TOKEN, **{{c.name: c.key for c in ALL_CLAIMS}[k]: v for k, v in changes.items()}}
    return Token.from_payload(cbor.encode({k: v for k, v in raw.items() if v is not ...}))


def test_the_smallest_token_is_read():
    """What the negative cases below start from is itself accepted."""
    assert from_payload() == Token(bytes(32), bytes(17), 1, "https://v", {"platform": {}})


BAD_TOKENS = {
    "nonce of 7": {"eat_nonce": bytes(7)},
    "nonce of 65": {"eat_nonce": bytes(65)},
    "nonce text": {"eat_nonce": "A" * 32},
    "two nonces": {"eat_nonce": [bytes(32), bytes(32)]},
    "ueid of 6": {"ueid": bytes(6)},
    "ueid of 34": {"ueid": bytes(34)},
    "ueid text": {"ueid": "A" * 17},
    "iat negative": {"iat": -1},
    "iat beyond 2^53": {"iat": (1 << 53) + 1},
    "iat text": {"iat": "1"},
    "iat true": {"iat": True},
    "aud empty": {"aud": ""},
    "aud long": {"aud": "a" * 257},
    "aud bytes": {"aud": b"https://v"},
    "aud a list": {"aud": ["https://v"]},
    "submods empty": {"submods": {}},
    "submods a list": {"submods": [{}]},
    "65 submods": {"submods": {f"model/{i}": {} for i in range(65)}},
    "submod null": {"submods": {"platform": None}},
    "submod a token": {"submods": {"platform": b"\xd2\x84"}},
    "submod a list": {"submods": {"platform": []}},
    "submod's key bytes": {"submods": {"platform": {b"x": 1}}},
    "submod's name a number": {"submods": {1: {}}},
    "submod's name empty": {"submods": {"": {}}},
    "submod's name long": {"submods": {"a" * 161: {}}},
    "submod's name with an escape": {"submods": {"a\x1b[2J": {}}},
    "submod's name with a newline": {"submods": {"platform\n": {}}},
    "submod's name not ASCII": {"submods": {"plätform": {}}},
    "submod's name begins with a dot": {"submods": {"../x": {}}},
    **{f"no {name}": {name: ...} for name in ("eat_profile", "eat_nonce", "ueid", "iat", "aud", "submods")},
    "another profile": {"eat_profile": evidence.PROFILE[:-1] + "2"},
    "profile as bytes": {"eat_profile": evidence.PROFILE.encode()},
    "profile null": {"eat_profile": None},
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_a_token_of_another_form_is_refused(case):
    """Each claim of the token is due, in its one form."""
    with pytest.raises(ClaimError):
        from_payload(**BAD_TOKENS[case])


def test_the_profile_is_judged_first():
    """Under another profile nothing else has the meaning that would make it wrong."""
    with pytest.raises(ClaimError) as refusal:
        from_payload(eat_profile="tag:example.org,2026:other", eat_nonce=b"")
    assert refusal.value.claim == "eat_profile"


@pytest.mark.parametrize("key", [0, 1, 7, 8, 4711, -80003, "eat_profile", b"\x00"], ids=repr)
def test_a_token_with_an_unknown_claim_is_refused(key):
    """Nothing is signed over the reader's head."""
    with pytest.raises(ClaimError, match="unknown claim"):
        Token.from_payload(cbor.encode({**TOKEN, key: 1}))


def test_a_payload_larger_than_evidence_is_refused():
    """Bounded before it is read."""
    with pytest.raises(CBORError, match="at most 1048576 are allowed"):
        Token.from_payload(b"\x00" * (evidence.MAX_EVIDENCE + 1))


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.binary(max_size=40), st.text(max_size=9)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.one_of(st.sampled_from([*TOKEN]), st.text(max_size=9)), inner, max_size=6),
        ),
        max_leaves=12,
    ),
    st.sampled_from([None, *TOKEN]),
)
@settings(max_examples=150)
def test_any_value_is_a_token_or_refused(value, key):
    """Whatever deterministic CBOR comes, reading raises nothing but our errors."""
    raw = value if key is None else {**TOKEN, key: value}
    try:
        token = Token.from_payload(cbor.encode(raw))
    except (CBORError, ClaimError):
        return
    for name, claims in token.submods.items():
        assert isinstance(name, str)
        assert isinstance(claims, dict)


@given(st.binary(max_size=120))
@settings(max_examples=100)
def test_any_bytes_are_refused_as_a_token(data):
    """Bytes at random are no claims-set."""
    with pytest.raises((CBORError, ClaimError)):
        Token.from_payload(data)


@given(st.data())
@settings(max_examples=100)
def test_any_claim_is_read_or_refused(data):
    """A member replaced by any value leaves a claim of its form, or a ClaimError."""
    name = data.draw(st.sampled_from([*VALID]))
    member = data.draw(st.sampled_from([*VALID[name]]))
    leaves = st.one_of(
        st.none(), st.integers(-(1 << 64), (1 << 64) - 1), st.binary(max_size=70), st.text(max_size=9)
    )
    value = data.draw(
        st.recursive(leaves, lambda x: st.one_of(st.lists(x), st.dictionaries(st.text(), x)), max_leaves=4)
    )
    try:
        claim = read(name, **{member: value})
    except ClaimError:
        return
    assert msgspec.convert(msgspec.to_builtins(claim, builtin_types=(bytes,)), type(claim)) == claim


def test_a_signed_token_is_read_back():
    """What a node signs is what the verifier reads, byte for byte."""
    key = PrivateKey.generate()
    token = Token(bytes(range(32)), bytes(17), 1_795_000_000, "https://v", {"platform": {}})
    envelope = evidence.decode_envelope(token.sign(key))
    envelope.verify(key.public)
    assert Token.from_payload(envelope.payload) == token


def test_an_endpoint_statement_binds_each_of_its_parts():
    """Another URL, nonce or key is another statement, and bytes do not slide between them."""
    statements = {
        evidence.endpoint_statement(url, nonce, kid)
        for url in ("https://a", "https://b")
        for nonce, kid in ((b"12", b"3"), (b"1", b"23"), (b"3", b"12"))
    }
    assert len(statements) == 6
