"""`touchstone policy …`: publish policies, try them, roll them out and back."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from attester.cli import progress
from attester.identity import load_key
from verifier import reappraisal
from verifier import trial as trials
from verifier.changes import SubmodVerdict
from verifier.commands import (
    blocking,
    opinions,  # noqa: F401  # its command is one of this group
    questions,
)
from verifier.commands.common import (
    Person,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    person_options,
    read_file,
    reason_option,
    reason_unless,
    table,
    with_database,
)
from verifier.commands.policies import find, policy, short
from verifier.commands.trials import show_report, verdict_text
from verifier.config import Home
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission
from verifier.policy import bundle as bundles
from verifier.policy.archive import MAX_ARCHIVE, read_archive
from verifier.policy.engine import Limits, opened
from verifier.policy.questions import find_failure
from verifier.policy.rollout import Rollout
from verifier.schemes.findings import to_printable
from verifier.service.access import APPROVE, AUTHOR
from verifier.service.home_folder import lines_of, look
from verifier.service.inputs import InputLoader, StoredLookup
from verifier.service.policies import change_to_wire, state_of
from verifier.store import policies as stored
from verifier.store import recordings, shadows, steps
from verifier.store.database import Database, Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.recordings import Window
from verifier.trial import TrialReport

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_anyway_option = click.option(
    "--anyway", is_flag=True, help="Also if the policy failed in its newest trial, or as the shadow."
)


@policy.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=None,
    help="The author's private key.  Default: HOME/author.pem.",
)
@reason_option
@person_options
@home_option
@errors
def publish(source: Path, key: Path | None, reason: str, who: Person, home: Path) -> None:
    """Lint, test, sign and publish the policy in SOURCE, a folder or a packed archive.  It is kept for ever."""
    if source.is_dir():
        bundle = bundles.load(source)
        envelope = bundles.signature_in(source) if key is None else None
        if envelope is None:
            envelope = bundles.sign(bundle, Home(home).author_key() if key is None else load_key(key))
    else:
        bundle, found = read_archive(read_file(source, MAX_ARCHIVE))
        if found is None:
            raise BundleError(f"{source} is not signed. Pack it with touchstone policy pack")
        envelope = found
    signer = bundles.verify(bundle, envelope, Home(home).authors())
    passed = asyncio.run(admission.check(bundle, _limits(home)))
    for finding in passed.inspection.findings:
        click.echo(f"{finding.level}: {finding}")
    author = who.author(home, reason, AUTHOR, needs_key=_two(home))
    is_new = in_transaction(home, lambda tx: stored.publish(tx, bundle, envelope, signer, author, now_ms()))
    report = passed.report
    click.echo(
        f"{len(report.tests)} tests pass and reach {report.coverage:.1f} % of the lines. Signed by {signer}."
    )
    questions.show(passed.answers)
    click.echo(f"{'Published' if is_new else 'This policy was published before:'} {bundle.id}")
    if bundle.data_approves_nothing:
        click.echo("NOTE: data.json approves no engine yet, so this policy would contraindicate every node.")


@policy.command("list")
@home_option
@json_option
@errors
def list_policies(home: Path, as_json: bool) -> None:
    """List published policies and their states."""
    folder = home / Home(home).config().policy.folder

    async def work(tx: Tx) -> tuple[list[dict[str, Any]], list[str]]:
        rollout = await stored.rollout(tx)
        listed = [
            {
                "policy": row["id"],
                "author": row["author"],
                "signer": row["signer"],
                "state": state_of(row["digest"], rollout),
            }
            for row in await stored.every(tx)
        ]
        return listed, lines_of((await look(tx, home, folder)).to_wire())

    found, notes = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [(*short(p["policy"]).split("#sha-256;"), p["state"], p["author"], p["signer"]) for p in found]
    table("", ("policy", "digest", "state", "author", "signed by"), rows)
    for line in notes:
        click.echo(to_printable(line, 2000))


@policy.command()
@click.argument("subject")
@click.option("--node", "nodes", multiple=True, help="Try it on this node only; repeatable.")
@click.option("--operator", default=None, help="Try it on this operator's nodes only.")
@click.option(
    "--since",
    default="7d",
    show_default=True,
    help="Try it on evidence that is at most so old: 90m, 24h, 7d.",
)
@click.option("--until", default="0s", show_default=True, help="Try it on evidence that is at least so old.")
@click.option("--newest", is_flag=True, help="Try it on the newest evidence of each node only.")
@person_options
@click.option(
    "--reason",
    default="to see what would change",
    show_default=True,
    help="The reason, which is kept for ever.",
)
@home_option
@json_option
@errors
def trial(
    subject: str, nodes: tuple[str, ...], operator: str | None, since: str, until: str, newest: bool,
    who: Person, reason: str, home: Path, as_json: bool,
) -> None:  # fmt: skip
    """Judge recorded evidence anew under SUBJECT, a published policy or a folder, and show what would change.

    It ends with 1 if the policy fails: on recorded evidence, or on any input that the contract allows.
    """
    now = now_ms()
    window = Window(
        nodes=nodes,
        operator=operator,
        since_ms=now - _seconds(since) * 1000,
        until_ms=now - _seconds(until) * 1000 + 1,
        newest_only=newest,
    )

    author = who.author(home, reason, AUTHOR)

    async def work(db: Database) -> TrialReport:
        async with db.read() as tx:
            bundle = await find(tx, subject)
            count = await recordings.count(tx, window)
        words = (await admission.inspect(bundle)).words
        samples = await find_failure(bundle, words, _limits(home))
        async with opened(bundle, _limits(home)) as pool:
            reappraiser = reappraisal.Reappraiser(bundle, pool.ask, StoredLookup(db, InputLoader()))
            with progress("trying", count, quiet=as_json) as step:
                report = await trials.run(
                    recordings.pages(db, window), reappraiser, bundle.id, step, samples=samples
                )
        detail = {name: value for name, value in report.to_wire().items() if name != "changes"}
        await db.write(lambda tx: stored.note(tx, "trial", bundle.digest, author, now_ms(), detail))
        return report

    report = with_database(home, work)
    if as_json:
        click.echo(msgspec.json.encode(report.to_wire()).decode())
    else:
        show_report(report)
    if report.has_failed:
        raise SystemExit(1)


@policy.command()
@click.argument("name", required=False)
@click.option("--end", is_flag=True, help="End the shadow.")
@click.option("--report", is_flag=True, help="Show the differences counted so far.")
@reason_unless("--report")
@person_options
@home_option
@json_option
@errors
def shadow(
    name: str | None, end: bool, report: bool, reason: str | None, who: Person, home: Path, as_json: bool
) -> None:
    """Make policy NAME the shadow: it sees live evidence and judges nobody, and differences are counted."""
    if report:
        _shadow_report(name, home, as_json=as_json)
        return
    if (name is None) != end or reason is None:
        raise click.UsageError("give NAME or --end together with --reason, or give --report")
    rollout = _take_step(home, "shadow", name, who.author(home, reason or "", AUTHOR))
    _show_rollout(home, rollout)


def _shadow_report(name: str | None, home: Path, *, as_json: bool) -> None:
    async def work(tx: Tx) -> dict[str, Any]:
        rollout = await stored.rollout(tx)
        digest = None if rollout is None else rollout.shadow
        if name is not None:
            digest = (await stored.find(tx, name))["digest"]
        found = None if digest is None else await shadows.report(tx, digest)
        if found is None:
            raise PolicyError("there is no shadow, and no report of an earlier one")
        return found

    found = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for change in found["changes"]:
        before, after = (
            None if change[side] is None else msgspec.convert(change[side], SubmodVerdict)
            for side in ("from", "to")
        )
        click.echo(f"{change['node']}  {change['submod']}  {change['direction']}  ×{change['count']}")
        click.echo(f"    from  {verdict_text(before)}")
        click.echo(f"    to    {verdict_text(after)}")
    click.echo(
        f"{found['differing']} of {found['appraised']} appraisals would differ, and {found['skipped']} were skipped."
    )
    if found["failed"]:
        click.echo(f"FAIL  The policy gave no valid outcome for {found['failed']} of them.")


@policy.command()
@click.argument("name")
@click.option(
    "--share", required=True, help="The share of nodes, such as 5% or 0.5%.  They are always the same nodes."
)
@_anyway_option
@reason_option
@person_options
@home_option
@errors
def canary(name: str, share: str, anyway: bool, reason: str, who: Person, home: Path) -> None:
    """Make policy NAME the canary, which judges a share of the nodes."""
    permille = _permille(share)
    author = who.author(home, reason, APPROVE, needs_key=_two(home))
    _show_rollout(home, _take_step(home, "canary", name, author, permille, anyway=anyway))


@policy.command()
@click.argument("name")
@_anyway_option
@reason_option
@person_options
@home_option
@errors
def promote(name: str, anyway: bool, reason: str, who: Person, home: Path) -> None:
    """Make policy NAME the active one, which judges all nodes."""
    author = who.author(home, reason, APPROVE, needs_key=_two(home))
    _show_rollout(home, _take_step(home, "promote", name, author, anyway=anyway))


@policy.command()
@click.option("--to", default=None, help="The policy to go back to.  Default: the previous one.")
@reason_option
@person_options
@home_option
@errors
def rollback(to: str | None, reason: str, who: Person, home: Path) -> None:
    """End the canary, or if there is none go back to the policy that was active before."""
    _show_rollout(home, _take_step(home, "rollback", to, who.author(home, reason, APPROVE)))


@policy.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500), help="How many.")
@home_option
@json_option
@errors
def history(limit: int, home: Path, as_json: bool) -> None:
    """Show every change of policies, reference values and blocks: who made it, when and why."""

    async def work(tx: Tx) -> tuple[list[dict[str, Any]], dict[str, str]]:
        names = {row["digest"]: str(row["id"]) for row in await stored.every(tx)}
        return [change_to_wire(row) for row in await stored.history(tx, 1 << 53, limit)], names

    changes, names = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(changes).decode())
        return
    for change in changes:
        subject = names.get(change["subject"], change["subject"])
        detail = change["detail"]
        more = f" {detail['permille'] / 10:g} %" if "permille" in detail else ""
        more += f" {detail['kind']} {detail['value']}" if "value" in detail else ""
        skipped = f" (without {', '.join(detail['skipped'])})" if detail.get("skipped") else ""
        skipped += f" (though it failed {'; '.join(detail['despite'])})" if detail.get("despite") else ""
        click.echo(
            f"{_when(change['at'] * 1000)}  {change['action']} {short(subject)}{to_printable(more)}{skipped}"
        )
        click.echo(f"    {to_printable(change['actor'])}: {to_printable(change['reason'])}")


def _limits(home: Path) -> Limits:
    """The limits of production on one evaluation."""
    config = Home(home).config().policy
    return Limits(1, config.timeout_s, config.memory_mib << 20)


def _two(home: Path) -> bool:
    return Home(home).config().policy.two_person


def _take_step(
    home: Path,
    action: str,
    name: str | None,
    author: ChangeAuthor,
    permille: int = 0,
    *,
    anyway: bool = False,
) -> Rollout:
    grace_ms = Home(home).config().references.grace_s * 1000
    loader = InputLoader()
    return in_transaction(
        home,
        lambda tx: steps.take_step(
            tx,
            action,
            name,
            author,
            now_ms(),
            load=loader.load_bundle,
            grace_ms=grace_ms,
            permille=permille,
            two_person=_two(home),
            anyway=anyway,
        ),
    )


def _show_rollout(home: Path, rollout: Rollout) -> None:
    async def work(tx: Tx) -> dict[str, str]:
        return {row["digest"]: str(row["id"]) for row in await stored.every(tx)}

    names = in_transaction(home, work)
    click.echo(f"active  {short(names[rollout.active])}")
    if rollout.canary is not None:
        click.echo(f"canary  {short(names[rollout.canary])}, {rollout.permille / 10:g} % of the nodes")
    if rollout.shadow is not None:
        click.echo(f"shadow  {short(names[rollout.shadow])}")


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise click.UsageError(f"{text!r} is not a length of time. Write it like 90m, 24h or 7d")
    return int(number) * _UNITS[unit]


def _permille(text: str) -> int:
    found = re.fullmatch(r"(\d{1,3})(?:\.(\d))?%?", text, re.ASCII)
    permille = 0 if found is None else int(found[1]) * 10 + int(found[2] or 0)
    if not 1 <= permille <= 1000:
        raise click.UsageError(f"--share {text} is not between 0.1% and 100% in steps of 0.1%")
    return permille


policy.add_command(blocking.block)
