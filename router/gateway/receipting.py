"""
The receipt of one answer, while it is made: digests of what comes and of what goes, and who has answered.

It begins with the request, and its id is in the answer's head.  Of a stream each byte that is handed to the
connection is digested, comments too.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

from aiohttp import web
from msgspec import UNSET, UnsetType

from attester.kinds import model_submod
from router.gateway.aside import Aside
from router.gateway.attempts import Attempt
from router.gateway.dispatch import Run
from router.gateway.errors import GatewayError
from router.gateway.metering import BY_NODE, BY_ROUTER, Metering
from router.model.change import Arm
from router.model.clock import Clock
from router.model.errors import ReceiptError
from router.model.node import NodeView, walk_at_ms
from router.model.outcomes import Outcome
from router.model.usage import Usage as Counted
from router.receipts.payload import (
    MOST,
    MOST_PASSED,
    Choice,
    Claimed,
    Continued,
    Metered,
    Node,
    Passed,
    Price,
    Request,
    Response,
    Usage,
    read_salt,
)
from router.state.receipts import STRANGER, ReceiptBook

RECEIPT_HEADER: Final = "X-Touchstone-Receipt"
SALT_HEADER: Final = "X-Touchstone-Salt"
REFUSED, ANSWERED, FAILED = "refused-here", "answered-here", "failed-here"
"""Outcomes without a decision: the router refused the request, answered by itself, or failed."""
NO_NODE: Final = "no-node"
"""No node may do the work, or no time was left to ask one."""
CHECKS: Final = "check:"
"""In place of the name of a caller: no key has such a name."""
_MAX_PATH: Final = 256
_SHA256: Final = 32
_MAX_OF_RESULTS: Final = 10_000
_OF_RESULTS: Final[dict[tuple[bytes, str, str], dict[str, Any]]] = {}
"""What receipts say of nodes, by the digest of the result's token, the pin and the model: it never changes."""
_GONE: Final = 503
"""The status of an answer that was never begun, because the client had left."""


class Draft:
    """
    A receipt that is being made.

    Args:
        book: Takes it when it is made.
        clock: For the time.
        request: What is answered.
    """

    __slots__ = (
        "_book", "_caller", "_clock", "_digest", "_has_ended", "_is_named", "_request", "_request_sha256", "_salt",
        "_size", "_status", "id", "is_claimed", "is_complete", "is_streamed", "salt_problem",
    )  # fmt: skip

    def __init__(self, book: ReceiptBook, clock: Clock, request: web.Request) -> None:
        self._book = book
        self._clock = clock
        self._request: web.Request | None = request
        """Until the end: each has the other, and must not live until the garbage collector comes."""
        self._caller = STRANGER
        self.is_claimed = False
        """Whether somebody works on the answer, and will end the receipt."""
        self.id = book.new_id(clock.now_ms())
        self._salt = b""
        self.salt_problem = ""
        """Why the salt cannot be used, if it cannot."""
        self._read_salt(request)
        self._digest = hashlib.sha256(self._salt)
        self._size = 0
        self._status = _GONE
        self._request_sha256: str | UnsetType = UNSET
        self.is_streamed = False
        self.is_complete = False
        """Whether all of the answer was handed to the connection."""
        self._is_named = True
        self._has_ended = False

    def _read_salt(self, request: web.Request) -> None:
        if SALT_HEADER not in request.headers:
            return
        given = request.headers.getall(SALT_HEADER)
        if len(given) > 1:
            self.salt_problem = f"{SALT_HEADER}: the request has more than one"
            return
        try:
            self._salt = read_salt(given[0])
        except ReceiptError as error:
            self.salt_problem = f"{SALT_HEADER}: {error}"

    def claim(self, caller: str) -> None:
        """Note whose answer it is."""
        self._caller, self.is_claimed = caller, True
        self._book.begin(self.id, caller)

    @property
    def salt(self) -> bytes:
        """What the caller has chosen; empty if it has chosen none."""
        return self._salt

    def check_salt(self) -> None:
        """Raise `GatewayError` if the salt cannot be used: the caller could verify nothing."""
        if self.salt_problem:
            raise GatewayError(400, "invalid_request_error", self.salt_problem, code="salt_invalid")

    async def note_request(self, body: bytes, aside: Aside) -> None:
        """Digest the request's body."""
        digest = hashlib.sha256(self._salt)
        await aside.run_on(body, digest.update)
        self._request_sha256 = digest.hexdigest()

    def name(self, response: web.StreamResponse) -> None:
        """Put the id into the head of an answer, unless that is of another receipt: then there is none of its own."""
        known = response.headers.get(RECEIPT_HEADER)
        if known is None:
            if not response.prepared:
                response.headers[RECEIPT_HEADER] = self.id
        elif known != self.id:
            self._is_named = False

    def note_sent(self, data: bytes) -> None:
        """Digest a part of a stream that is handed to the connection now."""
        self.is_streamed = True
        self._status = 200
        self._digest.update(data)
        self._size += len(data)

    async def note_whole(self, response: web.Response, aside: Aside) -> None:
        """Digest a whole answer that is handed to the connection now."""
        body = self._begin_whole(response)
        await aside.run_on(body, self._digest.update)

    def note_small(self, response: web.Response) -> None:
        """See `note_whole`; for an answer of the router's own."""
        self._digest.update(self._begin_whole(response))

    def _begin_whole(self, response: web.Response) -> bytes:
        request = self._request
        assert request is not None
        body = response.body if isinstance(response.body, bytes) and request.method != "HEAD" else b""
        self._status, self._size = response.status, len(body)
        transport = request.transport
        self.is_complete = transport is not None and not transport.is_closing()
        return body

    def end(self, outcome: str, members: dict[str, Any] | None = None) -> None:
        """Make the receipt."""
        if self._has_ended:
            return
        self._has_ended = True
        request, self._request = self._request, None
        assert request is not None
        if not self._is_named:
            self._book.abandon(self.id)
            return
        asked = Request(
            method=_text(request.method) or "?",
            path=_text(request.rel_url.raw_path[:_MAX_PATH]) or "/",
            salted=bool(self._salt),
            sha256=self._request_sha256,
        )
        answered = Response(
            bytes=self._size,
            complete=self.is_complete,
            sha256=self._digest.hexdigest(),
            status=self._status,
            streamed=self.is_streamed,
        )
        members = {} if members is None else members
        members["outcome"], members["request"], members["response"] = outcome, asked, answered
        self._book.end(self.id, self._caller, self._clock.now_ms(), members)


def members_of(run: Run, answered: Attempt | None, metering: Metering) -> tuple[str, dict[str, Any]]:
    """
    The outcome of a request that was decided, and what its receipt says of the decision.

    Args:
        run: The request.
        answered: The attempt whose answer the client has got, or a part of it; `None`: an error.
        metering: Says whose usage the client is told.
    """
    record, workload = run.record, run.request.workload
    last = run.last
    if answered is None:
        # The client has a part of it.
        answered = _last_begun(run)
    members: dict[str, Any] = {
        "decision": record.id,
        "model": _text(workload.model) or UNSET,
        "workload": _text(workload.name) or UNSET,
    }
    if answered is not None:
        members["node"] = _node(answered, workload.model)
        if parts := _parts_before(run, answered):
            members["continued"] = parts
    elif last is not None:
        members["tried"] = _node(last, workload.model)
    if record.decision.table:
        members["table"] = record.decision.table
    if record.decision.arm == Arm.CANDIDATE:
        members["arm"] = "candidate"
    if record.decision.choice is not None:
        members["choice"] = Choice(**record.decision.choice.for_receipt())
    if run.usage is not None:
        members["usage"] = _usage(run, run.usage, answered, metering)
    found = answered or last
    if found is not None:
        members["price"] = _price(found)
    if found is not None and run.usage is not None:
        before = sum(part.completion for part in members.get("continued", ()))
        members["metered"] = _metered(run, run.usage, found, metering, before)
    # Where nobody was charged, no answer was taken.
    passed = _passed(run, None if run.usage is None else found)
    if passed:
        members["passed"] = passed
    return str(NO_NODE if found is None else found.outcome), members


def note_check(book: ReceiptBook, clock: Clock, metering: Metering, run: Run) -> None:
    """
    Make the receipt of a check that was sent, so that the node is paid for it.

    Who reads which of a node's answers were paid must not find out which of them were checks.  Nobody was given the
    answer, so the receipt has the digest of none.
    """
    if run.last is None:
        return
    outcome, members = members_of(run, run.last if run.last.outcome is Outcome.COMPLETED else None, metering)
    members.pop("decision")
    operation = run.request.operation
    asked = Request(
        method="POST", path=operation.path, salted=False, sha256=hashlib.sha256(run.request.body).hexdigest()
    )
    answered = Response(
        bytes=0,
        complete=True,
        sha256=hashlib.sha256().hexdigest(),
        status=200,
        streamed=run.request.is_streamed,
    )
    now_ms = clock.now_ms()
    members |= {"outcome": outcome, "request": asked, "response": answered}
    book.end(book.new_id(now_ms), CHECKS, now_ms, members)


def _last_begun(run: Run) -> Attempt | None:
    """The attempt of whose answer the client has got something last, whether or not it has ended."""
    last = run.last
    if last is not None and last.has_begun:
        return last
    return None if run.seam is None else run.seam.parts[-1].attempt


def _parts_before(run: Run, answered: Attempt) -> tuple[Continued, ...]:
    """The parts of the answer before that of an attempt."""
    parts = () if run.seam is None else run.seam.parts
    return tuple(
        Continued(
            completion=min(part.tokens, MOST),
            node=_node(part.attempt, run.request.workload.model),
            operator=_text(part.attempt.operator) or UNSET,
            outcome=str(part.attempt.outcome),
            own=_is_own(run, part.attempt),
            price=_price(part.attempt),
        )
        for part in parts
        if part.attempt is not answered
    )


def _usage(run: Run, charged: Counted, answered: Attempt | None, metering: Metering) -> Usage:
    """What was charged; where nobody has counted it by a tokeniser, what the client was told by the node."""
    by: Literal["node", "router"] = BY_ROUTER
    usage = charged
    is_node_told = answered is not None and answered.claimed is not None and answered.counted is None
    # What a node claims is of its own part.
    if is_node_told and run.seam is None:
        assert answered is not None
        assert answered.claimed is not None
        told = None if answered.answer is None else metering.told_whole(run.request, answered)
        if answered.answer is None or (told is not None and told.by == BY_NODE):
            by, usage = BY_NODE, answered.claimed
    return Usage(by=by, completion=min(usage.completion, MOST), prompt=min(usage.prompt, MOST))


def _is_own(run: Run, attempt: Attempt) -> bool:
    return bool(run.request.operator) and run.request.operator == attempt.operator


def _price(attempt: Attempt) -> Price | UnsetType:
    price = attempt.price
    return UNSET if price is None else Price(input=price.input, output=price.output)


def _metered(run: Run, charged: Counted, paid: Attempt, metering: Metering, before: int) -> Metered:
    """
    What the node is paid for, which is what was charged, and what it has claimed for it.

    Args:
        before: Tokens of the answer that other nodes gave before.
    """
    workload, is_exact = run.request.workload, metering.is_judged(run.request, paid)
    # What other nodes gave of the answer is theirs; that this one has read it, it may claim.
    template = metering.template_tokens(run.request) + paid.carried if is_exact else 0
    tier = _text(workload.standing_key)
    return Metered(
        claimed=UNSET if paid.claimed is None else _claimed(paid.claimed),
        completion=min(max(charged.completion - before, 0), MOST),
        exact=is_exact,
        operator=_text(paid.operator) or UNSET,
        own=_is_own(run, paid),
        prompt=min(charged.prompt, MOST),
        template=template,
        tier=UNSET if tier is None or tier == workload.name else tier,
    )


def _passed(run: Run, found: Attempt | None) -> tuple[Passed, ...]:
    """The nodes that told a usage for this request, and whose answers were not taken."""
    taken = "" if found is None else found.request_id
    return tuple(
        Passed(claimed=_claimed(each.claimed), node=each.node)
        for each in (*run.earlier, *run.attempts)
        if each.claimed is not None and each.was_given and each.request_id != taken
    )[:MOST_PASSED]


def _claimed(claimed: Counted) -> Claimed:
    return Claimed(completion=min(claimed.completion, MOST), prompt=min(claimed.prompt, MOST))


def _node(attempt: Attempt, model: str) -> Node:
    view = attempt.view
    members: dict[str, Any] = {} if view is None else dict(_remembered(view, model))
    if attempt.answer_sha256:
        members["answer_sha256"] = attempt.answer_sha256
    if attempt.request_id:
        members["request"] = attempt.request_id
    return Node(id=attempt.node, **members)


def _remembered(view: NodeView, model: str) -> dict[str, Any]:
    """What was known of a node: the same for all its answers on one result."""
    if view.endpoint is None or not view.token_digest:
        return _known(view, model)
    name = view.token_digest, view.endpoint[1], model
    found = _OF_RESULTS.get(name)
    if found is None:
        if len(_OF_RESULTS) >= _MAX_OF_RESULTS:
            _OF_RESULTS.clear()
        found = _OF_RESULTS[name] = _known(view, model)
    return found


def _known(view: NodeView, model: str) -> dict[str, Any]:
    """What was known of a node when it was asked."""
    members: dict[str, Any] = {}
    if view.endpoint is not None:
        members["spki_sha256"] = view.endpoint[1]
    result = view.result
    if result is None:
        return members
    members["result"] = result.jti
    members["status"] = str(result.ear_status)
    if view.token_digest:
        members["result_sha256"] = view.token_digest[:_SHA256].hex()
    appraisal = result.submods.get(model_submod(model))
    if appraisal is None:
        return members
    claims = appraisal.ear_verifier_claims
    members["assurance"] = claims.assurance
    if claims.reference:
        members["reference"] = claims.reference
    walk_at = walk_at_ms(result, model)
    if walk_at is not None:
        members["walk_at"] = walk_at
    return members


def _text(text: str) -> str | None:
    """A text that has one form in a payload; `None` if it has none."""
    return text if text and len(text) <= _MAX_PATH and text.isascii() and text.isprintable() else None
