"""Which revision evidence is judged on, and what the bodies that name revisions may be."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.evidence import File, Manifest
from tests.unit.verifier.test_rates import context
from verifier.commands.model_rollouts import bar, read_until
from verifier.errors import RequestError
from verifier.schemes import revisions
from verifier.schemes.context import IssuedChallenges, IssuedRead, IssuedWalk, ModelReference, ReferenceFile
from verifier.service.http import parse_json
from verifier.service.model_rollouts import AbortBody, FinishBody, StartBody
from verifier.service.revisions import RevisionsBody

MODEL = "m"
NAMES = ("config.json", "a.safetensors", "b.safetensors")
NOW_MS = 1_795_000_000_000


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def value(digest: str, *contents: str, **more: Any) -> ModelReference:
    files = {
        name: ReferenceFile(4, {"sha256": sha(content)})
        for name, content in zip(sorted(NAMES), contents, strict=True)
    }
    return ModelReference(digest=digest, files=files, tensor_bytes=1 << 20, **more)


def manifest(*contents: str, extra: bool = False) -> Manifest:
    names = sorted(NAMES)
    files = [File(name=n, size=4, sha256=sha(c)) for n, c in zip(names, contents, strict=True)]
    if extra:
        files.append(File(name="z.txt", size=4, sha256=sha("more")))
    return Manifest(files=tuple(files))


OLD, NEW = value("old", "1", "1", "1"), value("new", "1", "2", "2")
BEFORE = value("before", "0", "0", "0")
ROLLING = msgspec.structs.replace(
    context([]), now_ms=NOW_MS, references={MODEL: OLD}, beside={MODEL: (NEW,)}, superseded={MODEL: (BEFORE,)}
)


@pytest.mark.parametrize("asked", [None, "old", "new", "before", "unknown"])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(
    ("contents", "chosen"), [("111", OLD), ("122", NEW), ("000", BEFORE)], ids=["old", "new", "before"]
)
def test_evidence_is_judged_on_what_its_files_are(contents, chosen, extra, asked) -> None:
    """Whatever was asked for, and with files beyond it too."""
    assert revisions.choose(manifest(*contents, extra=extra), asked, MODEL, ROLLING) is chosen


@pytest.mark.parametrize(
    ("contents", "asked", "chosen"),
    [
        ("922", "old", NEW),
        ("911", "new", OLD),
        ("192", None, NEW),
        ("999", "new", NEW),
        ("999", "old", OLD),
        ("999", None, OLD),
        ("900", "before", OLD),
    ],
)
def test_files_of_neither_are_compared_with_the_nearest(contents, asked, chosen) -> None:
    """Of equally near ones with what was asked for; never with one that is only in its grace."""
    assert revisions.choose(manifest(*contents), asked, MODEL, ROLLING) is chosen


@pytest.mark.parametrize(("asked", "chosen"), [("new", NEW), ("old", OLD), (None, OLD), ("unknown", OLD)])
def test_without_a_manifest_what_was_asked_for_counts(asked, chosen) -> None:
    """Or what is in force."""
    assert revisions.choose(None, asked, MODEL, ROLLING) is chosen


def test_a_value_that_has_expired_judges_nobody() -> None:
    """The other one does."""
    expired = msgspec.structs.replace(ROLLING, references={MODEL: value("old", "1", "1", "1", not_after=5)})
    assert revisions.choose(manifest(*"111"), "old", MODEL, expired) is NEW
    assert (
        revisions.choose(manifest(*"111"), "old", MODEL, msgspec.structs.replace(expired, beside={})) is None
    )


def test_of_values_with_the_same_files_the_valid_one_counts() -> None:
    """Files tell nothing apart there: what is in force, or what was asked for if both are valid."""
    again = value("again", "1", "1", "1")
    replaced = msgspec.structs.replace(
        ROLLING, references={MODEL: again}, beside={}, superseded={MODEL: (OLD,)}
    )
    assert revisions.choose(manifest(*"111"), "old", MODEL, replaced) is again
    both = msgspec.structs.replace(ROLLING, beside={MODEL: (again,)})
    assert revisions.choose(manifest(*"111"), "again", MODEL, both) is again


def issued(digest: str | None) -> IssuedChallenges:
    read = IssuedRead(seed="", windows=1, commitment=b"", batch=1, reference=digest)
    walk = IssuedWalk(seed="", rows=4, passes=1, commitments={}, batch=1, reference=digest)
    return IssuedChallenges(read, walk, ("wide",), digest)


def test_challenges_of_another_revision_count_for_nothing() -> None:
    """Neither do those that were lacking."""
    assert revisions.issued_for(NEW, issued("new")) == issued("new")
    assert revisions.issued_for(NEW, issued("old")) == IssuedChallenges(None, None, (), "old")


@pytest.mark.parametrize(
    ("asked", "known", "found"),
    [
        ("old", (OLD, NEW), "old"),
        ("new", (OLD, NEW), None),
        ("gone", (OLD, NEW), None),
        (None, (OLD, NEW), None),
        ("again", (value("again", "1", "2", "2"), NEW), None),
    ],
    ids=["the-node-has-moved", "as-asked", "we-have-changed-it", "not-known", "the-same-files"],
)
def test_who_has_changed_what_is_valid_is_told_apart(asked, known, found) -> None:
    """A node that shows another revision than it had; or we, who have taken away what was asked for."""
    assert revisions.exchanged(NEW, issued(asked), known) == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 41) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMED = st.dictionaries(
    st.sampled_from(["revisions", "model", "to", "until", "reason", "anyway", "grace_s", "actor", "x"]),
    JSON,
    max_size=6,
)


@pytest.mark.parametrize("kind", [RevisionsBody, StartBody, FinishBody, AbortBody])
@given(body=NAMED.map(msgspec.json.encode) | st.binary(max_size=60))
def test_a_body_is_read_or_refused(kind: Any, body: bytes) -> None:
    """Nothing else comes of any bytes; what is read is within its bounds."""
    try:
        read = parse_json(body, kind)
    except RequestError:
        return
    if isinstance(read, RevisionsBody):
        assert 1 <= len(read.revisions) <= 32
        assert all(len(digest) == 64 for digest in read.revisions.values())
    else:
        assert 1 <= len(read.model) <= 128
        assert read.reason


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOW_MS + 5_400_000),
        ("12h", NOW_MS + 43_200_000),
        ("7d", NOW_MS + 604_800_000),
        ("2026-12-24", int(datetime(2026, 12, 24, tzinfo=UTC).timestamp() * 1000)),
        ("2026-12-24T18:00:00Z", int(datetime(2026, 12, 24, 18, tzinfo=UTC).timestamp() * 1000)),
        ("2026-12-24T18:00:00+02:00", int(datetime(2026, 12, 24, 16, tzinfo=UTC).timestamp() * 1000)),
    ],
)
def test_a_moment_is_a_time_from_now_or_a_date(text: str, moment: int) -> None:
    """In UTC, if it is a day."""
    assert read_until(text, NOW_MS) == moment


@given(st.text(max_size=30) | st.from_regex(r"\A\d{1,9}[mhdsw]?\Z") | st.datetimes().map(str))
def test_a_moment_is_read_or_refused(text: str) -> None:
    """A time without its offset is no moment."""
    try:
        assert isinstance(read_until(text, NOW_MS), int)
    except click.UsageError:
        return


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_bar_is_full_only_if_all_are_there(part: int, more: int) -> None:
    """And empty only if none is."""
    shown = bar(part, part + more)
    assert len(shown) == 24
    assert ("░" not in shown) == (part > 0 and more == 0)
    assert ("█" not in shown) == (part == 0)
