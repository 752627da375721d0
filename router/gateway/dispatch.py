"""
Dispatch: a decision, then attempts at its nodes in order until one completes.

An answer is read whole before a byte goes to the client, so that a failed attempt can move
on; the outcome is decided at the end of each, and only the node's blame moves its standing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import aiohttp
import msgspec
import structlog
from prometheus_client import Counter

from attester.bounded import read_all
from router import gates
from router.config import GatewaySection
from router.decision import Decision, decide
from router.errors import AttemptError, PoolEmptyError
from router.feed import Clock, Feed
from router.gates import Verdict
from router.gateway.pinned import PinError, check_url, pin_for
from router.outcomes import Outcome, of_status
from router.snapshot import NodeView
from router.standing import Standing
from router.workload import Workload

MAX_ANSWER: Final = 64 << 20
COMPLETED_STATUS: Final = 200
_KEPT: Final = 10_000
_KEPT_VERDICTS: Final = 500_000
"""Verdicts kept in all: in a large fleet fewer decisions, so that memory stays bounded."""

_log = structlog.get_logger("router")
_outcomes = Counter("touchstone_router_outcomes_total", "How attempts ended.", ["outcome"])


@dataclass
class Record:
    """A decision and what became of it."""

    id: str
    decision: Decision
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many verdicts and ranks it keeps."""
        return len(self.decision.excluded) + len(self.decision.ranked)

    def to_wire(self, *, full: bool = True) -> dict[str, Any]:
        """As JSON-compatible data."""
        return {"id": self.id, **self.decision.to_wire(full=full), "attempts": self.attempts}


@dataclass(frozen=True)
class Answer:
    """A node's whole answer."""

    status: int
    body: bytes


class Dispatcher:
    """Decides, tries, records.  The newest decisions are kept in memory."""

    def __init__(self, feed: Feed, http: aiohttp.ClientSession, config: GatewaySection, clock: Clock) -> None:
        self._feed = feed
        self._http = http
        self._config = config
        self._clock = clock
        self._standings: dict[tuple[str, str], Standing] = {}
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._verdicts = 0

    def decide(self, workload: Workload) -> Record:
        """Decide and keep the record."""
        decision = decide(self._feed.snapshot(self._standings), workload, secrets.randbits(64))
        record = Record(secrets.token_hex(16), decision)
        self._records[record.id] = record
        self._verdicts += record.size
        while len(self._records) > _KEPT or (self._verdicts > _KEPT_VERDICTS and len(self._records) > 1):
            _, oldest = self._records.popitem(last=False)
            self._verdicts -= oldest.size
        return record

    def record(self, decision_id: str) -> Record | None:
        """A kept record."""
        return self._records.get(decision_id)

    def standing(self, node: str, model: str) -> Standing:
        """A node's standing for a model."""
        return self._standings.get((node, model), Standing())

    def endpoints(self, record: Record) -> dict[str, dict[str, str]]:
        """Where the ranked nodes serve, with the pins of their TLS keys."""
        nodes = self._feed.snapshot({}).nodes
        found = {ranked.node: nodes[ranked.node].endpoint for ranked in record.decision.ranked}
        return {
            node: {"url": endpoint[0], "spki_sha256": endpoint[1]}
            for node, endpoint in found.items()
            if endpoint is not None
        }

    async def execute(self, record: Record, path: str, body: bytes) -> Answer:
        """
        Send the work to the nodes of a decision, in order, until one completes.

        Raises:
            PoolEmptyError: the decision has no nodes.
            AttemptError: the last attempt's failure, when none completed.
        """
        decision = record.decision
        if not decision.ranked:
            raise PoolEmptyError(decision)
        failure = AttemptError(Outcome.TIMED_OUT, "no time was left for an attempt")
        deadline = self._clock.monotonic() + self._config.timeout_s
        crashed: list[tuple[str, float]] = []
        tried = 0
        for ranked in decision.ranked:
            left = deadline - self._clock.monotonic()
            if left <= 0 or tried >= self._config.attempts:
                break
            if (verdict := self._closed_since(ranked.node, decision)) is not None:
                record.attempts.append({"node": ranked.node, "outcome": "skipped", "detail": verdict.code})
                continue
            tried += 1
            try:
                answer = await self._attempt(record, ranked.node, path, body, left, crashed)
            except AttemptError as error:
                failure = error
                if not error.outcome.may_move_on:
                    break
            else:
                if answer.status == COMPLETED_STATUS:
                    self._blame(crashed, decision.workload.model)
                return answer
        if len(crashed) == 1 and tried == 1 and len(decision.ranked) == 1:
            # Nobody else to ask whether it was the request.
            self._blame(crashed, decision.workload.model)
        raise failure

    def _closed_since(self, node: str, decision: Decision) -> Verdict | None:
        """What has happened to a node since the decision: work must not go where trust has gone."""
        snapshot = self._feed.snapshot(self._standings)
        view = snapshot.nodes.get(node, NodeView(node))
        verdict = gates.check(view, decision.workload, snapshot)
        if verdict is None:
            verdict = gates.capacity(view, decision.workload, snapshot)
            if verdict is not None and verdict.code in decision.opened:
                return None
        return verdict

    def _blame(self, crashed: list[tuple[str, float]], model: str) -> None:
        """
        Hold answers of status 5xx against the nodes that gave them.

        Only where another node completed the same request, or there was no other: what every
        node stumbles over is the request, and a client must not eject nodes with one.
        """
        for node, seconds in crashed:
            standing = self.standing(node, model).started()
            self._standings[node, model] = standing.ended(Outcome.CRASHED, seconds, self._clock.monotonic())

    async def _attempt(
        self,
        record: Record,
        node: str,
        path: str,
        body: bytes,
        left: float,
        crashed: list[tuple[str, float]],
    ) -> Answer:
        model = record.decision.workload.model
        key = (node, model)
        self._standings[key] = self.standing(*key).started()
        start = self._clock.monotonic()
        outcome, detail, answer = Outcome.ABANDONED, "the client went away", None
        try:
            answer = await self._ask(node, path, body, left)
            outcome, detail, answer = judge(path, answer)
        except AttemptError as error:
            outcome, detail = error.outcome, str(error)
        except Exception:  # noqa: BLE001
            # The outermost of an attempt: whatever it was, this node is not the client's concern.
            outcome, detail = Outcome.CRASHED, "the attempt failed in a way that was not foreseen"
            _log.exception("an attempt failed", node=node)
            raise AttemptError(outcome, detail) from None
        finally:
            # Also where the client went away and this task was cancelled: the place is freed.
            now = self._clock.monotonic()
            ambiguous = outcome is Outcome.CRASHED and answer is not None
            counted = Outcome.UNSERVED if ambiguous else outcome
            self._standings[key] = self.standing(*key).ended(counted, now - start, now)
            if ambiguous:
                crashed.append((node, now - start))
            record.attempts.append(
                {
                    "node": node,
                    "outcome": outcome,
                    "blame": outcome.blame,
                    "detail": detail,
                    "ms": int((now - start) * 1000),
                }
            )
            _outcomes.labels(outcome).inc()
        if answer is not None and outcome in (Outcome.COMPLETED, Outcome.REFUSED):
            return answer
        _log.warning("an attempt failed", node=node, outcome=outcome, detail=detail)
        raise AttemptError(outcome, detail)

    async def _ask(self, node: str, path: str, body: bytes, left: float) -> Answer:
        view = self._feed.snapshot({}).nodes.get(node)
        if view is None or view.endpoint is None:
            raise AttemptError(Outcome.IMPOSTOR, "the node has no endpoint any more")
        url, pin = view.endpoint
        allowance = min(left, self._config.attempt_timeout_s)
        # Whose time ran out: the attempt's, and the node is slow; or the caller's.
        late = Outcome.STALLED if allowance * 2 >= self._config.attempt_timeout_s else Outcome.TIMED_OUT
        try:
            place = check_url(url, allow_private=self._config.allow_private)
            async with (
                asyncio.timeout(allowance),
                self._http.post(
                    place.with_path(path),
                    data=body,
                    headers={"Content-Type": "application/json", "Accept": "application/json"},
                    ssl=pin_for(pin),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=self._config.connect_timeout_s),
                ) as response,
            ):
                return Answer(response.status, await _read(response))
        except aiohttp.ConnectionTimeoutError:
            raise AttemptError(Outcome.CRASHED, "no connection in time") from None
        except TimeoutError:
            raise AttemptError(late, f"no whole answer within {allowance:.1f} s") from None
        except PinError as error:
            raise AttemptError(Outcome.IMPOSTOR, str(error)) from None
        except aiohttp.ClientPayloadError:
            raise AttemptError(Outcome.TRUNCATED, "the answer ended early") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AttemptError(Outcome.CRASHED, f"no answer: {type(error).__name__}") from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = await read_all(response.content, MAX_ANSWER)
    if data is None:
        raise AttemptError(Outcome.CORRUPTED, f"an answer of more than {MAX_ANSWER} bytes")
    return data


class _Embedding(msgspec.Struct, frozen=True):
    embedding: Annotated[list[float], msgspec.Meta(min_length=1)] | Annotated[str, msgspec.Meta(min_length=1)]


class _Embeddings(msgspec.Struct, frozen=True):
    data: Annotated[list[_Embedding], msgspec.Meta(min_length=1)]


class _Choice(msgspec.Struct, frozen=True):
    message: dict[str, Any]


class _Completions(msgspec.Struct, frozen=True):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]


_REFUSED: Final = msgspec.json.encode(
    {
        "error": {
            "message": "the node refused the request",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
)


def judge(path: str, answer: Answer) -> tuple[Outcome, str, Answer]:
    """
    The outcome of a whole answer, and what the client gets of it.

    A 200 must hold what the operation is for.  A refusal is the client's, however the node
    words it: a client must not be able to have nodes ejected for how they say no.
    """
    outcome = of_status(answer.status)
    detail = f"status {answer.status}"
    kind: Any = _Embeddings if path.endswith("/embeddings") else _Completions
    try:
        if outcome is Outcome.COMPLETED:
            msgspec.json.decode(answer.body, type=kind)
        elif outcome is Outcome.REFUSED:
            msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if outcome is Outcome.REFUSED:
            return outcome, detail, Answer(answer.status, _REFUSED)
        return Outcome.CORRUPTED, f"{detail} with a body that is no such answer", answer
    return outcome, detail, answer
