"""Proofs and policies: what they say, and each thing that must not be accepted."""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.log.test_notes import ARCHE, ARCHE_KEY, COSIGNED_S, ENOCH, LOG, PETER, WITNESSES
from tests.unit.verifier.log.test_tree import nodes_of
from verifier.errors import LogError, LogFormatError, LogProofError, LogQuorumError, LogSignatureError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, SignedCheckpoint, open_checkpoint, sign_checkpoint
from verifier.log.notes import COSIGNATURE_V1, Note, Signer, VerifierKey
from verifier.log.policies import MAX_POLICY, LogPolicy
from verifier.log.proofs import LogProof

ENTRIES = [f"entry {index}".encode() for index in range(11)]
ROOT = tree.root_of(map(tree.leaf_hash, ENTRIES))
NOTE = sign_checkpoint(Checkpoint(LOG.key.name, len(ENTRIES), ROOT), LOG)
PROOF = LogProof(4, tuple(tree.inclusion_proof(4, len(ENTRIES), nodes_of(ENTRIES))), NOTE)
HASH = b64encode(bytes(32)).decode()


def accept(note: Note) -> SignedCheckpoint:
    return open_checkpoint(note, [LOG.key])


def test_a_proof_verifies_and_is_read_again() -> None:
    assert LogProof.parse(str(PROOF).encode()) == PROOF
    assert PROOF.verify(ENTRIES[4], accept).checkpoint.size == len(ENTRIES)
    with_extra = LogProof(4, PROOF.path, NOTE, b"salt")
    assert LogProof.parse(str(with_extra).encode()) == with_extra


def test_the_form_is_that_of_the_specification() -> None:
    lines = str(LogProof(4, PROOF.path, NOTE, b"salt")).split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra c2FsdA==", "index 4"]
    assert lines[3 + len(PROOF.path)] == ""
    assert lines[4 + len(PROOF.path)] == LOG.key.name


def test_another_entry_is_refused() -> None:
    with pytest.raises(LogProofError):
        PROOF.verify(ENTRIES[5], accept)


def test_another_place_is_refused() -> None:
    with pytest.raises(LogProofError):
        LogProof(5, PROOF.path, NOTE).verify(ENTRIES[4], accept)


def test_a_place_behind_the_end_is_refused() -> None:
    with pytest.raises(LogProofError):
        LogProof(11, PROOF.path, NOTE).verify(ENTRIES[4], accept)


def test_the_checkpoint_of_an_unknown_log_is_refused() -> None:
    with pytest.raises(LogSignatureError):
        PROOF.verify(ENTRIES[4], lambda note: open_checkpoint(note, [VerifierKey.parse(PETER)]))


def test_the_checkpoint_of_another_tree_is_refused() -> None:
    other = sign_checkpoint(Checkpoint(LOG.key.name, len(ENTRIES), tree.leaf_hash(b"")), LOG)
    with pytest.raises(LogProofError):
        LogProof(4, PROOF.path, other).verify(ENTRIES[4], accept)


@pytest.mark.parametrize(
    "head",
    [
        "wrong-header\nindex 0\n",
        "c2sp.org/tlog-proof@v2\nindex 0\n",
        "c2sp.org/tlog-proof@v1\nextra !!notbase64!!\nindex 0\n",
        "c2sp.org/tlog-proof@v1\nextra\nindex 0\n",
        "c2sp.org/tlog-proof@v1\nindex 0\nextra c2FsdA==\n",
        "c2sp.org/tlog-proof@v1\n",
        "c2sp.org/tlog-proof@v1\nindex notanumber\n",
        "c2sp.org/tlog-proof@v1\nindex -5\n",
        "c2sp.org/tlog-proof@v1\nindex 05\n",
        "c2sp.org/tlog-proof@v1\nindex 9223372036854775808\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n!!notbase64!!\n",
        f"c2sp.org/tlog-proof@v1\nindex 0\n{b64encode(bytes(64)).decode()}\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + f"{HASH}\n" * 64,
        f"c2sp.org/tlog-proof@v1\nextra {b64encode(bytes(65_537)).decode()}\nindex 0\n",
        f"c2sp.org/tlog-proof@v1\r\nindex 0\n{HASH}\n",
    ],
)
def test_a_malformed_proof_is_refused(head: str) -> None:
    """The first ones are those of transparency-dev/merkle, proof/tlog_proof_test.go (Apache-2.0)."""
    with pytest.raises(LogFormatError):
        LogProof.parse(f"{head}\n{NOTE}".encode())


@pytest.mark.parametrize("end", ["", "\n", "\ncheckpoint\n"])
def test_a_proof_without_a_checkpoint_is_refused(end: str) -> None:
    with pytest.raises(LogFormatError):
        LogProof.parse(f"c2sp.org/tlog-proof@v1\nindex 0\n{end}".encode())


def test_a_proof_that_is_too_long_is_refused() -> None:
    with pytest.raises(LogFormatError):
        LogProof.parse(b"c2sp.org/tlog-proof@v1\n" * 40_000)


@given(st.integers(0, len(str(PROOF).encode()) - 1), st.integers(0, 7))
def test_no_bit_of_a_proof_can_be_turned(at: int, bit: int) -> None:
    data = bytearray(str(PROOF).encode())
    data[at] ^= 1 << bit
    with pytest.raises(LogError):
        LogProof.parse(bytes(data)).verify(ENTRIES[4], accept)


@given(
    st.one_of(st.binary(max_size=300), st.binary(max_size=80).map(lambda d: b"c2sp.org/tlog-proof@v1\n" + d))
)
def test_any_bytes_are_a_proof_or_refused(data: bytes) -> None:
    with suppress(LogFormatError):
        assert str(LogProof.parse(data)).encode() == data


POLICY = f"""
# Four public witnesses.
log {ARCHE_KEY} https://example.org/
witness g {WITNESSES[0]}
\twitness\ts  {WITNESSES[1]}\thttps://witness1.smartit.nu/witness1
witness r {WITNESSES[2]}
witness m {WITNESSES[3]}
group two 2 g s r
group all all two m
quorum all
"""


def policy(text: str) -> LogPolicy:
    return LogPolicy.parse(text.encode())


def test_a_policy_accepts_a_cosigned_checkpoint() -> None:
    found = policy(POLICY)
    note = Note.parse(ARCHE.encode())
    assert found.accept(note).checkpoint.size == 1_432_088_532
    assert found.check_quorum(note) == dict.fromkeys("gsrm", COSIGNED_S)
    assert found.witnesses["s"].url == "https://witness1.smartit.nu/witness1"


@pytest.mark.parametrize(
    ("cosigned", "result"),
    [("gsrm", "met"), ("gsm", "met"), ("grm", "met"), ("gsr", ""), ("gm", ""), ("m", ""), ("", "")],
)
def test_groups_count_their_members(cosigned: str, result: str) -> None:
    assert policy(POLICY).is_met(list(cosigned)) is bool(result)


@pytest.mark.parametrize("missing", WITNESSES[3:])
def test_a_checkpoint_without_its_quorum_is_refused(missing: str) -> None:
    name = missing.partition("+")[0]
    note = "".join(line for line in ARCHE.splitlines(keepends=True) if name not in line)
    with pytest.raises(LogQuorumError, match="cosigned by g, r, s"):
        policy(POLICY).accept(Note.parse(note.encode()))


def test_a_witness_that_the_policy_does_not_name_does_not_count() -> None:
    stranger = Signer("stranger.example", Ed25519PrivateKey.generate(), COSIGNATURE_V1)
    note = NOTE.with_signatures([stranger.sign(NOTE.text, 5)])
    with pytest.raises(LogQuorumError):
        policy(f"log {LOG.key}\nwitness g {WITNESSES[0]}\nquorum g\n").accept(note)


def test_a_cosignature_from_the_future_is_no_quorum() -> None:
    with pytest.raises(LogSignatureError, match="future"):
        policy(POLICY).accept(Note.parse(ARCHE.encode()), not_after_s=COSIGNED_S - 1)


def test_a_log_that_the_policy_does_not_name_is_refused() -> None:
    with pytest.raises(LogSignatureError):
        policy(f"log {PETER}\nquorum none\n").accept(NOTE)


def test_a_policy_may_need_no_witness_and_know_no_log() -> None:
    assert policy("quorum none").check_quorum(NOTE) == {}
    assert policy(f"log {PETER}\nlog {LOG.key}\nquorum none\n").accept(NOTE).key == LOG.key


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "no quorum"),
        ("quorum none\nquorum none", "already"),
        ("quorum x", "not the name"),
        (f"quorum g\nwitness g {WITNESSES[0]}", "not the name"),
        (f"log {WITNESSES[0]}\nquorum none", "kind"),
        (f"witness g {PETER}\nquorum none", "kind"),
        (f"log {PETER}\nlog {PETER}\nquorum none", "another log"),
        (f"witness a {WITNESSES[0]}\nwitness b {WITNESSES[0]}\nquorum none", "another witness"),
        (f"witness a {WITNESSES[0]}\nwitness a {WITNESSES[1]}\nquorum none", "taken"),
        (f"witness none {WITNESSES[0]}\nquorum none", "taken"),
        (f"witness a {WITNESSES[0]}\ngroup a any a\nquorum none", "taken"),
        (f"witness a {WITNESSES[0]}\ngroup b any a a\nquorum none", "already"),
        (f"witness a {WITNESSES[0]}\ngroup b any a\ngroup c any a\nquorum none", "already"),
        ("group b any none\nquorum none", "not the name"),
        ("group b any b\nquorum none", "not the name"),
        (f"witness a {WITNESSES[0]}\ngroup b any\nquorum none", "not a log"),
        (f"witness a {WITNESSES[0]}\ngroup b 0 a\nquorum none", "at least one"),
        (f"witness a {WITNESSES[0]}\ngroup b 2 a\nquorum none", "larger than 1"),
        (f"witness a {WITNESSES[0]}\ngroup b 01 a\nquorum none", "decimal"),
        (f"witness a {WITNESSES[0]}\ngroup b most a\nquorum none", "decimal"),
        (f"log {PETER} https://a https://b\nquorum none", "not a log"),
        ("threshold 1\nquorum none", "not a log"),
        ("log\nquorum none", "not a log"),
        (f"log {PETER}\r\nquorum none", "control character"),
        ("quorum none\x7f", "control character"),
        ("#\n" * 1100 + "quorum none", "lines"),
        ("#" * MAX_POLICY + "\nquorum none", "bytes"),
    ],
)
def test_a_malformed_policy_is_refused(lines: str, sentence: str) -> None:
    with pytest.raises(LogFormatError, match=sentence):
        policy(lines)


def test_names_are_octets() -> None:
    """A name that is no UTF-8 is a name, and the Kelvin sign is no K."""
    first, second = f"witness K {WITNESSES[0]}\n", f"witness \u212a {WITNESSES[1]}\n"
    third = b"witness \xff " + WITNESSES[2].encode() + b"\nquorum \xff\n"
    found = LogPolicy.parse((first + second).encode() + third)
    assert found.is_met(["\udcff"])
    assert not found.is_met(["K", "\u212a"])


WORDS = [
    "log",
    "witness",
    "group",
    "quorum",
    "none",
    "any",
    "all",
    "1",
    "2",
    "a",
    "b",
    "#",
    PETER,
    ENOCH,
    *WITNESSES,
]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=8).map("\n".join))
def test_any_words_are_a_policy_or_refused(text: str) -> None:
    with suppress(LogFormatError):
        found = policy(text)
        assert found.is_met(list(found.witnesses))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_policy_or_refused(data: bytes) -> None:
    with suppress(LogFormatError):
        LogPolicy.parse(data)
