"""`touchstone challenges mint --answers`: mint answers with a trusted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, cast

import click

from attester.cli import progress
from attester.weights.folder import open_folder
from verifier.answers import material, shapes
from verifier.answers.checks import OPERATIONS, EngineUsed, Operation
from verifier.answers.material import Material
from verifier.answers.shapes import Shape
from verifier.challenges.answer_engine import AnswerEngine, Named, answer_engine
from verifier.challenges.answer_keeping import KeptAnswers
from verifier.challenges.answer_minting import AnswerMinter, Tally
from verifier.challenges.answer_weights import Where, check_folder, check_weights, dtype_of
from verifier.commands.common import digest_cache, now_ms, read_file, read_pairs, with_database
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references.measured import Document
from verifier.store import answer_pool
from verifier.store.answer_pool import Batch
from verifier.store.database import Database, Tx

_MAX_KEY: Final = 4096


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What `mint` was asked of answers."""

    count: int
    prompts: Path | None
    profile: Path | None
    operation: str | None
    engine_name: str | None
    dtype: str | None
    api_key: Path | None
    control: str | None
    parallel: int


_OPTIONS: Final = (
    click.option(
        "--answers",
        "count",
        default=0,
        type=click.IntRange(0, 1_000_000),
        help="The number of answers to mint, with the engine at --engine.",
    ),
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        default=None,
        help="A file of JSON lines to make prompts from: texts, system prompts, tools, or bodies of requests.  "
        "Default: prompts of our own, which a node can recognise.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path),
        default=None,
        help="What the traffic looks like: touchstone router traffic-profile writes it.",
    ),
    click.option(
        "--operation",
        type=click.Choice(OPERATIONS),
        default=None,
        help="Default: the first that the engine serves.",
    ),
    click.option(
        "--engine-name",
        default=None,
        help="NAME@VERSION of an engine that does not say what it is, as nodes claim it.",
    ),
    click.option(
        "--dtype", default=None, help="The precision of the engine's weights, if it does not say it."
    ),
    click.option(
        "--engine-key",
        "api_key",
        type=click.Path(path_type=Path),
        default=None,
        help="The file with the API key of the engine that answers.",
    ),
    click.option(
        "--engine-control",
        "control",
        default=None,
        help="Where the engine that answers serves the loopback resources, with --engine-secret.",
    ),
    click.option(
        "--parallel",
        default=1,
        show_default=True,
        type=click.IntRange(1, 256),
        help="How many requests the engine gets at a time.",
    ),
)


def answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of minted answers; the command gets them as ``answers``."""

    @wraps(command)
    def with_answers(
        *args: Any, count: int, prompts: Path | None, profile: Path | None, operation: str | None,
        engine_name: str | None, dtype: str | None, api_key: Path | None, control: str | None, parallel: int,
        **others: Any,
    ) -> None:  # fmt: skip
        answers = AnswerOptions(
            count=count, prompts=prompts, profile=profile, operation=operation, engine_name=engine_name, dtype=dtype,
            api_key=api_key, control=control, parallel=parallel,
        )  # fmt: skip
        command(*args, answers=answers, **others)

    found: Callable[..., None] = with_answers
    for option in reversed(_OPTIONS):
        found = option(found)
    return found


def read_named(engine: str | None, dtype: str | None) -> Named:
    """What the operator says of an engine: ``NAME@VERSION``, and its precision."""
    name, _, version = (engine or "").partition("@")
    return Named(name=name, version=version, dtype=dtype or "")


def read_api_key(path: Path | None) -> str | None:
    """The API key in a file.  Raises `ReferenceValueError`."""
    return None if path is None else read_file(path, _MAX_KEY).decode().strip()


def read_prompts(path: Path | None) -> Material:
    """The material in a file; none without one.  Raises `ReferenceValueError` or `RequestError`."""
    if path is None:
        return Material()
    return material.read_material(read_file(path, material.MAX_FILE).splitlines())


def read_shapes(path: Path | None, model: str) -> tuple[Shape, ...]:
    """The shapes of a model in a profile; none without one.  Raises `ReferenceValueError` or `RequestError`."""
    if path is None:
        return ()
    found = shapes.decode_profile(read_file(path, shapes.MAX_PROFILE)).models.get(model)
    if not found:
        raise ReferenceValueError(f"{path} has no traffic of {model}")
    return found


def mint_answers(
    home: Path, where: Where, options: AnswerOptions, find: Callable[[Database], Any], *, resume: bool
) -> None:
    """
    Mint answers, and say what came of it.

    Args:
        find: Gives the reference value.
        resume: Whether to go on with the last run.

    Raises:
        ReferenceValueError: the engine cannot be used, or what `AnswerMinter.mint` raises.
    """
    key, prompts = Home(home).pool_key(), read_prompts(options.prompts)
    shapes = read_shapes(options.profile, where.model)

    async def work(db: Database) -> tuple[Tally, EngineUsed, str, int]:
        document: Document = await find(db)
        async with answer_engine(where.url, where.model, read_api_key(options.api_key)) as engine:
            used = await engine.describe(read_named(options.engine_name, options.dtype), dtype_of(document))
            # In a thread: what walks has a loop of its own.
            known_by = await asyncio.to_thread(_check, home, where, document, engine)
            operation = (
                cast("Operation", options.operation) if options.operation else await engine.operation()
            )
            minter = AnswerMinter(
                db=db, key=key, model=where.model, engine=engine, used=used, operation=operation, shapes=shapes,
                material=prompts, parallel=options.parallel, now_ms=now_ms,
            )  # fmt: skip
            batch = await db.write(
                lambda tx: _open_batch(tx, minter, document.digest, None if resume else options.count)
            )
            left = max(batch.wanted - batch.minted, 0)
            with progress("minting", left) as step:
                tally = await minter.mint(batch, left, step)
        async with db.read() as tx:
            rows = await answer_pool.levels(tx)
        free = sum(row["free"] for row in rows if row["reference"] == document.digest)
        return tally, used, known_by, free

    tally, used, known_by, free = with_database(home, work)
    click.echo(
        f"Minted {tally.minted} answers for {where.model} with {used.name} {used.version} ({used.dtype}), {known_by}."
    )
    dropped = ", ".join(f"{count} {why}" for why, count in sorted(tally.dropped.items())) or "none"
    click.echo(
        f"Everything was asked more than once: {tally.censored} of them are of use up to where the answers agree. "
        f"Dropped: {dropped}."
    )
    if not (prompts.texts or prompts.asked):
        click.echo("The prompts are of the built-in generator, which nodes may know: see --prompts.")
    click.echo(f"{free} answers of this reference value are free.")


async def _open_batch(tx: Tx, minter: AnswerMinter, digest: str, wanted: int | None) -> Batch:
    """A new batch of *wanted* answers, or the last one if *wanted* is `None`."""
    if wanted is not None:
        return await answer_pool.open_batch(
            tx, minter.model, digest, minter.operation, minter.used, wanted=wanted, now_ms=now_ms()
        )
    last = await answer_pool.last_batch(tx, minter.model, digest)
    if last is None:
        raise ReferenceValueError(
            f"no answers were minted for {minter.model} yet, so there is nothing to resume"
        )
    if (last.engine, last.operation) != (minter.used, minter.operation):
        raise ReferenceValueError(
            f"the last run for {minter.model} was with {last.engine.name} {last.engine.version} ({last.engine.dtype}). "
            "Start a new run without --resume"
        )
    return last


def _check(home: Path, where: Where, document: Document, engine: AnswerEngine) -> str:
    """Check the folder, if there is one, and what the engine has of it.  Raises `ReferenceValueError`."""
    if where.folder is not None:
        with (
            digest_cache(home, no_cache=False) as cache,
            progress(
                "checking the folder", open_folder(where.folder, document.ignore, everything=True).total
            ) as step,
        ):
            check_folder(document, where.folder, cache, step)
    return check_weights(where, document, engine)


def kept_answers(
    engines: Sequence[str], prompts: Sequence[str], profile: Path | None, api_key: Path | None, named: str | None,
    folders: Mapping[str, Sequence[Path]],
) -> list[KeptAnswers]:  # fmt: skip
    """
    What `keep` is to mint of answers.

    Args:
        engines: ``MODEL=URL``.
        prompts: ``MODEL=FILE``.
        named: ``NAME@VERSION`` of engines that do not say what they are.
        folders: By model, the folders with weights that are kept too: the first is what the engine is to have.

    Raises:
        ReferenceValueError, RequestError: a file cannot be read.
    """
    files = dict(read_pairs("--prompts", prompts))
    found = []
    for model, url in read_pairs("--answers", engines):
        file = files.pop(model, None)
        found.append(
            KeptAnswers(
                where=Where(model=model, url=url, folder=next(iter(folders.get(model, ())), None)),
                material=read_prompts(None if file is None else Path(file)),
                shapes=read_shapes(profile, model),
                named=read_named(named, None),
                api_key=read_api_key(api_key),
            )
        )
    if files:
        raise click.UsageError(f"--prompts names {min(files)[:80]!r}, for which no --answers is given")
    return found
