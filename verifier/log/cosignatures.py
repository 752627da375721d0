"""Cosignatures: a witness's signature under a log's checkpoint, with its time (c2sp.org/tlog-cosignature).  Pure."""

from __future__ import annotations

from collections.abc import Collection

from verifier.errors import LogFormatError, LogSignatureError
from verifier.log.notes import COSIGNATURE_V1, Note, Signature, VerifierKey, verified


def cosignatures(
    note: Note,
    witnesses: Collection[VerifierKey],
    *,
    not_before_s: int | None = None,
    not_after_s: int | None = None,
) -> dict[VerifierKey, int]:
    """
    The witnesses that have cosigned a checkpoint, each with its time in seconds since 1970.

    Args:
        witnesses: The witnesses that are known; the lines of others are ignored.
        not_before_s: A cosignature of an earlier time does not count.  None: none is too old.
        not_after_s: A cosignature of a later time is refused.  None: times are not looked at.

    Raises:
        LogSignatureError: a line of a known witness does not verify, or is from the future.
    """
    known = [key for key in witnesses if key.kind == COSIGNATURE_V1]
    found = {key: at_s for key, at_s in verified(note, known).items() if at_s is not None}
    late = [key.name for key, at_s in found.items() if not_after_s is not None and at_s > not_after_s]
    if late:
        raise LogSignatureError(f"the cosignature of {late[0]} is from the future")
    return {key: at_s for key, at_s in found.items() if not_before_s is None or at_s >= not_before_s}


def parse_lines(data: bytes) -> tuple[Signature, ...]:
    """
    Read the answer of a witness: lines of signatures, at least one (c2sp.org/tlog-witness).

    Raises:
        LogFormatError: it is malformed.
    """
    return Note.parse(b"x\n\n" + data).signatures


def verify_answer(data: bytes, checkpoint: Note, witness: VerifierKey) -> Signature:
    """
    Read a witness's answer, and give its cosignature of *checkpoint*.

    Raises:
        LogFormatError: the answer is malformed.
        LogSignatureError: the witness has not cosigned this checkpoint.
    """
    lines = [line for line in parse_lines(data) if line.is_of(witness)]
    if witness.kind != COSIGNATURE_V1:
        raise LogFormatError(f"the key of {witness.name} is not a witness's: its kind is {witness.kind:#04x}")
    if not lines:
        raise LogSignatureError(f"the answer has no cosignature of {witness.name}")
    witness.verify(checkpoint.text, lines[0].value)
    return lines[0]
