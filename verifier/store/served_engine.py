"""Which engine serves a node, by the evidence behind its result.  A router cannot know it, and is not asked."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from verifier.answers import tables
from verifier.store.blocks import engine_of as engine_in
from verifier.store.database import Tx


class _Runtime(Struct, frozen=True):
    arguments: dict[str, str | int | bool | None] = {}


class _Facts(Struct, frozen=True):
    runtime: _Runtime | None = None


class _Input(Struct, frozen=True):
    """The part of a policy's input that says how the engine runs."""

    checked: dict[str, _Facts] = {}


async def engine_of(tx: Tx, result_id: str) -> tuple[str, str]:
    """Give name and version of the engine behind a result, in lower case; empty if they are not known, or no longer."""
    recorded = await _input_of(tx, result_id)
    found = None if recorded is None else engine_in(recorded)
    return ("", "") if found is None else (found[0].lower(), found[1].lower())


async def precision_of(tx: Tx, result_id: str) -> str | None:
    """Give the precision in which that engine says it holds the weights; `None` if it does not say a known one."""
    recorded = await _input_of(tx, result_id)
    facts = {} if recorded is None else msgspec.json.decode(recorded, type=_Input).checked
    said = next((each.runtime.arguments for each in facts.values() if each.runtime is not None), {})
    return tables.precision_of(str(said.get("quantization") or said.get("dtype") or ""))


async def _input_of(tx: Tx, result_id: str) -> str | None:
    row = await tx.one(
        "SELECT r.input FROM appraisals a JOIN recordings r ON r.appraisal_id = a.origin WHERE a.id = ?",
        result_id,
    )
    return str(row["input"]) if row is not None and row["input"] else None
