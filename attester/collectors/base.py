"""What a collector of one kind of evidence gets, and what it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from attester.config import AttesterConfig
from attester.cose import PrivateKey
from attester.engines.base import Engine
from attester.evidence import Benchmark, Exposure, ReadAnswer, WalkAnswer
from attester.kinds import Submod
from attester.model_files import ModelFiles

Answers = Mapping[str, tuple[ReadAnswer | None, WalkAnswer | None]]
"""By model, the answers to its challenges."""


@dataclass(kw_only=True)
class Sources:
    """The parts of a node from which evidence is collected.  The keys may be replaced while the attester runs."""

    config: AttesterConfig
    engine: Engine
    files: ModelFiles
    tls_key: PrivateKey
    kid: bytes
    """The thumbprint of the node key."""
    benchmarks: Callable[[], Mapping[int, Benchmark]] = dict
    """The stored benchmark runs, by number of the device."""
    exposure: Callable[[], Awaitable[Exposure | None]] | None = None
    """Looks at the served endpoint from outside."""


@dataclass(frozen=True)
class EvidenceSession:
    """The session that the evidence is for."""

    nonce: bytes
    answers: Answers = field(default_factory=dict)


class KindCollector(Protocol):
    """Collects the submodules of one kind."""

    async def collect(self, session: EvidenceSession) -> Mapping[str, Submod]:
        """
        The claims of each submodule of the kind, by the submodule's name; empty if there are none.

        Raises:
            AttesterError: this kind cannot be collected, and evidence without it must not be sent.
        """
        ...
