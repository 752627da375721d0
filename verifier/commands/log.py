"""`touchstone log …`: verify a transparency log from outside, and witness one."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import msgspec

from attester.errors import ConfigError
from verifier.commands.common import errors, json_option, read_file
from verifier.commands.log_keys import begin, key
from verifier.commands.witness import witness
from verifier.errors import LogUnreadableError
from verifier.log.checkpoints import SignedCheckpoint, open_checkpoint
from verifier.log.notes import MAX_NOTE, Note
from verifier.log.policies import MAX_POLICY, LogPolicy
from verifier.log.proofs import MAX_PROOF, LogProof
from verifier.log.tiles import MAX_ENTRY
from verifier.schemes.findings import to_printable
from verifier.watching.auditing import Audit, Finding, audit
from verifier.watching.home import read_log_key
from verifier.watching.kept import KeptCheckpoints, default_folder
from verifier.watching.reading import read_range
from verifier.watching.sources import LogSource, open_source, read_checkpoint

T = TypeVar("T")
_UNREADABLE: Final = 3
"""The exit status if a log could not be read, which says nothing against it."""
_SKEW_S: Final = 300
"""How far the clock of a witness may be ahead of ours."""
_MAX_ENTRIES: Final = 10_000_000


@click.group()
def log() -> None:
    """Verify a transparency log with nothing but its public key, or witness it."""


log.add_command(witness)
log.add_command(key)
log.add_command(begin)

_key_option = click.option(
    "--key",
    "vkey",
    default=None,
    help="The log's public key, NAME+ID+KEY: touchstone log key shows it at the verifier.  "
    "Needed unless --policy names the log.",
)
_policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path),
    default=None,
    help="A file that names witnesses and their quorum (c2sp.org/tlog-policy).",
)


@log.command()
@click.argument("place", metavar="URL_OR_FOLDER")
@_key_option
@_policy_option
@click.option(
    "--since",
    type=click.Path(path_type=Path),
    default=None,
    help="An earlier checkpoint of the log, from anybody: the log must continue it.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=None,
    help="The folder where the last good checkpoint is kept, which the log must continue the next time.  "
    "Default: touchstone/logs in your state folder (XDG_STATE_HOME).",
)
@click.option(
    "--max-age",
    type=click.IntRange(1),
    default=None,
    help="Cosignatures older than so many seconds do not count.",
)
@click.option(
    "--max-entries",
    type=click.IntRange(1),
    default=_MAX_ENTRIES,
    show_default=True,
    help="Read no larger log.",
)
@json_option
@errors
def verify(
    place: str,
    vkey: str | None,
    policy: Path | None,
    since: Path | None,
    state: Path | None,
    max_age: int | None,
    max_entries: int,
    as_json: bool,
) -> None:
    """
    Verify all of the log at URL_OR_FOLDER: every entry and tile, the root, its signature and its history.

    Exit status 0: everything agrees.  1: something does not, and each line says what.  3: the log could not be read.
    """
    trust = _Trust(vkey, policy, max_age)
    kept = KeptCheckpoints(state or default_folder())

    async def work(source: LogSource) -> tuple[SignedCheckpoint, SignedCheckpoint, dict[str, int], Audit]:
        signed = trust.open(await read_checkpoint(source))
        cosigned = trust.cosigned(signed)
        earlier = _earlier(signed, since, kept)
        head, found = await _audit(source, signed, earlier, max_entries)
        return head, signed, cosigned, found

    signed, shown, cosigned, found = _run(place, work)
    if found.findings:
        _report_findings(found, kept.keep_evidence(shown) if found.is_fork else None, as_json=as_json)
    kept.keep(signed)
    if as_json:
        click.echo(msgspec.json.encode(_to_wire(signed, cosigned)).decode())
        return
    click.echo(
        f"{signed.checkpoint.origin}: {signed.checkpoint.size} entries, root {signed.checkpoint.root.hex()}"
    )
    click.echo(f"signed by {signed.key}")
    for name, at_s in sorted(cosigned.items()):
        click.echo(f"cosigned by {to_printable(name)} at {datetime.fromtimestamp(at_s, UTC).isoformat()}")
    click.echo("Every entry, every tile and the root agree, and the log continues what was known of it.")


@log.command()
@click.argument("proof", type=click.Path(path_type=Path))
@click.option(
    "--entry",
    type=click.Path(path_type=Path),
    default=None,
    help="The file with the entry.  Default: the one that the proof carries as its extra data.",
)
@_key_option
@_policy_option
@errors
def proof(proof: Path, entry: Path | None, vkey: str | None, policy: Path | None) -> None:
    """Verify PROOF, a .tlog-proof file, without a network, and print the entry."""
    parsed = LogProof.parse(read_file(proof, MAX_PROOF))
    data = parsed.extra if entry is None else read_file(entry, MAX_ENTRY)
    if data is None:
        raise click.UsageError("the proof does not carry its entry: name the file with it by --entry")
    signed = parsed.verify(data, lambda note: _Trust(vkey, policy, None).accept(note))
    click.echo(_printed(parsed.index, data))
    click.echo(
        f"It is entry {parsed.index} of the {signed.checkpoint.size} of {signed.checkpoint.origin}.", err=True
    )


@log.command()
@click.argument("place", metavar="URL_OR_FOLDER")
@_key_option
@_policy_option
@click.option(
    "--from", "first", type=click.IntRange(0), default=0, show_default=True, help="The first entry."
)
@click.option(
    "--count", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many."
)
@click.option("--kind", default=None, help="Only entries of this kind, such as result or receipts.")
@errors
def show(place: str, vkey: str | None, policy: Path | None, first: int, count: int, kind: str | None) -> None:
    """Print entries of the log at URL_OR_FOLDER, one on a line, after verifying that they are in it."""
    trust = _Trust(vkey, policy, None)

    async def work(source: LogSource) -> list[tuple[int, bytes]]:
        signed = trust.accept(Note.parse(await read_checkpoint(source)))
        return await read_range(source, signed.checkpoint, first, count)

    for index, entry in _run(place, work):
        if kind is None or _kind_of(entry) == kind:
            click.echo(_printed(index, entry))


class _Trust:
    """Whose checkpoints are accepted."""

    def __init__(self, vkey: str | None, policy: Path | None, max_age: int | None) -> None:
        self._policy = None if policy is None else LogPolicy.parse(read_file(policy, MAX_POLICY))
        logs = [] if self._policy is None else [peer.key for peer in self._policy.logs]
        self._keys = logs if vkey is None else [read_log_key(vkey)]
        self._max_age = max_age
        if not self._keys:
            raise click.UsageError("name the log's public key by --key, or in the policy")
        if vkey is not None and logs and self._keys[0] not in logs:
            raise click.UsageError("the policy does not name the log of --key")

    def open(self, data: bytes) -> SignedCheckpoint:
        """Read a checkpoint that its log has signed."""
        return open_checkpoint(data, self._keys)

    def cosigned(self, signed: SignedCheckpoint) -> dict[str, int]:
        """The witnesses that have cosigned, which are a quorum."""
        if self._policy is None:
            return {}
        now_s = int(time.time())
        not_before_s = None if self._max_age is None else now_s - self._max_age
        return self._policy.check_quorum(signed.note, not_before_s=not_before_s, not_after_s=now_s + _SKEW_S)

    def accept(self, note: Note) -> SignedCheckpoint:
        """Accept a checkpoint that its log and a quorum have signed."""
        signed = open_checkpoint(note, self._keys)
        self.cosigned(signed)
        return signed


def _earlier(
    signed: SignedCheckpoint, since: Path | None, kept: KeptCheckpoints
) -> dict[str, SignedCheckpoint]:
    found = {}
    if since is not None:
        found[f"the checkpoint {since}"] = open_checkpoint(read_file(since, MAX_NOTE), [signed.key])
    before = kept.find(signed.key)
    if before is not None:
        found[f"the checkpoint {kept.path(signed.key.name)}"] = before
    return found


async def _audit(
    source: LogSource, signed: SignedCheckpoint, known: Mapping[str, SignedCheckpoint], max_entries: int
) -> tuple[SignedCheckpoint, Audit]:
    """
    Audit the largest tree that the log's key has signed, as far as is known.

    A cache, or a log that waits for witnesses, may give an older checkpoint than before.  That is no fault of a log
    that still has all that it has signed.
    """
    every = {"the log's checkpoint": signed, **known}
    name = max(every, key=lambda each: every[each].checkpoint.size)
    head = every.pop(name) if every[name].checkpoint.size > signed.checkpoint.size else signed
    if head is signed:
        del every["the log's checkpoint"]
    if head.checkpoint.size > max_entries:
        raise ConfigError(f"the log has {head.checkpoint.size} entries: allow so many by --max-entries")
    found = await audit(source, head.checkpoint, {each: other.checkpoint for each, other in every.items()})
    if head is not signed:
        sizes = f"it has {head.checkpoint.size} entries, and the log now shows {signed.checkpoint.size}"
        if found.findings:
            found.findings.insert(0, Finding(name, f"{sizes}: the log was cut short"))
        else:
            click.echo(f"{name}: {sizes}. It still has all of them.", err=True)
    return head, found


def _run(place: str, work: Callable[[LogSource], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_source(place) as source:
            return await work(source)

    try:
        return asyncio.run(run())
    except LogUnreadableError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(_UNREADABLE) from None


def _report_findings(found: Audit, evidence: Path | None, *, as_json: bool) -> NoReturn:
    for finding in found.findings:
        click.echo(msgspec.json.encode(finding).decode() if as_json else to_printable(str(finding)))
    more = " or more" if found.is_full else ""
    count = len(found.findings)
    message = f"the log must not be accepted: {count}{more} finding{'s' * (count > 1)}"
    if evidence is not None:
        message += f". Its checkpoint is in {evidence}: with the earlier one it shows that the log signed two histories"
    raise click.ClickException(message)


def _to_wire(signed: SignedCheckpoint, cosigned: dict[str, int]) -> dict[str, Any]:
    found = signed.checkpoint
    return {
        "origin": found.origin,
        "size": found.size,
        "root": found.root.hex(),
        "key": str(signed.key),
        "cosigned": {to_printable(name): at_s for name, at_s in cosigned.items()},
    }


def _kind_of(entry: bytes) -> str | None:
    try:
        decoded = msgspec.json.decode(entry)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return decoded.get("kind") if isinstance(decoded, dict) else None


def _printed(index: int, entry: bytes) -> str:
    """An entry on a line: as it is if it is one line of printable ASCII, which our own are, else in base64."""
    text = entry.decode("ascii", "replace")
    is_plain = text.isascii() and text.isprintable()
    return f"{index} {text if is_plain else 'base64:' + b64encode(entry).decode()}"
