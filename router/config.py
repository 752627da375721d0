"""The router's configuration, ``router.toml``, and the files that it names: the table, tokens, tokenisers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from attester.errors import ConfigError
from router.choose.ranking import WIDTH
from router.ext_proc_config import ExtProcSection
from router.model.change import ChangesSection
from router.model.table import MAX_TABLE, read_table
from router.model.tokens import MAX_TOKENISER, Tokeniser
from router.model.usage import ANSWERS, Tolerance
from router.model.workload import Table
from verifier.access_config import OidcConfig
from verifier.front_config import FrontConfig
from verifier.roles import Role

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]
_File = Annotated[str, Meta(min_length=1, max_length=4096)]
_Limit = Annotated[int, Meta(ge=0, le=10**12)]
_Rate = Annotated[int, Meta(ge=1, le=500)]


ANYONE: Final = "anonymous"
"""The name of every caller without a key at an open gateway; no key has it."""
ROLES: Final = (Role.RELYING_PARTY, Role.OPERATOR, Role.REVIEWER, Role.AUDITOR, Role.ADMINISTRATOR)
"""The roles that a key may have at a router."""
_OLD_ROLES: Final = {"client": (Role.RELYING_PARTY,), "reviewer": (Role.RELYING_PARTY, Role.REVIEWER)}


class ApiKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key: an entry of ``[[keys]]``, or made by ``touchstone router key create``.  0 means no limit."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the key, hex."""
    role: Literal["client", "reviewer"] | None = None
    """As configurations named one role before there were several; a ``reviewer`` sends work, too."""
    roles: Annotated[tuple[Role, ...], Meta(max_length=len(ROLES))] = ()
    """What its holder may do; a relying party if empty."""
    workloads: tuple[str, ...] = ()
    """The workloads that it may use; any if empty."""
    operator: str | None = None
    """The operator of nodes that its holder belongs to: its nodes earn nothing by this work."""
    may_dispatch: bool = False
    """Whether decisions come with the endpoints of nodes, so that its holder can reach them without the router."""
    receipt_key: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")] | None = None
    """Its holder's public key, Ed25519, as ``x`` of a JWK: it signs the receipts of work that it dispatches itself."""
    requests_per_minute: _Limit = 0
    concurrency: _Limit = 0
    """Requests in flight at a time."""
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0
    """The budget of a day of UTC."""

    def __post_init__(self) -> None:
        if self.role is not None and self.roles:
            raise ValueError("a key has a role or roles, not both")
        structs.force_setattr(self, "roles", self.roles or _OLD_ROLES[self.role or "client"])
        structs.force_setattr(self, "role", None)
        if not set(self.roles) <= set(ROLES):
            raise ValueError(f"the roles of a key at a router are {', '.join(ROLES)}")
        if Role.OPERATOR in self.roles and not self.operator:
            raise ValueError("a key with the role operator needs the name of its operator")


class TokenLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """``[access.limits]``: of each person who comes with a token of the issuer.  0 means no limit."""

    workloads: tuple[str, ...] = ()
    """The workloads that they may use; any if empty."""
    requests_per_minute: _Limit = 0
    concurrency: _Limit = 0
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0


class AccessSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[access]``."""

    oidc: OidcConfig | None = None
    """``[access.oidc]``, as at the verifier: an issuer whose tokens are credentials beside the keys."""
    limits: TokenLimits = TokenLimits()


class ServiceSection(FrontConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[service]``: where it listens, its name, and what one caller may cost there."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8450"
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]{1,64}\Z")] | None = None
    """Its name among the routers that share a store; without one, its machine's name and its address."""
    per_address_per_minute: Annotated[int, Meta(ge=1, le=1000000)] = 1200
    """Requests of an address without a valid API key, where one is needed."""
    strangers_per_minute: Annotated[int, Meta(ge=1, le=10000000)] = 12000
    """Of all of them together, from whatever addresses."""


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: its base URL, which is also the issuer of its results."""

    url: _Url
    ca_file: _File | None = None
    """Certificates, PEM: only what they have signed is believed, not the system's authorities."""
    kids: tuple[str, ...] = ()
    """Thumbprints (RFC 7638) of the keys to trust; any key in its JWKS if empty."""
    skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    """By how much the verifier's clock may be ahead of the router's."""
    router_token_file: _File | None = None
    """The router's key of the verifier, with the role router: without it the verifier gives no results."""
    admin_token_file: _File | None = None
    """
    A key of the verifier with the role reviewer, if people may release the verifier's incidents at this router.

    To the verifier all of them are its one holder.
    """

    def __post_init__(self) -> None:
        if self.ca_file is not None and not self.url.startswith("https://"):
            raise ValueError("ca_file needs a url with https")


class GatewaySection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``."""

    open: bool = False
    """Whether anyone may send work without a key."""
    allow_private: bool = False
    """Whether nodes may have private or loopback addresses."""
    identity_file: _File | None = None
    """
    The router's own key and certificate, by which nodes know it: made if it is missing.

    Without it, a file beside the configuration: ``router-identity.pem`` beside ``router.toml``.
    """
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60
    """For all attempts of a request until the first text, or a whole answer; its size comes on top."""
    attempt_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """The same for one attempt."""
    stall_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """Between one sign of life of a stream and the next: text, another event, or a comment."""
    quiet_s: Annotated[float, Meta(ge=0.1, le=86400)] = 300
    """Without text, in spite of such signs."""
    longest_s: Annotated[float, Meta(ge=0.1, le=86400)] = 3600
    """For a request, whatever comes; callers may ask for less."""
    unseen_tokens_per_second: Annotated[float, Meta(ge=0.01, le=1e6)] = 2
    """The pace that is assumed of a node for whole answers, until its own was seen."""
    unseen_prompt_tokens_per_second: Annotated[float, Meta(ge=0.01, le=1e6)] = 50
    """The same for reading prompts."""
    keep_alive_s: Annotated[float, Meta(ge=0, le=3600)] = 5
    """After so long without an event, the client of a stream gets a comment; 0: never."""
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
    archive: _File | None = None
    """A folder for Parquet files: what is too old or too much is moved there, and the verifier's log proves the files."""
    archive_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    """The most rows of one file; they are in memory while it is written."""

    def __post_init__(self) -> None:
        if self.archive is not None and not self.is_kept:
            raise ValueError("store.archive needs a path or a url: nothing else is kept for so long")
        if self.path is not None and self.url:
            raise ValueError("store has a path and a url; it can have one of them")

    @property
    def is_kept(self) -> bool:
        """Whether anything survives a restart."""
        return self.path is not None or bool(self.url)


class ReceiptsSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[receipts]``: of each answer, what was asked and answered, by whom, and on what grounds; in digests."""

    enabled: bool = True
    key_file: _File | None = None
    """
    The key that signs them, Ed25519: made if it is missing.

    Without it, a file beside the configuration: ``router-receipts.pem`` beside ``router.toml``.  A router without a
    store has a new key each time it starts.
    """


class ReviewSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[review]``: of the router's own holds."""

    hour_held_costs: Annotated[float, Meta(ge=0, le=1e9)] = 1
    """What an hour without work costs for an honest node; the queue of reviews is ordered by it (docs/reviews.md)."""
    hour_trusted_costs: Annotated[float, Meta(ge=0, le=1e9)] = 10
    """What an hour of work by a node at fault costs, in the same unit."""

    two_person: bool = False
    """Whether a release takes two people."""
    target_hours: Annotated[int, Meta(ge=1, le=8760)] = 24


class ChecksSection(Struct, frozen=True, forbid_unknown_fields=True):
    """
    ``[checks]``: how often nodes are asked what a trusted engine has answered already (docs/routing.md).

    The rates are in a thousand of a node's own requests at this router.  None of them can be 0: who is never asked can
    serve what it likes.
    """

    enabled: bool = True
    """Whether this router asks, if the verifier has something to ask."""
    established_per_mille: _Rate = 20
    probation_per_mille: _Rate = 50
    degraded_per_mille: _Rate = 100
    suspected_per_mille: _Rate = 200
    """Of nodes whose answers for the model have differed."""
    at_least_every_hours: Annotated[int, Meta(ge=0, le=8760)] = 24
    """A node that had no check for so long is asked the next time that anybody's request comes; 0: never."""


class SettlementSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[settlement]``: what nodes are paid for a period, and how their claims are judged (docs/settlement.md)."""

    period: Literal["day", "week", "month", "quarter"] = "week"
    """What ``touchstone settle run`` settles if it is not told."""
    unit: Annotated[str, Meta(min_length=1, max_length=16, pattern=r"^[\x20-\x7e]+\Z")] = "unit"
    """The name of the unit of account, as statements show it."""
    decimals: Annotated[int, Meta(ge=0, le=12)] = 6
    """To which what is shown is rounded.  Sums are exact whatever it is."""
    grace_hours: Annotated[int, Meta(ge=25, le=720)] = 48
    """A period is settled so long after its end: the claims of the day after it have come by then."""
    least_exchanges: Annotated[int, Meta(ge=1, le=1_000_000)] = ANSWERS
    """A node with fewer exchanges for a model in a period is not judged by its claims."""
    claims_every_s: Annotated[int, Meta(ge=0, le=86_400)] = 3600
    """How often a node's front is asked for claims; 0: never."""
    tolerance: Tolerance = Tolerance()
    """``[settlement.tolerance]``: how far claims may be off; for each answer, too."""


class BatchesSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[batches]``: files of requests that are done in the background (docs/batches.md).  They need a store."""

    enabled: bool = True
    max_file_bytes: Annotated[int, Meta(ge=1024, le=16 << 30)] = 200 << 20
    """Of a file."""
    max_lines: Annotated[int, Meta(ge=1, le=10_000_000)] = 50_000
    """Of a file."""
    max_line_bytes: Annotated[int, Meta(ge=256, le=16 << 20)] = 1 << 20
    """Of a line.  A longer one is refused while it comes."""
    max_stored_bytes: Annotated[int, Meta(ge=1024, le=1 << 50)] = 2 << 30
    """Of all files of a key, results included."""
    max_open: Annotated[int, Meta(ge=1, le=10_000)] = 20
    """Batches of a key that have not ended."""
    max_window_hours: Annotated[int, Meta(ge=24, le=8760)] = 168
    """The longest ``completion_window``."""
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Lines that one router does at a time."""
    places_per_node: Annotated[int, Meta(ge=1, le=100_000)] = 2
    """
    A line begins only while its nodes have fewer requests of this router on average, live ones included.

    More make batches faster, and live requests beside them slower: docs/batches.md has figures.
    """
    tries: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How often a line is tried that no node completes."""
    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long files are kept, unless their owner says less or deletes them."""


class RouterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``router.toml``.  Names of files are relative to its folder."""

    verifier: VerifierSection
    workloads: _File = "workloads.yaml"
    """The table of tiers and workloads."""
    service: ServiceSection = ServiceSection()
    gateway: GatewaySection = GatewaySection()
    store: StoreSection = StoreSection()
    receipts: ReceiptsSection = ReceiptsSection()
    review: ReviewSection = ReviewSection()
    checks: ChecksSection = ChecksSection()
    batches: BatchesSection = BatchesSection()
    access: AccessSection = AccessSection()
    settlement: SettlementSection = SettlementSection()
    changes: ChangesSection = ChangesSection()
    ext_proc: ExtProcSection | None = None
    """Without it, no gateway of others is served."""
    keys: tuple[ApiKey, ...] = ()
    """API keys, beside those of the store."""

    def __post_init__(self) -> None:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) != len(values):
                raise ValueError(f"two keys have the same {what}")
        if any(key.name == ANYONE for key in self.keys):
            raise ValueError(f"no key may be named {ANYONE}")

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
