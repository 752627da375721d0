"""What the router knows at one moment: results, incidents, standings.  A value, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.standing import Standing
from verifier.results import AttestationResult


@dataclass(frozen=True)
class NodeView:
    """One node as the router sees it."""

    node: str
    result: AttestationResult | None = None
    """The newest result; its signature was checked when it came."""
    revoked: bool = False
    retired: bool = False
    incidents: frozenset[str] = frozenset()
    """Open quarantines."""

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

    def _platform(self) -> Mapping[str, Any]:
        if self.result is None or "platform" not in self.result.submods:
            return {}
        return self.result.submods["platform"].ear_attester_claims


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision rests on."""

    version: int
    now_ms: int
    monotonic: float
    nodes: Mapping[str, NodeView]
    standings: Mapping[tuple[str, str], Standing] = field(default_factory=dict)
    """By node and model."""
    feed_silent_s: float = 0.0
    """How long nothing was heard from the verifier."""

    def standing(self, node: str, model: str) -> Standing:
        """A node's standing for a model."""
        return self.standings.get((node, model), Standing())
