"""
Ask a policy what production asks: each sample, through the worker, read as an appraisal reads it.

A policy that fails on a sample would fail live, for the nodes that are like it: they would get
`none`, and no router would send them work.  `ask` finds that out before, and gives the smallest
input that it can find, to be put into a test.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec

from attester import kinds
from verifier import trust
from verifier.appraisal import PolicyOutcome, read_outcome
from verifier.errors import NoOutcomeError, PolicyError
from verifier.policy import samples
from verifier.policy.bundle import Bundle
from verifier.policy.engine import START_TIMEOUT_S, Limits, WorkerPool, decode, opened
from verifier.policy.process import run_task
from verifier.policy.words import Words
from verifier.schemes import platform
from verifier.trust import Tier

_BATCH: Final = 64
_MORE_ASKS: Final = 2
"""So often more an input is asked if no outcome comes: the machine may have been busy."""
_ASKING_S: Final = 30.0
"""No further samples are asked after so long."""
_SHRINKING_S: Final = 2.0
"""A smaller input is looked for at most so long."""
_FACT: Final = 3
"""The length of the path of a fact: below ``checked`` and the submodule."""
_GONE: Final = object()
_RANK: Final = (Tier.CONTRAINDICATED, Tier.WARNING, Tier.NONE, Tier.AFFIRMING)

_Document: TypeAlias = dict[str, Any]
_Facts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By kind, facts."""
_Path: TypeAlias = tuple[str, ...]
_GOOD: Final[dict[Hashable, Answers]] = {}
"""What came of asking policies that did not fail: they would give the same again, and a trial is made often."""
_MAX_GOOD: Final = 16


@dataclass(frozen=True)
class Failure:
    """An input for which a policy has no valid outcome."""

    why: str
    input: str
    """As JSON, in lines, so that it can be put into a test; empty if the policy does not even start."""

    def to_wire(self) -> dict[str, Any]:
        """As JSON-compatible values."""
        return {"why": self.why, "input": None if not self.input else json.loads(self.input)}

    def __str__(self) -> str:
        """The reason, and the input in lines of its own."""
        if not self.input:
            return self.why
        return f"{self.why}. The smallest input that shows it, for a test (… with input as …):\n{self.input}"


@dataclass
class Answers:
    """What came of asking a policy."""

    asked: int = 0
    is_complete: bool = True
    """Whether all samples were asked; a slow policy is not asked all."""
    failure: Failure | None = None
    best: dict[str, _Document] = field(default_factory=dict)
    """By kind, the facts that the policy likes best."""
    ranks: dict[str, int] = field(default_factory=dict)
    """How much it likes these."""


async def ask(bundle: Bundle, words: Words, limits: Limits | None = None) -> Answers:
    """
    Ask a policy about every sample, until it fails on one.

    Args:
        words: What stands in the policy.
        limits: The limits of production.

    Raises:
        PolicyError: the policy does not start, or no process can be started.
    """
    limits = replace(limits or Limits(), workers=1)
    key = (samples.of_types(), bundle.modules, bundle.data, limits)
    if key not in _GOOD:
        answers = Answers()
        ends = time.monotonic() + _ASKING_S
        async with opened(bundle, limits) as pool:
            if not await _ask_all(pool, samples.of_types(), answers, ends):
                await _ask_all(pool, samples.of_words(words, answers.best), answers, ends)
        if answers.failure is not None or not answers.is_complete:
            return answers
        _GOOD[key] = answers
        while len(_GOOD) > _MAX_GOOD:
            del _GOOD[next(iter(_GOOD))]
    return _GOOD[key]


async def find_failure(bundle: Bundle, words: Words, limits: Limits | None = None) -> Answers:
    """As `ask`; a policy that does not start fails with no input."""
    try:
        return await ask(bundle, words, limits)
    except PolicyError as error:
        return Answers(failure=Failure(str(error), ""))


async def _ask_all(pool: WorkerPool, inputs: Iterable[bytes], answers: Answers, ends: float) -> bool:
    """Ask all *inputs*; whether one failed."""
    waiting, batch = iter(inputs), list[bytes]()
    while batch := batch or list(islice(waiting, _BATCH)):
        if time.monotonic() > ends:
            answers.is_complete = False
            return False
        batch = batch[await _ask_until_error(pool, batch, answers) :]
        if not batch:
            continue
        # Alone, because the machine may have been busy, and because what comes after it may take as long.
        given = batch.pop(0)
        found = await _try(pool, given)
        answers.asked += 1
        if isinstance(found, PolicyError):
            # A policy that does not start fails on everything, and no input is to blame.
            await run_task("evaluate", pool.bundle, START_TIMEOUT_S)
            answers.failure = await _shrink(pool, given, found, answers.best)
            return True
        _note_best(answers, given, found)
    return False


async def _ask_until_error(pool: WorkerPool, batch: Sequence[bytes], answers: Answers) -> int:
    """Ask *batch* together, and return the number of inputs before the first error."""
    tasks = [asyncio.create_task(_read(pool, given)) for given in batch]
    try:
        for number, (given, task) in enumerate(zip(batch, tasks, strict=True)):
            try:
                _note_best(answers, given, await task)
            except PolicyError:
                return number
            answers.asked += 1
        return len(batch)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _try(pool: WorkerPool, given: bytes) -> PolicyOutcome | PolicyError:
    """What comes of one input: an outcome, or why there is none."""
    error: PolicyError | None = None
    for _ in range(1 + _MORE_ASKS):
        try:
            return await _read(pool, given)
        except NoOutcomeError as none:
            error = none
        except PolicyError as failed:
            return failed
    assert error is not None
    return error


async def _read(pool: WorkerPool, given: bytes) -> PolicyOutcome:
    """The outcome for one input, as an appraisal asks for it and reads it.  Raises `PolicyError`."""
    return read_outcome(decode(await pool.ask(given)), msgspec.json.decode(given)["checked"])


def _note_best(answers: Answers, given: bytes, outcome: PolicyOutcome) -> None:
    for name, facts in msgspec.json.decode(given)["checked"].items():
        kind = kinds.kind_of(name)
        if kind is None:
            continue
        rank = sum(_RANK.index(trust.tier_of(value)) for value in outcome.vectors[name].values())
        if kind not in answers.best or rank > answers.ranks[kind]:
            answers.best[kind], answers.ranks[kind] = facts, rank


async def _shrink(pool: WorkerPool, given: bytes, error: PolicyError, best: _Facts) -> Failure:
    """Leave out what the failure does not need, and make the rest as good as it may be."""
    document = msgspec.json.decode(given)
    ends = time.monotonic() + _SHRINKING_S
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for changed in list(smaller(document, best)):
            if time.monotonic() > ends:
                break
            found = await _try(pool, samples.encode(changed))
            if isinstance(found, PolicyError):
                document, error, is_smaller = changed, found, True
                break
    return Failure(str(error), json.dumps(document, indent=2, ensure_ascii=False))


def smaller(document: _Document, best: _Facts) -> Iterator[_Document]:
    """What the schema allows of *document* with one thing less, plainer, or better."""
    size = _size(document, best)
    for alone in document["checked"]:
        few = {name: facts for name, facts in document["checked"].items() if name in (platform.SUBMOD, alone)}
        changed = {**document, "checked": few, "references": {}}
        if _size(changed, best) < size:
            yield changed
    for path in _paths(document):
        if path in (("checked",), ("references",), ("checked", platform.SUBMOD)):
            continue
        for value in (_GONE, *(_best_at(path, best)), None, {}, [], "x"):
            changed = _with(document, path, value)
            if _is_allowed(changed) and _size(changed, best) < size:
                yield changed


def _size(document: _Document, best: _Facts) -> tuple[int, int, int]:
    """What is to become less: submodules and reference values, facts that are not the best, characters."""
    checked = document["checked"]
    bad = sum(
        value is not None and best.get(kinds.kind_of(name) or "", {}).get(fact, _GONE) != value
        for name, facts in checked.items()
        for fact, value in facts.items()
    )
    return len(checked) + len(document["references"]), bad, len(json.dumps(document))


def _is_allowed(document: _Document) -> bool:
    try:
        samples.encode(document)
    except msgspec.ValidationError:
        return False
    return all(kinds.model_submod(model) in document["checked"] for model in document["references"])


def _best_at(path: _Path, best: _Facts) -> list[Any]:
    if len(path) != _FACT or path[0] != "checked":
        return []
    facts = best.get(kinds.kind_of(path[1]) or "", {})
    return [facts[path[2]]] if path[2] in facts else []


def _paths(value: Any, above: _Path = ()) -> Iterator[_Path]:
    """Every place in a document, the outer ones first."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield (*above, name)
            yield from _paths(below, (*above, name))


def _with(document: _Document, path: _Path, value: Any) -> _Document:
    """A copy of *document* with another value at a place, or without the place."""
    first, *rest = path
    changed = dict(document)
    if rest:
        changed[first] = _with(document[first], tuple(rest), value)
    elif value is _GONE:
        del changed[first]
    else:
        changed[first] = value
    return changed
