"""
The attester's home: its configuration, keys and enrolment in one folder.

    attester.toml     the configuration
    node.key          the node key
    tls.key, tls.crt  the engine's TLS key and certificate; the key signs the endpoint claim
    engine.secret     shared with the engine, so that nobody else can ask it to walk
    check.key, .crt   with which the node looks at its own endpoint from outside
    routers.json      the routers that may use the node, as the verifier lists them; routers.pem, routers.caddy for proxies
    node.json         the enrolment
    revisions.json    which revision of each model the node has claimed last
    benchmark-N.json  the last benchmark run of device N
    node.key.new      the next node key, while it is rolled
    run.lock          held by the attester that runs
    digests.db        the cache of file digests; it may be removed
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import ipaddress
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from msgspec import Meta, Struct

from attester import cose, identity
from attester.errors import ConfigError, KeyFileError, WeightsError
from attester.evidence import ENDPOINT_URL, Benchmark, Count, Name
from attester.front_config import FrontSection
from attester.kinds import MODEL_NAME
from attester.settings import new_folder, read_toml, to_toml
from attester.weights.hashing import check_algorithms
from attester.weights.patterns import given, only

ADAPTERS = ("loopback", "vllm", "llama.cpp", "files")
"""The engine adapters; `attester.engines.open_engine` opens each."""
BY_FILE = frozenset({"llama.cpp", "files"})
"""Those that walk the files, because their engines give no access to what they have loaded."""

_REVISIONS = "revisions.json"

_log = structlog.get_logger("attester")

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: the base URL is also the verifier's name, and so the audience of evidence."""

    url: _Url
    ca_file: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Certificates, PEM, relative to the home: only what they have signed is believed, not the system's authorities."""

    def __post_init__(self) -> None:
        if self.ca_file is not None and not self.url.startswith("https://"):
            raise ValueError("ca_file needs a url with https")


class EngineSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[engine]``: how the attester reaches the serving process."""

    adapter: str = "loopback"
    url: _Url = "http://127.0.0.1:8000"
    name: Name | None = None
    """With ``version``: what the engine is, for the adapter ``files`` and an engine that does not say it itself."""
    version: Name | None = None
    api_key_file: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """The engine's own API key, relative to the home: the front and the attester add it, and nobody else needs it."""
    device: Name = "cpu"
    """The device for walks that the attester makes itself: ``cpu``, or torch's name of a GPU."""
    walk_s: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds that one walk of the attester itself may take."""
    hour_s: Annotated[float, Meta(gt=0)] = 600.0
    """Seconds that all walks of the attester itself may take within an hour."""

    def __post_init__(self) -> None:
        if (self.name is None) != (self.version is None):
            raise ValueError("name and version of an engine are given together")
        if self.name is not None and self.adapter != "files":
            raise ValueError(
                f"name and version are for the adapter files; {self.adapter} asks the engine itself"
            )


class ManifestSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[manifest]``: how the files are read."""

    digests: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)] = ("sha256",)
    """``sha256``, ``blake3``, or both; the verifier compares those that the reference value has too."""
    reread_s: Annotated[int, Meta(ge=0)] = 86_400
    """Read a file again after this many seconds, even if nothing shows a change."""
    bytes_per_s: Annotated[int, Meta(ge=1_000_000)] | None = None
    """The highest reading rate; unlimited if left out."""
    look_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0
    """How often it is looked whether a folder has changed."""
    settle_s: Annotated[float, Meta(ge=0, le=86400)] = 5.0
    """A folder that has changed counts as whole once nothing in it has changed for so long."""

    def __post_init__(self) -> None:
        """Refuse unknown algorithms now, before the first manifest."""
        try:
            check_algorithms(self.digests)
        except WeightsError as error:
            raise ValueError(str(error)) from None


class ModelSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[models.NAME]``: a model's folder."""

    dir: str
    ignore: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Files and folders that are not the model's, by their names relative to the folder, or by patterns."""
    file: str | tuple[str, ...] = ()
    """Of several files of weights in the folder, the one that is the model's, or several of its own."""
    walk: Literal["published", "as-loaded"] = "published"
    """``as-loaded``: walk what the engine holds as it is, for a reference value of this build of the engine."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names and patterns of what is not the model's."""
        files = (self.file,) if isinstance(self.file, str) else self.file
        return (*given(self.ignore), *only(files))


class ServeSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[serve]``: the https URL where routers reach the node, which serves there with ``tls.key``."""

    url: Annotated[str, Meta(max_length=256, pattern=ENDPOINT_URL)]

    def __post_init__(self) -> None:
        """Refuse an address or a port that the pattern of the URL lets through."""
        try:
            parts = urlsplit(self.url)
            if parts.netloc.startswith("["):
                ipaddress.ip_address(parts.hostname or "")
            reachable = parts.port != 0
        except ValueError:
            reachable = False
        if not reachable:
            raise ValueError(f"{self.url} is not a URL that can be reached")


class CapabilitiesSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[capabilities]``: what the node can serve; memory is measured if left out."""

    hardware_class: Name = "cpu"
    memory_bytes: Count | None = None
    quantisation: Name | None = None
    """How the weights are quantised; read from their files if left out, and ``none`` if those do not say it."""
    region: Name | None = None


class GpuSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gpu]``: which devices are the node's."""

    devices: Annotated[tuple[Name, ...], Meta(max_length=64)] | None = None
    """Indexes or UUIDs; if left out, the devices of ``CUDA_VISIBLE_DEVICES``, or all."""


class AttesterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``attester.toml``."""

    verifier: VerifierSection
    models: Annotated[dict[str, ModelSection], Meta(min_length=1, max_length=32)]
    serve: ServeSection
    front: FrontSection = FrontSection()
    engine: EngineSection = EngineSection()
    manifest: ManifestSection = ManifestSection()
    capabilities: CapabilitiesSection = CapabilitiesSection()
    gpu: GpuSection = GpuSection()

    @property
    def folders(self) -> dict[str, Path]:
        """The models' folders, by model."""
        return {name: Path(model.dir) for name, model in self.models.items()}

    def __post_init__(self) -> None:
        for name in self.models:
            if len(name) > 128 or not MODEL_NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is not a model's name: use letters, digits, . _ - and /")
        if self.engine.adapter in BY_FILE and any(
            model.walk == "as-loaded" for model in self.models.values()
        ):
            raise ValueError(
                f"the adapter {self.engine.adapter} walks files, so no model can have walk = as-loaded"
            )


class Enrolment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``node.json``: the verifier's answer to the enrolment."""

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
        Make the folder with keys, the engine's secret and the configuration.

        Raises:
            ConfigError: the folder exists and is not empty, or it cannot be written.
        """
        with new_folder(self.path) as folder:
            identity.create_key(folder / "node.key", alg)
            tls = identity.create_key(folder / "tls.key", cose.ES256)
            (folder / "tls.crt").write_bytes(
                create_certificate(tls, urlsplit(config.serve.url).hostname or "")
            )
            identity.write_private(folder / "engine.secret", secrets.token_urlsafe(32).encode())
            (folder / "attester.toml").write_text(to_toml(config), encoding="utf-8")

    def config(self) -> AttesterConfig:
        """Read ``attester.toml``; raises `ConfigError`."""
        return read_toml(self.path / "attester.toml", AttesterConfig, "touchstone attester init")

    def authorities(self, config: AttesterConfig) -> Path | None:
        """The file of the authorities that may sign the verifier's certificate; `None`: the system's."""
        return None if config.verifier.ca_file is None else self.path / config.verifier.ca_file

    def node_key(self) -> cose.PrivateKey:
        """The node key; raises `KeyFileError`."""
        return identity.load_key(self.path / "node.key")

    def tls_key(self) -> cose.PrivateKey:
        """The TLS key; raises `KeyFileError`."""
        return identity.load_key(self.path / "tls.key")

    def engine_secret(self) -> str:
        """The secret shared with the engine; raises `KeyFileError`."""
        return identity.read_private(self.path / "engine.secret").decode("ascii", errors="replace").strip()

    def engine_key(self, config: AttesterConfig) -> str | None:
        """
        The engine's own API key; `None` if the configuration names none.

        Raises:
            KeyFileError: the file is missing, others can read it, or its content cannot be a header.
        """
        if config.engine.api_key_file is None:
            return None
        path = self.path / config.engine.api_key_file
        key = identity.read_private(path).decode("ascii", errors="replace").strip()
        if not key.isprintable() or not key.isascii() or not key or " " in key:
            raise KeyFileError(f"{path} must hold one API key: printable ASCII without spaces")
        return key

    @property
    def is_enrolled(self) -> bool:
        """Whether the node was enrolled."""
        return (self.path / "node.json").exists()

    def enrolment(self) -> Enrolment:
        """
        Read ``node.json``.

        Raises:
            ConfigError: the node is not enrolled yet, or the file is damaged.
        """
        path = self.path / "node.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Enrolment)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} is not enrolled. Ask the verifier's operator for a token, and run "
                "`touchstone attester enrol --token TOKEN`"
            ) from None
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """
        Write ``node.json`` atomically.

        Raises:
            ConfigError: the file cannot be written.
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

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """
        Keep other attesters from running for this home.  The system lets go of it if the process dies.

        Raises:
            ConfigError: another attester holds it, or the folder cannot be written to.
        """
        path = self.path / "run.lock"
        try:
            file = open(path, "a+", encoding="ascii")  # noqa: SIM115  # closed below
        except OSError as error:
            raise ConfigError(f"{path} cannot be opened: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConfigError(
                    f"another attester (process {file.read(20).strip() or 'unknown'}) runs for {self.path}. "
                    "Two of them would displace each other at the verifier. Stop that one, or make a home of "
                    "its own for this node: touchstone attester init"
                ) from None
            except OSError as error:
                # Some file systems of networks have no locks.
                _log.warning("this home cannot be locked; run one attester for it", why=error.strerror)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def benchmarks(self) -> dict[int, Benchmark]:
        """
        The last benchmark run of each device, by its number.

        Raises:
            ConfigError: a file of a run cannot be read, or is damaged.
        """
        found = {}
        for path in sorted(self.path.glob("benchmark-*.json")):
            number = path.stem.removeprefix("benchmark-")
            if not number.isdecimal():
                continue
            try:
                found[int(number)] = msgspec.json.decode(path.read_bytes(), type=Benchmark)
            except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
                raise ConfigError(f"{path}: {error}. Run the benchmark again") from None
        return found

    def revisions(self) -> dict[str, str]:
        """By model, the digest of the revision that the node has claimed last; empty if none is known."""
        try:
            data = (self.path / _REVISIONS).read_bytes()
            return msgspec.json.decode(data, type=dict[str, str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            # It only makes the node more careful.
            return {}

    def save_revisions(self, revisions: Mapping[str, str]) -> None:
        """
        Keep which revision of each model the node has claimed.

        Raises:
            ConfigError: the file cannot be written.
        """
        path = self.path / _REVISIONS
        try:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(dict(revisions)))
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    def save_benchmark(self, number: int, benchmark: Benchmark) -> Path:
        """
        Write a benchmark run atomically; it replaces the last one of device *number*.

        Raises:
            ConfigError: the file cannot be written.
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
        """Raise `ConfigError` if the folder cannot be written to.  Called before a token is used up."""
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.path} cannot be written to")


def create_certificate(key: cose.PrivateKey, host: str) -> bytes:
    """
    A self-signed certificate of *key* for *host*, PEM.

    Routers pin the key and ignore name and dates, which only TLS libraries need.
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
