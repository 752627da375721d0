"""What a witness is asked, and when it may sign: one test for each refusal of the specification."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fixtures.folder_log import FolderLog
from verifier.errors import LogFormatError
from verifier.log.cosignatures import cosignatures
from verifier.log.notes import COSIGNATURE_V1, Note, Signer
from verifier.log.witnessing import AddCheckpoint, Refusal, RefusalError, Seen, origin_of
from verifier.watching.seen import MAX_EVIDENCE, SeenTrees
from verifier.watching.witness import Witness

# The example of c2sp.org/tlog-witness.
EXAMPLE = """\
old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""


def entries(count: int, mark: str = "") -> list[bytes]:
    return [f"{index}{mark}".encode() for index in range(count)]


@pytest.fixture
def log(tmp_path: Path) -> FolderLog:
    return FolderLog(tmp_path / "log", entries(5))


@pytest.fixture
def seen(tmp_path: Path) -> SeenTrees:
    return SeenTrees(tmp_path / "witness.db")


@pytest.fixture
def witness(log: FolderLog, seen: SeenTrees) -> Witness:
    signer = Signer("witness.example/w1", Ed25519PrivateKey.generate(), COSIGNATURE_V1)
    return Witness(signer, seen, [log.key], lambda: 1_700_000_000)


def refused(witness: Witness, request: AddCheckpoint) -> RefusalError:
    before = witness.seen.cosigned("log.example/log")
    with pytest.raises(RefusalError) as error:
        witness.add(request)
    assert witness.seen.cosigned("log.example/log") == before
    return error.value


def test_the_example_of_the_specification_is_read() -> None:
    request = AddCheckpoint.parse(EXAMPLE.encode())
    assert (request.old, len(request.path)) == (20_852_014, 4)
    assert str(request) == EXAMPLE


def test_a_log_that_grows_is_cosigned(log: FolderLog, witness: Witness, seen: SeenTrees) -> None:
    for old, new in ((0, 5), (5, 5), (5, 300), (300, 301)):
        log.append(entries(new)[len(log.entries) :])
        signature = witness.add(log.request(old))
        note = log.note.with_signatures([signature])
        assert cosignatures(note, [witness.signer.key]) == {witness.signer.key: 1_700_000_000}
        assert seen.cosigned(log.key.name) == str(note)
        assert seen.last(log.key.name).size == new


def test_an_unknown_origin_is_refused(tmp_path: Path, witness: Witness) -> None:
    other = FolderLog(tmp_path / "other", entries(1), Signer("other.example", Ed25519PrivateKey.generate()))
    assert refused(witness, other.request(0)).refusal is Refusal.UNKNOWN


def test_a_key_of_somebody_else_is_refused(tmp_path: Path, log: FolderLog, witness: Witness) -> None:
    other = FolderLog(tmp_path / "other", entries(5))
    assert other.key.name == log.key.name
    assert refused(witness, other.request(0)).refusal is Refusal.UNSIGNED


def test_an_edited_checkpoint_is_refused(log: FolderLog, witness: Witness) -> None:
    request = log.request(0)
    note = Note(request.note.text.replace("\n5\n", "\n6\n"), request.note.signatures)
    assert refused(witness, replace(request, note=note)).refusal is Refusal.UNSIGNED


def test_an_old_size_above_the_checkpoint_is_refused(log: FolderLog, witness: Witness) -> None:
    assert refused(witness, replace(log.request(0), old=6)).refusal is Refusal.MALFORMED


def test_another_old_size_is_refused_with_the_right_one(log: FolderLog, witness: Witness) -> None:
    witness.add(log.request(0))
    log.append(entries(8)[5:])
    error = refused(witness, log.request(4))
    assert (error.refusal, error.size) == (Refusal.STALE, 5)
    assert refused(witness, log.request(0)).refusal is Refusal.STALE


def test_an_old_checkpoint_is_refused(log: FolderLog, witness: Witness) -> None:
    """One that was right once, given again: the witness has signed a larger tree."""
    first = log.request(0)
    witness.add(first)
    log.append([b"more"])
    witness.add(log.request(5))
    assert refused(witness, first).refusal is Refusal.STALE
    assert refused(witness, replace(first, old=5)).refusal is Refusal.STALE


def test_an_edited_log_is_refused(tmp_path: Path, log: FolderLog, witness: Witness) -> None:
    """It has grown, and an old entry of it is another one: no proof can show that it continues."""
    witness.add(log.request(0))
    edited = log.with_entries(tmp_path / "edited", [b"edited", *entries(9)[1:]])
    assert refused(witness, edited.request(5)).refusal is Refusal.INCONSISTENT


def test_a_log_that_was_cut_short_is_refused(tmp_path: Path, log: FolderLog, witness: Witness) -> None:
    witness.add(log.request(0))
    shorter = log.with_entries(tmp_path / "shorter", entries(3))
    assert refused(witness, shorter.request(3)).refusal is Refusal.STALE
    assert refused(witness, replace(shorter.request(3), old=5)).refusal is Refusal.MALFORMED


def test_a_forked_log_is_refused_and_kept(
    tmp_path: Path, log: FolderLog, witness: Witness, seen: SeenTrees
) -> None:
    """Two roots of one size, both signed by the log: that is evidence, and it is kept once."""
    witness.add(log.request(0))
    forked = log.with_entries(tmp_path / "forked", entries(5, "forked"))
    for _ in range(2):
        assert refused(witness, forked.request(5)).refusal is Refusal.FORKED
    ((at_s, why, note),) = seen.evidence(log.key.name)
    assert (at_s, note) == (1_700_000_000, str(forked.note))
    assert "forked" in why


def test_a_wrong_proof_is_refused_and_held_against_nobody(
    log: FolderLog, witness: Witness, seen: SeenTrees
) -> None:
    """Anybody can send it with a checkpoint that is right."""
    witness.add(log.request(0))
    log.append(entries(9)[5:])
    right = log.request(5)
    for path in ((), right.path[:-1], (*right.path, bytes(32)), tuple(reversed(right.path))):
        assert refused(witness, replace(right, path=path)).refusal is Refusal.INCONSISTENT
    assert seen.evidence(log.key.name) == []
    witness.add(right)


@pytest.mark.parametrize("old", [0, 5])
def test_a_proof_where_none_is_needed_is_refused(log: FolderLog, witness: Witness, old: int) -> None:
    if old:
        witness.add(log.request(0))
    error = refused(witness, replace(log.request(old), path=(bytes(32),)))
    assert error.refusal is Refusal.INCONSISTENT


def test_a_signature_of_its_own_that_it_does_not_know_is_noticed(
    log: FolderLog, witness: Witness, seen: SeenTrees
) -> None:
    """Its home was restored from a copy, or somebody else has its key."""
    request = log.request(0)
    note = request.note.with_signatures([witness.signer.sign(request.note.text, 5)])
    witness.add(replace(request, note=note))
    ((_, why, _),) = seen.evidence(log.key.name)
    assert "stolen key" in why
    witness.add(replace(log.request(5), note=note))
    assert len(seen.evidence(log.key.name)) == 1


def test_two_requests_at_once_do_not_roll_back(log: FolderLog, witness: Witness) -> None:
    """The race of the specification: while one is checked, another one is signed."""
    witness.add(log.request(0))
    log.append([b"A"])
    first = log.request(5)
    log.append([b"B"])
    second = log.request(5)

    class Slow(SeenTrees):
        def advance(self, origin: str, before: Seen, after: Seen, note: str) -> bool:
            witness.add(second)
            return witness.seen.advance(origin, before, after, note)

    late = replace(witness, seen=witness.seen)
    object.__setattr__(late, "seen", _Proxy(witness.seen, Slow.advance))
    error = refused_late(late, first)
    assert (error.refusal, error.size) == (Refusal.STALE, 7)
    assert witness.seen.last(log.key.name).size == 7


class _Proxy:
    """The trees of another witness, with another `advance`."""

    def __init__(self, seen: SeenTrees, advance: Callable[..., bool]) -> None:
        self.last, self.keep_evidence, self._advance = seen.last, seen.keep_evidence, advance

    def advance(self, *arguments: object) -> bool:
        return self._advance(self, *arguments)


def refused_late(witness: Witness, request: AddCheckpoint) -> RefusalError:
    with pytest.raises(RefusalError) as error:
        witness.add(request)
    return error.value


def test_nothing_is_signed_that_could_not_be_written(
    log: FolderLog, witness: Witness, seen: SeenTrees
) -> None:
    seen.close()
    with pytest.raises(Exception, match="closed"):
        witness.add(log.request(0))


def test_what_was_signed_is_there_when_it_is_opened_again(
    tmp_path: Path, log: FolderLog, witness: Witness, seen: SeenTrees
) -> None:
    witness.add(log.request(0))
    seen.close()
    again = replace(witness, seen=SeenTrees(tmp_path / "witness.db"))
    assert again.seen.last(log.key.name).size == 5
    forked = log.with_entries(tmp_path / "forked", entries(5, "forked"))
    assert refused(again, forked.request(5)).refusal is Refusal.FORKED
    assert refused(again, forked.request(0)).refusal is Refusal.STALE


def test_evidence_is_bounded(seen: SeenTrees) -> None:
    for number in range(MAX_EVIDENCE + 3):
        seen.keep_evidence("a", "why", f"note {number}", number)
    assert len(seen.evidence("a")) == MAX_EVIDENCE


HASH = "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
NOTE = EXAMPLE.partition("\n\n")[2]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "old 5\n",
        f"old 5\n{HASH}",
        f"{HASH}\n{NOTE}",
        f"old 05\n\n{NOTE}",
        f"old -1\n\n{NOTE}",
        f"old  5\n\n{NOTE}",
        f"OLD 5\n\n{NOTE}",
        f"old 5\r\n\n{NOTE}",
        f"old 9223372036854775808\n\n{NOTE}",
        f"old 5\nAAAA\n\n{NOTE}",
        f"old 5\nnot base64\n\n{NOTE}",
        f"old 5\n{HASH * 64}\n{NOTE}",
        f"old 5\n\n{NOTE}trailing",
        f"old 5\n\n\n{NOTE}",
        f"old 5\n\n{NOTE.replace('20852163', '-1')}",
        f"old é\n\n{NOTE}",
        "old 5\n\n" + "x" * 300_000,
    ],
)
def test_a_malformed_request_is_refused(body: str) -> None:
    with pytest.raises(RefusalError) as error:
        origin_of(body.encode())
    assert error.value.refusal is Refusal.MALFORMED


@given(
    st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda d: b"old 5\n" + d + NOTE.encode()))
)
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with suppress(LogFormatError):
        assert str(AddCheckpoint.parse(data)).encode() == data
