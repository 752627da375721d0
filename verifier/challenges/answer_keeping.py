"""
Keeping minted answers from running out: what is low is minted, a few at a time, while routers take them.

As with challenges (`verifier.challenges.keeping`), the levels in the database decide, and a kill loses one answer at most.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from attester.errors import WeightsError
from attester.weights.cache import DigestCache
from verifier.answers.checks import EngineUsed, Operation
from verifier.answers.material import Material
from verifier.answers.shapes import Shape
from verifier.challenges.answer_engine import AnswerEngine, Named, answer_engine
from verifier.challenges.answer_minting import AnswerMinter, Tally
from verifier.challenges.answer_weights import Where, check_folder, check_weights, dtype_of
from verifier.challenges.demand import ANSWERS, CallSettings, ModelDemand, Rate
from verifier.challenges.keeping import LOW_SHARE
from verifier.challenges.pool_key import PoolKey
from verifier.challenges.stock import AnswerSettings, read_demand
from verifier.errors import ReferenceValueError, RequestError
from verifier.references import measured
from verifier.references.measured import Document
from verifier.store import answer_pool, references
from verifier.store.answer_pool import Batch
from verifier.store.database import Database, Tx

_GROUP: Final = 8
_BATCH_MS: Final = 24 * 3600 * 1000
"""Answers of a day and an engine are one batch."""
_WARN_EVERY_S: Final = 3600.0

_log = structlog.get_logger("verifier")


@dataclass(frozen=True, kw_only=True)
class KeptAnswers:
    """Answers of one model that are kept, and how they are minted."""

    where: Where
    material: Material
    shapes: Sequence[Shape]
    named: Named
    api_key: str | None = None
    operation: Operation | None = None
    parallel: int = 1


class AnswerKeeper:
    """
    Mints answers that are low, a few at a time.

    Args:
        hours: How many hours of checks there are to be.
        monotonic: Seconds, for warnings.
    """

    def __init__(
        self,
        db: Database,
        kept: Sequence[KeptAnswers],
        hours: float,
        *,
        calls: CallSettings,
        answers: AnswerSettings,
        key: PoolKey,
        cache: DigestCache | None,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._db = db
        self._kept = kept
        self._hours = hours
        self._calls = calls
        self._answers = answers
        self._key = key
        self._cache = cache
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._filling: set[str] = set()
        """Reference values for which is minted until the goal is reached."""
        self._warned: dict[str, float] = {}

    async def round(self) -> int:
        """
        Mint a few of each model that is low.

        Returns:
            How many answers were minted.  If 0, nothing is low or nothing can be minted now; the log says why.

        Raises:
            StoreError: The database cannot be used.
        """
        minted = 0
        for kept in self._kept:
            try:
                minted += await self._refill(kept)
            except (ReferenceValueError, WeightsError, RequestError) as error:
                # The engine may come back, and another one may be well meanwhile.
                self._warn(kept.where.model, str(error))
        return minted

    async def _refill(self, kept: KeptAnswers) -> int:
        document = await self._document_of(kept)
        if document is None or not await self._is_low(document):
            return 0
        async with answer_engine(kept.where.url, kept.where.model, kept.api_key) as engine:
            used = await engine.describe(kept.named, dtype_of(document))
            # In a thread: what walks has a loop of its own.
            await asyncio.to_thread(check_weights, kept.where, document, engine)
            operation = kept.operation or await engine.operation()
            tally = await self._mint(kept, document, engine, used, operation)
        self._warned.pop(kept.where.model, None)
        _log.info(
            "minted answers", model=document.model, minted=tally.minted, dropped=sum(tally.dropped.values())
        )
        return tally.minted

    async def _document_of(self, kept: KeptAnswers) -> Document | None:
        """
        The reference value that answers are minted for: the one whose files are in the folder, or the one in force.

        Raises:
            ReferenceValueError, WeightsError: no value that is live has the files of the folder.
        """
        async with self._db.read() as tx:
            rows = [
                row
                for row in await references.documents(tx, references.LIVE)
                if row["model"] == kept.where.model
            ]
        rows.sort(key=lambda row: row["state"] != "active")
        documents = [measured.read_document(row["document"]) for row in rows]
        if kept.where.folder is None:
            return documents[0] if rows and rows[0]["state"] == "active" else None
        failure: ReferenceValueError | WeightsError | None = None
        for document in documents:
            try:
                check_folder(document, kept.where.folder, self._cache, None)
            except (ReferenceValueError, WeightsError) as error:
                failure = failure or error
            else:
                return document
        if failure is not None:
            raise failure
        return None

    async def _is_low(self, document: Document) -> bool:
        async with self._db.read() as tx:
            demand = await read_demand(tx, self._calls, self._answers, (), self._now_ms())
            levels = await answer_pool.levels(tx)
        rate: Rate = demand.get(document.model, ModelDemand()).rate(ANSWERS)
        hours = rate.hours_of(sum(row["free"] for row in levels if row["reference"] == document.digest))
        if hours >= self._hours or math.isinf(hours):
            self._filling.discard(document.digest)
            return False
        if document.digest not in self._filling and hours >= self._hours * LOW_SHARE:
            return False
        self._filling.add(document.digest)
        return True

    async def _mint(
        self,
        kept: KeptAnswers,
        document: Document,
        engine: AnswerEngine,
        used: EngineUsed,
        operation: Operation,
    ) -> Tally:
        """Mint a group into today's batch of this engine.  Raises what `AnswerMinter.mint` raises."""
        minter = AnswerMinter(
            db=self._db,
            key=self._key,
            model=document.model,
            engine=engine,
            used=used,
            operation=operation,
            shapes=kept.shapes,
            material=kept.material,
            parallel=kept.parallel,
            now_ms=self._now_ms,
        )

        async def open_batch(tx: Tx) -> Batch:
            now_ms = self._now_ms()
            last = await answer_pool.last_batch(tx, document.model, document.digest)
            if (
                last is not None
                and last.minted_ms > now_ms - _BATCH_MS
                and (last.engine, last.operation) == (used, operation)
            ):
                return last
            return await answer_pool.open_batch(
                tx, document.model, document.digest, operation, used, wanted=0, now_ms=now_ms
            )

        return await minter.mint(await self._db.write(open_batch), _GROUP)

    def _warn(self, model: str, why: str) -> None:
        now = self._monotonic()
        if now - self._warned.get(model, -math.inf) >= _WARN_EVERY_S:
            self._warned[model] = now
            _log.warning("answers are low and cannot be minted now", model=model, why=why)
