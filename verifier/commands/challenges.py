"""`touchstone challenges …`: mint challenges on a machine that has the reference weights."""

from __future__ import annotations

from pathlib import Path

import click

from attester.cli import progress
from attester.weights.folder import Folder, open_folder
from attester.weights.select import best_device, kernel
from attester.weights.tensors import TensorFiles
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import WIDE_ROWS, ReadParameters, WalkParameters
from verifier.challenges.runs import Goal, fill_pool, remaining_goal, start_or_resume
from verifier.commands.common import device_option, digest_cache, errors, home_option, now_ms, with_database
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references import measured
from verifier.references.measured import Document
from verifier.store import references
from verifier.store.database import Database, Tx


@click.group()
def challenges() -> None:
    """Mint single-use challenges."""


@challenges.command()
@click.option("--model", required=True, help="The model's name.")
@click.option(
    "--dir",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder with the reference weights.",
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
@click.option("--resume", is_flag=True, help="Resume the last run for this model, with its own numbers.")
@device_option
@home_option
@errors
def mint(
    model: str, folder: Path, reads: int, walks: int, wides: int, rows: int, wide_rows: int, passes: int,
    windows: int, digest: str | None, resume: bool, device: str | None, home: Path,
) -> None:  # fmt: skip
    """Mint challenges for a model from its reference weights, with spot checks."""
    new_goal = Goal(
        reads=reads,
        walks=walks,
        wides=wides,
        read=ReadParameters(windows),
        walk=WalkParameters(rows, passes),
        wide=WalkParameters(wide_rows),
    )
    if resume == bool(new_goal.count):
        raise click.UsageError("give --reads, --walks or --wides, or --resume alone")
    key = Home(home).pool_key()
    walk_kernel = kernel(device=device or best_device())

    async def work(db: Database) -> Goal:
        document = await _reference_value(db, model, digest)
        opened = open_folder(folder, document.ignore)
        tensors = TensorFiles(opened)
        _check_folder(document, opened, home)

        async def start(tx: Tx) -> tuple[int, Goal]:
            batch, goal = await start_or_resume(
                tx, model, document.digest, None if resume else new_goal, now_ms()
            )
            return batch, await remaining_goal(tx, batch, goal)

        batch, goal = await db.write(start)
        minter = Minter(model=model, folder=opened, tensors=tensors, key=key, kernel=walk_kernel, batch=batch)
        with progress("minting", goal.work(tensors.total)) as step:
            await fill_pool(db, minter, goal, step)
        return goal

    minted = with_database(home, work)
    counts = ((minted.reads, "reads"), (minted.walks, "walks"), (minted.wides, "wide walks"))
    listed = " and ".join(f"{count} {kind}" for count, kind in counts if count) or "nothing more"
    click.echo(f"Minted {listed} for {model} with {walk_kernel.name}. The spot checks agree.")


async def _reference_value(db: Database, model: str, digest: str | None) -> Document:
    """The reference value whose digest begins with *digest*, or the one in force; it must have tensors."""
    async with db.read() as tx:
        row = await references.active(tx, model) if digest is None else await references.find(tx, digest)
    if row is None or row["model"] != model:
        which = "in force" if digest is None else f"that begins with {digest[:64]}"
        raise ReferenceValueError(
            f"{model} has no reference value {which}. Measure its weights first: touchstone reference measure"
        )
    document = measured.read_document(row["document"])
    if not document.tensors:
        raise ReferenceValueError(
            f"the reference value of {model} has no tensors. Import it again with --dir and the weights"
        )
    return document


def _check_folder(document: Document, folder: Folder, home: Path) -> None:
    with (
        digest_cache(home, no_cache=False) as cache,
        progress("checking the folder", folder.total) as step,
    ):
        measured.check_folder(document, folder, cache, step)
