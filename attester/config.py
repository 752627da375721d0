"""
The attester's home: its configuration, keys and enrolment in one folder.

    attester.toml     what is configured
    node.key          the node key
    tls.key, tls.crt  what the engine serves with; the key signs for the endpoint
    engine.secret     shared with the engine, so that nobody else can ask it to walk
    node.json         what enrolment gave
    benchmark-N.json  the last benchmark run of device N
    digests.db        digests of files that have not changed since; may be removed
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from msgspec import Meta, Struct

from attester import cose, identity
from attester.errors import ConfigError, WeightsError
from attester.evidence import ENDPOINT_URL, Benchmark, Count, Name
from attester.kinds import MODEL_NAME
from attester.settings import new_folder, read_toml, to_toml
from attester.weights.hashing import check_algorithms

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: its base URL, which is also its name: evidence is for this audience."""

    url: _Url


class EngineSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[engine]``: how the attester reaches the serving process."""

    adapter: str = "loopback"
    url: _Url = "http://127.0.0.1:8000"
    device: Name = "cpu"
    """Where the attester itself walks files: ``cpu``, or torch's name of a GPU."""
    walk_s: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds that one walk may take …"""
    hour_s: Annotated[float, Meta(gt=0)] = 600.0
    """… and all walks of an hour, where the attester walks."""


class ManifestSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[manifest]``: how the files are read."""

    digests: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)] = ("sha256",)
    """``sha256``, ``blake3``, or both; those that the reference has too are compared."""
    reread_s: Annotated[int, Meta(ge=0)] = 86_400
    """Files are read again after so many seconds, though nothing tells of a change."""
    bytes_per_s: Annotated[int, Meta(ge=1_000_000)] | None = None
    """Read no faster than that; as fast as it goes if left out."""

    def __post_init__(self) -> None:
        """Say now what would be said at the first manifest."""
        try:
            check_algorithms(self.digests)
        except WeightsError as error:
            raise ValueError(str(error)) from None


class ModelSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[models.NAME]``."""

    dir: str
    ignore: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Files and folders in it, by their names relative to it, that are not the model's."""


class ServeSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[serve]``: where routers reach the engine; https, with the key in ``tls.key``."""

    url: Annotated[str, Meta(max_length=256, pattern=ENDPOINT_URL)]

    def __post_init__(self) -> None:
        """What has the form of a URL may still be none."""
        try:
            parts = urlsplit(self.url)
            if parts.netloc.startswith("["):
                ipaddress.ip_address(parts.hostname or "")
            reachable = parts.port != 0
        except ValueError:
            reachable = False
        if not reachable:
            raise ValueError(f"{self.url} is no URL that could be reached")


class CapabilitiesSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[capabilities]``: what the node can take on; memory is measured where left out."""

    hardware_class: Name = "cpu"
    memory_bytes: Count | None = None
    quantisation: Name = "none"
    region: Name | None = None


class GpuSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gpu]``."""

    devices: Annotated[tuple[Name, ...], Meta(max_length=64)] | None = None
    """The node's own, by index or UUID; those of ``CUDA_VISIBLE_DEVICES`` if left out, or all."""


class AttesterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``attester.toml``."""

    verifier: VerifierSection
    models: Annotated[dict[str, ModelSection], Meta(min_length=1, max_length=32)]
    serve: ServeSection
    engine: EngineSection = EngineSection()
    manifest: ManifestSection = ManifestSection()
    capabilities: CapabilitiesSection = CapabilitiesSection()
    gpu: GpuSection = GpuSection()

    def __post_init__(self) -> None:
        for name in self.models:
            if len(name) > 128 or not MODEL_NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is not a model's name: letters, digits, . _ - and /")


class Enrolment(Struct, frozen=True, forbid_unknown_fields=True):
    """``node.json``: what the verifier said at enrolment."""

    node: Annotated[str, Meta(max_length=64)]
    ueid: bytes
    operator: str
    models: tuple[str, ...]
    verifier: str


@dataclass(frozen=True)
class Home:
    """An attester's home folder."""

    path: Path

    def create(self, config: AttesterConfig, *, alg: int = cose.ES256) -> None:
        """
        Make a home: keys, the engine's secret, configuration.

        Raises:
            ConfigError: there is one already, or it cannot be written.
        """
        with new_folder(self.path) as folder:
            identity.create_key(folder / "node.key", alg)
            tls = identity.create_key(folder / "tls.key", cose.ES256)
            (folder / "tls.crt").write_bytes(self_signed(tls, urlsplit(config.serve.url).hostname or ""))
            identity.write_private(folder / "engine.secret", secrets.token_urlsafe(32).encode())
            (folder / "attester.toml").write_text(to_toml(config), encoding="utf-8")

    def config(self) -> AttesterConfig:
        """Read ``attester.toml``; raises `ConfigError`."""
        return read_toml(self.path / "attester.toml", AttesterConfig, "touchstone attester init")

    def node_key(self) -> cose.PrivateKey:
        """The node key; raises `KeyFileError`."""
        return identity.load_key(self.path / "node.key")

    def tls_key(self) -> cose.PrivateKey:
        """The TLS key; raises `KeyFileError`."""
        return identity.load_key(self.path / "tls.key")

    def engine_secret(self) -> str:
        """The secret shared with the engine; raises `KeyFileError`."""
        return identity.read_private(self.path / "engine.secret").decode("ascii", errors="replace").strip()

    def enrolment(self) -> Enrolment:
        """
        What enrolment gave.

        Raises:
            ConfigError: not enrolled yet, or the file is damaged.
        """
        path = self.path / "node.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Enrolment)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} is not enrolled: ask the verifier's operator for a token, then: "
                "touchstone attester enrol --token TOKEN"
            ) from None
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def keep_enrolment(self, enrolment: Enrolment) -> None:
        """
        Keep what enrolment gave, atomically.

        Raises:
            ConfigError: it cannot be written.
        """
        temporary = self.path / ".node.json"
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(enrolment))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / "node.json")
        except OSError as error:
            raise ConfigError(f"{self.path / 'node.json'} cannot be written: {error.strerror}") from None

    def benchmarks(self) -> dict[int, Benchmark]:
        """
        The last benchmark run of each device, by its number.

        Raises:
            ConfigError: a run was kept and is damaged.
        """
        found = {}
        for path in sorted(self.path.glob("benchmark-*.json")):
            number = path.stem.removeprefix("benchmark-")
            if not number.isdecimal():
                continue
            try:
                found[int(number)] = msgspec.json.decode(path.read_bytes(), type=Benchmark)
            except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
                raise ConfigError(f"{path}: {error}; run the benchmark again") from None
        return found

    def keep_benchmark(self, number: int, benchmark: Benchmark) -> Path:
        """
        Keep a benchmark run, atomically, in place of the one before.

        Raises:
            ConfigError: it cannot be written.
        """
        path = self.path / f"benchmark-{number}.json"
        text = msgspec.json.format(msgspec.json.encode(benchmark), indent=2)
        try:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(text)
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        return path

    def check_writable(self) -> None:
        """Raises `ConfigError` where nothing can be kept here; asked before a token is used up."""
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.path} cannot be written to")


def self_signed(key: cose.PrivateKey, host: str) -> bytes:
    """
    A self-signed certificate for *host*, PEM.

    Routers pin its key, not its name or dates; those are there for TLS libraries.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.native.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(key.native, None if isinstance(key.native, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
