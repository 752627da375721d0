"""`touchstone challenges …`: mint challenges on a machine that has the reference weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from attester.cli import configure_logging, progress
from attester.weights.folder import Folder, open_folder, restrict
from attester.weights.select import best_device, kernel
from attester.weights.tensors import TensorFiles
from verifier.challenges.answer_weights import Where
from verifier.challenges.demand import KINDS, AlikeNodes, Demand
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import WIDE_ROWS, ReadParameters, WalkParameters
from verifier.challenges.runs import Goal, fill_pool, remaining_goal, start_or_resume
from verifier.challenges.stock import read_demand
from verifier.challenges.trusted_engine import TrustedEngine, chosen_engine
from verifier.commands.answers import AnswerOptions, answer_options, kept_answers, mint_answers
from verifier.commands.common import (
    device_option,
    digest_cache,
    engine_option,
    engine_secret_option,
    errors,
    home_option,
    now_ms,
    wide_classes,
    with_database,
)
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references import measured
from verifier.references.measured import Document
from verifier.store import pool, references
from verifier.store.database import Database, Tx


@click.group()
def challenges() -> None:
    """Mint single-use challenges."""


@challenges.command()
@click.option("--model", required=True, help="The model's name.")
@click.option(
    "--dir",
    "folder",
    default=None,
    type=click.Path(path_type=Path),
    help="The folder with the reference weights.  Only --answers can do without: then your word for the engine counts.",
)
@click.option(
    "--reads", default=0, type=click.IntRange(0, 1_000_000), help="The number of read challenges to mint."
)
@click.option(
    "--walks", default=0, type=click.IntRange(0, 1_000_000), help="The number of walk challenges to mint."
)
@click.option(
    "--wides", default=0, type=click.IntRange(0, 1_000_000), help="The number of wide walks to mint."
)
@click.option(
    "--rows", default=32, show_default=True, type=click.IntRange(4, 2048), help="The rows of each walk."
)
@click.option(
    "--wide-rows",
    default=WIDE_ROWS,
    show_default=True,
    type=click.IntRange(4, 2048),
    help="The rows of each wide walk.",
)
@click.option(
    "--passes", default=1, show_default=True, type=click.IntRange(1, 64), help="The passes of each walk."
)
@click.option(
    "--windows",
    default=256,
    show_default=True,
    type=click.IntRange(1, 65536),
    help="The windows of each read.",
)
@click.option(
    "--reference",
    "digest",
    default=None,
    help="The first digits of a reference value's digest, to mint before that value is in force.  "
    "Default: the value in force.",
)
@click.option(
    "--days",
    default=None,
    type=click.FloatRange(0.01, 366),
    help="Mint what calls use in so many days, instead of given numbers.",
)
@click.option(
    "--nodes",
    default=None,
    type=click.IntRange(1, 1_000_000),
    help="For so many nodes, with --days.  Default: those that are enrolled.",
)
@click.option(
    "--hardware-class",
    default="cpu",
    show_default=True,
    help="The hardware class of these nodes, with --nodes: some classes are asked wide walks too.",
)
@click.option("--resume", is_flag=True, help="Resume the last run for this model, with its own numbers.")
@device_option
@engine_option
@engine_secret_option
@answer_options
@home_option
@errors
def mint(
    model: str, folder: Path | None, reads: int, walks: int, wides: int, rows: int, wide_rows: int, passes: int,
    windows: int, digest: str | None, days: float | None, nodes: int | None, hardware_class: str, resume: bool,
    device: str | None, engine_url: str | None, engine_secret: Path | None, answers: AnswerOptions, home: Path,
) -> None:  # fmt: skip
    """Mint challenges for a model from its reference weights, with spot checks, or answers with a trusted engine."""
    if answers.count:
        if engine_url is None or days is not None or reads + walks + wides:
            raise click.UsageError("--answers needs --engine, and is minted without reads, walks and --days")
        where = Where(
            model=model, folder=folder, url=engine_url, secret=engine_secret, control=answers.control
        )
        mint_answers(home, where, answers, lambda db: _reference_value(db, model, digest), resume=resume)
        return
    if folder is None:
        raise click.UsageError("--dir is needed: the folder with the reference weights")
    asked = Goal(
        reads=reads, walks=walks, wides=wides,
        read=ReadParameters(windows), walk=WalkParameters(rows, passes), wide=WalkParameters(wide_rows),
    )  # fmt: skip
    if sum((resume, bool(asked.count), days is not None)) != 1:
        raise click.UsageError("give --reads, --walks or --wides, or --days alone, or --resume alone")
    if nodes is not None and days is None:
        raise click.UsageError("--nodes needs --days")
    key = Home(home).pool_key()
    walk_kernel = kernel(device=device or best_device())

    async def work(db: Database, engine: TrustedEngine | None) -> tuple[Goal, str]:
        document = await _reference_value(db, model, digest)
        _check_walkable(document, walks=bool(walks + wides))
        new_goal = asked
        _check_engine(document, engine, walks=resume or days is not None or bool(walks + wides))
        opened, tensors = _weights_of(document, folder, home)
        if days is not None:
            async with db.read() as tx:
                fleet = None if nodes is None else [AlikeNodes("", (model,), hardware_class, nodes)]
                new_goal = await _goal_of(tx, home, asked, document, days * 24, fleet)

        async def start(tx: Tx) -> tuple[int, Goal]:
            batch, goal = await start_or_resume(
                tx, model, document.digest, None if resume else new_goal, now_ms()
            )
            return batch, await remaining_goal(tx, batch, goal)

        batch, goal = await db.write(start)
        minter = Minter(
            model=model, folder=opened, tensors=tensors, key=key, kernel=walk_kernel, batch=batch,
            ask_engine=None if engine is None else engine.walk, gates=document.gates,
        )  # fmt: skip
        with progress("minting", goal.work(0 if tensors is None else tensors.total)) as step:
            await fill_pool(db, minter, goal, step)
        return goal, await _lasting(db, home, document)

    with chosen_engine(engine_url, engine_secret, model, folder) as engine:
        minted, lasting = with_database(home, lambda db: work(db, engine))
    if engine_url is None:
        click.echo(f"Minted {_listed(minted)} for {model} with {walk_kernel.name}. The spot checks agree.")
    else:
        click.echo(f"Minted {_listed(minted)} for {model} from {engine_url}. It gave each walk twice, alike.")
    click.echo(lasting)


def _listed(minted: Goal) -> str:
    """How many challenges of each kind."""
    counts = ((minted.reads, "reads"), (minted.walks, "walks"), (minted.wides, "wide walks"))
    return " and ".join(f"{count} {kind}" for count, kind in counts if count) or "nothing more"


@challenges.command()
@click.option("--model", "models", multiple=True, help="A model's name; repeatable.")
@click.option(
    "--dir",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The folder with the weights of the --model at the same place; repeatable.",
)
@click.option(
    "--answers",
    "engines",
    multiple=True,
    metavar="MODEL=URL",
    help="Keep answers of MODEL too, minted with the trusted engine at URL; repeatable.",
)
@click.option("--prompts", multiple=True, metavar="MODEL=FILE", help="As of mint, for the answers of MODEL.")
@click.option("--profile", type=click.Path(path_type=Path), default=None, help="As of mint.")
@click.option("--engine-key", type=click.Path(path_type=Path), default=None, help="As of mint.")
@click.option("--engine-name", default=None, help="As of mint.")
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0.01, 8760),
    help="How many hours of the enrolled fleet's calls, and of checks of its answers, there are to be.",
)
@click.option(
    "--nice", default=10, show_default=True, type=click.IntRange(0, 19), help="The lowering of priority."
)
@click.option(
    "--with-stdin",
    is_flag=True,
    hidden=True,
    help="End when standard input ends: with the process that started it.",
)
@click.option("--log-json", is_flag=True, help="Log lines of JSON.")
@device_option
@home_option
@errors
def keep(
    models: tuple[str, ...], folders: tuple[Path, ...], engines: tuple[str, ...], prompts: tuple[str, ...],
    profile: Path | None, engine_key: Path | None, engine_name: str | None, hours: float, nice: int,
    with_stdin: bool, log_json: bool, device: str | None, home: Path,
) -> None:  # fmt: skip
    """Keep the pool filled until SIGTERM: mint when fewer than half of --hours are left, until they are there.

    A kill loses one group of 64 at most, and one answer.  Weights of a value that is to come into force can be kept too:
    give the model twice, with both folders.
    """
    from verifier.commands.keeping import keep_until_ended

    if len(models) != len(folders):
        raise click.UsageError("give one --dir for each --model, in the same order")
    if not (models or engines):
        raise click.UsageError("give --model and --dir, or --answers")
    configure_logging(as_json=log_json)
    os.nice(nice)
    by_model: dict[str, list[Path]] = {}
    for model, folder in zip(models, folders, strict=True):
        by_model.setdefault(model, []).append(folder)
    answers = kept_answers(engines, prompts, profile, engine_key, engine_name, by_model)
    keep_until_ended(
        home, by_model, hours, lambda: kernel(device=device or best_device()), answers, with_stdin=with_stdin
    )


async def _goal_of(
    tx: Tx, home: Path, sizes: Goal, document: Document, hours: float, fleet: Sequence[AlikeNodes] | None
) -> Goal:
    """What calls use in so many hours, with the margin; of the enrolled nodes if no fleet is given."""
    model = document.model
    demand = await _demand(tx, home, fleet)
    if model not in demand:
        raise ReferenceValueError(
            f"no node is enrolled with {model}. Say with --nodes how many there will be"
        )
    kinds = KINDS if document.tensors else ("read",)
    wanted = {kind: demand[model].rate(kind).within(hours) if kind in kinds else 0 for kind in KINDS}
    return msgspec.structs.replace(sizes, reads=wanted["read"], walks=wanted["walk"], wides=wanted["wide"])


async def _demand(tx: Tx, home: Path, fleet: Sequence[AlikeNodes] | None = None) -> Demand:
    config = Home(home).config()
    classes = await wide_classes(tx, home / config.policy.folder)
    return await read_demand(tx, config.calls, config.answers, classes, now_ms(), fleet=fleet)


async def _lasting(db: Database, home: Path, document: Document) -> str:
    """A sentence: for how long the challenges for a value last the enrolled nodes."""
    async with db.read() as tx:
        demand = await _demand(tx, home)
        free = await pool.free_of(tx, document.digest)
    wanted = demand.get(document.model)
    if wanted is None:
        return f"No node is enrolled with {document.model} yet."
    has_wides = free.get("wide", 0) > 0
    kinds = [kind for kind in KINDS if wanted.rate(kind, has_wides=has_wides).mean > 0]
    hours = {kind: wanted.rate(kind, has_wides=has_wides).hours_of(free.get(kind, 0)) for kind in kinds}
    listed = ", ".join(f"{kind}s for {hours[kind]:.1f} hours" for kind in kinds)
    return f"For the calls to the nodes that are enrolled now, there are {listed}."


async def _reference_value(db: Database, model: str, digest: str | None) -> Document:
    """The reference value whose digest begins with *digest*, or the one in force."""
    async with db.read() as tx:
        row = await references.active(tx, model) if digest is None else await references.find(tx, digest)
    if row is None or row["model"] != model:
        which = "in force" if digest is None else f"that begins with {digest[:64]}"
        raise ReferenceValueError(
            f"{model} has no reference value {which}. Measure its weights first: touchstone reference measure"
        )
    return measured.read_document(row["document"])


def _check_walkable(document: Document, *, walks: bool) -> None:
    """Refuse what a model without tensors has not; reads are left, if its files were measured and not only signed."""
    if document.tensors:
        return
    if any(file.size is None for file in document.files):
        raise ReferenceValueError(
            f"the reference value of {document.model} has no tensors. Import it again with --dir and the weights"
        )
    if walks:
        raise ReferenceValueError(
            f"the weights of {document.model} are pickles, which cannot be walked. Mint --reads alone, or save them as "
            "safetensors and measure those"
        )


def _check_engine(document: Document, engine: TrustedEngine | None, *, walks: bool) -> None:
    """Refuse what would mint walks over other bytes than those of the reference value."""
    by = document.loaded_by
    if engine is not None and by is None:
        raise ReferenceValueError(
            f"walks of {document.model} go over the tensors of the files. Leave --engine out, or measure a reference "
            "value of this engine: touchstone reference measure --engine URL"
        )
    if engine is None and by is not None and walks:
        raise ReferenceValueError(
            f"walks of {document.model} go over what {by.engine} {by.version} has loaded. Say with --engine where "
            "a trusted engine of that build is"
        )
    if engine is not None:
        engine.check(document.practice)


def _weights_of(document: Document, path: Path, home: Path) -> tuple[Folder, TensorFiles | None]:
    """The files of a reference value in a folder that has them, and the tensors of its gates if it has any."""
    folder = open_folder(path, document.ignore, everything=True)
    with (
        digest_cache(home, no_cache=False) as cache,
        progress("checking the folder", folder.total) as step,
    ):
        folder = measured.check_folder(document, folder, cache, step)
    return folder, TensorFiles(restrict(folder, document.gates)) if document.tensors else None
