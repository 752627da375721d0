"""A witness: decides, writes down what it will have signed, and signs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from verifier.errors import LogSignatureError
from verifier.log.checkpoints import Checkpoint
from verifier.log.cosignatures import cosignatures
from verifier.log.notes import Note, Signature, Signer, VerifierKey
from verifier.log.witnessing import (
    AddCheckpoint,
    Refusal,
    RefusalError,
    check_growth,
    check_signature,
)
from verifier.watching.seen import SeenTrees

_log = structlog.get_logger("witness")


@dataclass(frozen=True)
class Witness:
    """
    Cosigns the checkpoints of the logs that it follows.

    Args:
        signer: Its key, of the kind of cosignatures.
        seen: What it has signed.
        keys: The keys of the logs that it follows; the name of each is its origin.
        now_s: The time in seconds since 1970.
    """

    signer: Signer
    seen: SeenTrees
    keys: Collection[VerifierKey]
    now_s: Callable[[], int]

    def add(self, request: AddCheckpoint) -> Signature:
        """
        Cosign a checkpoint.  What is signed is durable before this returns.

        Raises:
            RefusalError: it must not be signed.
        """
        checkpoint = check_signature(request, self.keys)
        before = self.seen.last(checkpoint.origin)
        self._look_for_own(request.note, checkpoint, before.size)
        try:
            after = check_growth(request, checkpoint, before)
        except RefusalError as error:
            # A proof that does not fit is the caller's; two roots of one size, both signed, are the log's own.
            if error.refusal is Refusal.FORKED:
                self._keep(checkpoint.origin, str(error), request.note)
            raise
        signature = self.signer.sign(request.note.text, self.now_s())
        log_lines = [line for line in request.note.signatures if any(line.is_of(key) for key in self.keys)]
        note = Note(request.note.text, (*log_lines, signature))
        if not self.seen.advance(checkpoint.origin, before, after, str(note)):
            size = self.seen.last(checkpoint.origin).size
            raise RefusalError(Refusal.STALE, f"this witness has signed size {size} meanwhile", size=size)
        return signature

    def _keep(self, origin: str, why: str, note: Note) -> None:
        _log.error("a log contradicts what it has shown before", origin=origin, why=why)
        self.seen.keep_evidence(origin, why, str(note), self.now_s())

    def _look_for_own(self, note: Note, checkpoint: Checkpoint, size: int) -> None:
        """
        Look for a signature of our own under a tree that we do not know.

        Then the state is older than what was signed, as after a restore, or somebody else has the key.
        """
        try:
            own = cosignatures(note, [self.signer.key])
        except LogSignatureError:
            return
        if own and checkpoint.size > size:
            why = "this witness's own key has signed a larger tree than it knows: a restored home, or a stolen key"
            self._keep(checkpoint.origin, why, note)
