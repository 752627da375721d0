"""`touchstone router change …`: a table of workloads is tried beside the one in force, shared, promoted, taken back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from router.commands.asking import call, key_option, plain, print_json, url_option
from router.commands.maintenance import errors
from router.model.errors import RouterError
from router.model.table import MAX_TABLE

_reason = click.option("--reason", required=True, help="Why; kept with the change.")
_by = click.option(
    "--by",
    type=click.Choice(["key", "user", "conversation"]),
    default=None,
    help="What stays on one side for good.  Default: as the router's configuration says.",
)
_anyway = click.option("--anyway", is_flag=True, help="Although what was seen speaks against it.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_id = click.option("--id", "change_id", default=None, help="Which change.  Default: the newest.")


@click.group()
def change() -> None:
    """Try another table of workloads beside the one in force, and go over to it in steps."""


@change.command()
@click.argument("file", type=click.Path(path_type=Path))
@_reason
@_by
@url_option
@key_option
@errors
def propose(file: Path, reason: str, by: str | None, url: str, key: str | None) -> None:
    """Have the table in FILE decide beside the one in force.  Nothing follows from it yet."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_TABLE + 1)
        table = data.decode()
    except OSError as error:
        raise RouterError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RouterError(f"{file} is not text") from None
    found = call(url, "/api/v1/changes", key, {"table": table, "reason": reason, **_given(by)})
    _tell(found, f"{found['id']} decides in shadow. Look at it: touchstone router change status")


@change.command()
@click.argument("model")
@click.option("--from", "revision_from", required=True, help="The digest of the revision to compare with.")
@click.option("--to", "revision_to", required=True, help="The digest of the revision to try.")
@_reason
@_by
@url_option
@key_option
@errors
def compare(
    model: str, revision_from: str, revision_to: str, reason: str, by: str | None, url: str, key: str | None
) -> None:
    """Try one revision of MODEL against another: the candidate is the table in force with that revision alone."""
    wanted = {"model": model, "revision_from": revision_from, "revision_to": revision_to}
    found = call(url, "/api/v1/changes", key, {"compare": wanted, "reason": reason, **_given(by)})
    _tell(found, f"{found['id']} decides in shadow. Look at it: touchstone router change status")


@change.command()
@click.argument("percent", type=click.IntRange(0, 100))
@_reason
@_anyway
@_id
@url_option
@key_option
@errors
def share(
    percent: int, reason: str, change_id: str | None, url: str, key: str | None, *, anyway: bool
) -> None:
    """Give the candidate PERCENT of the traffic; what it had, it keeps while that grows."""
    body = {"percent": percent, "reason": reason, "anyway": anyway}
    found = call(url, f"/api/v1/changes/{change_id or _newest(url, key)}/share", key, body)
    _tell(found, f"{found['id']} decides about {found['share_percent']} % of the traffic.")


@change.command()
@_reason
@_anyway
@_id
@url_option
@key_option
@errors
def promote(reason: str, change_id: str | None, url: str, key: str | None, *, anyway: bool) -> None:
    """Put the candidate in force, at every router that shares the store."""
    body = {"reason": reason, "anyway": anyway}
    found = call(url, f"/api/v1/changes/{change_id or _newest(url, key)}/promote", key, body)
    click.echo(f"{found['id']} is in force, over the file of workloads, which says what it said.")
    click.echo(
        f"To have the file say it too: touchstone router change table --id {found['id']} > workloads.yaml"
    )


@change.command()
@_reason
@_id
@url_option
@key_option
@errors
def abort(reason: str, change_id: str | None, url: str, key: str | None) -> None:
    """Go back to the table before, at once: from a candidate, or from one that was promoted."""
    found = call(url, f"/api/v1/changes/{change_id or _newest(url, key)}/abort", key, {"reason": reason})
    click.echo(f"{found['id']} is {found['stage']}. The table before it decides about everything.")


@change.command()
@_id
@_json
@url_option
@key_option
@errors
def status(change_id: str | None, url: str, key: str | None, *, as_json: bool) -> None:
    """Show a change: its steps, what the tables decide differently, and both sides of the traffic."""
    found = call(url, f"/api/v1/changes/{change_id or _newest(url, key)}", key)
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(plain(line))


@change.command()
@_id
@url_option
@key_option
@errors
def table(change_id: str | None, url: str, key: str | None) -> None:
    """Print the table of a change, as it was proposed."""
    click.echo(call(url, f"/api/v1/changes/{change_id or _newest(url, key)}", key)["document"], nl=False)


def _given(by: str | None) -> dict[str, str]:
    return {} if by is None else {"by": by}


def _newest(url: str, key: str | None) -> str:
    found = call(url, "/api/v1/changes", key)["changes"]
    if not found:
        raise RouterError("there is no change. Begin one: touchstone router change propose FILE")
    return str(found[0]["id"])


def _tell(found: Mapping[str, Any], what: str) -> None:
    click.echo(what)
    for warning in found["warnings"]:
        click.echo(f"  {plain(warning)}")
    if found["problem_here"]:
        click.echo(f"  this router takes no part: {plain(found['problem_here'])}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{found['id']}: {found['stage']}, {found['share_percent']} % by {found['by']}, table {found['table'][:12]}"
    ]
    if found["problem_here"]:
        lines.append(f"  this router takes no part: {found['problem_here']}")
    lines += [f"  ! {warning}" for warning in found["warnings"]]
    lines += [f"  {step['step']} by {step['actor']}: {step['reason']}" for step in found["steps"]]
    shadow = found["shadow"]
    lines.append(f"decided by both tables: {shadow['decided']} requests ({shadow['skipped']} were left out)")
    lines += [
        f"  {each['count']:>8}  {each['workload']}  {each['kind']}{' ' + each['code'] if each['code'] else ''}"
        for each in shadow["differences"]
    ]
    if shadow["would_stop"]:
        lines.append(f"  it would be stopped: {shadow['would_stop']}")
    lines.append(_row("", ("requests", "failed", "refused", "retried", "p50 s", "p99 s", "cost an answer")))
    for name, side in (
        *found["arms"].items(),
        *((digest[:12], each) for digest, each in found["revisions"].items()),
    ):
        values = (
            side[key]
            for key in ("requests", "failed", "refused", "retried", "p50_s", "p99_s", "cost_per_answer")
        )
        lines.append(_row(name, tuple("-" if value is None else str(value) for value in values)))
    for digest, side in found["revisions"].items():
        if side["nodes"] is not None:
            lines.append(
                f"  {digest[:12]}: {side['nodes']} nodes, {side['suspected_for_answers']} suspected for answers"
            )
    lines.append("odds against its being no worse, as powers of ten:")
    lines += [
        f"  {name:<10}{test['odds_log10']:>8}  (stops at {test['stops_at_log10']})"
        for name, test in found["tests"].items()
    ]
    return lines


def _row(name: str, values: tuple[str, ...]) -> str:
    return f"  {name:<14}" + "".join(f"{value:>16}" for value in values)
