"""Collects `model/NAME`: the manifest of each model, and the answers to its challenges."""

from __future__ import annotations

from collections.abc import Mapping

from attester.collectors.base import EvidenceSession, Sources
from attester.evidence import Claims
from attester.kinds import Submod, model_submod


class ModelCollector:
    """See `KindCollector`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def collect(self, session: EvidenceSession) -> Mapping[str, Submod]:
        """See `KindCollector`.  A claim that cannot be made is left out."""
        found: dict[str, Submod] = {}
        for model in self._sources.config.models:
            read, walk = session.answers.get(model, (None, None))
            manifest = await self._sources.files.try_manifest(model)
            claims: dict[str, Claims | None] = {"manifest": manifest, "read": read, "walk": walk}
            found[model_submod(model)] = {name: claim for name, claim in claims.items() if claim is not None}
        return found
