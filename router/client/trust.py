"""
The trust file of a client: whose keys it believes, and what it requires of answers.

It is JSON, a person has agreed to it (`touchstone client trust`), and nothing in it changes by itself: a key that
is not in it is not believed, whoever vouches for it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attester import strictjson
from router.client.errors import TrustError
from router.model.errors import ReceiptError
from router.model.workload import ASSURANCES, MODEL_CLAIMS
from router.receipts.tokens import read_keys
from verifier.errors import LogError, ResultError
from verifier.log.policies import LogPolicy
from verifier.result_keys import VerifyingKey, read_jwks
from verifier.router_receipts import ReceiptKey, RouterName
from verifier.trust import CLAIM_NAMES

MAX_TRUST: Final = 1 << 20
"""Bytes of a trust file."""
_Url = Annotated[str, Meta(pattern=r"^https?://[\x21-\x7e]+\Z", max_length=256)]
_Jwks = Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=64)]
_Claims = Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(min_length=1, max_length=16)]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Seconds = Annotated[int, Meta(ge=1, le=31_536_000)]


class _Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a trust file."""


class RouterTrust(_Part, frozen=True, kw_only=True):
    """``router``: whose receipts are believed."""

    url: _Url
    name: RouterName | None = None
    """The ``iss`` of its receipts; any name if it is absent, for the keys say whose they are."""
    keys: Annotated[tuple[dict[str, Any], ...], Meta(max_length=64)] = ()
    """Its receipt keys, as JWKs."""
    gives_receipts: bool = True
    """False: this router has none, and its answers are handed on unverified.  A person has to write that here."""


class VerifierTrust(_Part, frozen=True, kw_only=True):
    """``verifier``: whose results are believed."""

    issuer: _Url
    keys: _Jwks


class LogTrust(_Part, frozen=True, kw_only=True):
    """``log``: which log, and whose cosignatures it needs."""

    policy: Annotated[str, Meta(min_length=1, max_length=256 << 10)]
    """A policy (c2sp.org/tlog-policy)."""


class Required(_Part, frozen=True, kw_only=True):
    """``require``: what this client asks of every answer, whatever the router asks of nodes."""

    platform_claims: _Claims = ("instance-identity",)
    """Trust claims that the result must affirm of the node."""
    model_claims: _Claims = MODEL_CLAIMS
    """And of the model."""
    assurance: str = "challenged"
    """The least assurance of the model."""
    max_age_s: _Seconds = 600
    """The greatest age of the result when the answer ended."""
    max_walk_age_s: _Seconds | None = None
    """The greatest age of the last right walk then; `None`: it is not asked."""
    has_front: bool = False
    """Whether the node's own front must have signed what it answered."""
    continued: bool = False
    """
    Whether an answer may be of several nodes, because the stream of the first ones broke (docs/longer-work.md).

    Of those before the last the router's word says which revision they had, and no front has signed the whole.
    """
    references: Annotated[tuple[_Digest, ...], Meta(max_length=64)] = ()
    """Reference values of models, by digest: the answer must come from one of them.  None: from any."""
    tells_router: bool = False
    """
    Whether claims, age of the walk and references go to the router with each request (``X-Touchstone-Require``).

    Then it chooses a node that meets them, or answers 412.  A request that has such a header keeps its own.
    """
    choice: Literal["replayed", "offered", "never"] = "offered"
    """
    What part the client has in the decision.

    ``offered``: it uses the commitments that come with answers, and the receipt must reveal what they committed to.
    ``replayed``: it has one before each request, and the whole decision must come out again from its record.
    """
    log: Literal["before", "later", "never"] = "later"
    """
    When the batch must be in the log.

    ``before`` an answer is handed on, which takes seconds; ``later``, within `log_within_s`; or ``never``.
    """
    log_within_s: _Seconds = 60

    def for_router(self) -> str:
        """What the router is told: what can only tighten what it requires itself."""
        told: dict[str, Any] = {"claims": {"platform": self.platform_claims, "model": self.model_claims}}
        if self.max_walk_age_s is not None:
            told["max_walk_age_s"] = self.max_walk_age_s
        if self.references:
            told["reference"] = self.references
        return msgspec.json.encode(told).decode()

    def __post_init__(self) -> None:
        for claim in (*self.platform_claims, *self.model_claims):
            if claim not in CLAIM_NAMES:
                raise ValueError(f"no trust claim {claim!r}")
        if self.assurance not in ASSURANCES:
            raise ValueError(f"no assurance {self.assurance!r}; there are {', '.join(ASSURANCES)}")


class TrustFile(_Part, frozen=True, kw_only=True):
    """A trust file as it is written."""

    version: Literal[1] = 1
    router: RouterTrust
    verifier: VerifierTrust
    log: LogTrust | None = None
    require: Required = Required()


class Trust:
    """
    A trust file, its keys read.

    Raises:
        TrustError: one of its parts cannot be used.
    """

    def __init__(self, file: TrustFile) -> None:
        self.file = file
        self.router, self.verifier, self.require = file.router, file.verifier, file.require
        try:
            self.receipt_keys: dict[str, ReceiptKey] = (
                read_keys(msgspec.json.encode({"keys": file.router.keys})) if file.router.keys else {}
            )
            self.result_keys: dict[str, VerifyingKey] = read_jwks(
                msgspec.json.encode({"keys": file.verifier.keys})
            )
            self.log = None if file.log is None else LogPolicy.parse(file.log.policy.encode())
        except (ReceiptError, ResultError, LogError) as error:
            raise TrustError(f"the trust file cannot be used: {error}") from None
        if self.router.gives_receipts and not self.receipt_keys:
            raise TrustError("the trust file has no receipt key of the router")
        if self.log is None and self.require.log != "never":
            raise TrustError(
                f'the trust file names no log, and require.log is "{self.require.log}": '
                'add the log, or set require.log to "never"'
            )

    @cached_property
    def router_url(self) -> str:
        """Without a slash at its end."""
        return self.router.url.rstrip("/")


def parse_trust(data: bytes) -> Trust:
    """
    Read a trust file.

    Raises:
        TrustError: it is too large, malformed, or has a key that cannot be used.
    """
    if len(data) > MAX_TRUST:
        raise TrustError(f"the trust file has more than {MAX_TRUST} bytes")
    try:
        return Trust(msgspec.convert(strictjson.loads(data), TrustFile))
    except (ValueError, RecursionError) as error:
        # msgspec's errors are such ones too.
        raise TrustError(f"the trust file is malformed: {error}") from None


def load_trust(path: Path) -> Trust:
    """Read the trust file at *path*.  Raises `TrustError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST + 1)
    except OSError as error:
        raise TrustError(
            f"the trust file {path} cannot be read: {error.strerror}. "
            "Make one: touchstone client trust ROUTER_URL --verifier URL --out FILE"
        ) from None
    return parse_trust(data)


def write_trust(file: TrustFile) -> bytes:
    """The bytes of a trust file, to be read by people too."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
