"""The router's configuration, ``router.toml``, and the files that it names: the table, tokens, tokenisers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from attester.errors import ConfigError
from attester.settings import check_listen
from router.choose.ranking import WIDTH
from router.model.table import MAX_TABLE, read_table
from router.model.tokens import MAX_TOKENISER, Tokeniser
from router.model.workload import Table

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]
_File = Annotated[str, Meta(min_length=1, max_length=4096)]
_Limit = Annotated[int, Meta(ge=0, le=10**12)]


class ApiKey(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of ``[[keys]]``.  0 means that there is no limit."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the key, hex."""
    role: Literal["client", "reviewer"] = "client"
    workloads: tuple[str, ...] = ()
    """The workloads that it may use; any if empty."""
    operator: str | None = None
    """The operator of nodes that its holder belongs to: its nodes earn nothing by this work."""
    requests_per_minute: _Limit = 0
    concurrency: _Limit = 0
    """Requests in flight at a time."""
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0
    """The budget of a day of UTC."""


class ServiceSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[service]``."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8450"
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]{1,64}\Z")] | None = None
    """Its name among the routers that share a store; without one, its machine's name and its address."""

    def __post_init__(self) -> None:
        check_listen(self.listen)


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: its base URL, which is also the issuer of its results."""

    url: _Url
    kids: tuple[str, ...] = ()
    """Thumbprints (RFC 7638) of the keys to trust; any key in its JWKS if empty."""
    skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    """By how much the verifier's clock may be ahead of the router's."""
    router_token_file: _File | None = None
    """With this token the router reports incidents."""
    admin_token_file: _File | None = None
    """With this token people can release the verifier's incidents at the router."""


class GatewaySection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``."""

    allow_private: bool = False
    """Whether nodes may have private or loopback addresses."""
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60
    """For a request with all its attempts; callers may ask for less."""
    attempt_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """For a whole answer, and for the first text of a stream."""
    stall_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """Between one text of a stream and the next."""
    write_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30
    """A client that reads nothing for so long is given up."""
    connect_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 3
    """For TCP and TLS together."""
    attempts: Annotated[int, Meta(ge=1, le=WIDTH)] = WIDTH
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] = 4000
    """Requests in flight; further ones are told to come back."""
    probe_every_s: Annotated[float, Meta(ge=0, le=3600)] = 5
    """How often each node is probed; 0: never.  Nodes of large fleets are probed less often."""


class StoreSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[store]``: what survives a restart, and what routers share.  Without a path or a URL, nothing does."""

    path: _File | None = None
    """A SQLite file, for the routers of one machine."""
    url: Annotated[str, Meta(max_length=1024)] = ""
    """``postgresql://USER@HOST/DATABASE``, for routers of several machines."""
    flush_s: Annotated[float, Meta(ge=0.1, le=600)] = 2
    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long records of decisions are kept."""
    keep_decisions: Annotated[int, Meta(ge=0, le=1 << 40)] = 1_000_000
    """How many are kept.  If it is 0, no record is written."""

    def __post_init__(self) -> None:
        if self.path is not None and self.url:
            raise ValueError("store has a path and a url; it can have one of them")

    @property
    def is_kept(self) -> bool:
        """Whether anything survives a restart."""
        return self.path is not None or bool(self.url)


class ReviewSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[review]``: of the router's own holds."""

    two_person: bool = False
    """Whether a release takes two people."""
    target_hours: Annotated[int, Meta(ge=1, le=8760)] = 24


class RouterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``router.toml``.  Names of files are relative to its folder."""

    verifier: VerifierSection
    workloads: _File = "workloads.yaml"
    """The table of tiers and workloads."""
    service: ServiceSection = ServiceSection()
    gateway: GatewaySection = GatewaySection()
    store: StoreSection = StoreSection()
    review: ReviewSection = ReviewSection()
    keys: tuple[ApiKey, ...] = ()
    """API keys.  If there are none, anyone may send work."""

    def __post_init__(self) -> None:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) != len(values):
                raise ValueError(f"two keys have the same {what}")

    @property
    def name(self) -> str:
        """The router's name: routers of two machines may listen on the same address, such as 0.0.0.0:8450."""
        return self.service.name or f"{socket.gethostname()}/{self.service.listen}"


def read_token(folder: Path, name: str | None) -> str | None:
    """
    The token in a file, if one is configured.

    Raises:
        ConfigError: the file cannot be read, or does not hold a token.
    """
    if name is None:
        return None
    path = folder / name
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: the token cannot be read") from None
    if not token or len(token) > 4096 or not token.isprintable():
        raise ConfigError(f"{path} does not hold a token")
    return token


def load_table(path: Path) -> Table:
    """
    Read the file of a table of workloads.

    Raises:
        ConfigError: it cannot be read, or is not a table; the message names the file.
    """
    try:
        data = _read(path, MAX_TABLE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Next: touchstone router init") from None
    try:
        return read_table(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_tokeniser(path: Path) -> Tokeniser:
    """
    Read a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

    Raises:
        ConfigError: the file is missing or larger than 64 MiB, the package is missing, or the
            file describes no tokeniser that can take any text; the message names the file.
    """
    try:
        data = _read(path, MAX_TOKENISER + 1)
    except ValueError:
        raise ConfigError(f"{str(path)!r} is not a path") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return Tokeniser.parse(data)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from None


def load_tokenisers(table: Table, folder: Path) -> dict[str, Tokeniser]:
    """
    The tokenisers that a table names, by workload.

    Raises:
        ConfigError: one cannot be read.
    """
    return {
        name: load_tokeniser(folder / workload.tokeniser)
        for name, workload in table.workloads.items()
        if workload.tokeniser is not None
    }


def _read(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)
