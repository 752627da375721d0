"""What is known of the variables and the input at a point of a query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from verifier.policy.checker.scopes import Local
from verifier.policy.checker.shapes import ANY, Shape, Value, filtered, without

INPUT: Final = "input"

Root: TypeAlias = Local | str
"""A variable, or `INPUT`."""
Place: TypeAlias = tuple[Root, tuple[str, ...]]
"""A root, and the names of fields on the way down from it."""


@dataclass
class Environment:
    """
    The shapes of variables, and of which place some of them are copies.

    A condition on one field excludes some kinds of submodule, and so says something of the other
    fields.  Conditions only take whole options away, never values of a field: two conditions on
    one field may well repeat each other.
    """

    shapes: dict[Root, Shape]
    places: dict[Root, Place] = field(default_factory=dict)
    first: dict[Root, Shape] = field(default_factory=dict)
    """The shapes before any condition."""

    @classmethod
    def with_input(cls, shape: Shape) -> Self:
        """What is known before anything is read."""
        return cls({INPUT: shape}, {}, {INPUT: shape})

    def copy(self) -> Environment:
        """A copy, for a query within a query."""
        return Environment(dict(self.shapes), dict(self.places), dict(self.first))

    def before_conditions(self) -> Environment:
        """What is known if no condition counts."""
        return Environment(dict(self.first), {}, dict(self.first))

    def shape(self, root: Root) -> Shape:
        """The shape of a root."""
        return self.shapes.get(root, ANY)

    def bind(self, local: Local, shape: Shape, place: Place | None = None) -> None:
        """Say what a variable is.  The first time counts."""
        if local in self.shapes:
            return
        self.shapes[local] = self.first[local] = ANY if shape.is_never else shape
        if place is not None:
            self.places[local] = place

    def keep(self, place: Place | None, wanted: Shape) -> None:
        """A condition holds: what lies at a place has the shape *wanted*."""
        while place is not None:
            root, path = place
            self._set(root, filtered(self.shape(root), path, wanted))
            place = self._origin(root, path)

    def exclude(self, place: Place | None, value: Value) -> None:
        """A condition holds: what lies at a place has another value."""
        while place is not None:
            root, path = place
            self._set(root, without(self.shape(root), path, value))
            place = self._origin(root, path)

    def _set(self, root: Root, shape: Shape) -> None:
        # What leaves nothing is reported where the comparison stands.
        if not shape.is_never:
            self.shapes[root] = shape

    def _origin(self, root: Root, path: tuple[str, ...]) -> Place | None:
        origin = self.places.get(root)
        return (origin[0], (*origin[1], *path)) if origin is not None else None
