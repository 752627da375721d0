r"""
A choice that nobody could steer: the seed of a decision follows from two values, each fixed before the other is known.

The router commits to a secret r by its SHA-256 and gives that out.  The caller answers with a nonce of its own in its
next request.  The seed is the first 8 bytes, big-endian, of

    SHA-256("touchstone/choice/1\n" ‖ r ‖ nonce)

and the record of the decision reveals r.  Neither side can choose the seed: the router was bound before it saw the
nonce, and the caller did not know r.  What the seed is applied to, the router still says alone (docs/limitations.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from msgspec import Struct

from router.model.errors import ChoiceError, ReplayError

DOMAIN: Final = b"touchstone/choice/1\n"
REVEAL_BYTES: Final = 32
_SEED_BYTES: Final = 8
_NONCE: Final = range(16, 65)
"""Bytes of a caller's nonce."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Choice(Struct, frozen=True, gc=False):
    """Where a seed came from: as the record of a decision has it."""

    id: str
    """Of the commitment."""
    commitment: str
    """SHA-256 of what was revealed, hex."""
    reveal: str
    """The router's secret r, hex."""
    nonce: str
    """The caller's, base64url without padding."""

    def check(self, seed: int) -> None:
        """
        Check that a seed follows.

        Raises:
            ReplayError: what was revealed is not what was committed to, or another seed follows.
        """
        try:
            reveal, nonce = bytes.fromhex(self.reveal), decode_nonce(self.nonce)
        except (ValueError, ChoiceError):
            raise ReplayError("the record's choice is malformed") from None
        if len(reveal) != REVEAL_BYTES or commit(reveal) != self.commitment:
            raise ReplayError("what the router revealed is not what it had committed to")
        if derive_seed(reveal, nonce) != seed:
            raise ReplayError("the seed does not follow from the commitment and the caller's nonce")

    def check_held(self, commitment: str | None, nonce: str | None) -> None:
        """
        Compare with what the caller itself holds.

        Args:
            commitment: ``ID.HEX``, as an earlier answer gave it.
            nonce: ``ID.NONCE``, as the caller sent it.

        Raises:
            ReplayError: the record has others.
        """
        if commitment is not None and commitment != f"{self.id}.{self.commitment}":
            raise ReplayError("the record has another commitment than the one that was given out")
        if nonce is not None and nonce != f"{self.id}.{self.nonce}":
            raise ReplayError("the record has another nonce than the one that was sent")

    def for_receipt(self) -> dict[str, str]:
        """What a receipt says of it: without the nonce, which the caller has."""
        digest = hashlib.sha256(decode_nonce(self.nonce)).hexdigest()
        return {"commitment": f"{self.id}.{self.commitment}", "reveal": self.reveal, "nonce_sha256": digest}


def commit(reveal: bytes) -> str:
    """The commitment to a secret, hex."""
    return hashlib.sha256(reveal).hexdigest()


def derive_seed(reveal: bytes, nonce: bytes) -> int:
    """The seed that follows from the router's secret and the caller's nonce."""
    return int.from_bytes(hashlib.sha256(DOMAIN + reveal + nonce).digest()[:_SEED_BYTES], "big")


def split_header(text: str) -> tuple[str, str]:
    """
    The id of the commitment and the nonce in a header ``ID.NONCE``.

    Raises:
        ChoiceError: it has another form.
    """
    commitment_id, dot, nonce = text.partition(".")
    if not dot or not _ID.fullmatch(commitment_id):
        raise _malformed("it must be ID.NONCE, with the id of a commitment")
    decode_nonce(nonce)
    return commitment_id, nonce


def decode_nonce(text: str) -> bytes:
    """
    The bytes of a nonce.

    Raises:
        ChoiceError: it is not base64url without padding, or has too few or too many bytes.
    """
    try:
        nonce = (
            base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) <= 2 * _NONCE.stop else b""
        )
    except (ValueError, binascii.Error):
        nonce = b""
    # There is one form of each: the decoder passes over what is not of its alphabet.
    if len(nonce) not in _NONCE or base64.urlsafe_b64encode(nonce).rstrip(b"=").decode() != text:
        raise _malformed("the nonce must be 16 to 64 bytes in base64url without padding")
    return nonce


def _malformed(why: str) -> ChoiceError:
    return ChoiceError(why, code="choice.malformed")
