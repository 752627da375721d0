"""
Prefix affinity: requests of one tenant that begin alike go to the same established node, if that costs little.  Pure.

An engine keeps what it has read of a prompt, and answers sooner if the next one begins alike.  The nodes near a key are
found on a circle by multi-probe consistent hashing (Appleton and O'Reilly, 2015): if a node comes or goes, only its own
keys move.  On a lane's circle there are the nodes of that lane alone, so that no gate is crossed.

The load is bounded as by Mirrokni, Thorup and Zadimoghaddam ("Consistent hashing with bounded loads", 2018), but by what
two choices would have given this very request: a near node comes first only if the seconds that are expected of it are
at most so many per cent of those of the node that two choices have drawn.  If it is beyond that, the next near node may
have the key, and after `NEAR` of them two choices decide, as they do without a key.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

from msgspec import Struct

Key = tuple[str, str]
"""Operator and node."""
NEAR: Final = 3
"""Nodes near a key that may have it."""
_PROBES: Final = 4
"""Points of a key on the circle; the node that is nearest to one of them has the key.  With one point arcs are uneven."""
_POINT_BYTES: Final = 8
_PROBE: Final = struct.Struct(f">{_PROBES}Q")
_CIRCLE: Final = 1 << (8 * _POINT_BYTES)


class Affinity(Struct, frozen=True, gc=False):
    """What a key was worth to one decision."""

    key: str
    """16 hexadecimal digits: a keyed digest of the tenant and of how its prompt begins."""
    how: str
    """
    ``kept``: a near node was put first; ``drawn``: two choices had drawn it anyway; ``busy``: all near nodes have too much
    to do; ``trial``: a node on probation or a degraded one is tried first; ``none``: no node is established.
    """
    node: str = ""
    """The near node that comes first."""


class Ring:
    """
    The nodes of one lane on a circle.

    Args:
        secret: It places them, so that nobody can choose a name for its place.
    """

    __slots__ = ("_keys", "_points", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._points = array("Q")
        self._keys: list[Key] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: Key) -> None:
        """Put a node onto the circle."""
        point = self._point(key[1].encode(errors="surrogatepass"))
        at = bisect_left(self._points, point)
        self._points.insert(at, point)
        self._keys.insert(at, key)

    def remove(self, key: Key) -> None:
        """Take a node off the circle."""
        at = bisect_left(self._points, self._point(key[1].encode(errors="surrogatepass")))
        while self._keys[at] != key:
            at += 1
        del self._points[at], self._keys[at]

    def near(self, key: str) -> tuple[Key, ...]:
        """The nodes near a key, the nearest first."""
        count = len(self._points)
        if not count:
            return ()
        found: list[tuple[int, int]] = []
        digest = hashlib.blake2b(key.encode(), key=self._secret, digest_size=_PROBES * _POINT_BYTES).digest()
        points = self._points
        for probe in _PROBE.unpack(digest):
            at = bisect_left(points, probe)
            if at == count:
                at = 0
            found.append(((points[at] - probe) % _CIRCLE, at))
        found.sort()
        return tuple(dict.fromkeys(self._keys[at] for _, at in found))[:NEAR]

    def _point(self, data: bytes) -> int:
        return int.from_bytes(
            hashlib.blake2b(data, key=self._secret, digest_size=_POINT_BYTES).digest(), "big"
        )


class Scored(Protocol):
    """A ranked node, as far as a key concerns it."""

    @property
    def node(self) -> str:
        """Which."""

    @property
    def score(self) -> float:
        """Expected seconds; less is better."""


S = TypeVar("S", bound=Scored)


def stick(
    near: Iterable[Key], drawn: list[S], score: Callable[[Key], S | None], per_cent: int
) -> tuple[list[S], str]:
    """
    The nodes in the order in which they must be tried, and how the key counted.

    Args:
        near: The nodes near the key, the nearest first.
        drawn: The nodes that two choices have drawn, at least one, the best first.
        score: Scores a node; `None` if it may not be put first.
        per_cent: How many per cent of the best one's expected seconds a near node may be expected to take.
    """
    best = drawn[0]
    for key in near:
        if key[1] == best.node:
            return drawn, "drawn"
        found = score(key)
        if found is not None and found.score * 100 <= best.score * per_cent:
            others = [each for each in drawn if each.node != found.node]
            return [found, *others][: max(len(drawn), 1)], "kept"
    return drawn, "busy"
