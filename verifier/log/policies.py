"""
Policies: which logs are trusted, and whose cosignatures a checkpoint needs (c2sp.org/tlog-policy).  Pure.

Names are octets in the file.  Here they are text in which octets that are no UTF-8 are lone surrogates (PEP 383), so
two names are equal only if their octets are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from verifier.errors import LogFormatError, LogQuorumError
from verifier.log.checkpoints import SignedCheckpoint, open_checkpoint
from verifier.log.cosignatures import cosignatures
from verifier.log.notes import COSIGNATURE_V1, ED25519, Note, VerifierKey, decode_number

MAX_POLICY: Final = 256 << 10
"""Bytes of a policy's file."""
MAX_LINES: Final = 1024
_NONE: Final = "none"


@dataclass(frozen=True)
class Peer:
    """A log or a witness of a policy."""

    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class Group:
    """It has witnessed a checkpoint if at least `least` of its members have."""

    members: tuple[str, ...]
    least: int


@dataclass
class LogPolicy:
    """Which checkpoints are accepted."""

    logs: list[Peer] = field(default_factory=list)
    witnesses: dict[str, Peer] = field(default_factory=dict)
    """By the name in the file, which means nothing outside it."""
    groups: dict[str, Group] = field(default_factory=dict)
    """In their order: a group has members that stand before it."""
    quorum: str = ""
    """The name of a witness or a group, or ``none``."""

    @classmethod
    def parse(cls, data: bytes) -> LogPolicy:
        """
        Read a policy's file.

        Raises:
            LogFormatError: it is malformed.  The message has the line.
        """
        if len(data) > MAX_POLICY:
            raise LogFormatError(f"the policy has more than {MAX_POLICY} bytes")
        if any((each < 0x20 and each not in b"\t\n") or each == 0x7F for each in data):
            raise LogFormatError("the policy has a control character that is no tab and no newline")
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        if len(lines) > MAX_LINES:
            raise LogFormatError(f"the policy has more than {MAX_LINES} lines")
        reader = _Reader()
        for number, line in enumerate(lines, 1):
            words = [word for word in line.replace("\t", " ").split(" ") if word]
            if words and not words[0].startswith("#"):
                try:
                    reader.read(words)
                except LogFormatError as error:
                    raise LogFormatError(f"line {number} of the policy: {error}") from None
        if not reader.policy.quorum:
            raise LogFormatError("the policy has no quorum line")
        return reader.policy

    def accept(self, note: Note, *, not_after_s: int | None = None) -> SignedCheckpoint:
        """
        Accept a checkpoint that one of the logs has signed and the quorum has cosigned.

        Args:
            not_after_s: A cosignature of a later time is refused.  None: times are not looked at.

        Raises:
            LogSignatureError: none of the logs has signed it, or a signature does not verify.
            LogQuorumError: too few witnesses have cosigned it.
        """
        signed = open_checkpoint(note, [log.key for log in self.logs])
        self.check_quorum(note, not_after_s=not_after_s)
        return signed

    def check_quorum(
        self, note: Note, *, not_before_s: int | None = None, not_after_s: int | None = None
    ) -> dict[str, int]:
        """
        Check that the quorum has cosigned a checkpoint whose log is known otherwise.

        Args:
            not_before_s: A cosignature of an earlier time does not count.
            not_after_s: A cosignature of a later time is refused.

        Returns:
            The witnesses by their names in the file, each with the time of its cosignature in seconds since 1970.

        Raises:
            LogSignatureError: a cosignature does not verify.
            LogQuorumError: too few witnesses have cosigned it.
        """
        keys = {peer.key: name for name, peer in self.witnesses.items()}
        times = cosignatures(note, keys, not_before_s=not_before_s, not_after_s=not_after_s)
        found = {keys[key]: at_s for key, at_s in times.items()}
        if not self.is_met(found):
            names = ", ".join(sorted(map(_printable, found))) or "nobody"
            raise LogQuorumError(f"the quorum {_printable(self.quorum)} is not met: cosigned by {names}")
        return found

    def is_met(self, cosigned: Sequence[str] | dict[str, int]) -> bool:
        """Whether these witnesses are a quorum."""
        if self.quorum == _NONE:
            return True
        witnessed = set(cosigned)
        for name, group in self.groups.items():
            if sum(member in witnessed for member in group.members) >= group.least:
                witnessed.add(name)
        return self.quorum in witnessed


class _Reader:
    """Reads a policy line by line."""

    def __init__(self) -> None:
        self.policy = LogPolicy()
        self._members: set[str] = set()

    def read(self, words: list[str]) -> None:
        match words:
            case ["log", key, *url] if len(url) < 2:
                self._log(key, url)
            case ["witness", name, key, *url] if len(url) < 2:
                self._witness(name, key, url)
            case ["group", name, least, *members] if members:
                self._group(name, least, members)
            case ["quorum", name]:
                self._quorum(name)
            case _:
                raise LogFormatError("not a log, witness, group or quorum with its words")

    def _log(self, text: str, url: list[str]) -> None:
        key = _key(text, ED25519)
        if any(log.key.public == key.public for log in self.policy.logs):
            raise LogFormatError("another log has this public key")
        self.policy.logs.append(Peer(key, *url))

    def _witness(self, name: str, text: str, url: list[str]) -> None:
        key = _key(text, COSIGNATURE_V1)
        self._check_new(name)
        if any(each.key.public == key.public for each in self.policy.witnesses.values()):
            raise LogFormatError("another witness has this public key")
        self.policy.witnesses[name] = Peer(key, *url)

    def _group(self, name: str, least: str, members: list[str]) -> None:
        self._check_new(name)
        for member in members:
            if not self._is_known(member):
                raise LogFormatError(
                    f"{_printable(member)} is not the name of a witness or a group before it"
                )
            if member in self._members:
                raise LogFormatError(f"{_printable(member)} is a member of a group already")
            self._members.add(member)
        number = {"any": 1, "all": len(members)}.get(least)
        if number is None:
            number = decode_number(least, len(members))
        if number < 1:
            raise LogFormatError("a group needs at least one of its members")
        self.policy.groups[name] = Group(tuple(members), number)

    def _quorum(self, name: str) -> None:
        if self.policy.quorum:
            raise LogFormatError("there is a quorum line already")
        if name != _NONE and not self._is_known(name):
            raise LogFormatError(f"{_printable(name)} is not the name of a witness or a group before it")
        self.policy.quorum = name

    def _check_new(self, name: str) -> None:
        if name == _NONE or self._is_known(name):
            raise LogFormatError(f"the name {_printable(name)} is taken")

    def _is_known(self, name: str) -> bool:
        return name in self.policy.witnesses or name in self.policy.groups


def _key(text: str, kind: int) -> VerifierKey:
    key = VerifierKey.parse(text)
    if key.kind != kind:
        whose = "log" if kind == ED25519 else "witness"
        raise LogFormatError(
            f"the key of {key.name} is of the kind {key.kind:#04x}, and a {whose}'s is {kind:#04x}"
        )
    return key


def _printable(name: str) -> str:
    return ascii(name[:64])[1:-1]
