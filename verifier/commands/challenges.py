"""`touchstone challenges …`: mint them where the reference weights are."""

from __future__ import annotations

from pathlib import Path

import click

from attester.cli import progress
from attester.weights.folder import open_folder
from attester.weights.select import best_device, kernel
from attester.weights.tensors import TensorFiles
from verifier.challenges.derivation import WIDE_ROWS, Minter, ReadParameters, WalkParameters
from verifier.challenges.minting import Goal, fill, goal_left, take_up
from verifier.commands.common import device_option, digest_cache, errors, home_option, now_ms, with_database
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references import measured
from verifier.store import references
from verifier.store.database import Database


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
    help="A folder with the reference weights.",
)
@click.option("--reads", default=0, type=click.IntRange(0, 1_000_000), help="How many read challenges.")
@click.option("--walks", default=0, type=click.IntRange(0, 1_000_000), help="How many walk challenges.")
@click.option("--wides", default=0, type=click.IntRange(0, 1_000_000), help="How many wide walks.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(4, 2048), help="Rows of a walk.")
@click.option(
    "--wide-rows",
    default=WIDE_ROWS,
    show_default=True,
    type=click.IntRange(4, 2048),
    help="Rows of a wide walk.",
)
@click.option("--passes", default=1, show_default=True, type=click.IntRange(1, 64), help="Passes of a walk.")
@click.option(
    "--windows", default=256, show_default=True, type=click.IntRange(1, 65536), help="Windows of a read."
)
@click.option(
    "--reference", "digest", default=None,
    help="Of the value that begins so, ahead of its coming into force; of the one in force if not given.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the last run for this model, as it was asked for.")
@device_option
@home_option
@errors
def mint(
    model: str, folder: Path, reads: int, walks: int, wides: int, rows: int, wide_rows: int, passes: int,
    windows: int, digest: str | None, resume: bool, device: str | None, home: Path,
) -> None:  # fmt: skip
    """Mint challenges where the reference weights are; each run is spot-checked."""
    asked = Goal(
        reads, walks, wides, ReadParameters(windows), WalkParameters(rows, passes), WalkParameters(wide_rows)
    )
    if resume == bool(asked.count):
        raise click.UsageError("give --reads, --walks or --wides, or --resume alone")
    key = Home(home).pool_key()
    ready = kernel(device=device or best_device())

    async def work(db: Database) -> Goal:
        async with db.read() as tx:
            row = await references.active(tx, model) if digest is None else await references.find(tx, digest)
        if row is None or row["model"] != model:
            raise ReferenceValueError(f"{model} has no reference value: touchstone reference measure")
        document = measured.read_document(row["document"])
        opened = open_folder(folder, document.ignore)
        tensors = TensorFiles(opened)
        if not document.tensors:
            raise ReferenceValueError(f"the reference value of {model} has no tensors: import it with --dir")
        with (
            digest_cache(home, no_cache=False) as cache,
            progress("checking the folder", opened.total) as step,
        ):
            measured.check_folder(document, opened, cache, step)
        async with db.write() as tx:
            batch, goal = await take_up(tx, model, document.digest, None if resume else asked, now_ms())
            left = await goal_left(tx, batch, goal)
        minter = Minter(model, opened, tensors, key, ready, batch)
        with progress("minting", left.work(tensors.total)) as step:
            await fill(db, minter, left, step)
        return left

    made = with_database(home, work)
    kinds = ((made.reads, "reads"), (made.walks, "walks"), (made.wides, "wide walks"))
    told = " and ".join(f"{count} {kind}" for count, kind in kinds if count) or "nothing more"
    click.echo(f"Minted {told} for {model} with {ready.name}; the spot checks agree.")
