"""The revisions that a verifier takes, and which of them a folder is."""

from __future__ import annotations

import contextlib
import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.errors import VerifierError
from attester.evidence import File, Manifest
from attester.revisions import Revision, describe, parse, recognise


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def manifest(**files: str) -> Manifest:
    """Files by name, with their contents."""
    listed = [File(name=n, size=len(c), sha256=sha(c)) for n, c in sorted(files.items())]
    return Manifest(files=tuple(listed), dtypes={})


def revision(
    number: int, state: str = "in-force", *, neutral: tuple[str, ...] = (), **files: str
) -> Revision:
    wanted = {name: {"size": len(text), "sha256": sha(text).hex()} for name, text in files.items()}
    given = {"digest": f"{number:064x}", "state": state, "files": wanted, "neutral": neutral}
    return msgspec.convert(given, Revision)


ONE = revision(1, weights="one", config="c")
TWO = revision(2, "rolling-out", weights="two", config="c")


def test_a_folder_is_the_revision_whose_files_it_has() -> None:
    """Of those that are valid at the same time."""
    assert recognise(manifest(weights="two", config="c"), (ONE, TWO)).revision == TWO
    assert recognise(manifest(weights="one", config="c"), (ONE, TWO)).revision == ONE


def test_further_files_make_no_difference() -> None:
    """The verifier warns of them; they are no other revision."""
    assert recognise(manifest(weights="one", config="c", notes="mine"), (ONE, TWO)).revision == ONE


def test_what_is_none_names_the_files_that_differ_from_the_nearest() -> None:
    """So that the operator knows what to copy again."""
    found = recognise(manifest(weights="two", config="other"), (ONE, TWO))
    assert (found.revision, found.nearest, found.differing) == (None, TWO, ("config",))
    assert "1 files are missing or differ: config" in describe(found)


def test_a_file_that_is_missing_is_another_revision() -> None:
    """A copy of half of the files is not the model."""
    found = recognise(manifest(config="c"), (ONE,))
    assert (found.revision, found.differing) == (None, ("weights",))


def test_a_file_that_changes_no_answer_may_be_missing() -> None:
    """As the verifier says which ones are."""
    one = revision(1, weights="one", readme="r", neutral=("readme",))
    assert recognise(manifest(weights="one"), (one,)).revision == one


def test_equal_files_are_what_is_in_force_first() -> None:
    """A revision may differ from another in nothing that the manifest shows."""
    same = revision(3, "superseded", weights="one", config="c")
    assert recognise(manifest(weights="one", config="c"), (same, ONE)).revision == ONE


def test_digests_of_another_algorithm_show_nothing() -> None:
    """A size alone is no proof."""
    only = msgspec.convert(
        {"digest": "0" * 64, "state": "in-force", "files": {"a": {"size": 1, "blake3": "0" * 64}}}, Revision
    )
    assert recognise(manifest(a="x"), (only,)).revision is None


@pytest.mark.parametrize(
    ("state", "until", "said"),
    [
        ("in-force", None, "in force"),
        ("rolling-out", None, "rolling out"),
        ("rolling-out", 1_795_000_000, "rolling out until 2026-11-18 11:06:40Z"),
        ("superseded", 1_795_000_000, "superseded; a warning until 2026-11-18 11:06:40Z"),
        ("superseded", 1 << 60, "superseded; a warning until a time that is no date"),
    ],
)
def test_the_state_is_told_in_words(state: str, until: int | None, said: str) -> None:
    """Each that a verifier has."""
    known = msgspec.structs.replace(ONE, state=state, until=until)
    assert describe(recognise(manifest(weights="one", config="c"), (known,))) == f"{'0' * 12}…, {said}"


def test_an_answer_about_another_model_is_refused() -> None:
    """Nothing is compared with it."""
    with pytest.raises(VerifierError, match="not of a/b"):
        parse(json.dumps({"model": "a/c", "revisions": []}).encode(), "a/b")


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps)
)
def test_nothing_but_the_form_is_read(data: bytes | str) -> None:
    """Whatever the verifier sends, it is revisions or an error that says so."""
    with contextlib.suppress(VerifierError):
        assert isinstance(parse(data if isinstance(data, bytes) else data.encode(), "m"), tuple)
