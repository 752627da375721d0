"""One request on its way to nodes: what it is, what was tried, what its caller pays."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.gateway.attempts import Attempt, Next, decide_after_seam, decide_next
from router.gateway.continuing import Continuing
from router.gateway.request import NodeRequest
from router.gateway.sink import Sink
from router.model.clock import Clock
from router.model.tokens import Count
from router.model.usage import Usage
from router.state.records import Record


@dataclass(kw_only=True)
class Run:
    """One request on its way."""

    record: Record
    request: NodeRequest
    deadline: float
    """When the caller's time is over."""
    first_by: float
    """When the router's own patience is, until the first text or a whole answer.  What nodes are lent adds to it."""
    is_check: bool = False
    """Whether nobody waits for its answer: it asks what a trusted engine has answered already."""
    is_scoring: bool = False
    """Whether it scores another node's answer: nobody else asks that, so it leaves no trace in the node's standing."""
    tells_usage: bool = False
    """Whether the end of a stream tells the client what was counted."""
    sink: Sink | None = None
    says: str | None = None
    """What the caller says of having another node go on if the stream breaks (`router.gateway.continuing`)."""
    continuing: Continuing | None = None
    """What another node needs to go on; `None` if the stream ends where it breaks."""
    attempts: list[Attempt] = field(default_factory=list)
    earlier: list[Attempt] = field(default_factory=list)
    """Those by another table, whose nodes completed nothing (`router.gateway.arms`)."""
    last: Attempt | None = None
    """The last attempt, also if the client left while it was made."""
    unsettled: Attempt | None = None
    """A completed attempt that is settled once the answer is on its way, so that no client waits for it."""
    prompt: Count | None = None
    """Tokens of the prompt, once they are counted."""
    usage: Usage | None = None
    """What the caller is charged for."""

    @property
    def asked(self) -> NodeRequest:
        """What the next node is sent."""
        return self.request if self.continuing is None else self.continuing.asked

    @property
    def seam(self) -> Continuing | None:
        """The parts that nodes have given, if another one is to go on with them."""
        return self.continuing if self.continuing is not None and self.continuing.parts else None

    def charge(self, own: Usage | None) -> None:
        """Charge the caller for what the last node has given, and for the parts before."""
        if own is not None:
            self.usage = own if self.continuing is None else self.continuing.with_parts(own)

    def next_step(self) -> Next:
        """What follows from the attempts so far."""
        return decide_next(self.attempts) if self.seam is None else decide_after_seam(self.attempts[-1])

    async def goes_on(self, clock: Clock, patience_s: float) -> bool:
        """Whether another node may go on with a stream that broke: it has the router's patience for its first text."""
        if self.continuing is None or self.sink is None:
            return False
        if not await self.continuing.begin(self.attempts[-1], self.sink):
            return False
        self.first_by = clock.monotonic() + patience_s
        return True
