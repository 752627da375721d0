"""Collectors of evidence, one for each kind.  The agent uses the registry `COLLECTORS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attester.collectors.base import KindCollector, Sources
from attester.collectors.gpu import GpuCollector
from attester.collectors.model import ModelCollector
from attester.collectors.platform import PlatformCollector

COLLECTORS: Final[dict[str, Callable[[Sources], KindCollector]]] = {
    "platform": PlatformCollector,
    "gpu": GpuCollector,
    "model": ModelCollector,
}
"""By kind, in the order in which they collect."""
