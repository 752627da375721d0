"""
A witness's home: its key, its settings, and what it has signed.

    witness.toml     the settings
    witness.pem      the key that cosigns
    witness.db       what it has signed: never restore it from a copy, for it must not forget
    checkpoints/     the newest cosigned checkpoint of each log, as files that can be published
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from attester import cose, identity
from attester.errors import ConfigError
from attester.settings import new_folder, read_toml, to_toml
from verifier.errors import LogFormatError
from verifier.front_config import FrontConfig
from verifier.log.notes import COSIGNATURE_V1, ED25519, Signer, VerifierKey


class WitnessServiceConfig(FrontConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[service]``: where it listens, and what one caller may cost there."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8450"
    connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    stranger_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    connections_per_address: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    body_budget_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    per_address_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] = 240
    """Requests from one address."""
    strangers_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] = 6_000
    """Requests from all addresses."""


class FollowedLog(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[logs]]``: a log that the witness cosigns."""

    key: Annotated[str, Meta(max_length=512)]
    """Its public key, NAME+ID+KEY.  The name is its origin."""
    url: Annotated[str, Meta(pattern=r"^https?://[^\s]+\Z", max_length=1024)] | None = None
    """Its prefix, such as https://verifier.example/log.  Without it, the log must call the witness."""


class WitnessConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``witness.toml``."""

    name: Annotated[str, Meta(max_length=256)]
    """The name of the key: a URL without its scheme, such as witness.example/w1.  It never changes."""
    every_s: Annotated[int, Meta(ge=1, le=86_400)] = 60
    """How often the logs with a `url` are read."""
    service: WitnessServiceConfig = WitnessServiceConfig()
    logs: tuple[FollowedLog, ...] = ()

    def followed(self) -> list[tuple[VerifierKey, str | None]]:
        """
        The keys of the logs, each with its prefix.

        Raises:
            ConfigError: a key is malformed, or not a log's.
        """
        return [(read_log_key(log.key), log.url) for log in self.logs]


def read_log_key(text: str) -> VerifierKey:
    """Read the public key of a log.  Raises `ConfigError`."""
    try:
        key = VerifierKey.parse(text.strip())
    except LogFormatError as error:
        raise ConfigError(f"the key {text[:80]!r} cannot be used: {error}") from None
    if key.kind != ED25519:
        raise ConfigError(f"the key of {key.name} is a witness's, not a log's")
    return key


@dataclass(frozen=True)
class WitnessHome:
    """The folder of a witness."""

    path: Path

    def create(self, config: WitnessConfig) -> None:
        """
        Make it, with a new key.

        Raises:
            ConfigError: the folder exists already, or the name is none of a key.
        """
        try:
            Signer(config.name, Ed25519PrivateKey.generate(), COSIGNATURE_V1)
        except LogFormatError as error:
            raise ConfigError(str(error)) from None
        with new_folder(self.path) as folder:
            identity.create_key(folder / "witness.pem", cose.ED25519)
            (folder / "witness.toml").write_text(to_toml(config), encoding="utf-8")
            (folder / "checkpoints").mkdir()

    def config(self) -> WitnessConfig:
        """Read the settings.  Raises `ConfigError`."""
        return read_toml(self.path / "witness.toml", WitnessConfig, "touchstone log witness --name NAME")

    def signer(self, name: str) -> Signer:
        """
        Read the key.

        Raises:
            ConfigError: it cannot be used.
        """
        key = identity.load_key(self.path / "witness.pem").native
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{self.path / 'witness.pem'} is not an Ed25519 key")
        try:
            return Signer(name, key, COSIGNATURE_V1)
        except LogFormatError as error:
            raise ConfigError(f"name: {error}") from None

    @property
    def database(self) -> Path:
        """What it has signed."""
        return self.path / "witness.db"

    def checkpoint(self, origin: str) -> Path:
        """The file with the newest cosigned checkpoint of a log."""
        return self.path / "checkpoints" / f"{place_of(origin)}.checkpoint"

    @contextmanager
    def only_process(self) -> Iterator[None]:
        """
        Hold the home.

        Raises:
            ConfigError: another process has it.
        """
        try:
            with open(self.path / ".running", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
        except BlockingIOError:
            raise ConfigError(f"another process runs the witness in {self.path}") from None


def place_of(origin: str) -> str:
    """How the paths of a witness name a log: SHA-256 of its origin, in hex."""
    return hashlib.sha256(origin.encode()).hexdigest()
