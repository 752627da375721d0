"""
Signed notes: a text with signatures of named keys (c2sp.org/signed-note).  Pure.

Two kinds of signature are known: that of a log over the text, and that of a witness over the time and the text
(c2sp.org/tlog-cosignature).  Signatures of unknown keys are ignored, as the specification asks.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from verifier.errors import LogFormatError, LogSignatureError

ED25519: Final = 0x01
"""The kind of a log's signature: Ed25519 over the text."""
COSIGNATURE_V1: Final = 0x04
"""The kind of a witness's signature: the time, and Ed25519 over ``cosignature/v1``, the time and the text."""
KINDS: Final = (ED25519, COSIGNATURE_V1)
MAX_NOTE: Final = 256 << 10
"""Bytes: 16 signatures of 5 kB are 80 kB, and more need not be accepted."""
MAX_SIGNATURES: Final = 100
_KEY_ID: Final = 4
_PUBLIC_KEY: Final = 32
_SIGNATURE: Final = 64
_TIME: Final = 8
_LAST_TIME: Final = (1 << 63) - 1
_DASH: Final = "— "


def decode_base64(text: str) -> bytes:
    """
    Decode standard base64 that has exactly one encoding (RFC 4648, sections 3.5 and 4).

    Raises:
        LogFormatError: it is not.
    """
    try:
        data = b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, UnicodeEncodeError):
        raise LogFormatError("a value is not base64") from None
    if b64encode(data).decode() != text:
        raise LogFormatError("a value is not in the one form of base64")
    return data


def decode_number(text: str, most: int = (1 << 63) - 1) -> int:
    """
    Read an ASCII decimal without leading zeros.

    Raises:
        LogFormatError: it is not one, or it is larger than *most*.
    """
    if (
        not (text.isascii() and text.isdigit())
        or (text[0] == "0" and text != "0")
        or len(text) > len(str(most))
    ):
        raise LogFormatError(f"{text[:24]!r} is not a decimal number without leading zeros")
    number = int(text)
    if number > most:
        raise LogFormatError(f"{text} is larger than {most}")
    return number


def check_name(name: str) -> None:
    """
    Check the name of a key.

    Raises:
        LogFormatError: it is empty, or has a space, a plus sign or a control character.
    """
    if not name or "+" in name or any(each.isspace() or each < " " for each in name):
        raise LogFormatError("the name of a key is empty, or has a space, a plus sign or a control character")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise LogFormatError("the name of a key is not UTF-8") from None


@dataclass(frozen=True)
class VerifierKey:
    """A public key with its name and its kind; its text is a *vkey*: ``NAME+ID+KEY``."""

    name: str
    public: bytes
    """32 bytes (RFC 8032)."""
    kind: int = ED25519
    key_id: bytes = field(init=False)
    """4 bytes that, with the name, say which key has signed."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind not in KINDS:
            raise LogFormatError(f"keys of the kind {self.kind:#04x} are not known here")
        if len(self.public) != _PUBLIC_KEY:
            raise LogFormatError(f"a public key does not have {_PUBLIC_KEY} bytes")
        material = bytes([self.kind]) + self.public
        digest = hashlib.sha256(self.name.encode() + b"\n" + material).digest()
        object.__setattr__(self, "key_id", digest[:_KEY_ID])

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey.  Raises `LogFormatError`."""
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise LogFormatError("a public key of a log or a witness has the form NAME+ID+KEY")
        name, key_id, encoded = parts
        material = decode_base64(encoded)
        if len(material) != 1 + _PUBLIC_KEY:
            raise LogFormatError("the public key has another length, or is of a kind that is not known here")
        key = cls(name, material[1:], material[0])
        if key_id != key.key_id.hex():
            raise LogFormatError(
                f"the key of {name} does not have the id {key_id[:16]}: it was mistyped or altered"
            )
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(bytes([self.kind]) + self.public).decode()}"

    def verify(self, text: str, value: bytes) -> int | None:
        """
        Verify a signature over a note's text.

        Returns:
            The time that a witness has signed, in seconds since 1970; None for a log's signature.

        Raises:
            LogSignatureError: it does not verify.
        """
        signature, at_s = value, None
        if self.kind == COSIGNATURE_V1:
            at_s, signature = int.from_bytes(value[:_TIME], "big"), value[_TIME:]
        if len(signature) != _SIGNATURE or (at_s or 0) > _LAST_TIME:
            raise LogSignatureError(f"the signature of {self.name} does not have its form")
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message_of(text, at_s))
        except InvalidSignature:
            raise LogSignatureError(f"the signature of {self.name} does not verify") from None
        return at_s


def message_of(text: str, at_s: int | None) -> bytes:
    """What is signed: the text, for a witness after a header and the time."""
    return (text if at_s is None else f"cosignature/v1\ntime {at_s}\n{text}").encode()


@dataclass(frozen=True)
class Signature:
    """A signature line."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        """Without its newline."""
        return f"{_DASH}{self.name} {b64encode(self.key_id + self.value).decode()}"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Read a line without its newline.  Raises `LogFormatError`."""
        if not line.startswith(_DASH) or line.count(" ") != 2:
            raise LogFormatError("a signature line does not have the form “— NAME BASE64”")
        name, encoded = line.removeprefix(_DASH).split(" ")
        check_name(name)
        data = decode_base64(encoded)
        if len(data) <= _KEY_ID:
            raise LogFormatError("a signature is too short")
        return cls(name, data[:_KEY_ID], data[_KEY_ID:])

    def is_of(self, key: VerifierKey) -> bool:
        """Whether the line says that *key* has signed."""
        return (self.name, self.key_id) == (key.name, key.key_id)


class Signer:
    """A private key with its name and its kind."""

    def __init__(self, name: str, private: Ed25519PrivateKey, kind: int = ED25519) -> None:
        """Raises `LogFormatError`: the name or the kind is none."""
        self._private = private
        self.key = VerifierKey(name, private.public_key().public_bytes_raw(), kind)

    def sign(self, text: str, at_s: int | None = None) -> Signature:
        """
        Sign a note's text.

        Args:
            at_s: The time in seconds since 1970, for a witness and nobody else.
        """
        if (at_s is None) == (self.key.kind == COSIGNATURE_V1):
            raise ValueError("a witness signs a time, and a log signs none")
        value = self._private.sign(message_of(text, at_s))
        if at_s is not None:
            value = at_s.to_bytes(_TIME, "big") + value
        return Signature(self.key.name, self.key.key_id, value)


@dataclass(frozen=True)
class Note:
    """A text and its signatures, of which none has been verified."""

    text: str
    """It ends with a newline."""
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """
        Read a note.

        Raises:
            LogFormatError: it is malformed, too long or has too many signatures.
        """
        if len(data) > MAX_NOTE:
            raise LogFormatError(f"the note has more than {MAX_NOTE} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError:
            raise LogFormatError("the note is not UTF-8") from None
        check_text(whole)
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines:
            raise LogFormatError("the note has no signature")
        signatures = lines.removesuffix("\n").split("\n")
        if len(signatures) > MAX_SIGNATURES:
            raise LogFormatError(f"the note has more than {MAX_SIGNATURES} signatures")
        return cls(text + "\n", tuple(Signature.parse(each) for each in signatures))

    def __str__(self) -> str:
        return f"{self.text}\n" + "".join(f"{each}\n" for each in self.signatures)

    def with_signatures(self, more: Sequence[Signature]) -> Note:
        """The note with these signatures too, each in the place of an earlier one by the same key."""
        replaced = {(each.name, each.key_id) for each in more}
        kept = [each for each in self.signatures if (each.name, each.key_id) not in replaced]
        return Note(self.text, (*kept, *more))


def check_text(text: str) -> None:
    """
    Check a text that is signed, or a whole note.

    Raises:
        LogFormatError: it has a control character, or does not end with a newline.
    """
    if any(each < " " and each != "\n" for each in text):
        raise LogFormatError("the note has a control character")
    if not text.endswith("\n"):
        raise LogFormatError("the note does not end with a newline")


def sign_note(text: str, signers: Sequence[Signer]) -> Note:
    """Make a note.  Raises `LogFormatError`: its text is not one of a note."""
    check_text(text)
    return Note(text, tuple(signer.sign(text) for signer in signers))


def verified(note: Note, keys: Collection[VerifierKey]) -> dict[VerifierKey, int | None]:
    """
    The keys that have signed a note, each with the time that it has signed, if it is a witness's.

    Raises:
        LogSignatureError: a line says that one of *keys* has signed, and it has not: the note was altered.
    """
    found: dict[VerifierKey, int | None] = {}
    for line in note.signatures:
        for key in keys:
            if line.is_of(key) and key not in found:
                found[key] = key.verify(note.text, line.value)
    return found
