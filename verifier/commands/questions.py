"""Show what came of asking a policy about samples: for the commands that lint, test, publish and try policies."""

from __future__ import annotations

import asyncio

import click

from verifier.policy import admission, questions
from verifier.policy.admission import Inspection
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits
from verifier.policy.questions import Answers, Failure
from verifier.schemes.findings import to_printable


def ask(bundle: Bundle, inspection: Inspection | None = None, limits: Limits | None = None) -> Answers:
    """Ask a policy about every sample, with the limits of production or the usual ones."""

    async def work() -> Answers:
        found = await admission.inspect(bundle) if inspection is None else inspection
        return await questions.find_failure(bundle, found.words, limits)

    return asyncio.run(work())


def show(answers: Answers) -> None:
    """Say how many samples were asked, and on which the policy failed."""
    if answers.failure is not None:
        show_failure(answers.failure)
        return
    click.echo(f"Asked {answers.asked} inputs that the contract allows: each has a valid outcome.")
    if not answers.is_complete:
        click.echo("NOTE: the policy is so slow that not all were asked.")


def show_failure(failure: Failure) -> None:
    """Show a failure, with its input in lines of its own: it can be put into a test as it stands."""
    why, *lines = str(failure).splitlines()
    click.echo(f"FAIL  {to_printable(why, 2000)}")
    for line in lines:
        click.echo(f"    {to_printable(line)}")
