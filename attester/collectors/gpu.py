"""Collects `gpu/N`: the driver's description of each device, and its stored benchmark run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from attester.collectors.base import EvidenceSession, Sources
from attester.errors import AttesterError
from attester.evidence import Claims, Inventory
from attester.gpu.inventory import inventory, visible
from attester.kinds import Submod

_log = structlog.get_logger("attester")


class GpuCollector:
    """See `KindCollector`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._inventory: tuple[Inventory, ...] = ()

    async def collect(self, _session: EvidenceSession) -> Mapping[str, Submod]:
        """See `KindCollector`.  A device without inventory and without benchmark is left out."""
        if not self._inventory:
            # Devices do not disappear while a process runs, but a driver may be loaded after it starts.
            chosen = self._sources.config.gpu.devices
            self._inventory = await asyncio.to_thread(inventory, visible() if chosen is None else chosen)
        found: dict[str, dict[str, Claims]] = {
            f"gpu/{number}": {"inventory": device} for number, device in enumerate(self._inventory)
        }
        try:
            runs = self._sources.benchmarks()
        except AttesterError as error:
            _log.error("a benchmark run cannot be read", why=str(error))
            runs = {}
        for number, benchmark in runs.items():
            found.setdefault(f"gpu/{number}", {})["benchmark"] = benchmark
        return found
