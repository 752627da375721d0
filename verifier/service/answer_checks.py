"""
Checks of answers: routers take minted requests, ask them of nodes as a user asks, and bring what was answered.

A router that takes a check learns what is asked, and not what is right.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta, Struct
from prometheus_client import Counter

from attester.kinds import model_submod
from verifier.answers import checks, judge, speed, tables
from verifier.answers.checks import Given, Minted, Operation, Verdict
from verifier.answers.judged import Judged
from verifier.challenges import sealing
from verifier.errors import ReferenceValueError, RequestError
from verifier.schemes.context import Node, Thresholds
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.state import Service, service_of
from verifier.store import (
    answer_checks,
    answer_pool,
    appraisals,
    node_prompting,
    nodes,
    revisions,
    served_engine,
    suspicions,
)
from verifier.store.answer_checks import Limits, Taken, Wanted
from verifier.store.database import Row, Tx

_MAX_CHECKS: Final = 32
"""That a router takes at a time."""
_MAX_BODY: Final = checks.MAX_GIVEN + 1024

_log = structlog.get_logger("verifier")
_taken = Counter("touchstone_answer_checks_taken_total", "Checks of answers that routers took.")
_ended = Counter(
    "touchstone_answer_checks_ended_total", "Checks of answers that ended, by verdict.", ["kind"]
)


class _Wants(Struct, frozen=True):
    """Members that are not known are for later versions."""

    operation: Operation | None = None


class _TakeBody(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    node: Annotated[str, Meta(max_length=64)]
    count: Annotated[int, Meta(ge=1, le=_MAX_CHECKS)] = 1
    wants: _Wants = _Wants()


class _GivenBody(Struct, frozen=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=64)]
    result: Annotated[str, Meta(max_length=128)] = ""
    """The `jti` of the result by which the router chose the node."""
    at_ms: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    """When the node was asked, by the router's clock."""
    given: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    failed: Annotated[str, Meta(min_length=1, max_length=64)] | msgspec.UnsetType = msgspec.UNSET
    """The outcome, if there was no answer, for whatever reason: then nothing is concluded."""


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.post("/api/v1/answer-checks", take, access.BY_ROUTER, "Take checks of a node's answers."),
        access.post(
            "/api/v1/answer-checks/{id}", answer, access.BY_ROUTER, "Bring what a node answered to a check."
        ),
    ]


async def take(request: web.Request) -> web.Response:
    """Take checks of a node that serves a model; each is for this router and this node, and is never asked again."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _TakeBody)
    now_ms, config = service.now_ms(), service.config.answers
    limits = Limits(
        per_hour=config.router_per_hour,
        per_node_hour=config.router_per_node_hour,
        lifetime_ms=config.lifetime_s * 1000,
    )

    async def work(tx: Tx) -> list[Taken]:
        wanted = Wanted(
            router=caller_of(request).name,
            node_id=body.node,
            model=body.model,
            count=body.count,
            operation=body.wants.operation,
            **await _served(service, tx, body.node, body.model, now_ms),
        )
        return await answer_checks.take(tx, wanted, limits, now_ms, service.marks.cover)

    opened = _opened(service, await service.db.write(work))
    _taken.inc(len(opened))
    return json_response({"checks": opened, "expires_in_s": config.lifetime_s})


async def _served(service: Service, tx: Tx, node_id: str, model: str, now_ms: int) -> dict[str, Any]:
    """
    The revision of a model that a node serves, and its engine's family and precision, as its newest result has them.

    Raises:
        RequestError: the node does not serve the model now.
    """
    node = await nodes.by_id(tx, node_id)
    newest = None if node is None else await appraisals.latest(tx, node_id)
    if (
        node is None
        or node.state == "retired"
        or model not in node.models
        or newest is None
        or newest["revoked_ms"] is not None
        or newest["expires_ms"] <= now_ms
    ):
        raise RequestError(
            "no enrolled node of this id has a live result for this model", code="answers.node.not-serving"
        )
    reference = (await service.inputs.load_asked(tx, node, now_ms)).get(model)
    if reference is None:
        raise RequestError(
            f"there is no reference value of {model}, so no answers of it are known",
            code="challenges.exhausted",
        )
    family, _ = await served_engine.engine_of(tx, newest["id"])
    precision = await served_engine.precision_of(tx, newest["id"])
    return {"reference": reference, "family": family, "precision": precision}


def _opened(service: Service, taken: Sequence[Taken]) -> list[dict[str, object]]:
    """What a router gets of checks: what to ask."""
    found: list[dict[str, object]] = []
    for each in taken:
        minted = _unseal(service, each.kept.model, each.kept.index, each.kept.sealed)
        if minted is not None:
            found.append(
                {
                    "id": each.id,
                    "operation": minted.operation,
                    "body": minted.body,
                    "streamed": minted.streamed,
                }
            )
    if not found:
        raise RequestError("the minted answers do not open; the log says why", code="challenges.exhausted")
    return found


def _unseal(service: Service, model: str, index: int, sealed: bytes) -> Minted | None:
    """A minted answer; `None` if it does not open, which is our fault alone."""
    try:
        return checks.decode_minted(sealing.unseal(service.pool_key, model, index, sealed))
    except (ReferenceValueError, RequestError) as error:
        _log.error("a minted answer cannot be used", error=str(error))
        return None


async def answer(request: web.Request) -> web.Response:
    """
    Take what a node answered to a check, and judge it.

    The same bytes again get the same answer, and other bytes are refused.
    """
    service = service_of(request)
    data = await read_body(request, _MAX_BODY)
    body = await asyncio.to_thread(parse_json, data, _GivenBody)
    if (body.given is msgspec.UNSET) == (body.failed is msgspec.UNSET):
        raise RequestError("bring either given or failed")
    brought = _Brought(request.match_info["id"], caller_of(request).name, body, hashlib.sha256(data).digest())
    verdict: str | None
    if isinstance(body.given, msgspec.Raw):
        given = await asyncio.to_thread(checks.decode_given, bytes(body.given))
        verdict = await _judge(service, brought, given)
    else:
        await service.db.write(lambda tx: _end_failed(tx, brought, service.now_ms()))
        _ended.labels("failed").inc()
        verdict = None
    return json_response({"verdict": verdict})


@dataclass(frozen=True)
class _Brought:
    """What a router brings."""

    check: str
    router: str
    body: _GivenBody
    digest: bytes

    async def find(self, tx: Tx, now_ms: int) -> tuple[Row, bool]:
        """The check, and whether the same was brought before.  Raises `RequestError`."""
        row = await answer_checks.find(tx, self.check, self.router)
        if row["node_id"] != self.body.node:
            raise RequestError("the check was taken for another node")
        return row, answer_checks.answered_before(row, self.digest, now_ms)


async def _end_failed(tx: Tx, brought: _Brought, now_ms: int) -> None:
    row, was_before = await brought.find(tx, now_ms)
    if not was_before:
        await answer_checks.end(tx, row, "failed", brought.digest, now_ms)


async def _judge(service: Service, brought: _Brought, given: Given) -> str:
    """Judge an answer, store the verdict, and do what follows, in one transaction."""
    async with service.db.read() as tx:
        row, was_before = await brought.find(tx, service.now_ms())
        kept = None if was_before else await answer_pool.of_check(tx, row["model"], row["idx"])
        family, _ = await served_engine.engine_of(tx, brought.body.result)
    # A router cannot know which engine it was, and is not asked.
    given = msgspec.structs.replace(given, family=family)
    minted = None if kept is None else _unseal(service, kept.model, kept.index, kept.sealed)
    # It takes milliseconds of a processor if the answer is long.
    verdict = None if minted is None else await asyncio.to_thread(_compare, minted, given)

    async def work(tx: Tx) -> Verdict:
        now_ms = service.now_ms()
        row, was_before = await brought.find(tx, now_ms)
        if was_before:
            return checks.decode_verdict(row["verdict"].encode())
        node = await nodes.by_id(tx, row["node_id"])
        assert node is not None
        claims = await _claims(tx, node, brought.body.result)
        found = _of_revision(row, claims) or verdict or _UNOPENED
        await answer_checks.end(
            tx,
            row,
            "judged",
            brought.digest,
            now_ms,
            result=brought.body.result,
            verdict=checks.encode(found).decode(),
        )
        if minted is not None:
            judged = Judged(
                check=row["id"],
                node=node,
                model=row["model"],
                reporter=brought.router,
                result=brought.body.result,
                reference=row["reference"],
                asked_ms=min(max(brought.body.at_ms, row["taken_ms"]), now_ms),
                minted=minted,
                given=given,
                verdict=found,
            )
            policy = await _thresholds(service, tx, node)
            fastest = speed.fastest(policy, node.hardware_class, row["model"])
            await suspicions.take_verdict(tx, judged, now_ms, policy.answers, fastest)
            await _note_prompting(tx, judged, claims, now_ms)
        return found

    done = await service.db.write(work)
    _ended.labels(done.kind).inc()
    return done.kind


def _compare(minted: Minted, given: Given) -> Verdict:
    return judge.judge(minted, given, tables.table_for(minted.engine, given.family))


async def _thresholds(service: Service, tx: Tx, node: Node) -> Thresholds:
    """Those of the policy that judges the node."""
    rollout = await service.inputs.load_rollout(tx)
    return (await service.inputs.load_bundle(tx, rollout.policy_for(node.id))).thresholds


_UNOPENED: Final = Verdict(kind="unusable", detail="the minted answer does not open")


async def _claims(tx: Tx, node: Node, result: str) -> str:
    """
    The claims of a node's result.

    Raises:
        RequestError: there is no such result of the node.
    """
    found = await appraisals.by_id(tx, result)
    if found is None or found["node_id"] != node.id:
        raise RequestError("the node has no such result", code="answers.result.unknown")
    return str(found["claims"])


def _of_revision(row: Row, claims: str) -> Verdict | None:
    """A verdict that nothing can be said, if the node had another revision of the model than the answer is of."""
    if revisions.compared_with(claims).get(model_submod(row["model"])) == row["reference"]:
        return None
    return Verdict(kind="unusable", detail="the node's result is about another revision of the model")


async def _note_prompting(tx: Tx, judged: Judged, claims: str, now_ms: int) -> None:
    used = node_prompting.prompting_in(claims, model_submod(judged.model))
    if any(used) and revisions.compared_with(claims).get(model_submod(judged.model)) == judged.reference:
        await node_prompting.note(tx, judged.node.id, judged.model, judged.reference, used, now_ms)
