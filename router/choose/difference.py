"""
What two tables decide differently about one request, and why.  Pure.

Both decisions are made at one moment with one seed, so that only the tables can be the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import Struct

from router.choose.decision import Decision
from router.choose.gates import GateVerdict
from router.model.workload import Price

SAME: Final = "same"
KINDS: Final = {
    SAME: "Both choose the same node at the same price.",
    "refused": "The candidate has no node for it, and the table in force has one.",
    "served": "The candidate has a node for it, and the table in force has none.",
    "unknown": "The candidate has no such workload.",
    "workload": "The candidate takes it for another workload.",
    "standing": "The candidate has another tier for it, in which nodes have no standing yet.",
    "closed": "A gate of the candidate is closed to the node that is chosen now.",
    "opened": "The candidate lets in the node that it chooses, and the table in force does not.",
    "order": "Both let in both nodes, and rank them differently.",
    "price": "Both choose the same node, at another price.",
    "error": "The candidate could not decide.",
}
"""The kinds of differences."""


class Difference(Struct, frozen=True):
    """One difference."""

    kind: str
    code: str = ""
    """The gate, or what else tells more."""


Ask: TypeAlias = Callable[[str, Decision], GateVerdict | None]
"""What keeps a node from the work of a decision, by the table that decided."""


def find_difference(active: Decision, candidate: Decision, verdict: Ask) -> Difference:
    """How the candidate's decision differs from that of the table in force."""
    now, then = active.chosen, candidate.chosen
    if now is None:
        return Difference(SAME if then is None else "served", _main_code(active))
    if then is None:
        closed = verdict(now.node, candidate)
        return Difference("refused", _main_code(candidate) if closed is None else closed.code)
    if candidate.workload.name != active.workload.name:
        return Difference("workload", candidate.workload.name)
    if now.node == then.node:
        if now.price == then.price:
            return Difference(SAME)
        costs = [active.workload.cost_of(each.price or Price()) for each in (now, then)]
        return Difference("price", "dearer" if costs[1] > costs[0] else "cheaper")
    if (closed := verdict(now.node, candidate)) is not None:
        return Difference("closed", closed.code)
    if (opened := verdict(then.node, active)) is not None:
        return Difference("opened", opened.code)
    if candidate.workload.standing_key != active.workload.standing_key:
        return Difference("standing", candidate.workload.standing_key)
    return Difference("order", f"{now.lane}-{then.lane}" if now.lane is not then.lane else "score")


def _main_code(decision: Decision) -> str:
    """What keeps most nodes out."""
    return max(decision.closed, key=lambda code: (decision.closed[code], code), default="")
