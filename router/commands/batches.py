"""`touchstone router batches …`: how batches go, and their end."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from router.commands.asking import call, key_option, plain, print_json, url_option
from router.commands.maintenance import errors
from router.model.errors import RouterError

_ENDED: Final = ("completed", "failed", "expired", "cancelled")
_WIDTH: Final = 20
_PATH: Final = "/api/v1/batches"


@click.group()
def batches() -> None:
    """See how batches of requests go, and cancel them.  What is in them is shown to their owner alone."""


@batches.command("list")
@url_option
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@errors
def list_batches(url: str, key: str | None, *, as_json: bool, everything: bool) -> None:
    """List batches, the newest first: those of the key, or of all keys for auditors and administrators."""
    page = call(url, _PATH, key)
    found = [each for each in page["batches"] if everything or each["status"] not in _ENDED]
    if as_json:
        print_json({**page, "batches": found})
        return
    for each in found:
        click.echo(f"{each['id']}  {plain(each['owner'])}  {_line(each)}")
    if not found:
        click.echo("There is no batch." if everything else "No batch is open. Those that have ended: --all")


@batches.command()
@click.argument("batch")
@url_option
@key_option
@errors
def show(batch: str, url: str, key: str | None) -> None:
    """Show BATCH as JSON: its counts, its times, and what is wrong with its file."""
    print_json(call(url, f"{_PATH}/{batch}", key))


@batches.command()
@click.argument("batch")
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
@url_option
@key_option
@errors
def watch(batch: str, every: float, url: str, key: str | None) -> None:
    """Print how BATCH goes, a line for each change, until it has ended.

    The exit status is 0 if it is completed.
    """
    last, began = "", time.monotonic()
    first: int | None = None
    while True:
        found = call(url, f"{_PATH}/{batch}", key)
        done = _done(found)
        first = done if first is None else first
        pace = (done - first) / max(time.monotonic() - began, 1e-9)
        line = _line(found)
        if line != last:
            left = found["request_counts"]["total"] - done
            rest = (
                f", about {left / pace:.0f} s left"
                if pace and left and found["status"] == "in_progress"
                else ""
            )
            click.echo(f"{line}{rest}")
            last = line
        if found["status"] in _ENDED:
            break
        time.sleep(every)
    for error in (found["errors"] or {"data": []})["data"]:
        click.echo(f"    {plain(error['message'])}")
    if found["status"] != "completed":
        raise RouterError(f"{batch} is {found['status']}")


@batches.command()
@click.argument("batch")
@url_option
@key_option
@errors
def cancel(batch: str, url: str, key: str | None) -> None:
    """Cancel BATCH.  What is done stays; no further line is begun."""
    click.echo(f"{batch} is {call(url, f'{_PATH}/{batch}/cancel', key, {})['status']}.")


def _done(found: dict[str, Any]) -> int:
    counts = found["request_counts"]
    return int(counts["completed"]) + int(counts["failed"])


def _line(found: dict[str, Any]) -> str:
    """How it goes, in a line."""
    counts = found["request_counts"]
    total, done = counts["total"], _done(found)
    full = done * _WIDTH // total if total else 0
    bar = "#" * full + "." * (_WIDTH - full)
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{found['status']:<12} [{bar}] {done} of {total} lines{failed}"
