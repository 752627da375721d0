"""How one request comes to its decision and its end: by the table in force, or by a candidate and by it if need be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from router.config import ApiKey
from router.gateway.arms import Arms, Chosen, Tried
from router.gateway.attempts import Fail, Return
from router.gateway.client import ClientStream
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.request import NodeRequest
from router.gateway.terms import Terms
from router.model.outcomes import Outcome
from router.model.workload import Table
from router.state.narrowed import NarrowedPool
from router.state.records import Record

WORKLOAD_HEADER: Final = "X-Touchstone-Workload"


class Deciding:
    """
    One request.

    Args:
        dispatcher: Decides and tries.
        terms: Finds the nodes and the seed that go by what the request says.
        arms: Which table requests go by while another one is tried.
        request: As it came.
        key: Whose it is.
    """

    def __init__(
        self, dispatcher: Dispatcher, terms: Terms, arms: Arms, request: web.Request, key: ApiKey
    ) -> None:
        self._dispatcher = dispatcher
        self._terms = terms
        self._arms = arms
        self._request = request
        self._key = key
        self.read: Callable[[Table], Awaitable[NodeRequest]] | None = None
        """Reads the request by another table, while one has a share of the traffic."""
        self._asked: NodeRequest | None = None
        """As the table in force has it."""
        self._tried: Tried | None = None
        self._narrowed: NarrowedPool | None = None
        self._chosen: Chosen | None = None
        self._end: Return | Fail | None = None

    async def decide(self, request: NodeRequest, left_s: float) -> tuple[NodeRequest, Record]:
        """
        Decide, from the nodes that meet what the caller requires, by the seed that follows from its nonce.

        Returns:
            The request as the table that has decided has it, and the decision.

        Raises:
            GatewayError: what it says of how its node is to be chosen cannot be met.
        """
        caller = self._key.name
        self._asked = request
        self._narrowed = await self._terms.narrow(request.workload, request.required, caller)
        # Last of all that may be refused: a nonce is used once.
        self._chosen = self._terms.choose(self._request, caller)
        named = self._request.headers.get(WORKLOAD_HEADER)
        tried = self._tried = self._arms.begin(request, self._key, named, left_s=left_s)
        if tried is None:
            return request, self._decide_by_active(request)
        if self.read is not None:
            found = await self._arms.decide(tried, self.read, self._chosen)
            if found is not None:
                self._arms.shadow(tried, request, found[1], self._narrowed, is_own=True)
                return found
        record = self._decide_by_active(request)
        self._arms.shadow(tried, request, record, self._narrowed)
        return request, record

    def _decide_by_active(self, request: NodeRequest) -> Record:
        return self._dispatcher.decide(
            request.workload,
            self._key.name,
            has_tools=request.has_tools,
            narrowed=self._narrowed,
            chosen=self._chosen,
            affinity=self._dispatcher.salts.affinity_of(request),
        )

    async def run(self, run: Run) -> Return | Fail | None:
        """
        Have the nodes of the decision do the work; if a candidate's complete nothing, those of the table in force.

        Returns:
            `None` if no node may do it.
        """
        end, tried = await self._run(run), self._tried
        if end is not None and tried is not None and self._arms.must_fall_back(tried, run, end):
            assert self._asked is not None
            self._arms.fall_back(tried, run, self._asked, self._decide_by_active(self._asked))
            if isinstance(run.sink, ClientStream):
                run.sink.name_decision(run.record.id)
            end = await self._run(run)
        self._end = Fail(Outcome.BUSY) if end is None else end
        return end

    async def _run(self, run: Run) -> Return | Fail | None:
        return await self._dispatcher.run(run) if run.record.decision.ranked else None

    def finish(self, run: Run | None) -> None:
        """Note what became of it, when all of it is booked."""
        if self._tried is not None:
            self._arms.finish(self._tried, run, self._end)
