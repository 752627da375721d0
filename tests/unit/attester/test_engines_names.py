"""The published names of a live model, by the library's own reversal of what it did when it loaded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from attester.engines.module_state import state_of
from attester.engines.published_names import reversal_of, reverted

torch = pytest.importorskip("torch", reason="torch is not installed")


def revert(_: Any, state: dict[str, Any]) -> Mapping[str, Any]:
    """Renames, splits into views, and copies, as libraries do."""
    halves = state["fused"].chunk(2)
    return {
        "published": state["live"],
        "gate": halves[0],
        "up": halves[1],
        "copied": state["turned"].t().contiguous(),
        "first": state["partly"][:1],
    }


STATE = {
    "live": torch.arange(3.0),
    "fused": torch.arange(8.0).reshape(4, 2),
    "turned": torch.arange(6.0).reshape(2, 3),
    "partly": torch.arange(4.0),
}


def test_a_renamed_tensor_is_itself():
    """Under its published name alone."""
    found = reverted(None, STATE, revert)
    assert found["published"].data_ptr() == STATE["live"].data_ptr()
    assert "live" not in found


def test_a_part_is_a_view_of_the_live_tensor():
    """No memory is taken, and a change of the weight is seen."""
    found = reverted(None, STATE, revert)
    assert found["up"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert found["up"].data_ptr() == STATE["fused"][2:].data_ptr()
    assert "fused" not in found


def test_a_part_of_a_tensor_that_is_a_view_itself_lies_in_it():
    """A parameter may begin within its storage."""
    whole = torch.arange(20.0)
    state = {**STATE, "fused": whole[12:].view(4, 2)}
    assert reverted(None, state, revert)["gate"].tolist() == [[12.0, 13.0], [14.0, 15.0]]


def test_what_would_be_copied_keeps_its_own_name():
    """The tables of layouts may bring it back without a copy."""
    found = reverted(None, STATE, revert)
    assert found["turned"] is STATE["turned"]
    assert "copied" not in found


def test_what_is_not_wholly_published_stays_in_sight():
    """Otherwise weights that nobody published could be left out of every check."""
    assert reverted(None, STATE, revert)["partly"] is STATE["partly"]


def test_a_module_of_another_library_is_left_alone():
    """Its names are its own."""
    module = torch.nn.Linear(2, 2)
    assert reversal_of(module) is None
    assert set(state_of(module)) == {"weight", "bias"}
