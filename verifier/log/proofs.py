"""Proofs of one entry that verify without a network: ``.tlog-proof`` files (c2sp.org/tlog-proof).  Pure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from verifier.errors import LogFormatError
from verifier.log.checkpoints import SignedCheckpoint
from verifier.log.notes import MAX_NOTE, Note, decode_base64, decode_number
from verifier.log.tree import HASH_SIZE, MAX_PATH, MAX_SIZE, leaf_hash, verify_inclusion

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAX_EXTRA: Final = 64 << 10
"""Bytes of extra data."""
MAX_PROOF: Final = MAX_NOTE + 2 * MAX_EXTRA
MEDIA_TYPE: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class LogProof:
    """The place of an entry, its audit path, and the checkpoint that they lead to."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: Note
    extra: bytes | None = None
    """Of the application.  Nobody has signed it."""

    def __str__(self) -> str:
        extra = "" if self.extra is None else f"extra {b64encode(self.extra).decode()}\n"
        path = "".join(f"{b64encode(each).decode()}\n" for each in self.path)
        return f"{HEADER}\n{extra}index {self.index}\n{path}\n{self.checkpoint}"

    @classmethod
    def parse(cls, data: bytes) -> LogProof:
        """Read a proof.  Raises `LogFormatError`."""
        if len(data) > MAX_PROOF:
            raise LogFormatError(f"the proof has more than {MAX_PROOF} bytes")
        head, blank, note = data.partition(b"\n\n")
        try:
            lines = iter(head.decode().split("\n"))
        except UnicodeDecodeError:
            raise LogFormatError("the proof is not UTF-8") from None
        if next(lines) != HEADER:
            raise LogFormatError(f"the proof does not begin with {HEADER}")
        if not blank:
            raise LogFormatError("the proof has no checkpoint")
        extra, index = _extra_and_index(lines)
        path = tuple(_hash(line) for line in lines)
        if len(path) > MAX_PATH:
            raise LogFormatError(f"the proof has more than {MAX_PATH} hashes")
        return cls(index, path, Note.parse(note), extra)

    def verify(self, entry: bytes, accept: Callable[[Note], SignedCheckpoint]) -> SignedCheckpoint:
        """
        Verify that *entry* is in the log.

        Args:
            accept: Verifies the checkpoint: `LogPolicy.accept`, or `open_checkpoint` with the keys of logs.

        Raises:
            LogSignatureError: the checkpoint is not accepted.
            LogProofError: the entry is not in the log at its place.
        """
        signed = accept(self.checkpoint)
        found = signed.checkpoint
        verify_inclusion(leaf_hash(entry), self.index, found.size, self.path, found.root)
        return signed


def _extra_and_index(lines: Iterator[str]) -> tuple[bytes | None, int]:
    line, extra = next(lines, ""), None
    if line.startswith("extra "):
        extra = decode_base64(line.removeprefix("extra "))
        if len(extra) > MAX_EXTRA:
            raise LogFormatError(f"the proof has more than {MAX_EXTRA} bytes of extra data")
        line = next(lines, "")
    if not line.startswith("index "):
        raise LogFormatError("the proof does not say the index of its entry")
    return extra, decode_number(line.removeprefix("index "), MAX_SIZE)


def _hash(line: str) -> bytes:
    data = decode_base64(line)
    if len(data) != HASH_SIZE:
        raise LogFormatError(f"a hash of the proof does not have {HASH_SIZE} bytes")
    return data
