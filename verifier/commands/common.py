"""Shared by the verifier's commands: options, the database, tables, files."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from attester.cli import plain_errors
from attester.errors import AttesterError
from attester.weights.cache import DigestCache
from verifier.config import Home
from verifier.errors import ReferenceValueError, VerifierError
from verifier.policy import bundle as bundles
from verifier.policy.archive import read_archive
from verifier.schemes.context import Thresholds
from verifier.schemes.findings import to_printable
from verifier.store import policies
from verifier.store.database import Database, Tx
from verifier.store.opening import open_database

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
device_option = click.option(
    "--device",
    default=None,
    help="cpu, or torch's name of a GPU, such as cuda:0.  Default: the first GPU if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
reason_option = click.option("--reason", required=True, help="The reason, which is kept for ever.")
actor_option = click.option(
    "--actor",
    default=getpass.getuser,
    show_default="the user's name",
    help="Who decides, which is kept for ever.",
)


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
    found = []
    for text in kept:
        model, equals, folder = text.partition("=")
        if not (model and equals and folder):
            raise click.UsageError(f"--keep must be MODEL=DIR, and is {text[:80]!r}")
        found.append((model, Path(folder)))
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
