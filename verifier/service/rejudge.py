"""
Judge live results again as soon as a policy, a reference value or a block changes.

Otherwise a rollback would reach routers only with the next evidence of each node, minutes later.
If the verifier's inputs of a live result changed, the result is judged again from its recording.
If the outcome differs, a new result replaces it: with the same time and expiry, because the
node attested nothing new.  No incident is opened or ended.  A result that cannot be judged again is
revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import Counter

from attester import kinds
from verifier import appraisal, changes
from verifier.appraisal import NodeSnapshot
from verifier.errors import EvidenceError, PolicyError, RecordingError, ReferenceValueError, StoreError
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.reappraisal import Reappraiser
from verifier.recording import VerifierInputNames
from verifier.schemes import blocking
from verifier.schemes.context import Blocks
from verifier.service.appraiser import devices_of, pin_of, sign_result
from verifier.service.inputs import AppraisalInputs, StoredLookup
from verifier.service.state import Service
from verifier.store import appraisals, blocks, nodes, recordings
from verifier.store.appraisals import OutdatedResult, Reappraisal, Sign, Signed
from verifier.store.database import Tx
from verifier.store.ids import new_id
from verifier.store.node_state import StaleError

_POLL_S: Final = 0.1
_PAGE: Final = 200

_log = structlog.get_logger("verifier")
_rejudged = Counter(
    "touchstone_rejudged_total", "Live results judged again, by what became of them.", ["outcome"]
)


class RejudgeOutcome(StrEnum):
    """What becomes of a live result that is not replaced.  The values are labels of the metric."""

    UNCHANGED = "stands"
    REVOKED = "lost"


@dataclass(frozen=True)
class _Replacement:
    """A new result in place of a live one."""

    anew: Reappraisal
    sign: Sign


@dataclass(frozen=True)
class _Round:
    """One round: every live result is brought up to one rollout."""

    rollout: Rollout
    now_ms: int
    reappraisers: dict[str, Reappraiser]
    """By the policy's digest."""


class Rejudger:
    """Follows what is in force, and brings live results up to it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(self) -> None:
        """Work until cancelled."""
        nothing = done = (-1, -1)
        while True:
            if self._service.duties.held:
                rollout = await self._load_rollout()
                # Once the clock is set, other results are live.
                wanted = (rollout.generation, self._service.duties.steps)
                if wanted != done and await self._finish(rollout):
                    done = wanted
            else:
                done = nothing
            await asyncio.sleep(_POLL_S)

    async def _load_rollout(self) -> Rollout:
        async with self._service.db.read() as tx:
            return await self._service.inputs.load_rollout(tx)

    async def _finish(self, rollout: Rollout) -> bool:
        """Catch up with *rollout*; returns whether that succeeded.  A further change ends it early."""
        work = asyncio.create_task(self.catch_up(rollout), name="catch up")
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                if not work.done() and (await self._load_rollout()).generation != rollout.generation:
                    return False
            await work
        except StaleError:
            return False
        except (PolicyError, StoreError) as error:
            _log.error("live results could not be judged again", error=str(error))
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
            StaleError: a further change came meanwhile.
        """
        service = self._service
        reappraisers: dict[str, Reappraiser] = {}
        changed = 0
        after = ""
        while True:
            now_ms = service.now_ms()
            async with service.db.scan() as tx:
                page = await appraisals.outdated(tx, rollout.generation, now_ms, after, _PAGE)
            if not page:
                _log_failures(reappraisers)
                return changed
            after = page[-1].node_id
            changed += await self._judge_page(page, _Round(rollout, now_ms, reappraisers))

    async def _judge_page(self, page: list[OutdatedResult], this_round: _Round) -> int:
        tasks = [asyncio.create_task(self._try_judge(known, this_round)) for known in page]
        try:
            outcomes = await asyncio.gather(*tasks)
        finally:
            # If one of them found a further change, the others must not go on.
            for task in tasks:
                task.cancel()
        pairs = list(zip(page, outcomes, strict=True))
        unchanged = [known for known, outcome in pairs if outcome is RejudgeOutcome.UNCHANGED]
        generation = this_round.rollout.generation

        async def store(tx: Tx) -> None:
            if unchanged:
                await appraisals.mark_current(tx, unchanged, generation)
            for known, outcome in pairs:
                if isinstance(outcome, _Replacement):
                    await _replace(tx, outcome, this_round.now_ms)
                    # If newer evidence has replaced the result already, this one is done too.
                    await appraisals.mark_current(tx, [known], generation)
                elif outcome is RejudgeOutcome.REVOKED:
                    await appraisals.revoke_outdated(tx, known, this_round.now_ms)

        await self._service.db.write(store)
        for _, outcome in pairs:
            _rejudged.labels("replaced" if isinstance(outcome, _Replacement) else outcome).inc()
        return len(page) - len(unchanged)

    async def _try_judge(self, known: OutdatedResult, this_round: _Round) -> RejudgeOutcome | _Replacement:
        try:
            return await self._judge(known, this_round)
        except (
            RecordingError,
            PolicyError,
            ReferenceValueError,
            EvidenceError,
            msgspec.MsgspecError,
        ) as error:
            # Another version wrote the recording, or it is damaged: the other results must not wait for it.
            _log.warning("a result could not be judged again", node=known.node_id, why=str(error)[:300])
            return RejudgeOutcome.REVOKED

    async def _judge(self, known: OutdatedResult, this_round: _Round) -> RejudgeOutcome | _Replacement:
        service = self._service
        verdicts = changes.verdicts_of(known.claims)
        models = [model for model in map(kinds.model_of, verdicts) if model is not None]
        async with service.db.read() as tx:
            inputs = await service.inputs.load_inputs(tx, known.node_id, models, this_round.now_ms)
            if inputs.rollout.generation != this_round.rollout.generation:
                raise StaleError
            names = inputs.verifier_inputs.basis(inputs.bundle.digest)
            names_then = msgspec.json.decode(known.basis, type=VerifierInputNames) if known.basis else None
            if names_then == names:
                return RejudgeOutcome.UNCHANGED
            if names_then is None:
                # An older version recorded nothing.  Its result has minutes to live; only blocks end it earlier.
                return RejudgeOutcome.UNCHANGED if names.blocks == Blocks() else RejudgeOutcome.REVOKED
            head = await recordings.read_head(tx, known.origin)
            if head is None:
                return RejudgeOutcome.REVOKED
            if _differ_in_blocks_only(names_then, names):
                evidence = await recordings.evidence_of(tx, known.origin)
                if evidence is not None and not _may_concern(names_then, names, head.input, evidence):
                    return RejudgeOutcome.UNCHANGED
        reappraiser = self._reappraiser(this_round.reappraisers, inputs.bundle)
        if known.id == known.origin and _differ_in_policy_only(names_then, names):
            # What is true has not changed.  Most often the verdicts are equal, and nothing more must be read.
            (after,) = await reappraiser.verdicts([head])
            if not changes.compare(verdicts, after):
                return RejudgeOutcome.UNCHANGED
        return await self._reappraise(known, reappraiser, inputs, names_then, names)

    async def _reappraise(
        self,
        known: OutdatedResult,
        reappraiser: Reappraiser,
        inputs: AppraisalInputs,
        names_then: VerifierInputNames,
        names: VerifierInputNames,
    ) -> RejudgeOutcome | _Replacement:
        """Judge the whole recording of a result again."""
        service = self._service
        async with service.db.read() as tx:
            recording = await recordings.of_appraisal(tx, known.origin)
            node = await nodes.by_id(tx, known.node_id)
        if recording is None or node is None:
            return RejudgeOutcome.REVOKED
        judged = await reappraiser.judge(recording, inputs.verifier_inputs)
        after = judged.verdicts(recording.record.held)
        # A result names its reference values: if they are others, it is replaced even if its verdicts are equal.
        if names_then.references == names.references and not changes.compare(
            changes.verdicts_of(known.claims), after
        ):
            return RejudgeOutcome.UNCHANGED
        anew = Reappraisal(
            known=known,
            node=node,
            pin=pin_of(judged.checked),
            devices=devices_of(judged.checked),
            basis=names,
            generation=inputs.rollout.generation,
        )

        def sign(snapshot: NodeSnapshot, sequence: int) -> Signed:
            service.marks.cover_event(sequence)
            result = appraisal.conclude(
                judged.checked, judged.outcome, judged.context, snapshot, recording.record.terms,
                jti=new_id(service.now_ms()), policy_id=inputs.bundle.id, sequence=sequence,
            )  # fmt: skip
            return sign_result(result, service.signing_key, known.issued_ms)

        return _Replacement(anew, sign)

    def _reappraiser(self, reappraisers: dict[str, Reappraiser], bundle: Bundle) -> Reappraiser:
        if bundle.digest not in reappraisers:
            service = self._service
            reappraisers[bundle.digest] = Reappraiser(
                bundle, partial(service.engine.ask, bundle), StoredLookup(service.db, service.inputs)
            )
        return reappraisers[bundle.digest]


def _log_failures(reappraisers: Mapping[str, Reappraiser]) -> None:
    """Log that a policy failed on live results, once for each policy: its nodes have no conclusion now."""
    for reappraiser in reappraisers.values():
        if reappraiser.failures:
            _log.error(
                "the policy failed",
                policy=reappraiser.bundle.id,
                error=reappraiser.first_failure,
                results=reappraiser.failures,
            )


async def _replace(tx: Tx, replacement: _Replacement, now_ms: int) -> None:
    known = replacement.anew.known
    try:
        await appraisals.replace_result(tx, replacement.anew, replacement.sign, now_ms)
    except EvidenceError as error:
        # The new result is larger than readers accept.  The other nodes' results must not suffer from it.
        _log.warning("a result could not be judged again", node=known.node_id, why=str(error))
        await appraisals.revoke_outdated(tx, known, now_ms)


def _differ_in_blocks_only(before: VerifierInputNames, after: VerifierInputNames) -> bool:
    return msgspec.structs.replace(before, blocks=after.blocks) == after


def _differ_in_policy_only(before: VerifierInputNames, after: VerifierInputNames) -> bool:
    return msgspec.structs.replace(before, policy=after.policy) == after


def _may_concern(
    before: VerifierInputNames, after: VerifierInputNames, policy_input: bytes, evidence: bytes
) -> bool:
    """Whether a node may have what was blocked or unblocked.  A search of what it said is quick."""
    was, now = before.blocks, after.blocks
    references = {name.digest for name in after.references.values()}
    others = (*after.superseded.values(), *after.beside.values())
    references |= {name.digest for names in others for name in names}
    if any(digest in references or bytes.fromhex(digest) in evidence for digest in was.digests ^ now.digests):
        return True
    if (devices := was.devices ^ now.devices) and any(
        blocking.literal_of(device) in evidence.lower() for device in devices
    ):
        return True
    engines = was.engines ^ now.engines
    running = blocks.engine_of(policy_input) if engines else None
    return running is not None and blocking.find_engine(engines, *running) is not None


REJUDGER: web.AppKey[Rejudger] = web.AppKey("rejudger", Rejudger)
