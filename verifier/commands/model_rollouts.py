"""`touchstone reference rollout …`: start, show, finish and abort the roll-out of a model."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from verifier.commands.common import (
    Person,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    person_options,
    reason_option,
    with_database,
)
from verifier.config import Home
from verifier.service import model_rollout_steps
from verifier.service.access import ADMINISTER
from verifier.service.inputs import InputLoader
from verifier.service.model_rollout_steps import NewRollout
from verifier.store.database import Database

_UNITS: Final = {"m": 60, "h": 3600, "d": 86400}
_BAR: Final = 24
"""Characters of a bar."""
grace_option = click.option(
    "--grace",
    "grace_s",
    default=None,
    type=click.IntRange(0, 365 * 86400),
    help="Seconds for which what is not in force any more is only a warning.",
)


@click.group("rollout")
def rollout() -> None:
    """Take a model's nodes from one revision to another, without an outage."""


@rollout.command("start")
@click.argument("model")
@click.option("--to", required=True, help="The first digits of the digest of the new value.")
@click.option(
    "--until", default=None, help="When it is to be ended: a time from now (12h, 7d), a day, or RFC 3339."
)
@reason_option
@person_options
@json_option
@home_option
@errors
def start(
    model: str, to: str, until: str | None, reason: str, who: Person, as_json: bool, home: Path
) -> None:
    """Make the value whose digest begins with --to valid beside the one in force.

    Nodes on either are affirming, and each is challenged on the one that it has.  Nothing ends at --until: both stay
    valid, and status and log say that it is time.
    """
    config, author, at_ms = Home(home).config(), who.author(home, reason, ADMINISTER), now_ms()
    new = NewRollout(model, to, None if until is None else read_until(until, at_ms))
    started = in_transaction(
        home, lambda tx: model_rollout_steps.start(tx, InputLoader(), config, new, author, at_ms)
    )
    if as_json:
        _print({"model": started.model, "from": started.old, "to": started.new})
        return
    click.echo(f"Both revisions of {model} are valid now: {started.old[:12]} and {started.new[:12]}.")
    click.echo(f"Upgrade the nodes, and look at them with: touchstone reference rollout status {model}")


@rollout.command("status")
@click.argument("model", required=False)
@json_option
@home_option
@errors
def status(model: str | None, as_json: bool, home: Path) -> None:
    """Show how many nodes are on each revision, for how long the challenges of each last, and the time left."""
    config = Home(home).config()

    async def work(db: Database) -> list[dict[str, Any]]:
        async with db.read() as tx:
            return await model_rollout_steps.show(tx, InputLoader(), config, now_ms(), model)

    found = with_database(home, work)
    if as_json:
        _print(found)
        return
    for each in found:
        for line in describe(each):
            click.echo(line)
    if not found:
        click.echo("No roll-out runs." if model is None else f"No roll-out of {model} runs.")


@rollout.command("finish")
@click.argument("model")
@click.option("--anyway", is_flag=True, help="Finish although nodes are on the old revision still.")
@grace_option
@reason_option
@person_options
@json_option
@home_option
@errors
def finish(
    model: str, anyway: bool, grace_s: int | None, reason: str, who: Person, as_json: bool, home: Path
) -> None:
    """Put the new value in force; the old one is superseded, and only a warning for --grace."""
    grace = Home(home).config().references.grace_s if grace_s is None else grace_s
    author = who.author(home, reason, ADMINISTER)
    ended, left = in_transaction(
        home,
        lambda tx: model_rollout_steps.finish(
            tx, model, author, now_ms(), grace_ms=grace * 1000, anyway=anyway
        ),
    )
    if as_json:
        _print({"model": model, "from": ended.old, "to": ended.new, "on_old": left, "grace_s": grace})
        return
    click.echo(f"{ended.new[:12]} is in force for {model}, and {ended.old[:12]} is superseded.")
    click.echo(f"Nodes on the old one: {left}; they are only a warning for {grace} s.")


@rollout.command("abort")
@click.argument("model")
@grace_option
@reason_option
@person_options
@json_option
@home_option
@errors
def abort(model: str, grace_s: int | None, reason: str, who: Person, as_json: bool, home: Path) -> None:
    """Let the new value wait again; nodes that have it are only a warning for --grace."""
    grace = Home(home).config().references.grace_s if grace_s is None else grace_s
    author = who.author(home, reason, ADMINISTER)
    ended, moved = in_transaction(
        home, lambda tx: model_rollout_steps.abort(tx, model, author, now_ms(), grace_ms=grace * 1000)
    )
    if as_json:
        _print({"model": model, "from": ended.old, "to": ended.new, "on_new": moved, "grace_s": grace})
        return
    click.echo(f"{ended.old[:12]} alone is in force for {model}, and {ended.new[:12]} waits again.")
    click.echo(f"Nodes on the new one: {moved}; they are only a warning for {grace} s.")


def _print(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def describe(found: dict[str, Any]) -> list[str]:
    """The lines of one roll-out, for people."""
    lines = [f"{found['model']}, since {_moment(found['started'])}{_time_left(found)}"]
    for name in ("from", "to"):
        side = found[name]
        moving = f" ({side['moving']} more say so)" if side["moving"] else ""
        lines.append(
            f"  {name:<4} {side['digest'][:12]}  {bar(side['nodes'], found['nodes'])}"
            f"  {side['nodes']} of {found['nodes']} nodes{moving}; {_lasting(side['challenges'])}"
        )
    lines.append(f"  on neither: {found['neither']}; without a result: {found['unknown']}")
    if found["overdue"]:
        lines.append("  It was to be ended by now. Both revisions stay valid until you finish or abort it:")
        lines.append(f"    touchstone reference rollout finish {found['model']} --reason …")
    return lines


def bar(part: int, whole: int) -> str:
    """A bar of *part* of *whole*: it is empty, or full, only if nothing, or everything, is meant."""
    filled = 0 if whole == 0 else round(_BAR * part / whole)
    if 0 < part < whole:
        filled = min(max(filled, 1), _BAR - 1)
    return "█" * filled + "░" * (_BAR - filled)


def _lasting(challenges: dict[str, dict[str, float | None]]) -> str:
    parts = [
        f"{kind}s {level['free']}" + ("" if level["hours"] is None else f" ({level['hours']:.1f} h)")
        for kind, level in challenges.items()
    ]
    return ", ".join(parts)


def _time_left(found: dict[str, Any]) -> str:
    if found["until"] is None:
        return ", without an end"
    days, rest = divmod(abs(found["left_s"]), 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    length = f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
    return f", until {_moment(found['until'])} ({length} {'over' if found['overdue'] else 'left'})"


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_until(text: str, at_ms: int) -> int:
    """
    Read a moment in milliseconds since 1970: a time from now such as 7d, a day, or RFC 3339 with its offset.

    Raises:
        click.UsageError: It is none of them.
    """
    if length := re.fullmatch(r"([1-9]\d{0,5})([mhd])", text, re.ASCII):
        return at_ms + int(length[1]) * _UNITS[length[2]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is not None and (moment.tzinfo is not None or re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII)):
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
    raise click.UsageError(
        f"--until {text[:40]!r} is no moment. Write it like 12h, 7d, 2026-12-24 or 2026-12-24T18:00:00Z"
    )
