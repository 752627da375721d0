"""
The pools of callers with requirements of their own: made when they are first asked for, kept while they are used.

To make one is to look at every node once, so it is done in steps between which other requests have their turn, and
a caller may cost so much of it a minute.  From then on events keep it up to date, and a decision from it costs what
any other does.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from router.choose.gates import GateContext, GateVerdict
from router.choose.requirements import find_unmet
from router.model.clock import Clock
from router.model.errors import RequirementsError
from router.model.node import NodeView
from router.model.requirements import CallerRequirements
from router.model.workload import Workload
from router.state.narrowed import NarrowedPool
from router.state.placement import NodeEntry, Placement
from router.state.pool import WorkloadPool

_Place = tuple[str, bool, bytes]
"""A workload, whether it is a candidate's, and the requirements."""
_AT_ONCE: Final = 100
"""Nodes that are judged before other work has its turn."""
MAX_POOLS: Final = 64
"""Pools that are kept."""
MAX_KEPT: Final = 1_000_000
"""Nodes that all pools together keep in mind, but for the newest one."""
CHECKS_PER_MINUTE: Final = 400_000
"""Nodes that may be judged for new requirements of one caller."""
_UNUSED_S: Final = 300.0
_WINDOW_S: Final = 60.0
_MAX_CALLERS: Final = 10_000


class TooManyRequirementsError(RequirementsError):
    """A caller has had the router look for too many different requirements."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("", "too many different requirements in a minute", code="requirements.too-many")
        self.retry_after = retry_after


class Narrowings:
    """
    Keeps the narrowed pools.

    Args:
        entries: All nodes, by id.
        placement: Where they stand.
        nodes_of: The nodes of an operator.
    """

    def __init__(
        self,
        entries: Mapping[str, NodeEntry],
        placement: Placement,
        nodes_of: Mapping[str, set[str]],
        clock: Clock,
    ) -> None:
        self._entries = entries
        self._placement = placement
        self._nodes_of = nodes_of
        self._clock = clock
        self._kept: OrderedDict[_Place, NarrowedPool] = OrderedDict()
        self._used_at: dict[_Place, float] = {}
        self._making: dict[_Place, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        """However many ask for new ones, other work has its turn after each step of one."""
        self._spent: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By caller, when its minute began, and how many nodes were judged for it since."""

    def __len__(self) -> int:
        return len(self._kept)

    async def prepare(self, workload: Workload, required: CallerRequirements, caller: str) -> NarrowedPool:
        """
        The pool of a workload for a caller's requirements; it is good until the caller of this gives way to others.

        Raises:
            TooManyRequirementsError: the caller has asked for too many different ones.
        """
        place = self._place(workload, required)
        while (pool := self._find(place)) is None:
            task = self._making.get(place)
            if task is None:
                pool = self._begin(place, required, caller)
                if pool is not None:
                    break
                task = self._making[place]
            # Whoever else waits for it must get it although this one may leave.
            await asyncio.shield(task)
        self._used_at[place] = self._clock.monotonic()
        self._kept.move_to_end(place)
        return pool

    def verdict(self, node: NodeView, workload: Workload, required: CallerRequirements) -> GateVerdict | None:
        """What a node lacks now of a caller's requirements."""
        return find_unmet(node, required, workload.model, self._context())

    def excluded(
        self, workload: Workload, required: CallerRequirements, now_ms: int
    ) -> dict[str, GateVerdict]:
        """
        Each node that only a caller's requirements keep out, by the results that nodes have now.

        Args:
            now_ms: When the decision was made, which says how old they were.
        """
        base = self._placement.pool_of(workload)
        if base is None:
            return {}
        views = {node: entry.view for node, entry in self._entries.items()}
        return NarrowedPool(base, required).verdicts(views, GateContext(now_ms=now_ms, monotonic=0.0))

    def shortfalls(self, workload: Workload, required: CallerRequirements) -> Counter[str]:
        """What nodes lack of a caller's requirements now, and how many lack it."""
        pool = self._find(self._place(workload, required))
        if pool is None:
            return Counter()
        return pool.shortfalls(lambda node: self._entries[node].view, self._context())

    def close(self) -> None:
        """End what is being made."""
        for task in self._making.values():
            task.cancel()

    def _context(self) -> GateContext:
        return GateContext(now_ms=self._clock.now_ms(), monotonic=self._clock.monotonic())

    def _place(self, workload: Workload, required: CallerRequirements) -> _Place:
        own = self._placement.candidate.get(workload.name)
        return workload.name, own is not None and self._placement.pool_of(workload) is own, required.key

    def _base(self, place: _Place) -> WorkloadPool | None:
        return (self._placement.candidate if place[1] else self._placement.pools).get(place[0])

    def _find(self, place: _Place) -> NarrowedPool | None:
        """A pool that is up to date; those of another table are not."""
        pool = self._kept.get(place)
        if pool is not None and pool.base is not self._base(place):
            self._drop(place)
            return None
        return None if place in self._making else pool

    def _begin(self, place: _Place, required: CallerRequirements, caller: str) -> NarrowedPool | None:
        """Begin to make a pool; returns it if it was made at once."""
        base = self._base(place)
        if base is None:
            raise KeyError(place[0])
        pool = NarrowedPool(base, required)
        nodes, are_all = self._listed(pool)
        self._charge(caller, len(nodes) if are_all else len(self._entries))
        self._make_room()
        self._kept[place] = pool
        self._used_at[place] = self._clock.monotonic()
        # From now on it hears of what changes; what it has not heard of yet comes below.
        self._placement.narrowed.setdefault(place[0], []).append(pool)
        if len(nodes if are_all else self._entries) <= _AT_ONCE:
            self._judge(pool, nodes if are_all else [*nodes, *self._entries])
            return pool
        task = asyncio.create_task(self._make(place, pool, nodes, are_all=are_all), name="requirements")
        self._making[place] = task
        return None

    async def _make(self, place: _Place, pool: NarrowedPool, nodes: list[str], *, are_all: bool) -> None:
        try:
            async with self._one_at_a_time:
                await self._judge_in_steps(pool, nodes)
                if not are_all:
                    await self._judge_in_steps(pool, list(self._entries))
        except BaseException:
            self._drop(place)
            raise
        finally:
            del self._making[place]

    async def _judge_in_steps(self, pool: NarrowedPool, nodes: list[str]) -> None:
        for first in range(0, len(nodes), _AT_ONCE):
            self._judge(pool, nodes[first : first + _AT_ONCE])
            await asyncio.sleep(0)

    def _judge(self, pool: NarrowedPool, nodes: Iterable[str]) -> None:
        context = self._context()
        for node in nodes:
            entry = self._entries.get(node)
            if entry is not None and node not in pool:
                pool.judge(entry.key, entry.view, context)

    def _listed(self, pool: NarrowedPool) -> tuple[list[str], bool]:
        """The nodes to look at first, and whether no others need be looked at."""
        required = pool.required
        if required.nodes:
            return [node for node in required.nodes if node in self._entries], True
        if required.operators:
            found = (self._nodes_of.get(operator, ()) for operator in required.operators)
            return [node for nodes in found for node in nodes], True
        # In the order of the lanes each has its place at the end of its own: to put it between others takes longer.
        # Of the rest some may do the work and have no room; the others take no time.
        return [node for lane in pool.base.lanes.values() for node in lane.nodes()], False

    def _charge(self, caller: str, checks: int) -> None:
        now = self._clock.monotonic()
        began, spent = self._spent.pop(caller, (now, 0))
        if now - began >= _WINDOW_S:
            began, spent = now, 0
        # A first one is always allowed, however large the fleet is.
        is_over = spent > 0 and spent + checks > CHECKS_PER_MINUTE
        self._spent[caller] = began, spent if is_over else spent + checks
        if len(self._spent) > _MAX_CALLERS:
            self._spent.popitem(last=False)
        if is_over:
            raise TooManyRequirementsError(max(1, int(began + _WINDOW_S - now) + 1))

    def _make_room(self) -> None:
        now = self._clock.monotonic()
        for place in [place for place, at in self._used_at.items() if now - at > _UNUSED_S]:
            self._drop(place)
        while len(self._kept) >= MAX_POOLS or sum(map(len, self._kept.values())) > MAX_KEPT:
            oldest = next((place for place in self._kept if place not in self._making), None)
            if oldest is None:
                raise TooManyRequirementsError(1)
            self._drop(oldest)

    def _drop(self, place: _Place) -> None:
        pool = self._kept.pop(place, None)
        self._used_at.pop(place, None)
        listening = self._placement.narrowed.get(place[0], [])
        if pool in listening:
            listening.remove(pool)
            if not listening:
                del self._placement.narrowed[place[0]]
