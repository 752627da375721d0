"""Ask a second engine about a policy, for `touchstone policy test --second`, and show what differs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import click

from verifier.errors import PolicyError
from verifier.policy import admission, opinions, questions, samples, second_engines
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits, opened
from verifier.policy.opinions import Comparison, Disagreement
from verifier.policy.testing import TestReport
from verifier.schemes.findings import to_printable

_SECONDS: Final = 120.0
"""The second engine is asked for at most so long: it takes up to a hundred times as long as the first."""
_MAX_TEXT: Final = 4000
_PATH: Final = re.compile(r"data(\.[A-Za-z_][A-Za-z0-9_]*)+")
"""Of a test that a rule of another module can name."""

second_option = click.option(
    "--second",
    type=click.Choice(second_engines.NAMES),
    help="Ask this engine too, about the same inputs, and show where it differs.",
)
opa_option = click.option(
    "--opa", type=click.Path(path_type=Path, dir_okay=False), help="OPA's executable, for --second opa."
)


def ask(bundle: Bundle, engine: str, opa: Path | None) -> Comparison:
    """
    Compare the engines on the samples of a policy, and show what differs.

    Raises:
        PolicyError: the second engine cannot be used.
    """

    async def work() -> Comparison:
        words = (await admission.inspect(bundle)).words
        best = (await questions.ask(bundle, words)).best
        inputs = chain(samples.of_words(words, best), samples.of_types())
        async with (
            opened(bundle, Limits(workers=1)) as first,
            second_engines.open_engine(engine, bundle, opa) as second,
        ):
            return await opinions.compare(first, second, inputs, _SECONDS)

    return asyncio.run(work())


@dataclass(frozen=True)
class TestsAgain:
    """What a second engine says about a policy's tests."""

    ran: int = 0
    differing: tuple[str, ...] = ()
    """A sentence about each test that passes in one engine alone."""
    note: str = ""
    """Why it could not run them.  It then differs in nothing: rego-cpp crashes on some tests."""


NO_TESTS: Final = TestsAgain()


def ask_tests(bundle: Bundle, report: TestReport, engine: str, opa: Path | None) -> TestsAgain:
    """Run the tests in the second engine too."""
    here = {test.name: test.why is None for test in report.tests if _PATH.fullmatch(test.name)}
    try:
        there = asyncio.run(second_engines.passing_tests(engine, bundle, here, opa))
    except PolicyError as error:
        return TestsAgain(note=str(error))
    places = (f"here, and not in {engine}", f"in {engine}, and not here")
    differing = [name for name, passes in here.items() if passes != (name in there)]
    sentences = tuple(f"{name} passes {places[name in there]}" for name in differing)
    return TestsAgain(len(here), sentences)


def show_tests(engine: str, found: TestsAgain) -> None:
    """Show the tests that come out differently."""
    if found.note:
        click.echo(f"NOTE: {engine} could not run the tests: {to_printable(found.note, _MAX_TEXT)}")
        return
    for sentence in found.differing:
        click.echo(f"DIFFERS  {to_printable(sentence)}")
    click.echo(f"Ran {found.ran} tests in {engine} too: {len(found.differing)} differ.")


def show(engine: str, found: Comparison) -> bool:
    """Show how many inputs were asked, and each kind of difference with its smallest input; whether there is one."""
    for one in found.disagreements:
        show_disagreement(engine, one)
    click.echo(f"Asked {engine} too, about {found.asked} inputs: {found.differing} differ.")
    if found.unanswered:
        click.echo(f"NOTE: {engine} gave no answer to {found.unanswered} others.")
    if not found.is_complete:
        click.echo(f"NOTE: {engine} is slow, and was asked for {_SECONDS:g} seconds.")
    return found.differing > 0


def show_disagreement(engine: str, found: Disagreement) -> None:
    """Show an input, what the verifier's engine gives for it, and what the second one does."""
    click.echo(f"DIFFERS  {to_printable(found.policy_input, _MAX_TEXT)}")
    click.echo(f"    here  {to_printable(found.here, _MAX_TEXT)}")
    click.echo(f"    {engine}  {to_printable(found.there, _MAX_TEXT)}")
