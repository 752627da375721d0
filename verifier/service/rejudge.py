"""
Judge live results anew, as soon as a policy, a reference value or a block changes.

Without it a rollback would reach routers only with the next evidence of each node, minutes
later.  Each live result whose grounds changed is judged again from its recording and, where
it comes to something else, replaced: with the time and the expiry that it had, for nothing
was attested anew.  No incident follows, in either direction.  A result that cannot be judged
again is revoked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import Counter

from attester import cbor, kinds
from verifier import appraisal, changes, reappraisal
from verifier.appraisal import Held
from verifier.errors import EvidenceError, PolicyError, RecordingError, ReferenceValueError, StoreError
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.recording import VerifierInputNames
from verifier.schemes.base import Blocks
from verifier.service.appraiser import Appraiser, devices_of, pin_of
from verifier.service.inputs import StoredLookup
from verifier.service.state import Service
from verifier.store import appraisals, nodes, recordings
from verifier.store.appraisals import Anew, Outdated, Signed, StaleError

_POLL_S: Final = 0.1
_PAGE: Final = 200

_log = structlog.get_logger("verifier")
_rejudged = Counter(
    "touchstone_rejudged_total", "Live results judged anew, by what became of them.", ["outcome"]
)


class Fate(StrEnum):
    """What becomes of a live result without judging it to be something else."""

    STANDS = "stands"
    LOST = "lost"


@dataclass(frozen=True)
class _Replaced:
    anew: Anew
    sign: Callable[[Held], Signed]


class Rejudge:
    """Follows what is in force, and brings live results up to it."""

    def __init__(self, service: Service, appraiser: Appraiser) -> None:
        self._service = service
        self._appraiser = appraiser

    async def run(self) -> None:
        """Work until cancelled."""
        done = -1
        while True:
            rollout = await self._rollout()
            if rollout.generation != done and await self._finish(rollout):
                done = rollout.generation
            await asyncio.sleep(_POLL_S)

    async def _rollout(self) -> Rollout:
        async with self._service.db.read() as tx:
            return await self._service.inforce.rollout(tx)

    async def _finish(self, rollout: Rollout) -> bool:
        """Catch up with *rollout*, unless a further change comes: what it replaces need not be waited for."""
        work = asyncio.create_task(self.catch_up(rollout), name="catch up")
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                if not work.done() and (await self._rollout()).generation != rollout.generation:
                    return False
            await work
        except StaleError:
            return False
        except (PolicyError, StoreError) as error:
            _log.error("live results could not be judged anew", error=str(error))
            return False
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError, StaleError, PolicyError, StoreError):
                await work
        return True

    async def catch_up(self, rollout: Rollout) -> int:
        """
        Bring every live result up to *rollout*; returns how many were replaced or revoked.

        Raises:
            StaleError: something changed meanwhile.
        """
        service = self._service
        replays: dict[str, reappraisal.Reappraiser] = {}
        changed = 0
        while True:
            now_ms = service.now_ms()
            async with service.db.read() as tx:
                page = await appraisals.outdated(tx, rollout.generation, now_ms, _PAGE)
            if not page:
                return changed
            changed += await self._judge_page(page, rollout, replays, now_ms)

    async def _judge_page(
        self, page: list[Outdated], rollout: Rollout, replays: dict[str, reappraisal.Reappraiser], now_ms: int
    ) -> int:
        service = self._service
        tasks = [asyncio.create_task(self._judge(known, rollout, replays, now_ms)) for known in page]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            # Where one says that a further change came, the others need not go on.
            for task in tasks:
                task.cancel()
        pairs = list(zip(page, found, strict=True))
        stands = [known for known, fate in pairs if fate is Fate.STANDS]
        async with service.db.write() as tx:
            if stands:
                await appraisals.still_stands(tx, stands, rollout.generation)
            for known, fate in pairs:
                if isinstance(fate, _Replaced):
                    try:
                        await appraisals.replace_result(tx, fate.anew, fate.sign, now_ms)
                    except EvidenceError as error:
                        # It grew larger than readers accept: one node's trouble, and no other's.
                        _log.warning("a result could not be judged anew", node=known.node_id, why=str(error))
                        await appraisals.lose(tx, known, now_ms)
                    # What could not be replaced has been, by newer evidence.
                    await appraisals.still_stands(tx, [known], rollout.generation)
                elif fate is Fate.LOST:
                    await appraisals.lose(tx, known, now_ms)
        for _, fate in pairs:
            _rejudged.labels("replaced" if isinstance(fate, _Replaced) else fate).inc()
        return len(page) - len(stands)

    async def _judge(
        self, known: Outdated, rollout: Rollout, replays: dict[str, reappraisal.Reappraiser], now_ms: int
    ) -> Fate | _Replaced:
        try:
            return await self._fate(known, rollout, replays, now_ms)
        except (
            RecordingError,
            PolicyError,
            ReferenceValueError,
            EvidenceError,
            msgspec.MsgspecError,
        ) as error:
            # Written by another version, or damaged: it must not keep others from being judged.
            _log.warning("a result could not be judged anew", node=known.node_id, why=str(error)[:300])
            return Fate.LOST

    async def _fate(
        self, known: Outdated, rollout: Rollout, replays: dict[str, reappraisal.Reappraiser], now_ms: int
    ) -> Fate | _Replaced:
        service = self._service
        verdicts = changes.verdicts_of(known.claims)
        models = [model for model in map(kinds.model_of, verdicts) if model is not None]
        async with service.db.read() as tx:
            grounds = await service.inforce.grounds(tx, known.node_id, models, now_ms)
            if grounds.rollout.generation != rollout.generation:
                raise StaleError
            basis = grounds.given.basis(grounds.bundle.digest)
            before = msgspec.json.decode(known.basis, type=VerifierInputNames) if known.basis else None
            if before == basis:
                return Fate.STANDS
            if before is None:
                # From before there were recordings: it stands for its few minutes, unless something is blocked.
                return Fate.STANDS if basis.blocks == Blocks() else Fate.LOST
            first = await recordings.taken(tx, known.origin)
            if first is None:
                return Fate.LOST
            if _only_blocks(before, basis):
                evidence = await recordings.evidence_of(tx, known.origin)
                if evidence is not None and not _touches(before, basis, evidence):
                    return Fate.STANDS
        replay = self._replay(replays, grounds.bundle)
        if known.id == known.origin and _only_policy(before, basis):
            # The same things are true: most often they come to the same, and nothing more need be read.
            (after,) = await replay.verdicts([first])
            if not changes.compare(verdicts, after):
                return Fate.STANDS
        async with service.db.read() as tx:
            taken = await recordings.of_appraisal(tx, known.origin)
            node = await nodes.by_id(tx, known.node_id)
        if taken is None or node is None:
            return Fate.LOST
        judged = await replay.judge(taken, grounds.given)
        after = judged.verdicts(taken.record.held)
        if before.references == basis.references and not changes.compare(verdicts, after):
            return Fate.STANDS
        anew = Anew(
            known, node, pin_of(judged.checked), devices_of(judged.checked), basis, rollout.generation
        )

        def sign(held: Held) -> Signed:
            result = appraisal.conclude(
                judged.checked, judged.outcome, judged.context, held, taken.record.terms,
                jti=secrets.token_hex(16), policy_id=grounds.bundle.id,
            )  # fmt: skip
            return self._appraiser.signed(result, known.issued_ms)

        return _Replaced(anew, sign)

    def _replay(self, replays: dict[str, reappraisal.Reappraiser], bundle: Bundle) -> reappraisal.Reappraiser:
        if bundle.digest not in replays:
            service = self._service

            replays[bundle.digest] = reappraisal.Reappraiser(
                bundle, partial(service.engine.ask, bundle), StoredLookup(service.db, service.inforce)
            )
        return replays[bundle.digest]


def _only_blocks(before: VerifierInputNames, after: VerifierInputNames) -> bool:
    return msgspec.structs.replace(before, blocks=after.blocks) == after


def _only_policy(before: VerifierInputNames, after: VerifierInputNames) -> bool:
    return msgspec.structs.replace(before, policy=after.policy) == after


def _touches(before: VerifierInputNames, after: VerifierInputNames, evidence: bytes) -> bool:
    """Whether what was blocked or lifted can be in *evidence* at all: by its bytes in CBOR, for it is quick."""
    was, now = before.blocks, after.blocks
    held = {name.digest for name in after.references.values()}
    held |= {name.digest for earlier in after.superseded.values() for name in earlier}
    return (
        any(digest in held or bytes.fromhex(digest) in evidence for digest in was.digests ^ now.digests)
        or any(cbor.encode(device) in evidence for device in was.devices ^ now.devices)
        or any(
            all(part.encode() in evidence for part in engine.split("@"))
            for engine in was.engines ^ now.engines
        )
    )


REJUDGE: web.AppKey[Rejudge] = web.AppKey("rejudge", Rejudge)
