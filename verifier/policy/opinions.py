"""
A second opinion: the same bundle and the same input, judged by another engine, and compared.

It shows where a policy means something else in another engine.  It never changes an outcome: the
engine's outcome stands, and a difference is something for people to look at.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from attester import kinds
from verifier.appraisal import PolicyOutcome, read_outcome
from verifier.errors import NoOutcomeError, PolicyError
from verifier.policy import samples
from verifier.policy.engine import decode
from verifier.policy.questions import smaller
from verifier.policy.second_engines import SecondEngine

_BATCH: Final = 16
_SHRINKING_S: Final = 10.0
"""A smaller input is looked for at most so long."""
MAX_SHOWN: Final = 5
"""So many kinds of differences are shown, each with its smallest input."""


class Asked(Protocol):
    """What judges an input: a pool of workers, or a second engine."""

    async def ask(self, policy_input: bytes) -> bytes:
        """The outcome as JSON.  Raises `PolicyError`."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What one engine gives for an input, as an appraisal reads it."""

    outcome: PolicyOutcome | None
    """`None` if the appraisal would end with policy.failed."""
    text: str
    """The outcome as JSON, or why there is none."""


@dataclass(frozen=True)
class Disagreement:
    """An input that two engines judge in two ways."""

    policy_input: str
    """JSON in one line."""
    here: str
    """What the verifier's engine gives: JSON, or why there is none."""
    there: str
    """The same of the second engine."""


@dataclass
class Comparison:
    """What came of asking both engines."""

    asked: int = 0
    differing: int = 0
    unanswered: int = 0
    """Inputs about which the second engine could not be asked."""
    is_complete: bool = True
    """Whether all inputs were asked in the time."""
    disagreements: list[Disagreement] = field(default_factory=list)
    """One for each kind of difference, with the smallest input that was found."""


def read(answer: bytes | PolicyError, submods: Collection[str]) -> Verdict:
    """Read an engine's answer as an appraisal does."""
    if isinstance(answer, PolicyError):
        return Verdict(None, str(answer))
    try:
        return Verdict(read_outcome(decode(answer), submods), answer.decode(errors="replace"))
    except PolicyError as error:
        return Verdict(None, str(error))


def differ(here: Verdict, there: Verdict) -> bool:
    """Whether a result would be another.  Two failures are the same: the error's text is each engine's own."""
    if here.outcome is None or there.outcome is None:
        return here.outcome is not there.outcome
    reasons = [
        {name: sorted(codes) for name, codes in verdict.reasons.items()}
        for verdict in (here.outcome, there.outcome)
    ]
    return here.outcome.vectors != there.outcome.vectors or reasons[0] != reasons[1]


async def compare(first: Asked, second: SecondEngine, inputs: Iterable[bytes], seconds: float) -> Comparison:
    """
    Ask two engines about *inputs*, for at most so many *seconds*.

    Raises:
        NoOutcomeError: the second engine could be asked about nothing.
    """
    found = Comparison()
    ends = time.monotonic() + seconds
    seen: set[str] = set()
    waiting = iter(inputs)
    while batch := list(islice(waiting, _BATCH)):
        if time.monotonic() > ends:
            found.is_complete = False
            break
        answers = await asyncio.gather(*(_judge(first, second, one) for one in batch), return_exceptions=True)
        for given, answer in zip(batch, answers, strict=True):
            if isinstance(answer, NoOutcomeError):
                found.unanswered += 1
                if not found.asked and found.unanswered > _BATCH:
                    raise answer
                continue
            if isinstance(answer, BaseException):
                raise answer
            here, there = answer
            found.asked += 1
            if not differ(here, there):
                continue
            found.differing += 1
            if (kind := _kind_of(here, there)) not in seen and len(found.disagreements) < MAX_SHOWN:
                seen.add(kind)
                found.disagreements.append(await _shrink(first, second, given, kind))
    return found


async def judge(second: SecondEngine, policy_input: bytes, here: bytes | PolicyError) -> Disagreement | None:
    """
    Compare an outcome that there is already with a second engine's; `None` if they are the same.

    Raises:
        NoOutcomeError: the second engine could not be asked.
    """
    submods = msgspec.json.decode(policy_input)["checked"]
    ours, theirs = read(here, submods), read(await _ask(second, policy_input), submods)
    return Disagreement(policy_input.decode(), ours.text, theirs.text) if differ(ours, theirs) else None


async def _judge(first: Asked, second: SecondEngine, given: bytes) -> tuple[Verdict, Verdict]:
    submods = msgspec.json.decode(given)["checked"]
    here, there = await asyncio.gather(_ask(first, given), _ask(second, given))
    return read(here, submods), read(there, submods)


async def _ask(engine: Asked, given: bytes) -> bytes | PolicyError:
    try:
        return await engine.ask(given)
    except NoOutcomeError:
        raise
    except PolicyError as error:
        return error


def _kind_of(here: Verdict, there: Verdict) -> str:
    """What differs, without the names of submodules: inputs that differ alike are shown once."""
    if here.outcome is None or there.outcome is None:
        return f"{here.outcome is None} {there.outcome is None}"
    parts: set[str] = set()
    for name, vector in here.outcome.vectors.items():
        other = there.outcome.vectors[name]
        changed = {claim: (vector.get(claim), other.get(claim)) for claim in {*vector, *other}}
        changed = {claim: values for claim, values in changed.items() if values[0] != values[1]}
        codes = set(here.outcome.reasons[name]) ^ set(there.outcome.reasons[name])
        if changed or codes:
            parts.add(f"{kinds.kind_of(name)} {sorted(changed.items())} {sorted(codes)}")
    return str(sorted(parts)[:1])


async def _shrink(first: Asked, second: SecondEngine, given: bytes, kind: str) -> Disagreement:
    """Leave out what the difference does not need."""
    document: dict[str, Any] = msgspec.json.decode(given)
    here, there = await _judge(first, second, given)
    ends = time.monotonic() + _SHRINKING_S
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for changed in list(smaller(document, {})):
            if time.monotonic() > ends:
                break
            try:
                verdicts = await _judge(first, second, samples.encode(changed))
            except NoOutcomeError:
                continue
            if differ(*verdicts) and _kind_of(*verdicts) == kind:
                document, (here, there), is_smaller = changed, verdicts, True
                break
    return Disagreement(json.dumps(document, ensure_ascii=False), here.text, there.text)
