"""
The folder with the policy in a verifier's home: taken at the first start, and from then on only a copy.

What judges nodes is in the database, by its digest.  Somebody who edits the folder afterwards is told
at each start, and by ``touchstone verifier status`` and ``touchstone policy list``, that it is not in
force, and how it is put in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier.errors import BundleError
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.store import policies
from verifier.store.database import Tx


@dataclass(frozen=True)
class FolderState:
    """How the folder of a home stands to what judges nodes."""

    folder: str
    is_ignored: bool
    """Whether it holds what was never published, or what cannot be: nobody is judged by it."""
    sentence: str
    """What it is, and if it is ignored why."""
    steps: tuple[str, ...] = ()
    """If it is ignored, the steps that put it in force: commands, and what to write before."""

    def to_wire(self) -> dict[str, Any]:
        """As JSON-compatible values."""
        return {
            "folder": self.folder,
            "ignored": self.is_ignored,
            "why": self.sentence,
            "steps": list(self.steps),
        }


def lines_of(told: Mapping[str, Any]) -> list[str]:
    """What people are told of a folder that is ignored, from `FolderState.to_wire`; no lines if it is not."""
    if not told["ignored"]:
        return []
    steps = [f"    {step}" for step in told["steps"]]
    return [f"NOTE: {told['folder']} {told['why']}." + (" To put it in force:" if steps else ""), *steps]


async def look(tx: Tx, home: Path, folder: Path) -> FolderState:
    """
    Compare the folder of a home with what was published.

    Args:
        home: The home, for the commands.
        folder: The folder with the policy.
    """
    rollout = await policies.rollout(tx)
    if rollout is None:
        return FolderState(str(folder), is_ignored=False, sentence="is taken when the verifier first starts")
    active = str((await policies.find(tx, rollout.active))["id"]).partition("#")[0]
    try:
        bundle = await asyncio.to_thread(bundles.load, folder)
    except BundleError as error:
        if not await asyncio.to_thread(folder.exists):
            return FolderState(
                str(folder), is_ignored=False, sentence="does not exist, and is not needed any more"
            )
        why = f"is not a policy that can be published: {error}. {active} judges nodes"
        return FolderState(str(folder), is_ignored=True, sentence=why)
    rows = await policies.versions(tx, bundle.manifest.name)
    if bundle.digest in rows:
        stands = {rollout.shadow: "the shadow", rollout.canary: "the canary", rollout.active: "active"}
        place = stands.get(bundle.digest, f"published and not in force, {active} is")
        return FolderState(str(folder), is_ignored=False, sentence=f"is {_label(bundle)}, {place}")
    why = f"differs from every policy that was published, so nobody is judged by it. {active} judges nodes"
    return FolderState(
        str(folder), is_ignored=True, sentence=why, steps=_steps(home, folder, bundle, {*rows.values()})
    )


def _label(bundle: Bundle) -> str:
    return f"{bundle.manifest.name}@{bundle.manifest.version}"


def _steps(home: Path, folder: Path, bundle: Bundle, taken: set[str]) -> tuple[str, ...]:
    name, version = bundle.manifest.name, bundle.manifest.version
    steps = []
    if version in taken:
        version = policies.next_version(version, taken)
        steps.append(f'write "version": "{version}" into {folder / "bundle.json"}, then')
    return (
        *steps,
        f"touchstone policy publish {folder} --reason REASON --home {home}",
        f"touchstone policy promote {name}@{version} --reason REASON --home {home}",
    )
