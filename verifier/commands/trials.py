"""Show what a trial found."""

from __future__ import annotations

import click

from verifier.changes import SubmodVerdict
from verifier.commands import questions
from verifier.schemes.findings import to_printable
from verifier.trial import TrialReport


def show_report(report: TrialReport) -> None:
    """Show what would change, and on what the policy failed."""
    wire = report.to_wire()
    for counted in report.in_order():
        change = counted.change
        times = f"  ×{counted.count}" if counted.count > 1 else ""
        click.echo(f"{counted.node}  {change.submod}  {change.direction}{times}")
        click.echo(f"    from  {verdict_text(change.before)}")
        click.echo(f"    to    {verdict_text(change.after)}")
    if report.samples.failure is None:
        questions.show(report.samples)
    click.echo(
        f"Tried {wire['appraisals']} appraisals of {wire['nodes']} nodes: {wire['unchanged']} would not change."
    )
    click.echo(
        f"{wire['nodes_changed']} nodes would change: "
        f"{wire['worse']} worse, {wire['better']} better, {wire['other']} otherwise."
    )
    if report.examined:
        click.echo(f"{report.examined} were examined again, because thresholds or reference values differ.")
    if report.samples.failure is not None:
        questions.show_failure(report.samples.failure)
    if report.failures:
        click.echo(
            f"FAIL  The policy gave no valid outcome for {report.failures} of them: their results would be none, −1."
            f" The first time: {to_printable(report.first_failure or '', 500)}."
            + (" The remaining recordings were not tried." if report.gave_up else "")
        )


def verdict_text(verdict: SubmodVerdict | None) -> str:
    """A verdict in one line."""
    if verdict is None:
        return "no verdict"
    vector = " ".join(f"{claim} {value}" for claim, value in verdict.vector.items())
    return f"{verdict.tier}: {vector}  {', '.join(verdict.reasons)}".rstrip()
