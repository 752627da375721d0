"""What is kept of results that wait: bounded, and dropped once something newer is known."""

from __future__ import annotations

import pytest

from router.model.workload import Table
from router.state import unread
from router.state.fleet import Fleet
from router.state.known_nodes import KnownNodes
from router.state.result_reader import ResultReader
from router.state.unread import UnreadResults
from tests.unit.router.doubles import Moved
from tests.unit.router.support import ISSUER, WORKLOAD, ear


def test_of_each_node_the_newest_is_kept() -> None:
    """By the word of what brought it; without a number, the last that came."""
    kept = UnreadResults()
    for token, sequence in (("a", 2), ("b", 1), ("c", 3)):
        kept.keep("n", token, sequence)
    kept.keep("m", "x", None)
    kept.keep("m", "y", None)
    assert {node: each.token for node, each in kept.take_all().items()} == {"n": "c", "m": "y"}
    assert len(kept) == 0


def test_there_is_an_end_to_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after some were dropped."""
    monkeypatch.setattr(unread, "_MAX_BYTES", 10)
    kept = UnreadResults()
    for node in ("a", "b", "c"):
        kept.keep(node, "x" * 4, None)
    before = len(kept)
    kept.drop("a")
    kept.keep("c", "x" * 4, None)
    assert (before, sorted(kept.take_all())) == (2, ["b", "c"])


def test_results_that_wait_are_one_for_each_node() -> None:
    """However long the verifier's clock is wrong."""
    clock = Moved()
    fleet = Fleet(Table([WORKLOAD]), clock.clock())
    known = KnownNodes(fleet, ResultReader(ISSUER, clock.clock(), 30), lambda _incident, _state: None)
    for number in range(1, 5000):
        node = f"n-{number % 3}"
        result = ear(node, iat=clock.seconds + 86400 + number, sequence=number)
        known.take_result(node, result, b"")
    assert (len(known), len(known._aside)) == (3, 3)
    assert len(known._coming) < 1100
    clock.forward(86400 + 5000)
    known.promote()
    assert [known.get(f"n-{n}").aside for n in range(3)] == [None] * 3  # type: ignore[union-attr]
