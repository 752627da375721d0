"""`touchstone verifier backup | restore | migrate | check`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from attester.errors import ConfigError
from verifier.commands.common import errors, home_option, os_user
from verifier.config import Home, VerifierConfig, only_process
from verifier.errors import StoreError
from verifier.roles import with_note
from verifier.store import maintenance
from verifier.store.backups import Manifest
from verifier.store.console import confirm_replacing, show_faults, show_migration
from verifier.store.invariants import checks_of
from verifier.store.maintenance import Place, Restoration
from verifier.store.marks import Marks, raise_marks, read_marks
from verifier.store.opening import is_postgres
from verifier.store.policies import ChangeAuthor
from verifier.store.restoring import Report, Wish, end_what_may_be_used, known_marks
from verifier.store.whole import Whole

_PACKAGE: Final = "verifier.store"
_DAY_MS: Final = 24 * 3600 * 1000


def _place(home: Path, config: VerifierConfig) -> Place:
    return Place(config.store.url, Home(home).database, _PACKAGE)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@errors
def backup(file: Path, home: Path, force: bool) -> None:
    """Copy the database to FILE, while the verifier runs.

    FILE can be restored into a file or into PostgreSQL.  It holds what the database holds, so keep it as safe.
    Keys, tokens and the configuration are not in it: copy the home too, but never high-water.json or log-guard.json back.
    """
    place = _place(home, Home(home).config())
    manifest = asyncio.run(maintenance.back_up(place, file, force=force))
    click.echo(f"Wrote {file}: {manifest.rows} rows of {len(manifest.tables)} tables, read again and equal.")


@click.command()
@home_option
@errors
def check(home: Path) -> None:
    """Check the database: its form, its references, its counters, and that nothing was used twice."""
    config = Home(home).config()
    kept_since_ms = maintenance.now_ms() - config.results.keep_days * _DAY_MS
    checks = checks_of(kept_since_ms)
    faults = asyncio.run(maintenance.check(_place(home, config), checks, click.echo))
    show_faults(faults)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@home_option
@click.option("--replace", is_flag=True, help="Replace a database that is not empty.")
@click.option("--yes", is_flag=True, help="With --replace, do not ask.")
@click.option(
    "--mark",
    "mark_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The high-water.json of another replica; repeatable.",
)
@click.option(
    "--all-marks", is_flag=True, help="The marks here and by --mark are those of every replica there was."
)
@click.option(
    "--discard-challenges", is_flag=True, help="Delete every challenge, because not all marks are known."
)
@click.option(
    "--keep-tokens",
    is_flag=True,
    help="Keep enrolment tokens that were unused at the backup; one may have been used since.",
)
@click.option("--actor", default=None, help="On whose behalf: a note, kept with the reason for ever.")
@click.option("--reason", required=True, help="The reason, which is kept for ever.")
@errors
def restore(
    file: Path, home: Path, replace: bool, yes: bool, mark_files: tuple[Path, ...], all_marks: bool,
    discard_challenges: bool, keep_tokens: bool, actor: str | None, reason: str,
) -> None:  # fmt: skip
    """Restore the database from FILE, while no verifier runs.

    What may have been used after the backup is not free again: challenges (by the high-water marks), event numbers,
    signed requests, nonces, enrolment tokens.  Live results are revoked, and nodes get new ones within minutes.
    """
    config = Home(home).config()
    if replace:
        confirm_replacing(config.store.url or str(Home(home).database), yes=yes)
    restoration = _VerifierRestoration(
        Home(home),
        config,
        others=mark_files,
        claims_all=all_marks,
        discard=discard_challenges,
        keep_tokens=keep_tokens,
        author=ChangeAuthor(os_user(), with_note(reason, os_user(), actor)),
    )
    with _alone(home, config):
        manifest = asyncio.run(maintenance.restore(_place(home, config), file, restoration, replace=replace))
    report = restoration.report
    assert report is not None
    click.echo(f"Restored {manifest.rows} rows, as they were at {_utc(manifest.made_ms)}, and verified them.")
    click.echo(
        f"Ended: {report.sessions} sessions, {report.tokens} enrolment tokens, {report.results} live results,"
        f" {report.challenges} challenges that may have been used. {report.free} challenges are left."
    )
    click.echo(
        "What came later is lost: enrolments, new keys, retirements, incidents, blocks, policies, reference values,"
        " challenges. Retire and block again what was retired and blocked, before you serve."
    )
    if report.logs:
        click.echo(
            "The log has ended: its key may have signed more than the backup has. Begin a new one, which names it:"
            f" touchstone log begin --home {home} --reason REASON"
        )


@click.command()
@click.option(
    "--to",
    "target",
    required=True,
    metavar="URL|FILE",
    help="An empty PostgreSQL database, postgresql://USER@HOST/DATABASE, or a new SQLite file.",
)
@home_option
@errors
def migrate(target: str, home: Path) -> None:
    """Copy the database to another one, and prove that they are equal, while no verifier runs."""
    config = Home(home).config()
    url, path = (target, Path()) if is_postgres(target) else ("", Path(target))
    with _alone(home, config):
        digests = asyncio.run(maintenance.migrate(_place(home, config), Place(url, path, _PACKAGE)))
    show_migration(digests)
    if url:
        click.echo(f'Next, in {home / "verifier.toml"}: [store] url = "{url}"')
    elif path.absolute() == Home(home).database.absolute():
        click.echo(f"Next: remove [store] url from {home / 'verifier.toml'}")
    else:
        click.echo(
            f"Next: move it to {Home(home).database}, and remove [store] url from {home / 'verifier.toml'}"
        )
    click.echo(
        "Serve from the old database never again: it would pose challenges that the new one has posed."
    )


class _VerifierRestoration(Restoration):
    """Restores a verifier: nothing is free again which was used."""

    def __init__(
        self,
        home: Home,
        config: VerifierConfig,
        *,
        others: tuple[Path, ...],
        claims_all: bool,
        discard: bool,
        keep_tokens: bool,
        author: ChangeAuthor,
    ) -> None:
        self._home = home
        self._config = config
        self._others = others
        self._claims_all = claims_all
        self._discard = discard
        self._keep_tokens = keep_tokens
        self._author = author
        self._marks = Marks(since_ms=maintenance.now_ms())
        self.report: Report | None = None

    def accept(self, manifest: Manifest) -> None:
        """Read the marks, and refuse if challenges may have been used that they say nothing of."""
        named = [(path, read_marks(path)) for path in (self._home.high_water, *self._others)]
        for path, marks in named:
            if marks is None:
                if not self._discard:
                    raise StoreError(f"{path} does not exist, so used challenges are not known: {_DISCARD}")
                continue
            if marks.since_ms > manifest.made_ms and not self._discard:
                raise StoreError(
                    f"{path} is newer than the backup, so it does not know all challenges that were used since:"
                    f" {_DISCARD}"
                )
            self._marks = self._marks.merge(marks)
        shared = bool(self._config.store.url) or manifest.source == "postgresql"
        if shared and not self._claims_all and not self._discard:
            raise StoreError(
                "several replicas may have served. Name the high-water.json of each other one with --mark, and say"
                f" that these are all with --all-marks; if one is lost: {_DISCARD}"
            )

    async def look(self, whole: Whole) -> None:
        """What is about to be replaced may know more than the marks."""
        self._marks = self._marks.merge(await known_marks(whole))

    async def finish(self, whole: Whole, manifest: Manifest) -> None:
        """End what may have been used, and keep the marks for the next time."""
        wish = Wish(
            marks=self._marks,
            all_known=not self._discard,
            keep_tokens=self._keep_tokens,
            now_ms=await whole.now_ms(),
            skew_s=self._config.sessions.skew_s,
            author=self._author,
            made_ms=manifest.made_ms,
        )
        self.report = await end_what_may_be_used(whole, wish)
        raise_marks(self._home.high_water, self._marks)


_DISCARD: Final = "give --discard-challenges, and mint new ones"


@contextlib.contextmanager
def _alone(home: Path, config: VerifierConfig) -> Iterator[None]:
    """Keep the verifier from starting meanwhile.  With PostgreSQL, locks on the tables do."""
    if config.store.url:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_process(Home(home)))
        except ConfigError:
            raise StoreError(f"a verifier serves {home}. Stop it first") from None
        yield


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
