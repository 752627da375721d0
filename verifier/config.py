"""
The verifier's home: its configuration, keys, tokens, policy and database in one folder.

    verifier.toml        the settings, each with its default
    keys/ear-*.pem       keys that sign results; which of them signs is in the database
    keys/withdrawn       the thumbprints of keys that must never be trusted again, also after a restore
    pool.key             the secret that challenges are derived from
    admin.token          the credential `home-admin`, an administrator; remove the file to end it
    router.token         the credential `home-router`, a router; remove the file to end it
    policy/              the policy bundle that a new verifier starts with
    author.pem           a key to sign policies with
    authors/*.pem        public keys that may sign policies
    anchors/             public keys and certificates that may sign reference values (CoRIM): *.pem, *.crt, *.jwk, …
    verifier.db          the database
    high-water.json      marks above what was given out: never restore it from a copy (ADR 0023)
    log-key.pem          the key that signs the log; each replica has the same
    log-guard.json       what that key signed last: never restore it from a copy (ADR 0052)
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from msgspec import Meta, Struct

from attester import cose, identity
from attester.errors import ConfigError, KeyFileError
from attester.settings import new_folder, read_toml, to_toml
from verifier import anchor_files
from verifier.access_config import AccessConfig
from verifier.anchor_files import AnchorFile
from verifier.archive_config import ArchiveConfig
from verifier.challenges.pool_key import POOL_KEY_BYTES, PoolKey
from verifier.front_config import FrontConfig
from verifier.log_config import LogConfig
from verifier.references.anchors import Anchor
from verifier.result_keys import ResultKey

_MIN_TOKEN_LENGTH: Final = 32
_MAX_KEY_BYTES: Final = 16 * 1024
_LOG_KEY: Final = "log-key.pem"
_Seconds = Annotated[int, Meta(ge=1, le=86400)]


class ServiceConfig(FrontConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[service]``: where it listens, its name, and what one caller may cost there."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8440"
    url: Annotated[str, Meta(pattern=r"^https?://[^\s/]+\Z", max_length=256)] = "http://127.0.0.1:8440"
    """The base URL that clients use.  It is also the issuer of results and the audience of evidence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speaks_tls and not self.url.startswith("https://"):
            raise ValueError(
                f"url is {self.url}, and with tls_certificate the service speaks TLS: write https://"
            )


class ResultsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[results]``."""

    lifetime_s: _Seconds = 300
    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long results are kept after they were issued."""


class SessionsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[sessions]``."""

    lifetime_s: _Seconds = 120
    skew_s: _Seconds = 30
    per_node_per_minute: Annotated[int, Meta(ge=1, le=100000)] = 60
    announced_per_hour: Annotated[int, Meta(ge=1, le=1000000)] = 20
    """Sessions with challenges that a node may open itself: each uses challenges of the pool."""
    announced_per_operator: Annotated[int, Meta(ge=0, le=1000000)] = 0
    """The same for all nodes of an operator together, an hour.  0: five times as many as for one node."""
    per_address_per_minute: Annotated[int, Meta(ge=1, le=1000000)] = 1200
    """Of those who have not proven who they are, and failures to prove it."""
    strangers_per_minute: Annotated[int, Meta(ge=1, le=10000000)] = 12000
    """Of all of them together, from whatever addresses."""

    @property
    def operator_quota(self) -> int:
        """Sessions with challenges that all nodes of one operator may open themselves, an hour."""
        return self.announced_per_operator or 5 * self.announced_per_hour


class CallsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[calls]``: the wait until a node's next call is drawn uniformly between the two intervals."""

    min_interval_s: Annotated[float, Meta(ge=0.1, le=86400)] = 45
    max_interval_s: Annotated[float, Meta(ge=0.1, le=86400)] = 180
    walk_share: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Share of calls with a walk; every call has a read."""
    together_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of calls that go to all the operator's nodes with the model, at the same moment."""
    grace_s: Annotated[float, Meta(ge=0, le=3600)] = 20
    """How long a due call waits for a node whose channel has just ended, or after an outage of the verifier."""
    answer_s: Annotated[float, Meta(ge=1, le=3600)] = 60
    """
    A node that has not answered a call with a walk for so long loses the results that it still has.

    It may answer as long as the session lives, and gets a new result then.  It must be longer than the slowest walk.
    """
    wide_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of the calls to one node that ask for a wide walk, if the pool has one."""


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[store]``."""

    url: Annotated[str, Meta(max_length=1024)] = ""
    """``postgresql://USER@HOST/DATABASE`` for a verifier of several processes.  Default: ``verifier.db`` in the home."""


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[pool]``."""

    low_water: Annotated[int, Meta(ge=0)] = 100
    """Warn when a pool has fewer free entries than this."""
    low_hours: Annotated[float, Meta(ge=0, le=8760)] = 6.0
    """Warn when what is left lasts the enrolled fleet for fewer hours than this."""
    reserve_hours: Annotated[float, Meta(ge=0, le=8760)] = 1.0
    """What lasts for so long is kept for calls: sessions that nodes open themselves get no challenges from it."""
    grace_s: Annotated[int, Meta(ge=0, le=30 * 86400)] = 6 * 3600
    """While the pool is empty, a node's last right answers to calls count for so long, if nothing speaks against it."""


class AnswersConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[answers]``: checks of what nodes answer."""

    per_node_hour: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """How many checks of a node and a model routers are expected to take an hour; if they take more, that counts.

    Only how many answers are to be minted depends on it.  Routers have a setting of their own for what they take.
    """
    router_per_hour: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    """Checks that one router may take within an hour: one that is hostile uses up no more."""
    router_per_node_hour: Annotated[int, Meta(ge=1, le=100_000)] = 60
    """Of these, checks of one node: one router's word counts for no more."""
    lifetime_s: _Seconds = 900
    """How long after a check was taken its answer may come."""
    keep_days: Annotated[int, Meta(ge=2, le=3650)] = 90
    """How many days the counts are kept that show how answers move (``touchstone verifier drift``)."""


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[policy]``."""

    folder: str = "policy"
    """The bundle that becomes active at the first start; later ones are published, and a changed folder is told."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    timeout_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    """For one evaluation."""
    memory_mib: Annotated[int, Meta(ge=16, le=65536)] = 512
    """For one worker, in addition to what it has when it starts."""
    two_person: bool = False
    """Whether a policy is put in force only by another credential than the one that published it."""


class SecondOpinionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[second_opinion]``: another engine is asked what the policy was asked, without any effect on results."""

    engine: Literal["", "regopy", "opa"] = ""
    """``regopy`` (the extra ``second-opinion``), or ``opa``.  Default: nobody is asked."""
    opa: Annotated[str, Meta(max_length=4096)] = ""
    """The path of OPA's executable, for ``opa``."""
    share: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Of the evaluations.  It takes a tenth of one processor at most, and leaves out what it has no time for."""

    def __post_init__(self) -> None:
        if self.engine == "opa" and not self.opa:
            raise ValueError("the engine is opa: give the path of its executable as opa")


class RecordingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[recording]``: how long received evidence is kept for trials, and how much of it."""

    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    max_mib: Annotated[int, Meta(ge=16, le=1 << 24)] = 4096


class ReferencesConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[references]``."""

    grace_s: Annotated[int, Meta(ge=0, le=365 * 86400)] = 86400
    """How long a replaced value is a warning, and not a mismatch."""


class IncidentsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[incidents]``."""

    two_person: bool = False
    """Whether a release takes effect only after a second person has taken it too, with a credential of their own."""
    hour_held_costs: Annotated[float, Meta(ge=0, le=1e9)] = 1
    hour_trusted_costs: Annotated[float, Meta(ge=0, le=1e9)] = 10
    """What an hour without work costs for an honest node, and an hour of work by one at fault (docs/reviews.md)."""


class VerifierConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``verifier.toml``."""

    service: ServiceConfig = ServiceConfig()
    results: ResultsConfig = ResultsConfig()
    sessions: SessionsConfig = SessionsConfig()
    calls: CallsConfig = CallsConfig()
    store: StoreConfig = StoreConfig()
    pool: PoolConfig = PoolConfig()
    answers: AnswersConfig = AnswersConfig()
    access: AccessConfig = AccessConfig()
    policy: PolicyConfig = PolicyConfig()
    second_opinion: SecondOpinionConfig = SecondOpinionConfig()
    recording: RecordingConfig = RecordingConfig()
    references: ReferencesConfig = ReferencesConfig()
    incidents: IncidentsConfig = IncidentsConfig()
    log: LogConfig = LogConfig()
    archive: ArchiveConfig = ArchiveConfig()

    @property
    def log_origin(self) -> str:
        """The name of the first log; later ones have their number after it."""
        return self.log.origin or f"{self.service.url.partition('://')[2]}/log"


@contextmanager
def only_process(home: Home) -> Iterator[None]:
    """
    Keep a home whose database is a file to one serving process.

    Raises:
        ConfigError: Another process serves it.  Two would each call the nodes that are connected to the other.
    """
    with open(home.path / "verifier.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process serves {home.path}. Several processes need PostgreSQL: set store.url"
            ) from None
        yield


def default_policy() -> Path:
    """The default bundle.  It is beside the packages, in a checkout and in an installation."""
    return Path(__file__).parent.parent / "policies" / "default"


@dataclass(frozen=True)
class Home:
    """A verifier's home folder."""

    path: Path

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / "verifier.db"

    @property
    def high_water(self) -> Path:
        """The file of the high-water marks (`verifier.store.marks`)."""
        return self.path / "high-water.json"

    @property
    def log_guard(self) -> Path:
        """The file that says what the log's key signed last (`verifier.store.log_guard`)."""
        return self.path / "log-guard.json"

    def create(self, config: VerifierConfig) -> None:
        """
        Make a home: keys, tokens, configuration, a copy of the default policy.

        Raises:
            ConfigError: the folder exists already, or cannot be written.
        """
        with new_folder(self.path) as folder:
            (folder / "keys").mkdir(mode=0o700)
            identity.create_key(folder / "keys" / "ear-0001.pem", cose.ES256)
            identity.create_key(folder / _LOG_KEY, cose.ED25519)
            identity.write_private(folder / "pool.key", secrets.token_bytes(POOL_KEY_BYTES))
            for name in ("admin.token", "router.token"):
                identity.write_private(folder / name, secrets.token_urlsafe(32).encode())
            shutil.copytree(default_policy(), folder / "policy")
            Home(folder).ensure_author()
            (folder / "verifier.toml").write_text(to_toml(config), encoding="utf-8")

    def config(self) -> VerifierConfig:
        """
        Read ``verifier.toml``.

        Raises:
            ConfigError: it is missing or malformed, or a setting is unknown or out of range.
        """
        return read_toml(self.path / "verifier.toml", VerifierConfig, "touchstone verifier init")

    def create_result_key(self) -> tuple[Path, ResultKey]:
        """
        Make another key to sign results with.

        Raises:
            ConfigError: it cannot be written.
        """
        names = [path.stem.removeprefix("ear-") for path in (self.path / "keys").glob("ear-*.pem")]
        number = max((int(name) for name in names if name.isdigit()), default=0) + 1
        path = self.path / "keys" / f"ear-{number:04}.pem"
        try:
            native = identity.create_key(path, cose.ES256).native
        except (KeyFileError, OSError) as error:
            raise ConfigError(f"{path}: {error}") from None
        assert isinstance(native, ec.EllipticCurvePrivateKey)
        return path, ResultKey(native)

    def withdrawn_keys(self) -> frozenset[str]:
        """The thumbprints of keys that must never be trusted again, whatever the database says."""
        path = self.path / "keys" / "withdrawn"
        return frozenset(_read_key(path).decode("ascii", "replace").split()) if path.exists() else frozenset()

    def note_withdrawn(self, kid: str) -> None:
        """Note that a key must never be trusted again.  Raises `ConfigError`."""
        path = self.path / "keys" / "withdrawn"
        try:
            with open(path, "a", encoding="ascii") as file:
                file.write(kid + "\n")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    def result_keys(self) -> list[ResultKey]:
        """The keys that sign results, and those that did, by the names of their files."""
        keys = []
        for path in sorted((self.path / "keys").glob("ear-*.pem")):
            native = _load_key(path).native
            if not isinstance(native, ec.EllipticCurvePrivateKey):
                raise ConfigError(f"{path} must be a P-256 key")
            keys.append(ResultKey(native))
        if not keys:
            raise ConfigError(f"{self.path / 'keys'} has no key to sign results with (ear-*.pem)")
        return keys

    def log_key(self) -> ed25519.Ed25519PrivateKey | None:
        """The key that signs the log; `None` if the home has none, as those of earlier versions."""
        path = self.path / _LOG_KEY
        if not path.exists():
            return None
        native = _load_key(path).native
        if not isinstance(native, ed25519.Ed25519PrivateKey):
            raise ConfigError(f"{path} must be an Ed25519 key")
        return native

    def create_log_key(self) -> ed25519.Ed25519PrivateKey:
        """Make the key that signs the log.  Raises `ConfigError` if there is one."""
        try:
            native = identity.create_key(self.path / _LOG_KEY, cose.ED25519).native
        except KeyFileError as error:
            raise ConfigError(str(error)) from None
        assert isinstance(native, ed25519.Ed25519PrivateKey)
        return native

    def pool_key(self) -> PoolKey:
        """The secret that challenges are derived from."""
        secret = self._private("pool.key")
        if len(secret) != POOL_KEY_BYTES:
            raise ConfigError(f"{self.path / 'pool.key'} must have {POOL_KEY_BYTES} bytes")
        return PoolKey(secret)

    def token(self, name: str) -> str:
        """The token ``NAME.token``; empty if the file was removed: then nobody has it."""
        if not (self.path / f"{name}.token").exists():
            return ""
        text = self._private(f"{name}.token").decode("ascii", errors="replace").strip()
        if len(text) < _MIN_TOKEN_LENGTH:
            raise ConfigError(f"{self.path / name}.token must have at least {_MIN_TOKEN_LENGTH} characters")
        return text

    def ensure_author(self) -> None:
        """Make the home's own signing key and trust it, if there is none: earlier versions made homes without it."""
        path = self.path / "author.pem"
        if path.exists():
            return
        try:
            public = _public_pem(identity.create_key(path, cose.ES256))
            for name in ("authors", "anchors"):
                (self.path / name).mkdir(exist_ok=True)
                (self.path / name / "home.pem").write_bytes(public)
        except (KeyFileError, OSError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def author_key(self) -> cose.PrivateKey:
        """The home's own key to sign policies and reference values with."""
        return _load_key(self.path / "author.pem")

    def authors(self) -> dict[str, PublicKeyTypes]:
        """The keys that may sign policies, by the name of the key's file."""
        return {path.stem: _load_public_key(path) for path in sorted((self.path / "authors").glob("*.pem"))}

    def anchors(self) -> dict[str, Anchor]:
        """The keys and certificates that may sign reference values, by name; those that cannot be used are left out."""
        return anchor_files.usable(self.anchor_files())

    def anchor_files(self) -> list[AnchorFile]:
        """The files of trust anchors, with what is wrong with them."""
        return anchor_files.read_folder(self.path / "anchors")

    def _private(self, name: str) -> bytes:
        try:
            return identity.read_private(self.path / name)
        except KeyFileError as error:
            raise ConfigError(str(error)) from None


def _load_key(path: Path) -> cose.PrivateKey:
    try:
        return identity.load_key(path)
    except KeyFileError as error:
        raise ConfigError(str(error)) from None


def _public_pem(key: cose.PrivateKey) -> bytes:
    return key.native.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _load_public_key(path: Path) -> PublicKeyTypes:
    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} must be a public key in PEM") from None
    if not isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        raise ConfigError(f"{path} must be an elliptic-curve or an Ed25519 key")
    return key


def _read_key(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
