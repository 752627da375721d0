"""The candidate that compares two revisions of a model: the table in force, with one of them alone."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from router.model.change import Settings
from router.model.errors import ChangeError
from router.model.table import MAX_TABLE, read_table
from router.service.state import State
from verifier.errors import PlainYAMLError
from verifier.plainyaml import parse_yaml


async def revised(
    state: State, settings: Settings, *, model: str, revision_from: str, revision_to: str
) -> tuple[bytes, Settings]:
    """
    The table in force with *revision_to* alone for the workloads of a model.

    Raises:
        ChangeError: there is no such workload, both revisions are one, or the table in force cannot be read.
    """
    if revision_from == revision_to:
        raise ChangeError("both revisions are the same")
    found: dict[str, Any] = await asyncio.to_thread(_document, state)
    entries = [entry for entry in found["workloads"].values() if entry["model"] == model]
    if not entries:
        raise ChangeError("no workload is for this model")
    for entry in entries:
        entry["digests"] = [revision_to]
    settings = msgspec.structs.replace(
        settings, model=model, revision_from=revision_from, revision_to=revision_to
    )
    # JSON is YAML too.
    return msgspec.json.format(msgspec.json.encode(found)), settings


def _document(state: State) -> dict[str, Any]:
    change = state.changes.in_force
    try:
        data = (
            (state.folder / state.config.workloads).read_bytes()[: MAX_TABLE + 1]
            if change is None
            else change.document
        )
        parsed = parse_yaml(data, max_size=MAX_TABLE).value
    except (OSError, PlainYAMLError) as error:
        raise ChangeError(f"the table in force cannot be read: {error}") from None
    if read_table(data).digest != state.fleet.table.digest:
        raise ChangeError("the file was changed since it was read. Send SIGHUP first")
    return dict(parsed)
