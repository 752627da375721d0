"""
The verifier without its log, to be measured against the one with it: nothing is written down, and nothing signed.

    python -m bench.unlogged verifier serve --home HOME
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from touchstone import main
from verifier.service.sequencer import Sequencer
from verifier.store import log
from verifier.store.database import Tx


async def _append(tx: Tx, now_ms: int, kind: str, members: Mapping[str, log.Value]) -> None:
    """In place of `verifier.store.log.append`."""


async def _rest(self: Sequencer) -> None:  # noqa: ARG001
    """In place of the sequencer."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    log.append = _append
    Sequencer.run = _rest  # type: ignore[method-assign]  # the whole point
    main()
