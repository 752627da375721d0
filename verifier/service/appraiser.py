"""From evidence received to a result stored: the pure appraisal, with the database and the policy around it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import structlog
from msgspec import Struct
from prometheus_client import Counter

from attester import kinds
from verifier import appraisal, incidents, opening, recording, results
from verifier.appraisal import CheckedEvidence, NodeSnapshot, PolicyOutcome, ResultSettings
from verifier.challenges import posing
from verifier.errors import EvidenceError, NoOutcomeError, PolicyError, RequestError, StoreError
from verifier.opening import OpenedEvidence, SealedEvidence
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.reappraisal import VerifierInputs
from verifier.recording import Record
from verifier.result_keys import ResultKey
from verifier.results import AttestationResult
from verifier.schemes import platform
from verifier.schemes.context import Channel, Context, Excuse, IssuedChallenges, Node, Session, WalkRecord
from verifier.schemes.facts import ModelFacts
from verifier.schemes.revisions import HAS_FILES
from verifier.service.inputs import UNREAD, AppraisalInputs, NotKnownError
from verifier.service.second_opinions import SecondOpinions
from verifier.service.shadow import ShadowAppraiser
from verifier.service.state import Service
from verifier.store import appraisals, excuses, nodes, sessions
from verifier.store.appraisals import Signed, Submission
from verifier.store.database import ConflictError, Row, Tx
from verifier.store.ids import new_id
from verifier.store.node_state import SeenNode, StaleError, see
from verifier.store.revisions import ShownRevision
from verifier.store.sessions import StoredSession

P = ParamSpec("P")
T = TypeVar("T")

_GOOD: Final = "affirming"
_MAX_ATTEMPTS: Final = 10
_MORE_ASKS: Final = 2
"""So often a policy that gives no outcome is asked again: as often as there are workers by default."""
_LOGGED_NODES: Final = 10_000
_OFFLOAD_BYTES: Final = 32 * 1024
"""Larger evidence takes so long to parse that other requests would notice."""

_log = structlog.get_logger("verifier")
_appraised = Counter("touchstone_appraisals_total", "Appraisals, by status.", ["status"])
_failed = Counter("touchstone_policy_failures_total", "Appraisals without an outcome, by policy.", ["policy"])


class Answer(Struct, frozen=True):
    """A stored result, and the session that the node may attest in next."""

    row: Row
    following: StoredSession | None
    asked: Mapping[str, IssuedChallenges] | None = None
    """The challenges of the session, if they were posed for the appraisal."""
    seen: SeenNode | None = None
    """What was seen of the node, if the result is new."""


OpenNext: TypeAlias = Callable[[Tx, Node, Rollout], Awaitable[StoredSession | None]]


async def _again(tx: Tx, session: StoredSession, known: Row, now_ms: int) -> Answer:
    """Answer evidence that has its result already: with the session that waits, but no new one is opened for it."""
    if session.channel != Channel.ANNOUNCED:
        return Answer(known, None)
    return Answer(known, await sessions.waiting(tx, known["node_id"], session.channel, now_ms))


class _Changes:
    """What was last logged of a node.  If there are too many nodes, those of the oldest lines are forgotten."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def is_new(self, node_id: str, found: tuple[str, ...], *, good: bool) -> bool:
        """Note what was found of a node; whether it is worth a line: it is not *good*, and was not so before."""
        if good:
            self._last.pop(node_id, None)
            return False
        if self._last.get(node_id) == found:
            return False
        self._last[node_id] = found
        while len(self._last) > _LOGGED_NODES:
            self._last.popitem(last=False)
        return True


class Appraiser:
    """Appraises what is submitted to a session."""

    def __init__(self, service: Service, shadow: ShadowAppraiser, second: SecondOpinions) -> None:
        self._service = service
        self._shadow = shadow
        self._second = second
        self._changes = _Changes()

    async def submit(
        self, session: StoredSession, media_type: str, data: bytes, open_next: OpenNext | None = None
    ) -> Answer:
        """
        Appraise *data* for a session, as it was when the request came.

        The same bytes submitted again give the same result.

        Args:
            open_next: Opens the node's next session, in the transaction of the result.

        Raises:
            EvidenceError: steps 0 to 6 refused it; the session goes on waiting.
            RequestError: the session does not exist, is over, or was given other evidence.
        """
        now_ms = self._service.now_ms()
        sealed = opening.read_envelope(media_type, data)
        seen = None if session.node_id is None else self._service.seen.get(session.node_id)
        for _ in range(_MAX_ATTEMPTS):
            try:
                return await self._appraise(session, data, sealed, now_ms, seen, open_next)
            except (StaleError, EvidenceError) as error:
                # A policy, a reference value, a block or the node changed since.  The result must go by the new one;
                # and evidence is refused by what the database holds now, such as a node's new key.
                if isinstance(error, EvidenceError) and seen is None:
                    raise
                if seen is not None:
                    self._service.seen.drop(seen.node.id)
                    seen = None
                continue
            except ConflictError:
                # Either the same evidence came twice at once, and has its result by now; or it is another session.
                async with self._service.db.read() as tx:
                    if await sessions.find(tx, session.id) is None and await sessions.is_used(
                        tx, session.nonce
                    ):
                        raise RequestError("this nonce was used before", code="request.replayed") from None
                continue
        raise StoreError("policies, reference values or blocks change faster than evidence can be appraised")

    async def _appraise(
        self,
        session: StoredSession,
        data: bytes,
        sealed: SealedEvidence,
        now_ms: int,
        seen: SeenNode | None,
        open_next: OpenNext | None,
    ) -> Answer:
        service = self._service
        if seen is not None and session.asked is not None:
            # It was opened here, and nothing has come for it yet.  The transaction of the result reads its state.
            appraisals.check_waiting(session, now_ms)
            node = seen.node
        else:
            async with service.db.read() as tx:
                if session.sealed:
                    # It may have been used or dropped since the request came.
                    session = await sessions.find(tx, session.id) or session
                known = await appraisals.result_of(tx, session, data, now_ms)
                if known is not None:
                    return await _again(tx, session, known, now_ms)
                node = await self._load_node(tx, session, sealed) if seen is None else seen.node
        # No transaction waits for a signature, and nothing is loaded for evidence that the node did not sign.
        opened = await offload_if_large(data, opening.authenticate, sealed, node)
        inputs, seen, context = await self._load(session, node, opened, now_ms, seen)
        checked = await offload_if_large(data, appraisal.check, opened, context)
        policy_input = checked.policy_input(context)
        outcome = await self._evaluate(inputs.bundle, policy_input, checked)
        settings = self._settings()
        submission = _submission(session, data, inputs, seen, context, checked, policy_input, settings)

        def sign(snapshot: NodeSnapshot, sequence: int) -> Signed:
            # Before it is given out: no result after a restore may have it again.
            service.marks.cover_event(sequence)
            result = appraisal.conclude(
                checked,
                outcome,
                context,
                snapshot,
                settings,
                jti=new_id(now_ms),
                policy_id=inputs.bundle.id,
                sequence=sequence,
            )
            return sign_result(result, service.signing_key, now_ms)

        async def complete(tx: Tx) -> Answer:
            done = await appraisals.complete(tx, submission, sign, now_ms)
            if not done.is_new:
                return await _again(tx, session, done.row, now_ms)
            following = None if open_next is None else await open_next(tx, node, inputs.rollout)
            return Answer(done.row, following, context.session.asked, seen.after(done.walks))

        answer = await service.db.write(complete, of=node.id)
        if answer.seen is not None:
            service.seen.put(answer.seen)
        self._note(answer.row, submission, checked, inputs)
        return answer

    def _settings(self) -> ResultSettings:
        issuer = self._service.issuer
        lifetime_s = self._service.config.results.lifetime_s
        return ResultSettings(issuer, lifetime_s, f"{issuer}/api/v1/results/{{jti}}")

    def _note(
        self, row: Row, submission: Submission, checked: CheckedEvidence, inputs: AppraisalInputs
    ) -> None:
        """Count and log an appraisal, and let the shadow policy judge it."""
        _appraised.labels(row["status"]).inc()
        node, reasons = submission.node.id, sorted({finding.code for finding in checked.findings})
        # The metrics count what is as it should be, and what is as it was: at a thousand a second nobody reads
        # a line for each.
        if self._changes.is_new(node, (row["status"], *reasons), good=not reasons and row["status"] == _GOOD):
            _log.info(
                "appraised",
                node=node,
                status=row["status"],
                channel=str(submission.session.channel),
                reasons=reasons,
            )
        if submission.public:
            self._shadow.enqueue(row["id"], inputs.rollout)

    async def _load_node(self, tx: Tx, session: StoredSession, sealed: SealedEvidence) -> Node:
        if session.node_id is None:
            node = await nodes.by_kid(tx, sealed.kid)
        else:
            node = await nodes.by_id(tx, session.node_id)
        if node is None:
            raise EvidenceError(3, "evidence.key", "the key is not enrolled")
        return node

    async def _load(
        self, session: StoredSession, node: Node, opened: OpenedEvidence, now_ms: int, seen: SeenNode | None
    ) -> tuple[AppraisalInputs, SeenNode, Context]:
        """Load what the appraisal looks at.  If the node was seen before, mostly nothing of it is to be read."""
        if seen is not None:
            with suppress(NotKnownError):
                known = self._service.inputs.newest
                return await self._load_context(UNREAD, session, node, opened, now_ms, seen, known)
        async with self._service.db.read() as tx:
            return await self._load_context(tx, session, node, opened, now_ms, seen)

    async def _load_context(
        self,
        tx: Tx,
        session: StoredSession,
        node: Node,
        opened: OpenedEvidence,
        now_ms: int,
        seen: SeenNode | None,
        rollout: Rollout | None = None,
    ) -> tuple[AppraisalInputs, SeenNode, Context]:
        service = self._service
        asked = session.asked
        if asked is None:
            asked = posing.pose(session.entries, session.exhausted, service.pool_key, session.revisions)
        present = {model for model in map(kinds.model_of, opened.token.submods) if model is not None}
        models = sorted({*node.models, *asked, *present})
        inputs = await service.inputs.load_inputs(tx, node.id, models, now_ms, rollout)
        seen = await see(tx, node, models, seen)
        context = Context(
            now_ms=now_ms,
            audience=service.issuer,
            skew_s=service.config.sessions.skew_s,
            session=Session(
                id=session.id,
                channel=session.channel,
                nonce=session.nonce,
                issued_ms=session.issued_ms,
                expires_ms=session.expires_ms,
                asked=asked,
                answers=session.answers,
                answer_ms=session.answer_ms,
                read_ms=session.read_ms,
                together=session.together,
            ),
            node=node,
            references=inputs.verifier_inputs.references,
            history={model: service.duties.redate(seen.walks[model]) for model in models},
            thresholds=inputs.bundle.thresholds,
            beside=inputs.verifier_inputs.beside,
            superseded=inputs.verifier_inputs.superseded,
            blocks=inputs.verifier_inputs.blocks,
            excuses=await self._load_excuses(tx, session, node, inputs.verifier_inputs, now_ms),
        )
        return inputs, seen, context

    async def _load_excuses(
        self, tx: Tx, session: StoredSession, node: Node, inputs: VerifierInputs, now_ms: int
    ) -> dict[str, Excuse]:
        """What counts on for the models of which the pool had no challenge, as `Context.excuses` has it."""
        found: dict[str, Excuse] = {}
        for model in session.exhausted:
            if model not in inputs.references:
                continue
            others = (*inputs.beside.get(model, ()), *inputs.superseded.get(model, ()))
            names = {model: inputs.references[model].digest} | {each.digest: each.digest for each in others}
            for name, digest in names.items():
                found[name] = await excuses.read_excuse(
                    tx, node.id, model, digest, now_ms=now_ms, grace_s=self._service.config.pool.grace_s
                )
        return found

    async def _evaluate(self, bundle: Bundle, policy_input: bytes, checked: CheckedEvidence) -> PolicyOutcome:
        """What a policy makes of evidence; −1 for every claim if the policy fails."""
        try:
            outcome = await self._ask(bundle, policy_input)
            self._second.offer(bundle, policy_input, outcome)
            return appraisal.read_outcome(outcome, checked.submods)
        except PolicyError as error:
            self._second.offer(bundle, policy_input, error)
            _failed.labels(f"{bundle.manifest.name}@{bundle.manifest.version}").inc()
            _log.error("the policy failed", policy=bundle.id, error=str(error))
            return appraisal.malfunction(checked.submods)

    async def _ask(self, bundle: Bundle, policy_input: bytes) -> Any:
        """
        Ask a policy, and ask again if no outcome comes.

        A result that says nothing would replace the node's good one, and the cause may be our machine: it was
        busy for a second, or somebody stopped a worker.
        """
        for _ in range(_MORE_ASKS):
            try:
                return await self._service.engine.evaluate(bundle, policy_input)
            except NoOutcomeError as error:
                _log.warning("the policy is asked again", policy=bundle.id, error=str(error))
        return await self._service.engine.evaluate(bundle, policy_input)


def _submission(
    session: StoredSession,
    data: bytes,
    inputs: AppraisalInputs,
    seen: SeenNode,
    context: Context,
    checked: CheckedEvidence,
    policy_input: bytes,
    settings: ResultSettings,
) -> Submission:
    names = inputs.verifier_inputs.basis(inputs.bundle.digest)

    def record(snapshot: NodeSnapshot, result: AttestationResult) -> Record:
        sequence = result.ear_touchstone_sequence
        return recording.record_of(
            context, names, inputs.bundle.id, checked, snapshot, settings, result.jti, sequence
        )

    return Submission(
        session=session,
        node=context.node,
        evidence=data,
        drafts=incidents.drafts(checked.findings),
        passed=[cause for submod in checked.submods.values() for cause in submod.passed],
        walks=walks_of(checked),
        shown=shown_by(checked, context),
        pin=pin_of(checked),
        devices=devices_of(checked),
        public=context.session.channel != Channel.BACKGROUND,
        rollout=inputs.rollout,
        seen=seen,
        basis=names,
        input=policy_input,
        record=record,
    )


def sign_result(result: AttestationResult, key: ResultKey, issued_ms: int) -> Signed:
    """
    Sign a result, so that it can be stored.

    Raises:
        EvidenceError: it is larger than readers accept.
    """
    claims = results.encode_claims(result)
    token = results.sign_jwt(claims, key)
    if len(token) > results.MAX_RESULT:
        raise EvidenceError(7, "evidence.size", "the result would be larger than readers accept")
    return Signed(
        result=result,
        id=result.jti,
        token=token,
        claims=claims.decode(),
        status=result.ear_status,
        issued_ms=issued_ms,
        expires_ms=result.exp * 1000,
    )


async def offload_if_large(data: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do *work* on evidence: in a thread, if *data* is so large that other requests would have to wait."""
    if len(data) > _OFFLOAD_BYTES:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


def walks_of(checked: CheckedEvidence) -> dict[str, WalkRecord]:
    """By model, what later appraisals must know of this session's walk."""
    found = {kinds.model_of(name): submod.walk for name, submod in checked.submods.items()}
    return {model: walk for model, walk in found.items() if model is not None and walk is not None}


def shown_by(checked: CheckedEvidence, context: Context) -> dict[str, ShownRevision]:
    """By model of which several revisions are known, the one whose files the evidence lists."""
    found = {}
    for model in {*context.beside, *context.superseded}:
        submod = checked.submods.get(kinds.model_submod(model))
        if submod is None or submod.reference is None or not isinstance(submod.facts, ModelFacts):
            continue
        if submod.facts.manifest in (*HAS_FILES, "superseded"):
            asked = context.session.asked.get(model, IssuedChallenges()).reference
            found[model] = ShownRevision(submod.reference, asked)
    return found


def pin_of(checked: CheckedEvidence) -> str | None:
    """The pin of the endpoint's TLS key; `None` if the evidence proves none."""
    endpoint = checked.submods[platform.SUBMOD].attester_claims.get("endpoint")
    return None if endpoint is None else str(endpoint["spki_sha256"])


def devices_of(checked: CheckedEvidence) -> list[str]:
    """The devices that the evidence declares."""
    return [device for submod in checked.submods.values() for device in submod.devices]
