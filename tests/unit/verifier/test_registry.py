"""The registry of schemes: which submodules are checked, and in which order."""

from __future__ import annotations

from msgspec.structs import replace

from tests.unit.verifier.test_rates import context
from verifier.schemes.registry import submods_to_check


def test_submodules_are_checked_in_one_order() -> None:
    """The platform, models by name, and then all others by name: an incident has the code of its first finding."""
    given = context()
    given = replace(given, node=replace(given.node, models=("z", "a")))
    present = ["gpu/1", "model/b", "cpu/0", "npu/0", "gpu/0", "platform"]
    expected = ["platform", "model/a", "model/b", "model/z", "cpu/0", "gpu/0", "gpu/1", "npu/0"]
    assert submods_to_check(present, given) == expected
    assert submods_to_check(reversed(present), given) == expected


def test_what_is_expected_is_checked_though_it_is_absent() -> None:
    """A node that leaves a submodule out must not escape its check."""
    given = context()
    given = replace(given, node=replace(given.node, models=("m",)))
    assert submods_to_check([], given) == ["platform", "model/m"]
