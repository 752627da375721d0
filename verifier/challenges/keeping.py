"""
Keeping the pool filled: what is low is minted, group by group, while others use it up.

The levels in the database decide what is minted next, and nothing is remembered that a kill could lose: each group
is of use as soon as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import structlog

from attester.errors import WeightsError
from attester.weights.cache import DigestCache
from attester.weights.folder import Folder, open_folder, restrict
from attester.weights.kernels import Kernel
from attester.weights.tensors import TensorFiles
from verifier.challenges.demand import KINDS, CallSettings, ModelDemand, demand_of
from verifier.challenges.minting import WALKS_PER_GROUP, Minter
from verifier.challenges.pool_key import PoolKey
from verifier.challenges.runs import READS_PER_GROUP, Goal, fill_pool
from verifier.challenges.stock import read_fleet
from verifier.errors import ReferenceValueError
from verifier.references import measured
from verifier.references.measured import Document
from verifier.store import model_rollouts, pool, references
from verifier.store.database import Database, Tx

LOW_SHARE: Final = 0.5
"""Challenges are minted from when fewer than this share of the goal is left, until it is reached."""
_BATCH_MS: Final = 24 * 3600 * 1000
"""Groups of a day are one batch: a batch is what is found out to be bad, and the table of batches stays small."""
_WARN_EVERY_S: Final = 3600.0
_GROUP: Final = {"read": READS_PER_GROUP, "walk": WALKS_PER_GROUP, "wide": WALKS_PER_GROUP}

WideClasses: TypeAlias = Callable[[Tx], Awaitable[Collection[str]]]
"""Reads the hardware classes that can be asked wide walks."""

_log = structlog.get_logger("verifier")


@dataclass(frozen=True, kw_only=True)
class KeptModels:
    """What is kept filled, and up to where."""

    folders: Mapping[str, Sequence[Path]]
    """By model, the folders with its weights: one for each reference value that is to be kept."""
    hours: float
    """How many hours of the enrolled fleet's calls there are to be."""
    calls: CallSettings


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Challenges of one kind for one reference value, and for how long those that are left last."""

    document: Document
    is_active: bool
    """Whether nodes are challenged on it now: it is in force, or is rolled out."""
    kind: str
    hours: float


class Keeper:
    """
    Mints what is low, one group at a time.

    Args:
        db: Where the pool is.
        kept: What to keep.
        cache: Digests of files that have not changed since they were read.
        monotonic: Seconds, for warnings.
    """

    def __init__(
        self,
        db: Database,
        kept: KeptModels,
        *,
        key: PoolKey,
        kernel: Kernel,
        wide_classes: WideClasses,
        cache: DigestCache | None,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._db = db
        self._kept = kept
        self._key = key
        self._kernel = kernel
        self._wide_classes = wide_classes
        self._cache = cache
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._filling: set[tuple[str, str]] = set()
        """Reference values and kinds that are minted until their goal is reached."""
        self._groups: dict[tuple[str, str], int] = {}
        """How many groups this process has minted: some of them are spot-checked."""
        self._documents: dict[str, Document] = {}
        self._warned: dict[tuple[str, str], float] = {}

    async def round(self) -> int:
        """
        Mint one group of what will be used up first, if it is low.

        Returns:
            How many challenges were minted.  If 0, nothing is low or nothing can be minted now; the log says why.

        Raises:
            StoreError: The database cannot be used.
        """
        for place in sorted(await self._low_places(), key=lambda place: (not place.is_active, place.hours)):
            try:
                return await self._mint(place)
            except (ReferenceValueError, WeightsError) as error:
                # The folder may come back, and another place may be filled meanwhile.
                self._warn(place, str(error))
        return 0

    async def _low_places(self) -> list[_Place]:
        found: list[_Place] = []
        async with self._db.read() as tx:
            wide_classes = await self._wide_classes(tx)
            demand = demand_of(self._kept.calls, await read_fleet(tx), wide_classes)
            # Both revisions of a roll-out are as urgent as what is in force.
            rolling = {rollout.new for rollout in await model_rollouts.running(tx)}
            for model in sorted(self._kept.folders):
                for row in await references.every(tx, model):
                    if row["state"] in references.LIVE:
                        document = await self._read_document(tx, row["digest"])
                        free = await pool.free_of(tx, document.digest)
                        found += _places(
                            document,
                            free,
                            demand.get(model, ModelDemand()),
                            is_active=row["state"] == "active" or row["digest"] in rolling,
                        )
        return [place for place in found if self._is_low(place)]

    async def _read_document(self, tx: Tx, digest: str) -> Document:
        """Read a reference value.  It never changes under its digest, so it is read once."""
        if digest not in self._documents:
            row = await references.by_digest(tx, digest)
            assert row is not None
            self._documents[digest] = measured.read_document(row["document"])
        return self._documents[digest]

    def _is_low(self, place: _Place) -> bool:
        name = (place.document.digest, place.kind)
        if place.hours >= self._kept.hours or math.isinf(place.hours):
            if name in self._filling:
                self._filling.discard(name)
                _log.info("enough challenges", model=place.document.model, kind=place.kind)
            return False
        if name not in self._filling and place.hours >= self._kept.hours * LOW_SHARE:
            return False
        if name not in self._filling:
            self._filling.add(name)
            _log.info(
                "minting challenges",
                model=place.document.model,
                kind=place.kind,
                hours_left=round(place.hours, 2),
            )
        return True

    async def _mint(self, place: _Place) -> int:
        """
        Mint a group.

        Raises:
            ReferenceValueError: No folder has the weights, the value is no longer live, another process mints for
                the model, or a spot check disagrees: nothing was stored.
            WeightsError: The folder cannot be read.
        """
        document, kind = place.document, place.kind
        if document.loaded_by is not None and kind != "read":
            raise ReferenceValueError(
                f"walks of {document.model} come from its engine, and are not kept: touchstone challenges mint --engine URL"
            )
        folder, tensors = self._open_folder(document)
        count, name = _GROUP[kind], (document.digest, kind)
        sizes, batch = await self._db.write(lambda tx: self._open_batch(tx, document))
        minter = Minter(
            model=document.model,
            folder=folder,
            tensors=tensors,
            key=self._key,
            kernel=self._kernel,
            batch=batch,
            gates=document.gates,
        )
        groups = self._groups.get(name, 0)
        await fill_pool(
            self._db, minter, msgspec.structs.replace(sizes, **{f"{kind}s": count}), groups_before=groups
        )
        self._groups[name] = groups + 1
        self._warned.pop(name, None)
        return count

    def _open_folder(self, document: Document) -> tuple[Folder, TensorFiles]:
        """The folder whose files are those of a reference value.  Raises what `_mint` raises."""
        failure: ReferenceValueError | WeightsError | None = None
        for path in self._kept.folders[document.model]:
            try:
                folder = open_folder(path, document.ignore, everything=True)
                folder = measured.check_folder(document, folder, self._cache)
                return folder, TensorFiles(restrict(folder, document.gates))
            except (ReferenceValueError, WeightsError) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def _open_batch(self, tx: Tx, document: Document) -> tuple[Goal, int]:
        """The sizes of the challenges, which are those of the model's last run, and today's batch."""
        last = await pool.last_batch(tx, document.model)
        goal = Goal() if last is None else msgspec.json.decode(last["goal"], type=Goal)
        sizes = msgspec.structs.replace(goal, reads=0, walks=0, wides=0)
        own = await pool.last_batch(tx, document.model, document.digest)
        if (
            own is not None
            and own["minted_ms"] > self._now_ms() - _BATCH_MS
            and msgspec.json.decode(own["goal"], type=Goal) == sizes
        ):
            return sizes, int(own["id"])
        text = msgspec.json.encode(sizes).decode()
        return sizes, await pool.open_batch(tx, document.model, document.digest, self._now_ms(), text)

    def _warn(self, place: _Place, why: str) -> None:
        now, name = self._monotonic(), (place.document.digest, place.kind)
        if now - self._warned.get(name, -math.inf) >= _WARN_EVERY_S:
            self._warned[name] = now
            _log.warning(
                "challenges are low and cannot be minted now",
                model=place.document.model,
                kind=place.kind,
                why=why,
            )


def _places(
    document: Document, free: Mapping[str, int], wanted: ModelDemand, *, is_active: bool
) -> Iterator[_Place]:
    if not document.tensors:
        # There is nothing to walk, and `mint` refuses it too.
        return
    for kind in KINDS:
        # While there are no wide walks, ordinary ones are used up in their place; both are minted.
        rate = wanted.rate(kind, has_wides=kind == "wide" or free.get("wide", 0) > 0)
        hours = rate.hours_of(free.get(kind, 0))
        yield _Place(document=document, is_active=is_active, kind=kind, hours=hours)
