"""How entries of the pool become the challenges of a session, and what the node sees of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.roles import TABLE
from verifier.challenges.pool_key import PoolKey, ReadParameters, WalkParameters
from verifier.schemes.context import IssuedChallenges, IssuedRead, IssuedWalk, ModelReference
from verifier.store.pool import Entry

_COMMITMENT_BYTES = 32
_MAX_NAMES_CHARS = 512 << 10
"""Names of files in one session: attesters read events of a mebibyte."""


def pose(
    entries: Sequence[Entry],
    exhausted: Mapping[str, Sequence[str]],
    key: PoolKey,
    lacking: Mapping[str, str] | None = None,
) -> dict[str, IssuedChallenges]:
    """
    The challenges of a session by model, with what the verifier knows of the answers.

    Args:
        entries: The entries that were taken from the pool.
        exhausted: By model, the kinds of which the pool had none left.
        key: The pool key.
        lacking: By model of these, the digest of the reference value of which there were none.
    """
    lacking = lacking or {}
    issued: dict[str, IssuedChallenges] = {
        model: IssuedChallenges(exhausted=tuple(kinds), reference=lacking.get(model))
        for model, kinds in exhausted.items()
    }
    for entry in entries:
        so_far = issued.get(entry.model, IssuedChallenges())
        if entry.kind == "read":
            so_far = msgspec.structs.replace(so_far, read=_read(entry, key))
        else:
            so_far = msgspec.structs.replace(so_far, walk=_walk(entry, key))
        issued[entry.model] = msgspec.structs.replace(so_far, reference=entry.reference or so_far.reference)
    return issued


def _read(entry: Entry, key: PoolKey) -> IssuedRead:
    return IssuedRead(
        seed=key.seed(entry.model, entry.kind, entry.index).hex(),
        windows=msgspec.json.decode(entry.parameters, type=ReadParameters).windows,
        commitment=entry.commitments,
        batch=entry.batch,
        reference=entry.reference,
        # Of another version of the table, nobody knows any more which files were read.
        gates=entry.gates if entry.gate_table == TABLE else None,
    )


def _walk(entry: Entry, key: PoolKey) -> IssuedWalk:
    parameters = msgspec.json.decode(entry.parameters, type=WalkParameters)
    rows = key.checked_rows(entry.model, entry.kind, entry.index, parameters.rows)
    commitments = [
        entry.commitments[start : start + _COMMITMENT_BYTES]
        for start in range(0, len(entry.commitments), _COMMITMENT_BYTES)
    ]
    return IssuedWalk(
        seed=key.seed(entry.model, entry.kind, entry.index).hex(),
        rows=parameters.rows,
        passes=parameters.passes,
        commitments=dict(zip(rows, commitments, strict=True)),
        batch=entry.batch,
        wide=entry.kind == "wide",
        reference=entry.reference,
    )


class WireChallenge(Struct, frozen=True, omit_defaults=True):
    """The challenges of a session as the node sees them."""

    models: list[ModelChallenge]
    files: dict[str, tuple[str, ...]] = {}
    """By model, the files that its challenges are about.  Attesters from before it read and walk all of their folder."""


def with_files(
    issued: Mapping[str, IssuedChallenges], references: Mapping[str, ModelReference]
) -> WireChallenge | None:
    """
    The challenges as the node sees them, with the files that they are about; `None` if there are none.

    Args:
        issued: By model.
        references: By digest, the reference values that they were minted from.  Of one that is not there, the node
            is not told the files.
    """
    models = to_wire(issued)
    if not models:
        return None
    files = {}
    size = 0
    for each in models:
        names = _files_of(issued[each.model], references)
        size += sum(len(name) for name in names)
        if names and size <= _MAX_NAMES_CHARS:
            files[each.model] = names
    return WireChallenge(models, files)


def _files_of(asked: IssuedChallenges, references: Mapping[str, ModelReference]) -> tuple[str, ...]:
    """The gates; but of a read that was minted over all files of the reference value, all of them."""
    challenge = asked.read or asked.walk
    reference = None if challenge is None else references.get(challenge.reference or "")
    if reference is None:
        return ()
    is_of_all = asked.read is not None and asked.read.gates is None
    return tuple(sorted(reference.files if is_of_all else reference.gates, key=str.encode))


def to_wire(issued: Mapping[str, IssuedChallenges]) -> list[ModelChallenge]:
    """The challenges as the node sees them: without commitments, and without which rows are checked."""
    return [
        ModelChallenge(
            model=model,
            read=None if asked.read is None else ReadChallenge(asked.read.seed, asked.read.windows),
            walk=None
            if asked.walk is None
            else WalkChallenge(asked.walk.seed, asked.walk.rows, asked.walk.passes),
        )
        for model, asked in sorted(issued.items())
        if asked.read is not None or asked.walk is not None
    ]
