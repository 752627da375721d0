"""Outcomes that are remembered: the same for the same policy and bytes alone, and never more than their bound."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from verifier.config import default_policy
from verifier.errors import PolicyError
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Engines, Limits, WorkerPool
from verifier.policy.remembered import Outcomes, key_of

DEFAULT = bundles.load(default_policy())


def policy(source: str) -> Bundle:
    """A bundle with these rules, of a digest of its own."""
    return dataclasses.replace(DEFAULT, modules=(("a.rego", source),), statement=source.encode())


DOUBLE = policy("package touchstone\n\noutcome := input.n * 2\n")
TRIPLE = policy("package touchstone\n\noutcome := input.n * 3\n")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What reaches the workers."""
    seen: list[bytes] = []
    ask = WorkerPool.ask

    async def noted(self: WorkerPool, policy_input: bytes) -> bytes:
        seen.append(policy_input)
        return await ask(self, policy_input)

    monkeypatch.setattr(WorkerPool, "ask", noted)
    return seen


async def test_equal_inputs_are_judged_once(asked: list[bytes]) -> None:
    """By each policy, and byte for byte: another order of the same values is another input."""
    async with Engines(Limits(1, 20.0)) as engines:
        given = b'{"n": 1, "m": 2}'
        found = [await engines.evaluate(each, given) for each in (DOUBLE, TRIPLE, DOUBLE, TRIPLE)]
        assert await engines.evaluate(DOUBLE, b'{"m": 2, "n": 1}') == 2
    assert found == [2, 3, 2, 3]
    assert asked == [given, given, b'{"m": 2, "n": 1}']


async def test_nobody_can_change_what_is_remembered(asked: list[bytes]) -> None:
    """Each caller gets values of its own."""
    echo = policy("package touchstone\n\noutcome := input.what\n")
    given = json.dumps({"what": {"a": [1]}}).encode()
    async with Engines(Limits(1, 20.0)) as engines:
        first: dict[str, Any] = await engines.evaluate(echo, given)
        first["a"].append("changed")
        assert await engines.evaluate(echo, given) == {"a": [1]}
    assert len(asked) == 1


async def test_a_failure_is_not_remembered(asked: list[bytes]) -> None:
    """The next evaluation may succeed."""
    broken = policy('package touchstone\n\noutcome := to_number("x") if input.n\n')
    async with Engines(Limits(1, 20.0)) as engines:
        for _ in range(2):
            with pytest.raises(PolicyError):
                await engines.evaluate(broken, b'{"n": 1}')
    assert len(asked) == 2


def test_those_that_were_unused_longest_are_forgotten() -> None:
    """All together stay under the bound, whatever their sizes."""
    outcomes = Outcomes(max_bytes=10_000)
    keys = [key_of("d", str(n).encode()) for n in range(100)]
    for n, key in enumerate(keys):
        outcomes.put(key, b"x" * (n * 10))
        outcomes.put(key, b"again")
        assert outcomes.get(keys[0]) is not None
    kept = [key for key in keys if outcomes.get(key) is not None]
    assert keys[0] in kept
    assert kept[1:] == keys[-len(kept) + 1 :]
    assert 5 < len(kept) < 10


def test_an_outcome_that_is_too_large_is_not_kept() -> None:
    """It would displace thousands of others."""
    outcomes = Outcomes()
    key = key_of("d", b"")
    outcomes.put(key, bytes(64 * 1024 + 1))
    assert outcomes.get(key) is None
