"""`touchstone reference active`: how many bytes of weights one token reads, for the bound on speed."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from attester.weights.folder import open_folder
from verifier.commands.common import errors
from verifier.references.active import measure_active


@click.command("active")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@errors
def active(model: str, folder: Path) -> None:
    """Measure how many bytes of the weights in FOLDER one token reads at least, for a policy's data.

    With it, answers that come faster than a device can read the weights open a review.
    """
    found = measure_active(open_folder(folder))
    click.echo(f"A token of {model} reads {found} bytes of weights at least. In data.json of the policy:")
    click.echo(msgspec.json.encode({"thresholds": {"answers": {"active_bytes": {model: found}}}}).decode())
