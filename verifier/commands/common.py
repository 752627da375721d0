"""Shared by the verifier's commands: options, the database, tables, files."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from attester.cli import plain_errors
from attester.errors import AttesterError, ConfigError
from attester.weights.cache import DigestCache
from verifier.config import Home
from verifier.errors import ReferenceValueError, RequestError, VerifierError
from verifier.policy import bundle as bundles
from verifier.policy.archive import read_archive
from verifier.roles import HOME_ADMIN, Role, with_note
from verifier.schemes.context import Thresholds
from verifier.schemes.findings import to_printable
from verifier.store import api_keys, policies
from verifier.store.database import Database, Tx
from verifier.store.opening import open_database
from verifier.store.policies import ChangeAuthor

T = TypeVar("T")
MAX_PEM: Final = 1 << 20
_LAST_SECOND: Final = 253402300799
"""Of the year 9999, the last that `datetime` has."""

errors = plain_errors(VerifierError, AttesterError, msgspec.ValidationError, UnicodeEncodeError)
home_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=Path("touchstone-verifier"),
    envvar="TOUCHSTONE_VERIFIER_HOME",
    show_default=True,
    show_envvar=True,
    help="The verifier's home folder.",
)
engine_option = click.option(
    "--engine",
    "engine_url",
    default=None,
    help="A trusted engine on this machine, whose walks are over what it has loaded, as it is: a reference value of "
    "this build of the engine.",
)
engine_secret_option = click.option(
    "--engine-secret",
    type=click.Path(path_type=Path),
    default=None,
    help="With --engine: the file of the secret of an engine that serves the loopback resources.  Without it: vLLM.",
)
device_option = click.option(
    "--device",
    default=None,
    help="cpu, or torch's name of a GPU, such as cuda:0.  Default: the first GPU if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
reason_option = click.option("--reason", required=True, help="The reason, which is kept for ever.")
MAX_SECRET: Final = 4096


def reason_unless(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option of a reason that a command needs unless one of *flags* is given, which only show something."""
    needed = f"The reason, which is kept for ever.  Needed unless {' or '.join(flags)} is given."
    return click.option("--reason", default=None, help=needed)


@dataclass(frozen=True)
class Person:
    """The person at the command line, by the options of `person_options`."""

    note: str | None
    key_file: Path | None

    def author(
        self, home: Path, reason: str, allowed: frozenset[Role], *, needs_key: bool = False
    ) -> ChangeAuthor:
        """
        The person as the author of a change: the holder of the key, or the user of the operating system.

        Args:
            allowed: The roles one of which the key must have.
            needs_key: Whether two people are asked for.  The name of a user proves nobody: whoever may write the
                database may be any user.

        Raises:
            ConfigError: A key is needed, and none is given.
            RequestError: The key opens nothing, or not this; or the reason is blank.
        """
        name = os_user()
        if self.key_file is not None:
            name = _holder(home, self.key_file, allowed)
        elif needs_key:
            raise ConfigError(
                "two_person is set: name the file with your key in --key-file. Two people have two keys"
            )
        return ChangeAuthor(name, with_note(reason, name, self.note))


def _holder(home: Path, key_file: Path, allowed: frozenset[Role]) -> str:
    secret = read_file(key_file, MAX_SECRET).decode(errors="replace").strip()
    digest = api_keys.digest_of(secret)
    if secret and digest == api_keys.digest_of(Home(home).token("admin")):
        return HOME_ADMIN
    caller = in_transaction(home, lambda tx: api_keys.caller_with(tx, digest, now_ms()))
    if caller is None:
        raise RequestError(f"{key_file} has no key that is live", code="request.unauthorised")
    if not caller.roles & allowed:
        raise RequestError(
            f"the key {caller.name} does not open this. It needs the role {', '.join(sorted(allowed))}",
            code="request.forbidden",
        )
    return caller.name


def person_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say who acts; the command gets a `Person` as ``who``."""

    @click.option("--actor", default=None, help="On whose behalf: a note, kept with the reason for ever.")
    @click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        default=None,
        help="The file with your key: its name is who acts.  Default: the user's name, as os:USER; where two_person "
        "is set, some steps need a key.",
    )
    @wraps(command)
    def with_person(*args: Any, actor: str | None, key_file: Path | None, **others: Any) -> None:
        command(*args, who=Person(actor, key_file), **others)

    return with_person


def os_user() -> str:
    """The user of the operating system as an actor, marked as such: nobody proved it."""
    return f"os:{getpass.getuser()}"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def with_database(home: Path, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run *work* with the home's database."""

    async def run() -> T:
        config = Home(home).config()
        async with open_database(config.store.url, Home(home).database) as db:
            return await work(db)

    return asyncio.run(run())


def in_transaction(home: Path, work: Callable[[Tx], Awaitable[T]]) -> T:
    """Run *work* in one transaction on the home's database."""
    return with_database(home, lambda db: db.write(work))


async def thresholds_in_force(tx: Tx, folder: Path) -> Thresholds:
    """Read the thresholds of the active policy, or of the policy in *folder* if the verifier never started."""
    rollout = await policies.rollout(tx)
    if rollout is None:
        return bundles.load(folder).thresholds
    row = await policies.find(tx, rollout.active)
    return read_archive(row["archive"])[0].thresholds


async def wide_classes(tx: Tx, folder: Path) -> frozenset[str]:
    """Read the hardware classes whose nodes can be asked wide walks: a deadline can be set for them."""
    found = (await thresholds_in_force(tx, folder)).classes
    return frozenset(name for name, hardware in found.items() if hardware.int8_ops is not None)


def read_kept(kept: Sequence[str]) -> list[tuple[str, Path]]:
    """Read ``MODEL=DIR`` options.  Raises `click.UsageError`."""
    return [(model, Path(folder)) for model, folder in read_pairs("--keep", kept, "DIR")]


def read_pairs(option: str, given: Sequence[str], what: str = "…") -> list[tuple[str, str]]:
    """Read ``MODEL=WHAT`` options.  Raises `click.UsageError`."""
    found = []
    for text in given:
        model, equals, value = text.partition("=")
        if not (model and equals and value):
            raise click.UsageError(f"{option} must be MODEL={what}, and is {text[:80]!r}")
        found.append((model, value))
    return found


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        # Text and not markup, because nodes choose some of these words.
        made.add_row(*(Text(to_printable(str(cell))) for cell in row))
    Console().print(made)


def read_file(path: Path, limit: int) -> bytes:
    """Read a file of at most *limit* bytes."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ReferenceValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ReferenceValueError(f"{path} has more than {limit} bytes")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write a file."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ReferenceValueError(f"{path} cannot be written: {error.strerror}") from None


def day(seconds: int) -> str:
    """The day of a moment in seconds since 1970, as YYYY-MM-DD in UTC."""
    return datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC).date().isoformat()


@contextmanager
def digest_cache(home: Path | None, *, no_cache: bool) -> Iterator[DigestCache | None]:
    """The cache of digests in the verifier's home; `None` if *home* is `None` or *no_cache* is set."""
    if no_cache or home is None:
        yield None
        return
    Home(home).config()
    cache = DigestCache(home / "digests.db")
    try:
        yield cache
    finally:
        cache.close()
