"""A fleet of twenty real nodes changes its model, its engine and its policy, and no client and no operator notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.changing import PHASES, ChangingFleet, play

NODES, PER_SECOND = 20, 50


@pytest.mark.timeout(900)
def test_twenty_nodes_change_under_traffic_without_an_outage(tmp_path: Path, minilm: Path) -> None:
    """
    A model upgrade with the documented commands is no outage: revision 1 to 2 and back, 0 failed requests, 0 incidents.

    Neither is one of an engine's version, nor of a policy's threshold.
    """
    fleet = ChangingFleet(tmp_path, NODES)
    try:
        phases = play(fleet, PER_SECOND)
        assert {phase.name: dict(phase.failed) for phase in phases} == {name: {} for name in PHASES}
        assert fleet.incidents() == []
        assert [fleet.quarantine(node) for node in fleet.nodes] == [None] * NODES
        one, two = fleet.digests
        there, back, *others = phases
        # Both revisions served while nodes went from one to the other, and each answer said which it was.
        assert set(there.served) == set(back.served) == {one, two}
        assert [set(phase.served) for phase in others] == [{one}, {one}]
        assert all(phase.requests >= 1 for phase in phases)
    finally:
        fleet.stop()
