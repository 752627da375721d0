"""
The revisions of a model that its verifier takes, and which of them a folder holds.

Pure: what the folder holds and what the verifier says are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attester.errors import VerifierError
from attester.evidence import MAX_FILES, File, Manifest

IN_FORCE: Final = "in-force"
ROLLING_OUT: Final = "rolling-out"
SUPERSEDED: Final = "superseded"

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Text = Annotated[str, Meta(max_length=1024)]
_MAX_REVISIONS: Final = 64
_NAMED_FILES: Final = 3
_SHORT: Final = 12
_LAST_SECOND: Final = 253_402_300_799
_ALGORITHMS: Final = ("sha256", "blake3")


class Practice(Struct, frozen=True, kw_only=True):
    """A challenge whose answers are published: it uses up nothing, and proves nothing to anybody else."""

    seed: Digest
    windows: Annotated[int, Meta(ge=1, le=65536)]
    read: str
    rows: Annotated[int, Meta(ge=1, le=2048)]
    passes: Annotated[int, Meta(ge=1, le=64)]
    walk: tuple[str, ...]


class RevisionFile(Struct, frozen=True):
    """A file as a revision has it."""

    size: int | None = None
    sha256: Digest | None = None
    blake3: Digest | None = None


class Revision(Struct, frozen=True, kw_only=True):
    """A revision that the verifier takes now."""

    digest: Digest
    """Of its reference value."""
    state: Literal["in-force", "rolling-out", "superseded"]
    until: int | None = None
    """Seconds since 1970: until when it is to be rolled out, or is a warning and no mismatch."""
    files: Annotated[dict[_Text, RevisionFile], Meta(max_length=MAX_FILES)]
    neutral: Annotated[tuple[_Text, ...], Meta(max_length=MAX_FILES)] = ()
    """Those of *files* that change no answer: a node may lack them, or have others."""
    practice: Practice | None = None

    @property
    def gates(self) -> tuple[str, ...]:
        """Its files that change answers: whatever else a folder has is no part of it."""
        return tuple(name for name in self.files if name not in self.neutral)


class _Body(Struct, frozen=True):
    model: str
    revisions: Annotated[tuple[Revision, ...], Meta(max_length=_MAX_REVISIONS)]


class Recognised(Struct, frozen=True):
    """What a folder is, as its verifier sees it."""

    revision: Revision | None
    """The revision whose files it has; `None` if it has those of none."""
    nearest: Revision | None = None
    """If it is none: the one of which the fewest files differ."""
    differing: tuple[str, ...] = ()
    """The files of the nearest that are missing or differ."""


def parse(data: bytes, model: str) -> tuple[Revision, ...]:
    """
    Read the verifier's answer about *model*.

    Raises:
        VerifierError: it is malformed, or about another model.
    """
    try:
        body = msgspec.json.decode(data, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VerifierError(f"the verifier's revisions of {model} are malformed: {error}") from None
    if body.model != model:
        raise VerifierError(f"the verifier's revisions are of {body.model[:80]!r}, not of {model}")
    return body.revisions


def recognise(manifest: Manifest, revisions: Sequence[Revision]) -> Recognised:
    """
    Find the revision whose files a folder has.  Further files make no difference.

    If there are several, the one in force comes first, then one that is rolled out.
    """
    present = {file.name: file for file in manifest.files}
    found = [(_differing(present, each), each) for each in revisions]
    if not found:
        return Recognised(None)
    order = (IN_FORCE, ROLLING_OUT, SUPERSEDED)
    differing, nearest = min(found, key=lambda pair: (len(pair[0]), order.index(pair[1].state)))
    if not differing:
        return Recognised(nearest)
    return Recognised(None, nearest, differing)


def _differing(present: Mapping[str, File], revision: Revision) -> tuple[str, ...]:
    neutral = frozenset(revision.neutral)
    return tuple(
        name
        for name, file in sorted(revision.files.items())
        if name not in neutral and (name not in present or not _is_same(present[name], file))
    )


def _is_same(have: File, want: RevisionFile) -> bool:
    """Whether the sizes and all digests that both have are equal, and there is one that both have."""
    if want.size is not None and want.size != have.size:
        return False
    pairs = [(getattr(have, name), getattr(want, name)) for name in _ALGORITHMS]
    common = [(mine.hex(), theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    return bool(common) and all(mine == theirs for mine, theirs in common)


def shorten(digest: str) -> str:
    """A digest as sentences have it."""
    return f"{digest[:_SHORT]}…"


def describe(recognised: Recognised) -> str:
    """What the verifier says of a folder, in words."""
    if recognised.revision is not None:
        return f"{shorten(recognised.revision.digest)}, {describe_state(recognised.revision)}"
    if recognised.nearest is None:
        return "none that the verifier takes: it takes no revision of this model"
    names = ", ".join(name[:80] for name in recognised.differing[:_NAMED_FILES])
    more = ", …" if len(recognised.differing) > _NAMED_FILES else ""
    return (
        f"none that the verifier takes; next to {shorten(recognised.nearest.digest)} "
        f"({describe_state(recognised.nearest)}) "
        f"{len(recognised.differing)} files are missing or differ: {names}{more}"
    )


def describe_state(revision: Revision) -> str:
    """What the verifier says of a revision, in words."""
    until = "" if revision.until is None else f" until {_moment(revision.until)}"
    if revision.state == ROLLING_OUT:
        return f"rolling out{until}"
    if revision.state == SUPERSEDED:
        return f"superseded; a warning{until}"
    return "in force"


def _moment(seconds: int) -> str:
    if not 0 <= seconds <= _LAST_SECOND:
        return "a time that is no date"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
