"""From bytes received to a result kept: the pure core with its database and its policy."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

import msgspec
import structlog
from prometheus_client import Counter

from attester import evidence
from verifier import appraisal, incidents, results
from verifier.appraisal import CheckedEvidence, Held, Opened, Outcome, Terms
from verifier.errors import EvidenceError, PolicyError
from verifier.references import challenges, measured
from verifier.schemes import platform
from verifier.schemes.base import Context, ModelReference, Node, Session
from verifier.service.state import Service
from verifier.store import appraisals, nodes, pool, sessions
from verifier.store.appraisals import Signed, Submission
from verifier.store.database import Row, Tx
from verifier.store.sessions import StoredSession

_HISTORY = 16
_LARGE = 32 * 1024
"""Bytes of evidence that take long enough to parse that others would notice."""

_log = structlog.get_logger("verifier")
_appraised = Counter("touchstone_appraisals_total", "Appraisals, by status.", ["status"])


class Appraiser:
    """Appraises what is submitted to a session."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._references: dict[str, ModelReference] = {}

    async def submit(self, session: StoredSession, media_type: str, data: bytes) -> Row:
        """
        Appraise *data* for a session, as it stood when the request came; the same bytes again give the same result.

        Raises:
            EvidenceError: refused at steps 0 to 6; the session goes on waiting.
            RequestError: the session is not there, over, or was given other evidence.
        """
        service = self._service
        now_ms = service.now_ms()
        if len(data) > _LARGE:
            opened = await asyncio.to_thread(appraisal.read, media_type, data)
        else:
            opened = appraisal.read(media_type, data)
        async with service.db.read() as tx:
            known = await appraisals.result_of(tx, session, data, now_ms)
            if known is not None:
                return known
            node = await self._node(tx, session, opened)
            context = await self._context(tx, session, node, opened, now_ms)
        if len(data) > _LARGE:
            checked = await asyncio.to_thread(appraisal.check, opened, context)
        else:
            checked = appraisal.check(opened, context)
        outcome = await self._outcome(checked, context)
        terms = Terms(
            service.issuer,
            service.config.results.lifetime_s,
            f"{service.issuer}/api/v1/results/{{jti}}",
        )

        def sign(held: Held) -> Signed:
            result = appraisal.conclude(
                checked,
                outcome,
                context,
                held,
                terms,
                jti=secrets.token_hex(16),
                policy_id=service.bundle.id,
            )
            token = results.encode_jwt(result, service.keys[-1])
            if len(token) > results.MAX_RESULT:
                raise EvidenceError(7, "evidence.size", "its result would be larger than readers accept")
            return Signed(
                id=result.jti,
                token=token,
                claims=msgspec.json.encode(result.to_claims()).decode(),
                status=result.ear_status,
                issued_ms=now_ms,
                expires_ms=result.exp * 1000,
            )

        public = session.channel != "caller"
        submission = Submission(
            session_id=session.id,
            node=node,
            evidence=data,
            drafts=incidents.drafts(checked.findings),
            passed=[cause for c in checked.submods.values() for cause in c.passed],
            walks={
                name.partition("/")[2]: c.walk for name, c in checked.submods.items() if c.walk is not None
            },
            pin=_pin(checked),
            devices=[device for c in checked.submods.values() for device in c.devices],
            public=public,
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
        return row

    async def _node(self, tx: Tx, session: StoredSession, opened: Opened) -> Node:
        if session.node_id is None:
            node = await nodes.by_kid(tx, opened.kid)
        else:
            node = await nodes.by_id(tx, session.node_id)
        if node is None:
            raise EvidenceError(3, "evidence.key", "the key is not enrolled")
        return node

    async def _context(
        self, tx: Tx, session: StoredSession, node: Node, opened: Opened, now_ms: int
    ) -> Context:
        service = self._service
        asked = challenges.pose(session.entries, session.exhausted, service.pool_key)
        named = {name.partition("/")[2] for name in opened.token.submods if evidence.kind_of(name) == "model"}
        models = sorted({*node.models, *asked, *named})
        return Context(
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
            references=await self._references_for(tx, models),
            history={model: await sessions.history(tx, node.id, model, _HISTORY) for model in models},
            thresholds=service.bundle.thresholds,
        )

    async def _references_for(self, tx: Tx, models: list[str]) -> Mapping[str, ModelReference]:
        found = {}
        for model in models:
            digest = await pool.active_digest(tx, model)
            if digest is None:
                continue
            # Documents never change under their digest, and parsing one takes longer than the rest.
            if digest not in self._references:
                document = await pool.reference(tx, model)
                assert document is not None
                self._references[digest] = measured.read_document(document["document"]).to_reference()
            found[model] = self._references[digest]
        return found

    async def _outcome(self, checked: CheckedEvidence, context: Context) -> Outcome:
        try:
            raw = await self._service.engine.evaluate(checked.policy_input(context))
            return appraisal.read_outcome(raw, checked.submods)
        except PolicyError as error:
            _log.error("the policy failed", policy=self._service.bundle.id, error=str(error))
            return appraisal.malfunction(checked.submods)


def _pin(checked: CheckedEvidence) -> str | None:
    endpoint = checked.submods[platform.SUBMOD].attester_claims.get("endpoint")
    return None if endpoint is None else str(endpoint["spki_sha256"])
