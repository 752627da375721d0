"""The loop of `touchstone challenges keep`: it outlives an unavailable database and a folder that is away."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from attester.weights.kernels import Kernel
from verifier.challenges.answer_keeping import AnswerKeeper, KeptAnswers
from verifier.challenges.keeping import Keeper, KeptModels
from verifier.commands.common import digest_cache, now_ms, wide_classes
from verifier.config import Home
from verifier.errors import StoreError
from verifier.store.opening import open_database

_STDIN: Final = 0
_LOOK_EVERY_S: Final = 10.0
_FIRST_WAIT_S: Final = 1.0
_MAX_WAIT_S: Final = 60.0

_log = structlog.get_logger("verifier")


def keep_until_ended(
    home: Path,
    folders: Mapping[str, Sequence[Path]],
    hours: float,
    make_kernel: Callable[[], Kernel],
    answers: Sequence[KeptAnswers] = (),
    *,
    with_stdin: bool,
) -> None:
    """
    Keep the pool filled until SIGTERM or SIGINT, or until standard input ends if *with_stdin*.

    Raises:
        ConfigError: The home or its configuration cannot be used.
        WeightsError: No kernel is exact on the device.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    asyncio.run(_keep(home, folders, hours, make_kernel(), answers))


def _end(_number: int, _frame: FrameType | None) -> None:
    # At once, whatever runs: a group of a large model takes minutes.  A kill loses no more than this does, and
    # an exception here could end up in the middle of a transaction that then waits for ever.
    os._exit(0)


def _end_with_stdin() -> None:
    # Not through `sys.stdin`: the interpreter aborts if a thread holds its lock at the end.
    while os.read(_STDIN, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def _keep(
    home: Path,
    folders: Mapping[str, Sequence[Path]],
    hours: float,
    walk_kernel: Kernel,
    answers: Sequence[KeptAnswers],
) -> None:
    config = Home(home).config()
    key, wait_s = Home(home).pool_key(), _FIRST_WAIT_S
    kept = KeptModels(folders=folders, hours=hours, calls=config.calls)
    models = sorted({*folders, *(each.where.model for each in answers)})
    _log.info("keeping challenges", models=models, hours=hours, kernel=walk_kernel.name)
    with digest_cache(home, no_cache=False) as cache:
        while True:
            try:
                async with open_database(config.store.url, Home(home).database) as db:
                    keeper = Keeper(
                        db,
                        kept,
                        key=key,
                        kernel=walk_kernel,
                        wide_classes=lambda tx: wide_classes(tx, home / config.policy.folder),
                        cache=cache,
                        now_ms=now_ms,
                        monotonic=time.monotonic,
                    )
                    answer_keeper = AnswerKeeper(
                        db,
                        answers,
                        hours,
                        calls=config.calls,
                        answers=config.answers,
                        key=key,
                        cache=None,
                        now_ms=now_ms,
                        monotonic=time.monotonic,
                    )
                    while True:
                        minted = await keeper.round() + await answer_keeper.round()
                        wait_s = _FIRST_WAIT_S
                        if not minted:
                            await asyncio.sleep(_LOOK_EVERY_S)
            except StoreError as error:
                _log.warning("the database cannot be used now", error=str(error), again_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _MAX_WAIT_S)
