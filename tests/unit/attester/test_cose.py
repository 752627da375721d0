"""Signatures and keys: what was not signed by the key, in the one form, is refused."""

from __future__ import annotations

import hashlib

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cbor, cose
from attester.cose import ED25519, ES256, PrivateKey, PublicKey, Sign1
from attester.errors import CBORError, COSEError, SignatureError

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PRIME = 2**255 - 19
KEYS = {ES256: PrivateKey.generate(ES256), ED25519: PrivateKey.generate(ED25519)}
ALGORITHMS = pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])
IDENTITY = b"\x01" + bytes(31)


def message(alg: int, payload: bytes = b"payload", **kwargs: object) -> bytes:
    return cose.sign(payload, KEYS[alg], **kwargs)


def accept(data: bytes, alg: int, **kwargs: bytes) -> bytes:
    read = Sign1.decode(data, max_size=4096)
    read.verify(KEYS[alg].public, **kwargs)
    return read.payload


def parts(data: bytes) -> list[object]:
    return list(cbor2.loads(data).value)


def rebuilt(*four: object) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(18, list(four)))


def with_header(alg: int, header: dict[object, object] | bytes, unprotected: object = None) -> bytes:
    """A message whose signature is right over whatever header it has."""
    protected = header if isinstance(header, bytes) else cbor.encode(header)
    signature = KEYS[alg].sign(cbor.encode(["Signature1", protected, b"", b"payload"]))
    return rebuilt(protected, unprotected or {}, b"payload", signature)


def is_on_ed25519(data: bytes) -> bool:
    """Whether 32 bytes are a point of edwards25519 (RFC 8032 §5.1.3), by Euler's criterion."""
    y = int.from_bytes(data, "little") & ((1 << 255) - 1)
    d = -121665 * pow(121666, -1, PRIME)
    square = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
    return y < PRIME and pow(square, (PRIME - 1) // 2, PRIME) in (0, 1)


@given(st.sampled_from([ES256, ED25519]), st.binary(max_size=300), st.binary(max_size=40))
@settings(max_examples=50)
def test_what_was_signed_is_verified(alg, payload, aad):
    """Any payload and any external data, with either algorithm."""
    assert accept(message(alg, payload, external_aad=aad), alg, external_aad=aad) == payload


@ALGORITHMS
def test_the_signature_is_over_the_sig_structure(alg):
    """RFC 9052 §4.4, written by hand: anyone's library reaches the same bytes."""
    protected, _, payload, signature = parts(message(alg))
    signed = b"\x84\x6aSignature1" + b"\x58" + bytes([len(protected)]) + protected + b"\x40\x47" + payload
    assert KEYS[alg].public.verify(signature, signed) is None


@ALGORITHMS
def test_every_changed_byte_is_refused(alg):
    """A message of which any one byte is any other is refused, by our errors only."""
    data = message(alg, b"x")
    accepted = []
    for place in range(len(data)):
        for flip in (0x01, 0x02, 0x20, 0x40, 0x80, 0xFF):
            changed = bytearray(data)
            changed[place] ^= flip
            try:
                accept(bytes(changed), alg)
            except (COSEError, CBORError):
                continue
            accepted.append((place, flip))
    assert accepted == []


@ALGORITHMS
def test_every_truncation_is_refused(alg):
    """No prefix of a message is a message."""
    data = message(alg, b"x")
    accepted = []
    for size in range(len(data)):
        try:
            accept(data[:size], alg)
        except (COSEError, CBORError):
            continue
        accepted.append(size)
    assert accepted == []


@ALGORITHMS
def test_external_data_binds(alg):
    """A signature for one context is none for another."""
    with pytest.raises(SignatureError):
        accept(message(alg, external_aad=b"here"), alg, external_aad=b"there")


@ALGORITHMS
def test_external_data_left_out_is_refused(alg):
    """Nor is it one for no context."""
    with pytest.raises(SignatureError):
        accept(message(alg, external_aad=b"here"), alg)


@ALGORITHMS
def test_another_key_of_the_same_kind_is_refused(alg):
    """The signature is the key's own."""
    with pytest.raises(SignatureError):
        Sign1.decode(message(alg), max_size=4096).verify(PrivateKey.generate(alg).public)


@ALGORITHMS
def test_a_key_of_the_other_kind_is_refused(alg):
    """The key decides the algorithm, and the header has to agree."""
    other = KEYS[ED25519 if alg == ES256 else ES256]
    with pytest.raises(COSEError, match="but the key is for"):
        Sign1.decode(message(alg), max_size=4096).verify(other.public)


@ALGORITHMS
def test_a_payload_moved_into_the_external_data_is_refused(alg):
    """Each part has its place in what is signed: bytes do not slide between them."""
    protected, unprotected, payload, signature = parts(message(alg, external_aad=b"aad"))
    with pytest.raises(SignatureError):
        accept(rebuilt(protected, unprotected, b"aad", signature), alg, external_aad=payload)


@ALGORITHMS
@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 72, 128])
def test_a_signature_of_another_length_is_refused(alg, size):
    """Both algorithms have signatures of 64 bytes."""
    *rest, signature = parts(message(alg))
    with pytest.raises(SignatureError):
        accept(rebuilt(*rest, (signature * 2)[:size]), alg)


def test_an_es256_signature_in_der_is_refused():
    """Raw form only (RFC 9053 §2.1)."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    *rest, signature = parts(message(ES256))
    der = encode_dss_signature(*(int.from_bytes(half, "big") for half in (signature[:32], signature[32:])))
    with pytest.raises(SignatureError):
        accept(rebuilt(*rest, der), ES256)


ES256_FORGED = {
    "r = 0": lambda r, s: (0, s),
    "s = 0": lambda r, s: (r, 0),
    "both 0": lambda r, s: (0, 0),
    "r = n": lambda r, s: (ORDER, s),
    "s = n": lambda r, s: (r, ORDER),
    "swapped": lambda r, s: (s, r),
    "r negated": lambda r, s: (ORDER - r, s),
    "all ones": lambda r, s: (2**256 - 1, 2**256 - 1),
}


@pytest.mark.parametrize("name", ES256_FORGED)
def test_a_forged_es256_signature_is_refused(name):
    """Values at the edges of the group prove nothing (CVE-2022-21449)."""
    *rest, signature = parts(message(ES256))
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    forged = b"".join(number.to_bytes(32, "big") for number in ES256_FORGED[name](r, s))
    with pytest.raises(SignatureError):
        accept(rebuilt(*rest, forged), ES256)


def test_a_malleated_es256_signature_changes_nothing_that_was_signed():
    """ECDSA has two signatures for each: whoever turns one into the other gains no new payload."""
    *rest, signature = parts(message(ES256))
    s = ORDER - int.from_bytes(signature[32:], "big")
    assert accept(rebuilt(*rest, signature[:32] + s.to_bytes(32, "big")), ES256) == b"payload"


def test_a_malleated_ed25519_signature_is_refused():
    """S beyond the group's order is another writing of the same signature (RFC 8032 §5.1.7)."""
    *rest, signature = parts(message(ED25519))
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureError):
        accept(rebuilt(*rest, signature[:32] + s.to_bytes(32, "little")), ED25519)


@ALGORITHMS
def test_a_zero_signature_is_refused(alg):
    """Nothing is not a signature."""
    *rest, _ = parts(message(alg))
    with pytest.raises(SignatureError):
        accept(rebuilt(*rest, bytes(64)), alg)


@pytest.mark.parametrize(("alg", "other"), [(ES256, -9), (ED25519, -8)])
def test_both_names_of_an_algorithm_are_one(alg, other):
    """RFC 9864 gave each a second name; other libraries write either."""
    assert accept(with_header(alg, {1: other}), alg) == b"payload"


@pytest.mark.parametrize("name", [-35, -36, -37, -47, -257, 5, 0, 1, -6, True, "ES256", b"\x26", None, [-7]])
@ALGORITHMS
def test_another_algorithm_in_the_header_is_refused(alg, name):
    """Well signed, and still: the header names what the key does not do."""
    with pytest.raises(COSEError, match="but the key is for"):
        accept(with_header(alg, {1: name}), alg)


def test_an_algorithm_named_at_length_is_not_repeated():
    """What a stranger writes does not fill the log."""
    with pytest.raises(COSEError) as refusal:
        accept(with_header(ES256, {1: "x" * 900}), ES256)
    assert len(str(refusal.value)) < 100


HEADERS = {
    "no header": (b"", None, "no algorithm"),
    "empty map": ({}, None, "no algorithm"),
    "array": (b"\x80", None, "not a map"),
    "integer": (b"\x00", None, "not a map"),
    "text": (b"\x60", None, "not a map"),
    "crit": ({1: -7, 2: [1]}, None, "critical"),
    "empty crit": ({1: -7, 2: []}, None, "critical"),
    "alg in both": ({1: -7}, {1: -7}, "both protected and unprotected"),
    "kid in both": ({1: -7, 4: b"a"}, {4: b"a"}, "both protected and unprotected"),
    "text label in both": ({1: -7, "x": 1}, {"x": 2}, "both protected and unprotected"),
    "alg unprotected only": ({4: b"a"}, {1: -7}, "no algorithm"),
    "crit unprotected": ({1: -7}, {2: [4]}, "must be in the protected header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_must_be_refused(name):
    """A right signature does not excuse a header that is read in two ways."""
    header, unprotected, words = HEADERS[name]
    with pytest.raises(COSEError, match=words):
        accept(with_header(ES256, header, unprotected), ES256)


@pytest.mark.parametrize(
    "header",
    ["a2012601 26", "bf0126ff", "a10126 00", "a1011806", "a2 0440 0126", "a101", "a103fb3ff0000000000000"],
    ids=["twice", "indefinite", "trailing", "not shortest", "unsorted", "cut", "float"],
)
def test_a_header_that_is_not_deterministic_is_refused(header):
    """The bytes inside the byte string are read as strictly as those outside."""
    with pytest.raises(CBORError):
        accept(with_header(ES256, bytes.fromhex(header)), ES256)


def test_a_header_without_end_is_refused():
    """A protected header has at most a kilobyte."""
    with pytest.raises(CBORError, match="at most 1024 are allowed"):
        accept(with_header(ES256, {1: -7, 99: bytes(1100)}), ES256)


SHAPES = {
    "no tag": cbor2.dumps,
    "tag 61 alone": lambda four: cbor2.dumps(cbor2.CBORTag(61, four)),
    "tag 18 twice": lambda four: cbor2.dumps(cbor2.CBORTag(18, cbor2.CBORTag(18, four))),
    "COSE_Mac0": lambda four: cbor2.dumps(cbor2.CBORTag(17, four)),
    "COSE_Sign": lambda four: cbor2.dumps(cbor2.CBORTag(98, four)),
    "three parts": lambda four: rebuilt(*four[:3]),
    "five parts": lambda four: rebuilt(*four, b""),
    "a map": lambda four: cbor2.dumps(cbor2.CBORTag(18, dict(enumerate(four)))),
    "payload null": lambda four: rebuilt(four[0], four[1], None, four[3]),
    "payload text": lambda four: rebuilt(four[0], four[1], "payload", four[3]),
    "protected as a map": lambda four: rebuilt({1: -7}, four[1], four[2], four[3]),
    "protected text": lambda four: rebuilt("", four[1], four[2], four[3]),
    "unprotected a list": lambda four: rebuilt(four[0], [], four[2], four[3]),
    "unprotected null": lambda four: rebuilt(four[0], None, four[2], four[3]),
    "signature a list": lambda four: rebuilt(four[0], four[1], four[2], [four[3]]),
    "signature text": lambda four: rebuilt(four[0], four[1], four[2], "s"),
    "signature null": lambda four: rebuilt(four[0], four[1], four[2], None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_another_shape_is_refused(name):
    """Tag 18 over four parts of the right types, and nothing else."""
    with pytest.raises((COSEError, CBORError)):
        Sign1.decode(SHAPES[name](parts(message(ES256))), max_size=4096)


def test_a_message_larger_than_allowed_is_refused():
    """The caller's bound counts the whole message."""
    data = message(ES256)
    with pytest.raises(CBORError, match="but at most"):
        Sign1.decode(data, max_size=len(data) - 1)


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda b: b"\xd2\x84" + b)))
@settings(max_examples=150)
def test_any_bytes_are_a_message_or_refused(data):
    """Whatever comes, reading a message raises nothing but our errors."""
    try:
        read = Sign1.decode(data, max_size=4096)
    except (COSEError, CBORError):
        return
    assert cose.ALG in read.header


@given(
    st.tuples(
        st.one_of(st.binary(max_size=9), st.just(b"\xa1\x01\x26")),
        st.dictionaries(st.one_of(st.integers(0, 5), st.text(max_size=2)), st.none(), max_size=2),
        st.one_of(st.binary(max_size=9), st.none(), st.text(max_size=3)),
        st.one_of(st.binary(max_size=70), st.lists(st.none(), max_size=2)),
    )
)
@settings(max_examples=150)
def test_any_four_parts_are_refused(four):
    """Four parts of any kind without the key's signature end in an error of ours."""
    with pytest.raises((COSEError, CBORError)):
        accept(cbor.encode(cbor2.CBORTag(18, list(four))), ES256)


def both_ways(data: bytes, tags: tuple[int, ...]) -> tuple[object, object]:
    """What is read of a message as it is, and what the CBOR reader alone makes of it."""
    found = []
    for split in (cose._split, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cose, "_split", split)
            try:
                found.append(repr(Sign1.decode(data, max_size=1 << 18, tags=tags)))
            except (CBORError, COSEError) as error:
                found.append((type(error), str(error)))
    return found[0], found[1]


@given(st.sampled_from([(18,), (61, 18)]), st.binary(max_size=60), st.data())
@settings(max_examples=300)
def test_the_short_way_reads_what_the_cbor_reader_reads(tags, payload, data):
    """A message and what becomes of it by changes: the same parts, or the same refusal."""
    changed = bytearray(message(ES256, payload, tags=tags))
    for _ in range(data.draw(st.integers(0, 2))):
        # Most of the bytes that matter are at the beginning, and around the parts.
        place = data.draw(st.one_of(st.integers(0, 8), st.integers(0, len(changed) - 1)))
        match data.draw(st.sampled_from(["change", "insert", "delete"])):
            case "change":
                changed[place] = data.draw(
                    st.sampled_from([0x40, 0x57, 0x58, 0x59, 0x5A, 0x5F, 0x60, 0xA0, 0xF6, 0])
                )
            case "insert":
                changed.insert(place, data.draw(st.integers(0, 255)))
            case _:
                del changed[place]
    ours, general = both_ways(bytes(changed), tags)
    assert ours == general


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65535, 65536, 65537])
@pytest.mark.parametrize("width", [0, 1, 2, 4, 8])
def test_the_length_of_a_part_has_one_encoding(size, width):
    """Each length in each head: only the shortest is read, by either way."""
    payload = bytes(size)
    head = cbor2.dumps(payload)[: -size or None]
    if width:
        if size >= 1 << 8 * width:
            return
        head = bytes([0x58 + width.bit_length() - 1]) + size.to_bytes(width, "big")
    protected, signature = cbor.encode({cose.ALG: ES256}), bytes(64)
    data = b"\xd2\x84" + cbor2.dumps(protected) + b"\xa0" + head + payload + cbor2.dumps(signature)
    ours, general = both_ways(data, (18,))
    assert ours == general
    assert isinstance(ours, str) == (head + payload == cbor2.dumps(payload))


@pytest.mark.parametrize("end", range(1, 12))
def test_a_message_cut_at_its_end_is_refused_by_either_way(end):
    """And with bytes after it."""
    whole = message(ES256)
    for data in (whole[:-end], whole + bytes(end), whole[:end]):
        ours, general = both_ways(data, (18,))
        assert ours == general
        assert not isinstance(ours, str)


def test_a_kid_is_the_thumbprint_of_an_ec_key():
    """RFC 9679 §3, from bytes laid out by hand."""
    x, y = KEYS[ES256].public.point[:32], KEYS[ES256].public.point[32:]
    expected = hashlib.sha256(b"\xa4\x01\x02\x20\x01\x21\x58\x20" + x + b"\x22\x58\x20" + y).digest()
    assert KEYS[ES256].public.kid == expected


def test_a_kid_is_the_thumbprint_of_an_okp_key():
    """RFC 9679 §3, from bytes laid out by hand."""
    expected = hashlib.sha256(b"\xa3\x01\x01\x20\x06\x21\x58\x20" + KEYS[ED25519].public.point).digest()
    assert KEYS[ED25519].public.kid == expected


def test_the_thumbprint_of_the_rfcs_example():
    """RFC 9679 publishes one thumbprint, of an EC key: ours is the same."""
    x = bytes.fromhex("65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d")
    y = bytes.fromhex("1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c")
    expected = "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"
    assert PublicKey(ES256, x + y).kid.hex() == expected


@ALGORITHMS
def test_kid_and_alg_of_a_signed_message_are_protected(alg):
    """What names the key is under the signature, and nothing is outside."""
    read = Sign1.decode(message(alg), max_size=4096)
    assert (read.header, read.unprotected) == ({1: alg, 4: KEYS[alg].public.kid}, {})


@ALGORITHMS
def test_a_public_key_is_read_back(alg):
    """A key survives the way out and in, and keeps its name."""
    read = PublicKey.decode(KEYS[alg].public.encode())
    assert (read, read.kid) == (KEYS[alg].public, KEYS[alg].public.kid)


EC, OKP = KEYS[ES256].public.to_map(), KEYS[ED25519].public.to_map()
BAD_KEYS = {
    "empty": {},
    "not a map": [],
    "null": None,
    "EC kty on OKP": {**OKP, 1: 2},
    "OKP kty on EC": {**EC, 1: 1},
    "symmetric": {1: 4, -1: b"k" * 32},
    "kty text": {**EC, 1: "EC2"},
    "kty missing": {k: v for k, v in EC.items() if k != 1},
    "P-384": {**EC, -1: 2},
    "secp256k1": {**EC, -1: 8},
    "X25519": {**OKP, -1: 4},
    "Ed448": {**OKP, -1: 7},
    "crv missing": {k: v for k, v in EC.items() if k != -1},
    "x missing": {k: v for k, v in EC.items() if k != -2},
    "y missing": {k: v for k, v in EC.items() if k != -3},
    "y as a sign": {**EC, -3: True},
    "x text": {**EC, -2: "x" * 32},
    "x short": {**EC, -2: EC[-2][:31]},
    "x long": {**EC, -2: b"\x00" + EC[-2]},
    "y long": {**EC, -3: EC[-3] + b"\x00"},
    "lengths traded": {**EC, -2: EC[-2] + EC[-3][:1], -3: EC[-3][1:]},
    "off the curve": {**EC, -3: bytes(31) + b"\x01"},
    "the point at zero": {**EC, -2: bytes(32), -3: bytes(32)},
    "x beyond the field": {**EC, -2: b"\xff" * 32},
    "Ed25519 short": {**OKP, -2: OKP[-2][:31]},
    "Ed25519 long": {**OKP, -2: OKP[-2] + b"\x00"},
    "Ed25519 empty": {**OKP, -2: b""},
    "with a private part": {**EC, -4: bytes(32)},
    "Ed25519 with a private part": {**OKP, -4: bytes(32)},
    "with a kid": {**EC, 2: b"kid"},
    "with an alg": {**OKP, 3: -8},
    "with key_ops": {**EC, 4: [2]},
    "with a text member": {**EC, "x": 1},
    "Ed25519 with a y": {**OKP, -3: bytes(32)},
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_of_another_form_is_refused(name):
    """Exactly the public parameters of our two curves, and a point on the curve."""
    with pytest.raises(COSEError):
        PublicKey.decode(cbor.encode(BAD_KEYS[name]))


@pytest.mark.parametrize("value", [{**EC, -1: True}, {**OKP, 1: True}], ids=["crv true", "kty true"])
def test_true_is_not_one_in_a_key(value):
    """A boolean where the curve or the kind is due is refused: one key has one encoding."""
    with pytest.raises(COSEError):
        PublicKey.decode(cbor.encode(value))


def test_an_ed25519_key_off_its_curve_is_refused():
    """No key that can never verify is accepted, as from_map's docstring says."""
    off = next(bytes([y]) + bytes(31) for y in range(2, 50) if not is_on_ed25519(bytes([y]) + bytes(31)))
    with pytest.raises(COSEError, match="not a point of its curve"):
        PublicKey.from_map({1: 1, -1: 6, -2: off})


@pytest.mark.parametrize(
    "point",
    [IDENTITY, bytes(32), bytes(31) + b"\x80", (PRIME - 1).to_bytes(32, "little")],
    ids=["order 1", "order 4", "order 4, other sign", "order 2"],
)
def test_an_ed25519_key_of_small_order_is_refused(point):
    """A key for which nobody needs a private key is no key."""
    with pytest.raises(COSEError):
        PublicKey.from_map({1: 1, -1: 6, -2: point})


def test_a_constant_signature_fits_no_key_that_is_accepted():
    """R the identity and S zero verify under the identity: such a key must never be read."""
    header = cbor.encode({1: ED25519})
    data = rebuilt(header, {}, b"forged without any private key", IDENTITY + bytes(32))
    with pytest.raises(COSEError):
        Sign1.decode(data, max_size=4096).verify(PublicKey.from_map({1: 1, -1: 6, -2: IDENTITY}))


def test_a_key_larger_than_any_key_is_refused():
    """Bounded before it is read."""
    with pytest.raises(CBORError, match="at most 256 are allowed"):
        PublicKey.decode(cbor.encode({**EC, -4: bytes(256)}))


@given(st.binary(max_size=90))
@settings(max_examples=100)
def test_any_bytes_are_a_key_or_refused(data):
    """Whatever comes, reading a key raises nothing but our errors."""
    with pytest.raises((COSEError, CBORError)):
        PublicKey.decode(data)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
@settings(max_examples=60)
def test_random_coordinates_are_not_a_key(x, y):
    """Sixty-four bytes are a point by a chance of one in 2^256 only."""
    with pytest.raises(COSEError, match="not a point of its curve"):
        PublicKey.from_map({**EC, -2: x, -3: y})


@ALGORITHMS
def test_what_a_key_keeps_is_no_part_of_it(alg):
    """A key that was used equals one that was not, and shows nothing of what it keeps."""
    used = KEYS[alg].public
    used.verify(KEYS[alg].sign(b"x"), b"x")
    fresh = PublicKey(used.alg, used.point)
    assert (fresh, hash(fresh), repr(fresh)) == (used, hash(used), repr(used))
    assert msgspec.json.encode(fresh) == msgspec.json.encode(used)
    assert fresh.kid == used.kid


def test_a_key_that_is_no_point_verifies_nothing_however_often_it_is_asked():
    """Nothing is kept of a failure."""
    key = PublicKey(ES256, bytes(64))
    for _ in range(2):
        with pytest.raises(ValueError, match="Invalid EC key"):
            key.verify(bytes(64), b"x")


@pytest.mark.parametrize("alg", [0, -8, -9, -35, 5])
def test_no_key_is_made_for_another_algorithm(alg):
    """Two algorithms, by the names the profile writes."""
    with pytest.raises(COSEError, match="use ES256"):
        PrivateKey.generate(alg)


def test_an_es256_signature_keeps_its_leading_zeros():
    """R and s are 32 bytes each however small they are."""
    sizes = {len(KEYS[ES256].sign(bytes([number]))) for number in range(256)}
    assert sizes == {64}


def test_an_ed25519_signature_is_the_librarys():
    """Nothing of ours stands between the key and RFC 8032."""
    native = KEYS[ED25519].native
    assert isinstance(native, ed25519.Ed25519PrivateKey)
    assert KEYS[ED25519].sign(b"data") == native.sign(b"data")
