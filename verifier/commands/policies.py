"""`touchstone policy …`: write a policy, try it on recorded evidence, roll it out, take it back."""

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
from verifier import trial as trials
from verifier.commands.common import (
    actor_option,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    read_file,
    reason_option,
    table,
    with_database,
)
from verifier.config import Home, default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, ar4si, testing
from verifier.policy import bundle as bundles
from verifier.policy import diff as differences
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits, opened
from verifier.policy.rollout import Rollout
from verifier.schemes.base import shown
from verifier.service.inforce import InForce, StoredLookup
from verifier.service.policies import change_to_wire, state_of
from verifier.store import policies as stored
from verifier.store import recordings, references, shadows
from verifier.store.database import Database, Tx
from verifier.store.policies import Who
from verifier.store.recordings import Window
from verifier.trial import Report, Verdict

_SHORT: Final = 12
_folder = click.argument("folder", type=click.Path(path_type=Path))
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group()
def policy() -> None:
    """Write, try and roll out policies."""


@policy.command()
@_folder
@click.option("--name", default=None, help="The policy's name; the folder's if not given.")
@click.option("--author", default="The security team", show_default=True, help="Who writes it.")
@click.option(
    "--from",
    "base",
    default=None,
    help="Begin with a published policy, or `active`, and not the default one.",
)
@home_option
@errors
def new(folder: Path, name: str | None, author: str, base: str | None, home: Path) -> None:
    """Make a FOLDER with a policy of your own: a copy of another, with its tests."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already, and is not an empty folder")
    begun = (
        bundles.load(default_policy())
        if base is None
        else in_transaction(home, lambda tx: _find(tx, base))
    )
    label = name or re.sub(r"[^a-z0-9-]+", "-", folder.resolve().name.lower()).strip("-")
    manifest = {
        "name": label,
        "version": "1",
        "author": author,
        "description": "Says what is acceptable to us.",
    }
    files = {
        **begun.files,
        "ar4si/data.json": ar4si.to_json(),
        "bundle.json": msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n",
    }
    made = bundles.of_files(files)
    try:
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from None
    click.echo(
        f"Made {folder}: {len(made.modules)} modules, {len(made.tests)} with tests, like {_short(begun.id)}."
    )
    click.echo(f"  what is approved:  {folder}/data.json")
    click.echo(f"  what it means:     {folder}/*.rego")
    click.echo(f"  touchstone policy test {folder}")


@policy.command()
@_folder
@errors
def lint(folder: Path) -> None:
    """Read the policy in FOLDER, and say what is wrong with it, with file, line and column."""
    inspection = asyncio.run(admission.inspect(bundles.load(folder)))
    for finding in inspection.findings:
        click.echo(f"{finding.level}: {finding}")
    rules = sum(len(found) for found in inspection.rules.values())
    click.echo(
        f"{rules} rules, {len(inspection.errors)} errors, {len(inspection.findings) - len(inspection.errors)} warnings"
    )
    if inspection.errors:
        raise SystemExit(1)


@policy.command("test")
@_folder
@click.option("--junit", type=click.Path(path_type=Path), help="Write a report for CI here.")
@click.option(
    "--min-coverage", default=0, type=click.IntRange(0, 100), help="Fail below so many per cent of lines."
)
@click.option("--verbose", "-v", is_flag=True, help="Also those that hold.")
@errors
def run_tests(folder: Path, junit: Path | None, min_coverage: int, verbose: bool) -> None:
    """Run the tests of the policy in FOLDER: every rule named test_* must be true."""
    bundle = bundles.load(folder)
    report = asyncio.run(testing.run(bundle))
    for test in report.tests:
        if test.why is not None:
            click.echo(f"FAIL  {test.file}:{test.line}  {test.name}: {shown(test.why)}")
        elif verbose:
            click.echo(f"ok    {test.file}:{test.line}  {test.name}")
        for line in test.printed:
            click.echo(f"      {shown(line)}")
    for file, lines in report.missed.items():
        click.echo(f"not reached: {file}: {', '.join(map(str, lines))}")
    click.echo(
        f"{len(report.tests) - len(report.failed)} of {len(report.tests)} hold; {report.coverage:.1f} % of lines reached"
    )
    if junit is not None:
        try:
            junit.write_bytes(testing.junit(bundle, report))
        except OSError as error:
            raise BundleError(f"{junit} cannot be written: {error.strerror}") from None
    if not report.tests:
        raise BundleError("there are no tests: no rule named test_* in a *_test.rego")
    if report.failed or report.coverage < min_coverage:
        raise SystemExit(1)


@policy.command()
@_folder
@click.option("--key", type=click.Path(path_type=Path), required=True, help="The author's private key, PEM.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the archive is written.")
@errors
def pack(folder: Path, key: Path, out: Path) -> None:
    """Sign the policy in FOLDER and pack it, to be published over the API."""
    bundle = bundles.load(folder)
    try:
        out.write_bytes(bundles.write_archive(bundle, bundles.sign(bundle, load_key(key))))
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"Packed {bundle.id}: {out}")


@policy.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=None,
    help="The author's private key; HOME/author.pem if not given.",
)
@reason_option
@actor_option
@home_option
@errors
def publish(source: Path, key: Path | None, reason: str, actor: str, home: Path) -> None:
    """Publish the policy in SOURCE, a folder or a packed archive: linted, tested, signed, kept for ever."""
    if source.is_dir():
        bundle = bundles.load(source)
        envelope = bundles.signature_in(source) if key is None else None
        if envelope is None:
            envelope = bundles.sign(bundle, Home(home).author_key() if key is None else load_key(key))
    else:
        bundle, found = bundles.read_archive(read_file(source, bundles.MAX_ARCHIVE))
        if found is None:
            raise BundleError(f"{source} is not signed: touchstone policy pack")
        envelope = found
    signer = bundles.verify(bundle, envelope, Home(home).authors())
    passed = asyncio.run(admission.check(bundle))
    for finding in passed.inspection.findings:
        click.echo(f"{finding.level}: {finding}")
    fresh = in_transaction(
        home, lambda tx: stored.publish(tx, bundle, envelope, signer, Who(actor, reason), now_ms())
    )
    report = passed.report
    click.echo(
        f"{len(report.tests)} tests hold, {report.coverage:.1f} % of lines reached; signed by {signer}"
    )
    click.echo(f"{'Published' if fresh else 'Known already:'} {bundle.id}")
    if bundle.data_approves_nothing:
        click.echo("NOTE: data.json approves no engine yet, so every node would be contraindicated.")


@policy.command("list")
@home_option
@json_option
@errors
def list_policies(home: Path, as_json: bool) -> None:
    """List published policies and where each stands."""

    async def work(tx: Tx) -> list[dict[str, Any]]:
        rollout = await stored.rollout(tx)
        return [
            {
                "policy": row["id"],
                "author": row["author"],
                "signer": row["signer"],
                "state": state_of(row["digest"], rollout),
            }
            for row in await stored.every(tx)
        ]

    found = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [(*_short(p["policy"]).split("#sha-256;"), p["state"], p["author"], p["signer"]) for p in found]
    table("", ("policy", "digest", "state", "author", "signed by"), rows)


@policy.command()
@click.argument("subject")
@click.option("--node", "nodes", multiple=True, help="Only of this node; repeatable.")
@click.option("--operator", default=None, help="Only of this operator's nodes.")
@click.option("--since", default="7d", show_default=True, help="Only so far back: 90m, 24h, 7d.")
@click.option("--until", default="0s", show_default=True, help="Only until so long ago.")
@click.option("--newest", is_flag=True, help="Only the newest of each node.")
@actor_option
@click.option("--reason", default="to see what would change", show_default=True, help="Why; kept for ever.")
@home_option
@json_option
@errors
def trial(
    subject: str, nodes: tuple[str, ...], operator: str | None, since: str, until: str, newest: bool,
    actor: str, reason: str, home: Path, as_json: bool,
) -> None:  # fmt: skip
    """Judge recorded evidence anew under SUBJECT, a published policy or a folder, and say what would change."""
    now = now_ms()
    window = Window(nodes, operator, now - _seconds(since) * 1000, now - _seconds(until) * 1000 + 1, newest)

    async def work(db: Database) -> Report:
        config = Home(home).config().policy
        async with db.read() as tx:
            bundle = await _find(tx, subject)
            count = await recordings.count(tx, window)
        async with opened(bundle, Limits(1, config.timeout_s, config.memory_mib << 20)) as pool:
            replay = trials.Replay(bundle, pool.ask, StoredLookup(db, InForce()))
            with progress("trying", count, quiet=as_json) as step:
                report = await trials.run(recordings.pages(db, window), replay, bundle.id, step)
        detail = {name: value for name, value in report.to_wire().items() if name != "changes"}
        async with db.write() as tx:
            await stored.note(tx, "trial", bundle.digest, Who(actor, reason), now_ms(), detail)
        return report

    report = with_database(home, work)
    if as_json:
        click.echo(msgspec.json.encode(report.to_wire()).decode())
        return
    _show_report(report)


def _show_report(report: Report) -> None:
    wire = report.to_wire()
    for counted in report.in_order():
        change = counted.change
        times = f"  ×{counted.count}" if counted.count > 1 else ""
        click.echo(f"{counted.node}  {change.submod}  {change.direction}{times}")
        click.echo(f"    from  {_verdict(change.before)}")
        click.echo(f"    to    {_verdict(change.after)}")
    click.echo(
        f"{wire['appraisals']} appraisals of {wire['nodes']} nodes tried, {wire['unchanged']} unchanged; "
        f"{wire['nodes_changed']} nodes change: {wire['worse']} worse, {wire['better']} better, {wire['other']} otherwise"
    )
    if report.examined:
        click.echo(f"{report.examined} were examined again: thresholds or reference values differ")
    if report.failures:
        click.echo(
            f"the policy failed on {report.failures}"
            + (", and the rest was not tried" if report.gave_up else "")
        )


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return "nothing"
    vector = " ".join(f"{claim} {value}" for claim, value in verdict.vector.items())
    return f"{verdict.tier}: {vector}  {', '.join(verdict.reasons)}".rstrip()


@policy.command()
@click.argument("old")
@click.argument("new")
@home_option
@json_option
@errors
def diff(old: str, new: str, home: Path, as_json: bool) -> None:
    """Say what NEW means differently than OLD: each a folder, a published policy, or `active`."""

    async def work(tx: Tx) -> tuple[Bundle, Bundle]:
        return await _find(tx, old), await _find(tx, new)

    if Path(old).is_dir() and Path(new).is_dir():
        before, after = bundles.load(Path(old)), bundles.load(Path(new))
    else:
        before, after = in_transaction(home, work)

    async def inspected() -> list[differences.Difference]:
        return differences.compare(
            before, await admission.inspect(before), after, await admission.inspect(after)
        )

    found = asyncio.run(inspected())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for d in found:
        values = f": {d.before or 'nothing'} → {d.after or 'nothing'}" if d.before or d.after else ""
        click.echo(f"{d.part} {d.name} {d.change}{shown(values, 500)}")
        for line in d.text.splitlines():
            click.echo(f"    {shown(line)}")
    if not found:
        click.echo("They mean the same.")


@policy.command()
@click.argument("name", required=False)
@click.option("--end", is_flag=True, help="Ask no policy beside the others any more.")
@click.option("--report", is_flag=True, help="Show what would have differed so far.")
@click.option("--reason", default=None, help="Why; kept for ever.")
@actor_option
@home_option
@json_option
@errors
def shadow(
    name: str | None, end: bool, report: bool, reason: str | None, actor: str, home: Path, as_json: bool
) -> None:
    """Ask policy NAME beside the others on live evidence, and count what would differ."""
    if report:
        _shadow_report(name, home, as_json=as_json)
        return
    if (name is None) != end or reason is None:
        raise click.UsageError("give NAME or --end, and --reason; or --report")
    rollout = in_transaction(home, lambda tx: _move(tx, "shadow", name, Who(actor, reason or "")))
    _say(home, rollout)


def _shadow_report(name: str | None, home: Path, *, as_json: bool) -> None:
    async def work(tx: Tx) -> dict[str, Any]:
        rollout = await stored.rollout(tx)
        digest = None if rollout is None else rollout.shadow
        if name is not None:
            digest = (await stored.find(tx, name))["digest"]
        found = None if digest is None else await shadows.report(tx, digest)
        if found is None:
            raise PolicyError("no policy is or was the shadow")
        return found

    found = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for change in found["changes"]:
        before, after = (
            None if change[side] is None else msgspec.convert(change[side], Verdict)
            for side in ("from", "to")
        )
        click.echo(f"{change['node']}  {change['submod']}  {change['direction']}  ×{change['count']}")
        click.echo(f"    from  {_verdict(before)}")
        click.echo(f"    to    {_verdict(after)}")
    click.echo(
        f"{found['appraised']} appraisals, {found['differing']} would differ; it failed on {found['failed']}, "
        f"and {found['skipped']} were skipped"
    )


@policy.command()
@click.argument("name")
@click.option("--share", required=True, help="Of the nodes, stable by their ids: 5% or 0.5%.")
@reason_option
@actor_option
@home_option
@errors
def canary(name: str, share: str, reason: str, actor: str, home: Path) -> None:
    """Let policy NAME judge a share of the nodes."""
    permille = _permille(share)
    _say(home, in_transaction(home, lambda tx: _move(tx, "canary", name, Who(actor, reason), permille)))


@policy.command()
@click.argument("name")
@reason_option
@actor_option
@home_option
@errors
def promote(name: str, reason: str, actor: str, home: Path) -> None:
    """Let policy NAME judge all nodes."""
    _say(home, in_transaction(home, lambda tx: _move(tx, "promote", name, Who(actor, reason))))


@policy.command()
@click.option("--to", default=None, help="The policy to go back to; the one before if not given.")
@reason_option
@actor_option
@home_option
@errors
def rollback(to: str | None, reason: str, actor: str, home: Path) -> None:
    """End the canary; where there is none, go back to the policy that was active before."""
    _say(home, in_transaction(home, lambda tx: _move(tx, "rollback", to, Who(actor, reason))))


@policy.command()
@click.option(
    "--digest", default=None, help="SHA-256 or BLAKE3 of a file, or the digest of a reference value."
)
@click.option("--engine-version", default=None, help="ENGINE@VERSION.")
@click.option("--device", default=None, help="A device as its driver names it (UUID).")
@click.option("--lift", is_flag=True, help="Take the block back.")
@click.option("--list", "listing", is_flag=True, help="Show what is blocked.")
@click.option("--reason", default=None, help="Why; kept for ever.")
@actor_option
@home_option
@errors
def block(
    digest: str | None, engine_version: str | None, device: str | None, lift: bool, listing: bool,
    reason: str | None, actor: str, home: Path,
) -> None:  # fmt: skip
    """Block weights, an engine's version or a device at once, whatever the policies say."""
    if listing:
        rows = in_transaction(home, stored.live_blocks)
        table("", ("kind", "value", "since"), [(r["kind"], r["value"], _when(r["added_ms"])) for r in rows])
        return
    named = {"digest": digest, "engine-version": engine_version, "device": device}
    given = [(kind, value) for kind, value in named.items() if value is not None]
    if len(given) != 1 or reason is None:
        raise click.UsageError("give one of --digest, --engine-version and --device, and --reason; or --list")
    ((kind, value),) = given
    who = Who(actor, reason)

    async def work(tx: Tx) -> None:
        if not lift:
            await stored.block(tx, kind, value, who, now_ms())
            return
        form = stored.check_block(kind, value)
        for row in await stored.live_blocks(tx):
            if (row["kind"], row["value"]) == (kind, form):
                await stored.unblock(tx, row["id"], who, now_ms())
                return
        raise PolicyError(f"{kind} {value} is not blocked")

    in_transaction(home, work)
    click.echo(f"{'Lifted the block of' if lift else 'Blocked'} {kind} {shown(value)}, for all nodes.")


@policy.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500), help="How many.")
@home_option
@json_option
@errors
def history(limit: int, home: Path, as_json: bool) -> None:
    """Show every change of policies, reference values and blocks: who, when, why."""

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
        click.echo(
            f"{_when(change['at'] * 1000)}  {change['action']} {_short(subject)}{shown(more)}{skipped}"
        )
        click.echo(f"    {shown(change['actor'])}: {shown(change['reason'])}")


async def _find(tx: Tx, name: str) -> Bundle:
    """A policy by name, or in a folder."""
    if Path(name).is_dir():  # noqa: ASYNC240  # a command: nobody else waits
        return bundles.load(Path(name))
    if name == "active":
        rollout = await stored.rollout(tx)
        if rollout is None:
            raise PolicyError("no policy is active yet: start the verifier first")
        name = rollout.active
    row = await stored.find(tx, name)
    return bundles.read_archive(row["archive"])[0]


async def _move(tx: Tx, action: str, name: str | None, who: Who, permille: int = 0) -> Rollout:
    digest = None
    if name is not None:
        row = await stored.find(tx, name)
        digest = row["digest"]
        if action != "shadow":
            documents = bundles.read_archive(row["archive"])[0].documents
            await references.announce(tx, documents, now_ms())
    return await stored.move(tx, action, digest, who, now_ms(), permille=permille)


def _say(home: Path, rollout: Rollout) -> None:
    async def work(tx: Tx) -> dict[str, str]:
        return {row["digest"]: str(row["id"]) for row in await stored.every(tx)}

    names = in_transaction(home, work)
    click.echo(f"active  {_short(names[rollout.active])}")
    if rollout.canary is not None:
        click.echo(f"canary  {_short(names[rollout.canary])}, {rollout.permille / 10:g} % of the nodes")
    if rollout.shadow is not None:
        click.echo(f"shadow  {_short(names[rollout.shadow])}")


def _short(policy_id: str) -> str:
    """An id that people can tell apart: the digest's first twelve digits."""
    name, mark, digest = policy_id.partition("#sha-256;")
    return f"{name}{mark}{digest[:_SHORT]}" if mark else policy_id[:64]


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise click.UsageError(f"{text!r} is not a length of time: 90m, 24h, 7d")
    return int(number) * _UNITS[unit]


def _permille(text: str) -> int:
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        share = 0.0
    permille = round(share * 10)
    if not 1 <= permille <= 1000 or abs(permille - share * 10) > 1e-9:
        raise click.UsageError(f"--share {text}: between 0.1% and 100%, in tenths of a per cent")
    return permille
