"""
One budget of bytes for all bodies that a process holds, and one of places for strangers' requests.

Both are for what nobody has been asked about yet: who has proven who they are is served from a part of the budget
that strangers cannot use, and needs no place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from verifier.errors import RequestError

RETRY_AFTER_S: Final = 1
SMALL: Final = 64 * 1024
"""A stranger's body up to here may use all that strangers have; a larger one half of it.

A node's answers to a call are a stranger's until they are read, because its signature covers them."""
_QUEUE: Final = 512
"""Strangers' requests that wait for a place."""
_WAIT_S: Final = 2.0


def _busy(message: str) -> RequestError:
    return RequestError(message, code="service.busy", retry_after=RETRY_AFTER_S)


class ByteBudget:
    """
    Bytes of bodies.

    Nobody can hold more than half of what is open to them, so one caller keeps no other one out.

    Args:
        total: Bytes in all.
        reserved: The part that strangers cannot have.
    """

    def __init__(self, total: int, reserved: int) -> None:
        self._total = total
        self._for_strangers = total - reserved
        self._held = 0
        self._strange = 0
        self._by_holder: dict[str, int] = {}

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def take(self, holder: str, size: int, *, known: bool, so_far: int) -> None:
        """
        Reserve *size* more bytes of a body of which *so_far* are held.

        Raises:
            RequestError: there is no room for them now.
        """
        own = self._by_holder.get(holder, 0)
        if known:
            fits = self._held + size <= self._total and own + size <= self._total // 2
        else:
            part = self._for_strangers if so_far + size <= SMALL else self._for_strangers // 2
            fits = (
                self._strange + size <= part
                and own + size <= max(self._for_strangers // 2, SMALL)
                and self._held + size <= self._total
            )
        if not fits:
            raise _busy("too many bodies are being read")
        self._held += size
        self._by_holder[holder] = own + size
        if not known:
            self._strange += size

    def give_back(self, holder: str, size: int, *, known: bool) -> None:
        """Give back what `take` gave."""
        self._held -= size
        if not known:
            self._strange -= size
        left = self._by_holder.pop(holder, 0) - size
        if left > 0:
            self._by_holder[holder] = left

    def move(self, holder: str, size: int, *, to: str) -> None:
        """A stranger has proven who it is: what it holds is *to*'s from now on."""
        self.give_back(holder, size, known=False)
        self._held += size
        self._by_holder[to] = self._by_holder.get(to, 0) + size


class Places:
    """
    Places for requests that are worked on at once; those who find none wait in a line that has an end.

    Args:
        count: Places.
        wait_s: How long one waits for a place.
    """

    def __init__(self, count: int, *, queue: int = _QUEUE, wait_s: float = _WAIT_S) -> None:
        self._free = count
        self._queue = queue
        self._wait_s = wait_s
        self._line: deque[asyncio.Future[None]] = deque()

    async def take(self) -> Callable[[], None]:
        """
        Wait for a place; returns what gives it back, which may be called again.

        Raises:
            RequestError: none was free in time, or the line is too long.
        """
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait()
        is_held = True

        def leave() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._pass_on()

        return leave

    async def _wait(self) -> None:
        if len(self._line) >= self._queue:
            raise _busy("too many requests are worked on")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done() and not turn.cancelled():
                # The place came in the same moment: the next in line has it.
                self._pass_on()
            elif turn in self._line:
                self._line.remove(turn)
            if isinstance(error, TimeoutError):
                raise _busy("too many requests are worked on") from None
            raise

    def _pass_on(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
