"""Who has most of something that is kept for many, so that who takes most loses first."""

from __future__ import annotations


class Shares:
    """
    How many each owner has, and who has most.

    Each step takes the same time, however many owners there are.
    """

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._with: dict[int, dict[str, None]] = {}
        self._most = 0

    def __getitem__(self, owner: str) -> int:
        return self._of.get(owner, 0)

    def add(self, owner: str) -> None:
        """Note that an owner has one more."""
        self._move(owner, 1)

    def remove(self, owner: str) -> None:
        """Note that an owner has one less."""
        self._move(owner, -1)

    def largest(self) -> str:
        """An owner that has most.  There must be one that has something."""
        return next(iter(self._with[self._most]))

    def _move(self, owner: str, by: int) -> None:
        before = self._of.pop(owner, 0)
        after = before + by
        if before:
            del self._with[before][owner]
            if not self._with[before]:
                del self._with[before]
        if after:
            self._of[owner] = after
            self._with.setdefault(after, {})[owner] = None
        # It changes by one at a time: if nobody has the most any more, this owner has one less than that.
        if after > self._most or self._most not in self._with:
            self._most = after
