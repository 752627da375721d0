"""When nodes that fail together fail for our sake."""

from __future__ import annotations

from collections import Counter

import pytest

from verifier.service.widespread import is_widespread

CASES = {
    "a proxy of ours": ({"a": 10, "b": 10, "c": 10}, {"d": 5}, True),
    "all of a fleet of one operator": ({"a": 10}, {}, True),
    "all of a fleet of two operators": ({"a": 10, "b": 1}, {}, True),
    "one operator of two drops its calls": ({"a": 10}, {"b": 5}, False),
    "two operators of three drop theirs": ({"a": 10, "b": 10}, {"c": 1}, False),
    "half of all is too few": ({"a": 2, "b": 2, "c": 2}, {"a": 6}, False),
    "more than half": ({"a": 2, "b": 2, "c": 3}, {"a": 6}, True),
    "two nodes are too few": ({"a": 1, "b": 1}, {}, False),
    "nobody": ({}, {}, False),
}


@pytest.mark.parametrize(("failing", "others", "expected"), CASES.values(), ids=CASES)
def test_whose_fault_it_is(failing: dict[str, int], others: dict[str, int], expected: bool) -> None:  # noqa: FBT001
    """More than half of all, and of several operators."""
    assert is_widespread(Counter(failing), Counter(others)) is expected
