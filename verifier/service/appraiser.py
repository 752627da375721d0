"""From bytes received to a result kept: the pure core with its database and its policy."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import msgspec
import structlog
from prometheus_client import Counter

from attester import kinds
from verifier import appraisal, incidents, recording, results
from verifier.appraisal import CheckedEvidence, Held, OpenedEvidence, PolicyOutcome, Terms
from verifier.challenges import posing
from verifier.errors import EvidenceError, PolicyError, StoreError
from verifier.policy.bundle import Bundle
from verifier.recording import Record
from verifier.results import AttestationResult
from verifier.schemes import platform
from verifier.schemes.base import Context, Node, Session, WalkRecord
from verifier.service.inputs import AppraisalInputs
from verifier.service.shadow import Shadow
from verifier.service.state import Service
from verifier.store import appraisals, nodes, sessions
from verifier.store.appraisals import Signed, StaleError, Submission
from verifier.store.database import Row, Tx
from verifier.store.sessions import StoredSession

P = ParamSpec("P")
T = TypeVar("T")

_HISTORY: Final = 16
_TRIES: Final = 10
_LARGE: Final = 32 * 1024
"""Bytes of evidence that take long enough to parse that others would notice."""

_log = structlog.get_logger("verifier")
_appraised = Counter("touchstone_appraisals_total", "Appraisals, by status.", ["status"])


class Appraiser:
    """Appraises what is submitted to a session."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.shadow = Shadow(service)

    async def submit(self, session: StoredSession, media_type: str, data: bytes) -> Row:
        """
        Appraise *data* for a session, as it stood when the request came; the same bytes again give the same result.

        Raises:
            EvidenceError: refused at steps 0 to 6; the session goes on waiting.
            RequestError: the session is not there, over, or was given other evidence.
        """
        now_ms = self._service.now_ms()
        opened = await offload_if_large(data, appraisal.read, media_type, data)
        for _ in range(_TRIES):
            try:
                return await self._appraise(session, data, opened, now_ms)
            except StaleError:
                # A policy, a reference value or a block changed meanwhile: what it says counts.
                continue
        raise StoreError("what is in force changes faster than evidence can be appraised")

    async def _appraise(
        self, session: StoredSession, data: bytes, opened: OpenedEvidence, now_ms: int
    ) -> Row:
        service = self._service
        async with service.db.read() as tx:
            known = await appraisals.result_of(tx, session, data, now_ms)
            if known is not None:
                return known
            node = await self._node(tx, session, opened)
            grounds, context = await self._context(tx, session, node, opened, now_ms)
        checked = await offload_if_large(data, appraisal.check, opened, context)
        given = checked.policy_input(context)
        outcome = await self.outcome(grounds.bundle, given, checked)
        terms = Terms(
            service.issuer,
            service.config.results.lifetime_s,
            f"{service.issuer}/api/v1/results/{{jti}}",
        )
        basis = grounds.given.basis(grounds.bundle.digest)

        def record(held: Held, result: AttestationResult) -> Record:
            return recording.record_of(context, basis, grounds.bundle.id, checked, held, terms, result.jti)

        def sign(held: Held) -> Signed:
            result = appraisal.conclude(
                checked, outcome, context, held, terms, jti=secrets.token_hex(16), policy_id=grounds.bundle.id
            )
            return self.signed(result, now_ms)

        submission = Submission(
            session_id=session.id,
            node=node,
            evidence=data,
            drafts=incidents.drafts(checked.findings),
            passed=[cause for c in checked.submods.values() for cause in c.passed],
            walks=walks_of(checked),
            pin=pin_of(checked),
            devices=devices_of(checked),
            public=session.channel != "caller",
            generation=grounds.rollout.generation,
            basis=basis,
            input=given,
            record=record,
        )
        async with service.db.write() as tx:
            row = await appraisals.complete(tx, submission, sign, now_ms)
        _appraised.labels(row["status"]).inc()
        _log.info(
            "appraised",
            node=node.id,
            status=row["status"],
            channel=session.channel,
            reasons=sorted({finding.code for finding in checked.findings}),
        )
        if submission.public:
            self.shadow.take(row["id"], grounds.rollout)
        return row

    def signed(self, result: AttestationResult, issued_ms: int) -> Signed:
        """
        A result signed, and ready to be kept.

        Raises:
            EvidenceError: readers would not accept one so large.
        """
        token = results.encode_jwt(result, self._service.keys[-1])
        if len(token) > results.MAX_RESULT:
            raise EvidenceError(7, "evidence.size", "its result would be larger than readers accept")
        return Signed(
            result=result,
            id=result.jti,
            token=token,
            claims=msgspec.json.encode(result.to_claims()).decode(),
            status=result.ear_status,
            issued_ms=issued_ms,
            expires_ms=result.exp * 1000,
        )

    async def _node(self, tx: Tx, session: StoredSession, opened: OpenedEvidence) -> Node:
        if session.node_id is None:
            node = await nodes.by_kid(tx, opened.kid)
        else:
            node = await nodes.by_id(tx, session.node_id)
        if node is None:
            raise EvidenceError(3, "evidence.key", "the key is not enrolled")
        return node

    async def _context(
        self, tx: Tx, session: StoredSession, node: Node, opened: OpenedEvidence, now_ms: int
    ) -> tuple[AppraisalInputs, Context]:
        service = self._service
        asked = posing.pose(session.entries, session.exhausted, service.pool_key)
        named = {model for model in map(kinds.model_of, opened.token.submods) if model is not None}
        models = sorted({*node.models, *asked, *named})
        grounds = await service.inforce.grounds(tx, node.id, models, now_ms)
        return grounds, Context(
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
                together=session.together,
            ),
            node=node,
            references=grounds.given.references,
            history={model: await sessions.history(tx, node.id, model, _HISTORY) for model in models},
            thresholds=grounds.bundle.thresholds,
            superseded=grounds.given.superseded,
            blocks=grounds.given.blocks,
        )

    async def outcome(self, bundle: Bundle, given: bytes, checked: CheckedEvidence) -> PolicyOutcome:
        """What a policy makes of evidence; −1 for every claim where it fails."""
        try:
            return appraisal.read_outcome(await self._service.engine.evaluate(bundle, given), checked.submods)
        except PolicyError as error:
            _log.error("the policy failed", policy=bundle.id, error=str(error))
            return appraisal.malfunction(checked.submods)


async def offload_if_large(data: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do *work* on evidence, in a thread where it takes so long that others would notice."""
    if len(data) > _LARGE:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


def walks_of(checked: CheckedEvidence) -> dict[str, WalkRecord]:
    """By model, the walk that later appraisals must know of."""
    found = {kinds.model_of(name): c.walk for name, c in checked.submods.items()}
    return {model: walk for model, walk in found.items() if model is not None and walk is not None}


def pin_of(checked: CheckedEvidence) -> str | None:
    """The endpoint's TLS key, where the evidence proves one."""
    endpoint = checked.submods[platform.SUBMOD].attester_claims.get("endpoint")
    return None if endpoint is None else str(endpoint["spki_sha256"])


def devices_of(checked: CheckedEvidence) -> list[str]:
    """The devices that the evidence declares."""
    return [device for c in checked.submods.values() for device in c.devices]
