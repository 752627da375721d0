"""What is known of all rules together: the shapes of their values, and what functions are called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verifier.policy.checker.forms import of_data
from verifier.policy.checker.shapes import ANY, Shape, join
from verifier.policy.checker.world import Path, World


class Knowledge:
    """It grows while rules are read."""

    def __init__(self, world: World, input_: Shape) -> None:
        self.world = world
        self.input = input_
        self._values: dict[Path, Shape] = {}
        self._calls: dict[Path, list[Shape]] = {}
        self._wanted: dict[Path, list[Shape]] = {}
        self._documents: dict[Path, Shape] = {}

    def value(self, path: Path) -> Shape:
        """The shape of a rule's value, or of a function's result whatever its arguments are."""
        return self._values.get(path, ANY)

    def set_value(self, path: Path, shape: Shape) -> None:
        """Say what a rule gives."""
        self._values[path] = ANY if shape.is_never else shape

    def add_call(self, path: Path, arguments: Sequence[Shape]) -> None:
        """Say what a function is called with."""
        known = self._calls.get(path)
        if known is None:
            self._calls[path] = list(arguments)
        else:
            self._calls[path] = [join(pair) for pair in zip(known, arguments, strict=False)]

    def arguments(self, path: Path, count: int) -> Sequence[Shape]:
        """What a function's arguments are in all its calls together."""
        found = [ANY if shape.is_never else shape for shape in self._calls.get(path, ())]
        return [*found, *[ANY] * count][:count]

    def wanted(self, path: Path) -> Sequence[Shape]:
        """What a function's arguments must be."""
        return self._wanted.get(path, ())

    def set_wanted(self, path: Path, shapes: Sequence[Sequence[Shape]]) -> None:
        """Say what each definition of a function wants its arguments to be."""
        self._wanted[path] = [join(wanted) for wanted in zip(*shapes, strict=False)]

    def document(self, path: Path) -> tuple[Shape, int | None]:
        """The shape of the data at a path, or at which name of the path there are none."""
        value: Any = self.world.data
        for number, name in enumerate(path):
            if value == {} and number > 0:
                return ANY, None
            if not isinstance(value, Mapping) or name not in value:
                return ANY, number
            value = value[name]
        if path not in self._documents:
            self._documents[path] = of_data(value)
        return self._documents[path], None
