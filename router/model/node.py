"""One node as the router sees it.  A value, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifier.results import AttestationResult, NodeRecord


@dataclass(frozen=True)
class NodeView:
    """What the verifier has said of one node."""

    node: str
    result: AttestationResult | None = None
    """The newest result; its signature was checked when it came."""
    revoked: bool = False
    retired: bool = False
    incidents: frozenset[str] = frozenset()
    """Open quarantines: the verifier's, and the router's own."""

    @property
    def endpoint(self) -> tuple[str, str] | None:
        """Where the node serves, and the pin of its TLS key, from its result."""
        endpoint = self._platform().get("endpoint")
        match endpoint:
            case {"url": str(url), "spki_sha256": str(pin)}:
                return url, pin
            case _:
                return None

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the node declares that it can take on."""
        found = self._platform().get("capabilities")
        return found if isinstance(found, dict) else {}

    @property
    def operator(self) -> str:
        """Whose node it is, by the verifier's word; empty where it does not say."""
        record = self._record()
        return "" if record is None else record.operator

    @property
    def enrolled(self) -> int | None:
        """When it was enrolled, Unix seconds, by the verifier's word."""
        record = self._record()
        return None if record is None else record.enrolled

    @property
    def hardware_class(self) -> Any:
        """By the verifier's word; by the node's own, which can only exclude it, where that is missing."""
        record = self._record()
        return self.capabilities.get("hardware_class") if record is None else record.hardware_class

    def _record(self) -> NodeRecord | None:
        if self.result is None or "platform" not in self.result.submods:
            return None
        return self.result.submods["platform"].ear_verifier_claims.node

    def _platform(self) -> Mapping[str, Any]:
        if self.result is None or "platform" not in self.result.submods:
            return {}
        return self.result.submods["platform"].ear_attester_claims
