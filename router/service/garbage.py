"""The garbage collector of a process that only routes."""

from __future__ import annotations

import gc
from typing import Final

from aiohttp import web

from router.service.state import STATE

_GC_THRESHOLDS: Final = (20_000, 50, 100)
"""Requests make no reference cycles, so the garbage collector need not run every few of them."""


async def tune_garbage_collector(app: web.Application) -> None:
    """Exempt from garbage collection what exists now and what snapshots bring, for a process that only routes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    # What is known of nodes makes no cycles, and to go through all of it takes half a second for 10⁵ nodes.
    app[STATE].feed.on_page = gc.freeze
