"""`touchstone reference anchors`: whose signature on reference values is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from verifier import anchor_files
from verifier.anchor_files import AnchorFile
from verifier.commands.common import day, errors, home_option, json_option, now_ms, table
from verifier.commands.references import reference
from verifier.config import Home
from verifier.references.anchors import Anchor, CertificateAnchor, kid_of, kind_of


def given_anchors(paths: Sequence[Path]) -> dict[str, Anchor]:
    """
    The anchors in files that a person has named.

    Raises:
        ConfigError: a file has none that can be used.
    """
    files = [anchor_files.read_given(path) for path in paths]
    for file in files:
        if file.has_private_key:
            click.echo(
                f"Warning: {file.path} has a PRIVATE key. Only its public half was used; keep the file from others.",
                err=True,
            )
        _warn(file)
    return anchor_files.usable(files)


def home_anchors(home: Path) -> dict[str, Anchor]:
    """The anchors of a home.  Those that cannot be used are named."""
    files = Home(home).anchor_files()
    for file in files:
        _warn(file)
    return anchor_files.usable(files)


def _warn(file: AnchorFile) -> None:
    for why in file.refused:
        click.echo(f"Warning: {file.path} is not trusted: {why}", err=True)


def to_wire(file: AnchorFile, now: int) -> list[dict[str, Any]]:
    """The anchors of a file as JSON, and what is wrong with it; times are in seconds since 1970."""
    found: list[dict[str, Any]] = []
    for name, anchor in file.anchors:
        until = anchor.not_after if isinstance(anchor, CertificateAnchor) else None
        subject = anchor.subject if isinstance(anchor, CertificateAnchor) else None
        is_over = until is not None and until < now
        found.append(
            {
                "name": name,
                "file": file.path.name,
                "kind": kind_of(anchor),
                "kid": kid_of(anchor),
                "subject": subject,
                "not_after": until,
                "unusable": "it has expired" if is_over else None,
            }
        )
    absent = dict.fromkeys(("name", "kind", "kid", "subject", "not_after"))
    return found + [{**absent, "file": file.path.name, "unusable": why} for why in file.refused]


@reference.command("anchors")
@home_option
@json_option
@errors
def anchors(home: Path, as_json: bool) -> None:
    """List the keys and certificates whose signature on reference values is taken, and the files that are none."""
    Home(home).config()
    now = now_ms() // 1000
    found = [entry for file in Home(home).anchor_files() for entry in to_wire(file, now)]
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    table("", ("name", "kind", "kid", "file", "until", "subject"), [
        (
            each["name"], each["kind"], each["kid"][:16], each["file"],
            "–" if each["not_after"] is None else day(each["not_after"]), each["subject"] or "–",
        )
        for each in found
        if each["kid"] is not None
    ])  # fmt: skip
    for each in found:
        if each["unusable"] is not None:
            click.echo(f"NOT trusted: {each['file']}: {each['unusable']}")
    if not found:
        click.echo(f"There are no anchors. Put keys or certificates into {home / 'anchors'}.")
