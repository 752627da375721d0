"""One node as the router sees it: an immutable value."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import force_setattr

from attester.kinds import model_submod
from verifier.results import AttestationResult, NodeRecord

_PLATFORM = "platform"
_SIGNER_BYTES: Final = 8
WALK_AT: Final = "walk_at_ms"
"""Among what was measured of a model: when the last walk that was right was asked for, Unix milliseconds."""


class AsideResult(Struct, frozen=True):
    """A result that came before or after its time, by the router's clock: it waits until that is right."""

    result: AttestationResult
    digest: bytes
    """As `NodeView.token_digest`."""
    issued_at: float
    """As `NodeView.issued_at`."""


class NodeView(Struct, frozen=True):
    """What the verifier said of one node, and for which incidents work is kept from it."""

    node: str
    result: AttestationResult | None = None
    """The newest result that counts; its signature was checked when it arrived."""
    token_digest: bytes = b""
    """By which the result's token is known again (`router.state.result_reader`); empty if nobody looks for it."""
    issued_at: float = math.inf
    """
    The latest moment at which the result can have been issued, by the router's monotonic clock.

    It bounds the result's life whatever is done to wall clocks; infinity: nobody knows.
    """
    revoked: bool = False
    void: int = 0
    """Results with numbers up to this one are revoked."""
    aside: AsideResult | None = None
    """A newer result that is set aside.  What it does not allow is not allowed."""
    retired: bool = False
    incidents: frozenset[str] = frozenset()
    """Open quarantines: the verifier's, and the router's own."""
    endpoint: tuple[str, str] | None = None
    """Where the node serves, and the pin of its TLS key, from its result, whatever is given here."""

    def __post_init__(self) -> None:
        """Find the endpoint once: every request asks for it."""
        force_setattr(self, "endpoint", endpoint_of(self.result))

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the node declares that it can take on."""
        found = self._attester_claims().get("capabilities")
        return found if isinstance(found, dict) else {}

    @property
    def operator(self) -> str:
        """The node's operator, by the verifier's word; empty if the result does not say."""
        record = self._record()
        return "" if record is None else record.operator

    @property
    def enrolled(self) -> int | None:
        """When the node was enrolled, Unix seconds, by the verifier's word."""
        record = self._record()
        return None if record is None else record.enrolled

    @property
    def hardware_class(self) -> Any:
        """By the verifier's word; if the result lacks it, by the node's own, which can only exclude the node."""
        record = self._record()
        return self.capabilities.get("hardware_class") if record is None else record.hardware_class

    @property
    def vouched_class(self) -> str:
        """The hardware class by the verifier's word alone; empty without it.  Prices go by it."""
        record = self._record()
        return "" if record is None else record.hardware_class

    @property
    def engine(self) -> tuple[str, str] | None:
        """
        The name of its engine, in small letters, and its version, by the node's own word; `None` if it does not say.

        It is never a reason to choose a node: it only keeps it from what another engine has begun.
        """
        match self._attester_claims().get("runtime"):
            case {"engine": str(engine), "version": str(version)}:
                return engine.strip().casefold(), version.strip()
        return None

    def revision(self, model: str) -> str:
        """The digest of the reference value that a model was compared with; empty if the result does not say."""
        return revision_of(self.result, model)

    def _record(self) -> NodeRecord | None:
        if self.result is None or _PLATFORM not in self.result.submods:
            return None
        return self.result.submods[_PLATFORM].ear_verifier_claims.node

    def _attester_claims(self) -> Mapping[str, Any]:
        return _attester_claims_of(self.result)


def revision_of(result: AttestationResult | None, model: str) -> str:
    """Which revision of a model a node has, by its result: the digest of the reference value; empty if it does not say."""
    appraised = None if result is None else result.submods.get(model_submod(model))
    return "" if appraised is None else appraised.ear_verifier_claims.reference or ""


def prompting_of(result: AttestationResult | None, model: str) -> Mapping[str, str]:
    """Where the chat template and the sampling defaults of a model come from, by a result: `template` and `sampling`."""
    appraised = None if result is None else result.submods.get(model_submod(model))
    return {} if appraised is None else appraised.ear_verifier_claims.prompting


def walk_at_ms(result: AttestationResult | None, model: str) -> int | None:
    """When the last walk of a model that counts was asked for, Unix milliseconds by the verifier; `None` if it does not say."""
    appraised = None if result is None else result.submods.get(model_submod(model))
    at = None if appraised is None else appraised.ear_verifier_claims.measured.get(WALK_AT)
    return at if type(at) is int else None


@lru_cache(maxsize=256)
def signer_tag(kid: str) -> bytes:
    """A key of the verifier in digests of tokens: they end with it."""
    return hashlib.sha256(kid.encode()).digest()[:_SIGNER_BYTES]


def endpoint_of(result: AttestationResult | None) -> tuple[str, str] | None:
    """Where a node serves, and the pin of its TLS key, by its result; `None` if that does not say."""
    match _attester_claims_of(result).get("endpoint"):
        case {"url": str(url), "spki_sha256": str(pin)}:
            return url, pin
    return None


def _attester_claims_of(result: AttestationResult | None) -> Mapping[str, Any]:
    if result is None or _PLATFORM not in result.submods:
        return {}
    return result.submods[_PLATFORM].ear_attester_claims
