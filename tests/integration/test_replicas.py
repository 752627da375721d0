"""
Two replicas that are killed in turn, and a database that is restarted: no honest node loses anything.

This is a short run of `bench.replicas`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.postgres import NoPostgresError, own_server
from fixtures.replicas import Scenario, play

SCENARIO = Scenario(
    nodes=12,
    seconds=25,
    kill_every_s=8,
    kills=2,
    settings={
        "calls": {"min_interval_s": 2.0, "max_interval_s": 4.0, "wide_share": 0.0},
        # The lease of a killed replica lasts ten seconds, and nobody is called meanwhile.
        "results": {"lifetime_s": 50},
        "sessions": {
            "lifetime_s": 20,
            "per_node_per_minute": 6000,
            "per_address_per_minute": 1_000_000,
            "strangers_per_minute": 1_000_000,
        },
        "policy": {"workers": 1},
    },
    reads=600,
    walks=600,
)


@pytest.mark.timeout(200)
async def test_no_honest_node_loses_its_result(tmp_path: Path, model_folder: Path) -> None:
    """It is held against none that a replica or the database was gone, and no nonce is used twice."""
    try:
        with own_server() as server:
            outcome = await play(SCENARIO, tmp_path, model_folder, server)
    except NoPostgresError as error:
        pytest.skip(str(error))
    assert outcome.missing == {}
    assert outcome.gaps == []
    assert outcome.incidents == []
    assert outcome.nonces_twice == 0
    assert outcome.kills == 2
    assert outcome.samples > 10
    assert outcome.results > 3 * SCENARIO.nodes
