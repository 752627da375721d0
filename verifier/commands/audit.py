"""`touchstone audit …`: evidence packs for auditors."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from attester.errors import ConfigError
from verifier.archive import files
from verifier.audit.checking import check, open_part
from verifier.audit.exporting import Exported, export
from verifier.audit.tables import time_of
from verifier.commands.common import errors, home_option, now_ms, read_file, with_database, write_file
from verifier.config import Home
from verifier.log.checkpoints import SignedCheckpoint, open_checkpoint
from verifier.log.notes import Note, VerifierKey
from verifier.log.policies import MAX_POLICY, LogPolicy
from verifier.schemes.findings import to_printable
from verifier.store.database import Database
from verifier.watching.home import read_log_key

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)


@click.group()
def audit() -> None:
    """Show others what a verifier decided, with the proofs of its log."""


class _Moment(click.ParamType[int]):
    """A day or a moment, as milliseconds since 1970."""

    name = "day or moment"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is neither YYYY-MM-DD nor a moment such as 2026-11-30T12:00:00Z", param, ctx)
        if moment.tzinfo is None and not _DAY.match(text):
            self.fail(f"{text!r} needs a time zone, such as Z", param, ctx)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


_key_option = click.option(
    "--key",
    "vkeys",
    multiple=True,
    help="The public key of a log of the verifier, NAME+ID+KEY; repeatable.  Needed unless --policy names the logs.",
)
_policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path),
    default=None,
    help="A file that names witnesses and their quorum (c2sp.org/tlog-policy).",
)


@audit.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--from", "from_ms", type=_Moment(), required=True, help="The first day, in UTC, or a moment.")
@click.option("--to", "to_ms", type=_Moment(), required=True, help="The day after the last one, or a moment.")
@home_option
@errors
def export_command(folder: Path, from_ms: int, to_ms: int, home: Path) -> None:
    """Write to FOLDER who was attested, by which policy, what changed and who released, with the proofs of the log."""
    key = Home(home).log_key()
    if key is None:
        raise ConfigError(f"{home} has no log-key.pem: a verifier makes it when it first serves")

    async def work(db: Database) -> Exported:
        async with db.read() as tx:
            return await export(tx, key, folder, from_ms=from_ms, to_ms=to_ms, now_ms=now_ms())

    made = with_database(home, work)
    for name, count in made.counts.items():
        click.echo(f"{name}: {count}")
    if made.index.without_token:
        click.echo(f"{made.index.without_token} results are too old: the verifier has only their digests.")
    for part in made.index.logs:
        click.echo(f"Wrote {folder}. Its entries are proven by the log {part.vkey.partition('+')[0]}.")


@audit.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_key_option
@_policy_option
@errors
def verify(folder: Path, vkeys: tuple[str, ...], policy: Path | None) -> None:
    """Verify the export in FOLDER without a network: what it says is what the log has, and nothing is missing."""
    keys, read = _trust(vkeys, policy)
    found = check(folder, keys, _accepting(keys, read))
    for finding in found.findings:
        click.echo(to_printable(finding))
    if found.findings:
        raise click.ClickException("the export must not be relied on")
    for checkpoint in found.checkpoints:
        click.echo(f"{checkpoint.origin}: of {checkpoint.size} entries, root {checkpoint.root.hex()}")
    click.echo(f"{found.entries} entries are proven, and {found.results} results are those that they name.")
    click.echo("The tables follow from them.")


@audit.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("place", type=click.IntRange(0))
@click.option("--log", "number", type=click.IntRange(1), default=1, show_default=True, help="Which log.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .tlog-proof file to write.")
@_key_option
@_policy_option
@errors
def proof(
    folder: Path, place: int, number: int, out: Path, vkeys: tuple[str, ...], policy: Path | None
) -> None:
    """Make the proof of the entry at PLACE of the export in FOLDER, for somebody who is to see nothing else."""
    keys, _ = _trust(vkeys, policy)
    made = open_part(folder, keys, number).prove(place)
    assert made.extra is not None
    made.verify(made.extra, lambda note: open_checkpoint(note, keys))
    write_file(out, str(made).encode())
    click.echo(f"Wrote {out}: touchstone log proof {out} --key KEY")


@audit.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_key_option
@_policy_option
@errors
def archive(paths: tuple[Path, ...], vkeys: tuple[str, ...], policy: Path | None) -> None:
    """Verify files of an archive by the proofs beside them: their bytes and their rows are those that were logged."""
    accept = _accepting(*_trust(vkeys, policy))
    for path in paths:
        found = files.check(path, accept)
        entry = found.entry
        click.echo(f"{path}: {entry.rows} rows of {entry.table}, logged at {time_of(found.at_ms)}")


def _accepting(keys: list[VerifierKey], policy: LogPolicy | None) -> Callable[[Note], SignedCheckpoint]:
    def accept(note: Note) -> SignedCheckpoint:
        signed = open_checkpoint(note, keys)
        if policy is not None:
            policy.check_quorum(note)
        return signed

    return accept


def _trust(vkeys: tuple[str, ...], policy: Path | None) -> tuple[list[VerifierKey], LogPolicy | None]:
    read = None if policy is None else LogPolicy.parse(read_file(policy, MAX_POLICY))
    keys = [read_log_key(each) for each in vkeys]
    if not keys and read is not None:
        keys = [peer.key for peer in read.logs]
    if not keys:
        raise click.UsageError("name the public key of the log by --key, or in the policy")
    return keys, read
