"""The guide to changing a model is what happens: each command is run, and prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.changing_guide import plain, play, steps


@pytest.mark.timeout(600)
def test_every_command_of_the_guide_prints_what_it_shows(tmp_path: Path, minilm: Path) -> None:
    """From one revision to the other on two real nodes, in both orders, and back: as the page says, command by command."""
    played = play(tmp_path)
    assert [command for command, _, _ in played] == [command for command, _ in steps()]
    for command, shown, printed in played:
        assert (command, plain(printed)) == (command, plain(shown))


def test_only_what_differs_from_run_to_run_may_differ() -> None:
    """Digests, times, and figures but those that count nodes; nothing else."""
    assert plain(["f32b54792a54 since 2026-11-30 09:37 UTC, 1.5 s"]) == plain(
        ["09b1341efcdd since 2026-12-01 10:00 UTC, 12 s"]
    )
    assert plain(["1 of 2 nodes"]) != plain(["2 of 2 nodes"])
    assert plain(["in force"]) != plain(["superseded"])
