"""Whether an attempt failed because the router itself stood still (`router.state.stalls`)."""

from __future__ import annotations

from typing import Final, NamedTuple

from router.model.errors import AttemptError
from router.model.outcomes import Failure, Outcome

_SHARE: Final = 0.1
"""If the router stood still for more than this share of a node's time, it is to blame that the time ran out."""
_LEAST_S: Final = 0.5
"""A shorter stall excuses nothing: it is what a busy machine does all the time."""
_LONG_S: Final = 5.0
"""After such a stall of the router, nodes may well have given up their connections."""


class TimeAllowed(NamedTuple):
    """What a node has time for, in seconds."""

    connect_s: float
    first_s: float
    """For a whole answer, or for the first text of a stream."""
    text_s: float
    """Between one text of a stream and the next."""


def is_late_here(
    error: AttemptError, allowed: TimeAllowed, lost_s: float, lost_since_text_s: float | None
) -> bool:
    """
    Whether the router is to blame that an attempt ended with *error*.

    Args:
        error: How the attempt ended.
        allowed: The limits that applied.
        lost_s: How long the router stood still during the attempt, in seconds.
        lost_since_text_s: The same since the last text of a stream; `None` if none has come.
    """
    since = lost_s if lost_since_text_s is None else lost_since_text_s
    if error.failure is Failure.NO_CONNECTION_IN_TIME:
        return lost_s > max(_LEAST_S, _SHARE * allowed.connect_s)
    if error.outcome is Outcome.STALLED:
        allowed_s = allowed.first_s if lost_since_text_s is None else allowed.text_s
        return since > max(_LEAST_S, _SHARE * allowed_s)
    if error.outcome in (Outcome.CRASHED, Outcome.TRUNCATED):
        return since > _LONG_S
    return False
