"""The choices of an answer, put together from its chunks, for those who look at what was asked of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from router.model.dialects import Choice, Function

_MOST: Final = 1 << 20
"""Characters of an answer that are put together, or what takes as much memory: a longer one is not looked at."""
_CALL_SIZE: Final = 512
"""What a call, and what a choice, takes in memory beside its text."""
_NAME_PARTS: Final = 16
_OLD_CALL: Final = -1
"""The place of a call in the older form: a choice has one at most."""


class GatheredChoice:
    """One choice: its content, and the calls of tools in it."""

    __slots__ = ("_content", "calls", "end")

    def __init__(self) -> None:
        # If each part is a letter or two, a list of them would be some fifty times as large.
        self._content = io.StringIO()
        self.calls: dict[int, tuple[list[str], io.StringIO]] = {}
        """Names and arguments, by the place of the call."""
        self.end = ""
        """The ``finish_reason``."""

    @property
    def text(self) -> str:
        """What the model says, without its reasoning and its calls."""
        return self._content.getvalue()

    def named_calls(self) -> list[tuple[str, str]]:
        """The name and the arguments of each call."""
        return [("".join(names), arguments.getvalue()) for names, arguments in self.calls.values()]

    def _add_call(self, place: int, function: Function | None) -> int:
        if function is None:
            return 0
        size = 0
        if place not in self.calls:
            self.calls[place] = [], io.StringIO()
            size = _CALL_SIZE
        names, arguments = self.calls[place]
        name, words = function.name or "", function.arguments or ""
        # Some engines repeat the whole name in every chunk.
        if name and len(names) < _NAME_PARTS and name not in names:
            names.append(name)
        if words:
            arguments.write(words)
        return size + len(name) + len(words)

    def add(self, choice: Choice) -> int:
        """Add what a chunk has, or a whole choice; returns its size in characters."""
        if choice.has_ended and choice.finish_reason:
            self.end = choice.finish_reason
        said = choice.said
        content = choice.text or (said.content if said is not None else None) or ""
        if content:
            self._content.write(content)
        size = len(content)
        if said is not None:
            for place, call in enumerate(said.tool_calls or ()):
                size += self._add_call(place if call.index is None else call.index, call.function)
            if said.function_call is not None:
                size += self._add_call(_OLD_CALL, said.function_call)
        return size


class Gathered:
    """The choices of one answer, by index."""

    __slots__ = ("_size", "choices")

    def __init__(self) -> None:
        self.choices: dict[int, GatheredChoice] = {}
        self._size = 0

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer is here."""
        return self._size <= _MOST

    def add(self, choices: Sequence[Choice]) -> None:
        """Add the choices of a chunk, or of a whole answer."""
        if not self.is_whole:
            return
        for choice in choices:
            found = self.choices.get(choice.index)
            if found is None:
                found = self.choices[choice.index] = GatheredChoice()
                self._size += _CALL_SIZE
            self._size += found.add(choice)
