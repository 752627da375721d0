"""`touchstone settle …`: settle a period, show and export statements, verify them offline, correct them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from attester.errors import ConfigError
from attester.settings import read_toml
from router.commands import maintenance
from router.config import RouterConfig
from router.model.errors import SettlementError

T = TypeVar("T")

_config = maintenance.config_option
_errors = maintenance.errors
_SCHEMA: Final = "router.store"
_FORMS: Final = ("text", "csv", "json", "html", "jws")


@click.group()
def settle() -> None:
    """Settle what nodes are paid for a period, by what routers have metered."""


@settle.command()
@click.option(
    "--period", default=None, help="2026-11-30, 2026-W49, 2026-11 or 2026-Q4.  Default: the last whole one."
)
@_config
@_errors
def run(period: str | None, path: Path) -> None:
    """Write a statement for each operator, and open incidents for what was claimed too high.

    A period is settled once.  Running it again writes what is missing, and changes nothing.
    """
    from router.settlement.periods import last_whole, read_period
    from router.state.settling import Settler

    async def work(settler: Settler, config: RouterConfig, _: Any) -> Any:
        settings = config.settlement
        over_ms = _now_ms() - settings.grace_hours * 3_600_000
        chosen = last_whole(settings.period, over_ms) if period is None else read_period(period)
        return await settler.run(chosen)

    found = _with_store(path, work)
    click.echo(f"{found.period.name}: {len(found.statements)} statements made, {found.known} were there.")
    for each in found.statements:
        click.echo(f"  {each.id}  {_plain(each.operator) or '(no operator)'}")
    counts: dict[str, int] = {}
    for judged in found.judgements:
        counts[judged.verdict] = counts.get(judged.verdict, 0) + 1
    click.echo(
        "Claims: " + (", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) or "none") + "."
    )
    if found.unreadable or found.missing:
        click.echo(
            f"{found.unreadable} receipts could not be read, and {found.missing} are gone: they are in no line.",
            err=True,
        )
    if found.is_short:
        click.echo(
            "Receipts of the first days may have been dropped: keep_days of [store] is shorter than it took to settle."
            " Settle sooner, or set archive.",
            err=True,
        )


@settle.command(name="list")
@click.option("--operator", default=None, help="Only this operator's.")
@_config
@_errors
def list_(operator: str | None, path: Path) -> None:
    """List statements, the newest first."""
    from router.settlement import statements
    from router.store import settlement as store

    async def work(_: Any, __: RouterConfig, db: Any) -> Any:
        async with db.read() as tx:
            return await store.list_statements(tx, operator, 500)

    for each in _with_store(path, work):
        made = statements.content(each.token)
        click.echo(
            f"{each.id}  {each.period}  number {each.number}  {_plain(each.operator) or '(no operator)'}"
            f"  {made.total_rounded} {made.unit}"
        )


@settle.command()
@click.argument("statement_id", metavar="ID")
@click.option("--form", type=click.Choice(_FORMS), default="text", show_default=True)
@_config
@_errors
def show(statement_id: str, form: str, path: Path) -> None:
    """Show the statement ID."""
    found, disputes = _with_store(path, lambda _, __, db: _find(db, statement_id))
    click.echo(_in_form(found, disputes, form), nl=False)


@settle.command()
@click.argument("statement_id", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@_config
@_errors
def export(statement_id: str, out: Path, path: Path) -> None:
    """Write the statement ID into a folder, with every receipt behind it, to be verified offline."""
    from router.state.exporting import write

    async def work(settler: Any, _: RouterConfig, db: Any) -> Any:
        found, disputes = await _find(db, statement_id)
        return await write(db, settler, found, out, lambda form: _in_form(found, disputes, form))

    receipts = _with_store(path, work)
    click.echo(
        f"Wrote {out}, with {receipts} receipts. Verify it: touchstone settle verify {out} --router-keys FILE"
    )


@settle.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--router-keys",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The router's receipt keys: touchstone receipt keys.",
)
@_errors
def verify(folder: Path, router_keys: Path) -> None:
    """Compute every number of an exported statement again from its receipts, without a network."""
    from router.receipts.tokens import read_keys
    from router.state.exporting import verify as check

    found = check(folder, read_keys(_read(router_keys)))
    click.echo(f"The statement of {_plain(found.statement.operator)} for {found.statement.period} is right:")
    click.echo(f"  signed by the router's key, id {found.name}")
    click.echo(f"  {len(found.statement.lines)} lines, computed again from {found.receipts} receipts")
    click.echo(
        f"  {found.batched} of them in {found.batches} signed batches, {found.logged} of which the log has"
    )
    click.echo(f"  total {found.statement.total_exact} {found.statement.unit}")


@settle.command()
@click.argument("statement_id", metavar="ID")
@click.option("--actor", required=True, help="Who corrects it.")
@click.option("--reason", required=True, help="Why.")
@click.option(
    "--line", default=None, type=click.IntRange(1, 1_000_000), help="The line whose amount is changed."
)
@click.option("--amount", default=None, help="What is added to it, in units: -0.25.")
@click.option("--dispute", default="", help="The dispute that it follows from.")
@_config
@_errors
def correct(
    statement_id: str, actor: str, reason: str, line: int | None, amount: str | None, dispute: str, path: Path
) -> None:
    """Make a new statement in the place of ID, from the receipts that there are now.

    The statement ID stays as it is.  The new one names it, and says who corrected it, and why.
    """
    from router.settlement.amounts import read_amount

    if (line is None) != (amount is None):
        raise click.UsageError("--line and --amount come together")
    adjustment = None if line is None or amount is None else (line, read_amount(amount))
    found = _with_store(
        path,
        lambda settler, _, __: settler.correct(
            statement_id, actor=actor, reason=reason, adjustment=adjustment, dispute=dispute
        ),
    )
    click.echo(f"Made number {found.number}: {found.id}")


@settle.command()
@click.option("--router", "name", required=True, help="The router that has lost receipts.")
@click.option("--from", "start", required=True, type=click.DateTime(), help="UTC.")
@click.option("--to", "end", required=True, type=click.DateTime(), help="UTC.")
@click.option("--lost", required=True, type=click.IntRange(1, 10**9), help="Of one node, at most.")
@click.option("--why", required=True)
@_config
@_errors
def gap(name: str, start: Any, end: Any, lost: int, why: str, path: Path) -> None:
    """Note that a router has lost receipts, after a store was restored from a backup: no node answers for that.

    A router that was killed notes it itself.
    """
    import datetime as dt

    from router.settlement.reconciling import Gap
    from router.store import settlement as store

    from_ms, to_ms = (int(each.replace(tzinfo=dt.UTC).timestamp() * 1000) for each in (start, end))
    if from_ms > to_ms:
        raise click.UsageError("--from is after --to")
    found = Gap(router=name, from_ms=from_ms, to_ms=to_ms, lost=lost, why=why)
    _with_store(path, lambda _, __, db: db.write(lambda tx: store.add_gap(tx, found)))
    click.echo("Noted.")


async def _find(db: Any, statement_id: str) -> Any:
    from router.store import settlement as store

    async with db.read() as tx:
        found = await store.find_statement(tx, statement_id)
        if found is None:
            raise SettlementError("there is no such statement. Next: touchstone settle list")
        return found, await store.disputes_of(tx, statement_id)


def _in_form(found: Any, disputes: Any, form: str) -> str:
    import msgspec

    from router.settlement import pages, statements

    made = statements.content(found.token)
    disputed = frozenset(each.line for each in disputes if each.state == "open")
    if form == "csv":
        return pages.to_csv(found.id, made, disputed)
    if form == "html":
        return pages.to_html(found.id, made, disputed)
    if form == "jws":
        return f"{found.token}\n"
    if form == "json":
        listed = [msgspec.to_builtins(each) for each in disputes]
        return msgspec.json.encode(pages.to_json(found.id, made, found.token, listed)).decode() + "\n"
    return pages.to_text(found.id, made, disputed)


def _with_store(path: Path, work: Callable[[Any, RouterConfig, Any], Awaitable[T]]) -> T:
    from router.state.receipt_key import find_receipt_key
    from router.state.settling import Settler
    from verifier.store.opening import open_database

    config = read_toml(path, RouterConfig, "touchstone router init")
    if not config.store.is_kept:
        raise ConfigError(f"{path}: this router has no store. Set path or url in [store]")
    key = find_receipt_key(path, config, makes_it=False)
    if key is None:
        raise ConfigError(f"{path}: there is no receipt key yet. It is made when the router starts")

    async def run() -> T:
        file = path.parent / (config.store.path or "")
        async with open_database(config.store.url, file, schema=_SCHEMA) as db:
            return await work(Settler(db, config, path.parent, key, _now_ms()), config, db)

    return asyncio.run(run())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:200])
