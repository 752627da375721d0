"""The process that keeps the pool filled beside a serving verifier: it is started again when it ends, and ends with it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

_FIRST_WAIT_S: Final = 1.0
_MAX_WAIT_S: Final = 60.0
_LIVED_S: Final = 60.0
"""A process that ran for so long has not failed at its start."""
_END_S: Final = 5.0
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_log = structlog.get_logger("verifier")


@asynccontextmanager
async def keeper_process(arguments: Sequence[str]) -> AsyncIterator[None]:
    """
    Run ``touchstone challenges keep`` with *arguments* as a process of its own for as long as the block lasts.

    It has one thread and a low priority, so it takes nothing from the verifier.  If the verifier is killed, its end
    of a pipe closes, and the process ends too.
    """
    if not arguments:
        yield
        return
    task = asyncio.create_task(_supervise(arguments), name="keeper")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _supervise(arguments: Sequence[str]) -> None:
    wait_s = _FIRST_WAIT_S
    while True:
        began = time.monotonic()
        try:
            status = await _run_once(arguments)
        except OSError as error:
            _log.error("the pool's keeper cannot be started", error=str(error), again_in_s=wait_s)
        else:
            if time.monotonic() - began > _LIVED_S:
                wait_s = _FIRST_WAIT_S
            _log.error("the pool's keeper ended", status=status, again_in_s=wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _MAX_WAIT_S)


async def _run_once(arguments: Sequence[str]) -> int:
    """Run the process to its end, and end it if this task is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "touchstone", "challenges", "keep", "--with-stdin", *arguments),
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
