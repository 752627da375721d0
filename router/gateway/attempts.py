"""
Attempts of one request, and what follows from them.  Pure: the exchange makes attempts, the dispatcher records them.

    decide_next(attempts)   go on to the next node, give the client an answer, or fail
    find_blamed(attempts)   which failures turn out to be the nodes' fault
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from msgspec import Struct

from router.model.answers import Answer
from router.model.continuing import Delivered
from router.model.node import NodeView
from router.model.outcomes import Failure, Outcome
from router.model.tokens import TokenCounter
from router.model.usage import Usage
from router.model.wishes import Kept
from router.model.workload import Price

DOUBTFUL: Final = frozenset(
    {
        Outcome.CRASHED,
        Outcome.STALLED,
        Outcome.TRUNCATED,
        Outcome.CORRUPTED,
        Outcome.UNHONOURED,
        Outcome.EMPTY,
        Outcome.UNSUPPORTED,
        Outcome.REFUSED,
    }
)
"""Outcomes that the request itself may have caused, while nothing has gone to the client (docs/adr/0019, 0038)."""


class StreamSummary(Struct, frozen=True, kw_only=True):
    """What was seen of a stream."""

    events: int
    """Events that carried text."""
    text: TokenCounter
    first_token_s: float | None
    claimed: Usage | None
    usage: bytes | None
    """The data of the last event in which the node told its usage."""
    is_done: bool
    """Whether the protocol's last event came."""
    unsent: bytes
    """Whole events that were not sent on to the client."""
    delivered: Delivered | None = None
    """Its text, if another node may have to go on from it."""


class Attempt(Struct, frozen=True, kw_only=True):
    """How one attempt at one node ended."""

    node: str
    operator: str
    outcome: Outcome
    detail: str
    seconds: float
    revision: str = ""
    """The digest of the model's reference value, by the node's result when the attempt began."""
    failure: Failure | None = None
    """Why there was no answer, if there was none."""
    is_doubtful: bool = False
    """Whether the request itself, or what lies between, may be the cause of the failure."""
    has_begun: bool = False
    """Whether anything of the answer has gone to the client, so that no other node can take over."""
    answer: Answer | None = None
    """The whole answer, if there is one."""
    stream: StreamSummary | None = None
    """What was seen of the stream, if one was asked for."""
    counted: Usage | None = None
    """The router's own count, once it is made."""
    number: int | None = None
    """The request's at this node, by which its load knows when it began."""
    is_exact: bool = False
    """Whether the model's tokeniser has counted all of it."""
    was_given: bool = False
    """Whether the node was given the request, or may have been."""
    request_id: str = ""
    """By which the node knows it, another one for each attempt; empty if the node was not given it."""
    view: NodeView | None = None
    """What was known of the node when it was asked."""
    price: Price | None = None
    """What its work costs, by the decision; `None` if the workload has no prices."""
    answer_sha256: str = ""
    """Of the bytes that the node sent, as far as they were read, hex; empty if there were none, or it is not asked for."""
    carried: int = 0
    """Tokens of its prompt that other nodes have made: it was asked to go on from them."""
    kept: Kept | None = None
    """How the answer keeps to what the request asks of its form; `None` if it asks nothing."""

    @property
    def claimed(self) -> Usage | None:
        """The usage that the node claims."""
        if self.answer is not None:
            return self.answer.content.claimed
        return None if self.stream is None else self.stream.claimed


@dataclass(frozen=True)
class Continue:
    """Try the next node."""


@dataclass(frozen=True)
class Return:
    """Give the client what this attempt has."""

    attempt: Attempt


@dataclass(frozen=True)
class Fail:
    """Tell the client that no node completed its request."""

    outcome: Outcome


Next: TypeAlias = Continue | Return | Fail
CONTINUE: Final = Continue()


def decide_next(attempts: Sequence[Attempt], *, is_exhausted: bool = False) -> Next:
    """
    What follows from the attempts so far.

    Args:
        attempts: In order; skipped nodes are not among them.
        is_exhausted: No further node may be tried.
    """
    if not attempts:
        if is_exhausted:
            return Fail(Outcome.BUSY)
        return CONTINUE
    last = attempts[-1]
    if last.outcome is Outcome.COMPLETED or (last.outcome is Outcome.REFUSED and not last.is_doubtful):
        return Return(last)
    if last.outcome is Outcome.UNHONOURED and last.stream is not None:
        # The client has it already.
        return Return(last)
    if last.has_begun:
        return Fail(last.outcome)
    may_move_on = last.outcome.may_move_on or _is_doubtful_refusal(last)
    if may_move_on and not is_exhausted:
        return CONTINUE
    # A second best answer is better than none: a refusal, an answer that keeps to most, or one with nothing in it.
    for is_second_best in (_is_doubtful_refusal, _is_unhonoured, _is_empty):
        for attempt in reversed(attempts):
            if is_second_best(attempt):
                return Return(attempt)
    return Fail(last.outcome)


def decide_after_seam(last: Attempt) -> Next:
    """
    What follows from an attempt to go on with another node's text.

    What it refuses is not the client's request, so a refusal is no answer: a further node may do it.
    """
    if last.outcome in (Outcome.COMPLETED, Outcome.UNHONOURED) and last.stream is not None:
        return Return(last)
    if last.has_begun or last.outcome in (Outcome.TIMED_OUT, Outcome.ABANDONED):
        return Fail(last.outcome)
    return CONTINUE


def find_blamed(attempts: Sequence[Attempt], end: Next, *, ranked: int) -> list[Attempt]:
    """
    The doubtful failures that turn out to be the nodes' fault.

    A failure is the node's fault if another node completed the same request, or if there was no
    other node to ask (*ranked*, how many nodes the decision had, is 1).  If every node fails at
    a request, the request is the cause, and a client must not be able to eject nodes with it.
    """
    doubtful = [attempt for attempt in attempts if attempt.is_doubtful]
    if isinstance(end, Return):
        return doubtful if end.attempt.outcome is Outcome.COMPLETED else []
    if isinstance(end, Fail) and ranked == 1 and len(attempts) == 1:
        # But one node alone does not show whether the network was at fault.
        unreached = Failure.NO_CONNECTION_IN_TIME
        nodes = (Outcome.CRASHED, Outcome.STALLED, Outcome.TRUNCATED, Outcome.CORRUPTED)
        return [a for a in doubtful if a.outcome in nodes and a.failure is not unreached]
    return []


def _is_doubtful_refusal(attempt: Attempt) -> bool:
    return attempt.outcome is Outcome.REFUSED and attempt.is_doubtful


def _is_unhonoured(attempt: Attempt) -> bool:
    return attempt.outcome is Outcome.UNHONOURED


def _is_empty(attempt: Attempt) -> bool:
    return attempt.outcome is Outcome.EMPTY
