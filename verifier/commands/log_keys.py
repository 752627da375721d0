"""`touchstone log key | begin`: the key of a verifier's own log, and a new log after a restore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from attester.errors import ConfigError
from verifier.commands.common import errors, home_option, in_transaction, now_ms, os_user
from verifier.config import Home
from verifier.errors import LogError, StoreError
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import Signer, VerifierKey
from verifier.roles import with_note
from verifier.store import log, log_tree
from verifier.store.database import Tx
from verifier.store.log_guard import Signed, read_guard, replace_guard
from verifier.store.log_sequence import extend
from verifier.store.log_tree import Log
from verifier.store.policies import ChangeAuthor


@click.command()
@home_option
@click.option(
    "--policy", is_flag=True, help="Print a policy (c2sp.org/tlog-policy) with the witnesses that are asked."
)
@errors
def key(home: Path, policy: bool) -> None:
    """Show the public key of the verifier's log, NAME+ID+KEY: all that anybody needs to verify it."""
    place = Home(home)
    config = place.config()
    current = in_transaction(home, log_tree.newest)
    if current is not None:
        vkey, prefix = current.vkey, current.prefix
    else:
        vkey, prefix = str(_signer(place, config.log_origin).key), log_tree.prefix_of(1)
    if not policy:
        click.echo(vkey)
        return
    click.echo(f"log {vkey} {config.service.url}{prefix}")
    names = [f"w{number}" for number in range(1, len(config.log.witnesses) + 1)]
    for name, asked in zip(names, config.log.witnesses, strict=True):
        click.echo(f"witness {name} {asked.key} {asked.url}")
    if names:
        click.echo(f"group witnesses all {' '.join(names)}")
    click.echo(f"quorum {'witnesses' if names else 'none'}")


def _signer(place: Home, origin: str) -> Signer:
    native = place.log_key()
    if native is None:
        raise ConfigError(
            f"{place.path} has no log-key.pem. A verifier makes it at its first start, and replicas share it"
        )
    return Signer(origin, native)


@dataclass(frozen=True)
class _Last:
    """What was signed last."""

    number: int
    origin: str
    size: int
    root: bytes

    @classmethod
    def of(cls, signed: Signed) -> _Last:
        return cls(signed.number, signed.origin, signed.size, signed.tree().root())


@dataclass(frozen=True)
class _Begun:
    """A log that was begun, and the one before it."""

    log: Log
    signed: Signed
    before: _Last | None


@click.command()
@home_option
@click.option("--actor", default=None, help="On whose behalf: a note, kept with the reason for ever.")
@click.option("--reason", required=True, help="The reason, which is kept for ever.")
@errors
def begin(home: Path, actor: str | None, reason: str) -> None:
    """
    Begin a new log, after a restore or with a new key.

    Its first entry names the log before it, with the size and the root that were signed last.  Whoever verifies or
    witnesses the log needs the new key.  In a home of another replica the guard follows by itself.
    """
    place = Home(home)
    author = ChangeAuthor(os_user(), with_note(reason, os_user(), actor))
    known = _known(place)

    async def work(tx: Tx) -> _Begun:
        return await _begin(tx, place, known, author)

    done = in_transaction(home, work)
    replace_guard(place.log_guard, done.signed)
    if done.before is not None:
        click.echo(
            f"{done.before.origin} ended with {done.before.size} entries, and stays readable as far as it is here."
        )
    click.echo(f"Began {done.log.origin}, at {place.config().service.url}{done.log.prefix}.")
    click.echo(f"Its key: {done.log.vkey}")
    click.echo("Give it to whoever verifies the log, and to its witnesses.")


def _known(place: Home) -> Signed | None:
    """What the guard says; nothing if it is damaged, for a new log is the way out of that."""
    try:
        return read_guard(place.log_guard)
    except StoreError as error:
        click.echo(f"NOTE: {error}", err=True)
        return None


async def _begin(tx: Tx, place: Home, known: Signed | None, author: ChangeAuthor) -> _Begun:
    before = await _last_signed(tx, known)
    stored = await log_tree.newest(tx)
    number = max(0 if before is None else before.number, 0 if stored is None else stored.number) + 1
    base = place.config().log_origin
    origin = base if number == 1 else f"{base}/{number}"
    signer = _signer(place, origin)
    made = Log(number, origin, str(signer.key))
    said: dict[str, log.Value] = {"actor": log.clip(author.actor), "reason": log.clip(author.reason)}
    if before is not None:
        said |= {"previous": before.origin, "previous_size": before.size, "previous_root": before.root.hex()}
    await log_tree.begin(tx, made, now_ms(), said)
    done = await extend(tx, made, None, signer, now_ms(), limit=0, is_new=True)
    return _Begun(made, done.signed, before)


async def _last_signed(tx: Tx, known: Signed | None) -> _Last | None:
    """What was signed last, by the guard or by the database, whichever is later."""
    guarded = None if known is None else _Last.of(known)
    stored = await log_tree.newest(tx)
    head = None if stored is None else await log_tree.head(tx, stored.number)
    if stored is None or head is None:
        return guarded
    try:
        found = open_checkpoint(head.note.encode(), [VerifierKey.parse(stored.vkey)]).checkpoint
    except LogError:
        return guarded
    if guarded is not None and (stored.number, found.size) <= (guarded.number, guarded.size):
        return guarded
    return _Last(stored.number, stored.origin, found.size, found.root)
