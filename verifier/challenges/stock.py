"""What the database has of challenges, and of the nodes that use them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from verifier.challenges.demand import ANSWERS, AlikeNodes, CallSettings, Demand, Level, demand_of, levels_of
from verifier.store import answer_checks, answer_pool, nodes, pool, references
from verifier.store.database import Row, Tx


class AnswerSettings(Protocol):
    """The part of ``[answers]`` on which the demand depends (`verifier.config.AnswersConfig`)."""

    @property
    def per_node_hour(self) -> float: ...  # noqa: D102


async def read_fleet(tx: Tx) -> list[AlikeNodes]:
    """Read the enrolled nodes, those that are alike together."""
    return [
        AlikeNodes(
            row["operator"],
            msgspec.json.decode(row["models"], type=tuple[str, ...]),
            row["hardware_class"],
            row["n"],
        )
        for row in await nodes.alike(tx)
    ]


async def read_demand(
    tx: Tx,
    calls: CallSettings,
    answers: AnswerSettings,
    wide_classes: Collection[str],
    now_ms: int,
    *,
    fleet: Sequence[AlikeNodes] | None = None,
    announced_per_node: int = 0,
    announced_per_operator: int = 0,
) -> Demand:
    """
    Read what a fleet uses an hour, by model.

    Args:
        fleet: The nodes; those that are enrolled if it is `None`.
    """
    nodes_alike = await read_fleet(tx) if fleet is None else fleet
    return demand_of(
        calls,
        nodes_alike,
        wide_classes,
        announced_per_node=announced_per_node,
        announced_per_operator=announced_per_operator,
        answers_per_node=answers.per_node_hour,
        answers_taken=await answer_checks.per_hour(tx, now_ms),
    )


async def read_counts(tx: Tx) -> list[Row]:
    """Count the challenges and the minted answers, by model, kind and reference value."""
    answers = [{**row, "kind": ANSWERS} for row in await answer_pool.levels(tx)]
    return [*await pool.levels(tx), *answers]


async def read_levels(tx: Tx, in_force: Mapping[str, str], demand: Demand) -> tuple[Level, ...]:
    """
    Read how many challenges were minted and are left, by model and kind, and for how long they last.

    Args:
        in_force: By model, the digest of the reference value in force: only its challenges can be used now.
    """
    return levels_for(await read_counts(tx), in_force, demand)


def levels_for(
    rows: Iterable[Row], in_force: Mapping[str, str], demand: Demand, *, only: Collection[str] | None = None
) -> tuple[Level, ...]:
    """
    Give the levels of what was counted.

    Args:
        rows: As `read_counts` gives them.
        in_force: By model, the digest of the reference value that counts.
        only: The models that are looked at; all if it is `None`.
    """
    counts: dict[tuple[str, str], Level] = {}
    for row in rows:
        if only is not None and row["model"] not in only:
            continue
        so_far = counts.get((row["model"], row["kind"]), Level(model=row["model"], kind=row["kind"]))
        counts[so_far.model, so_far.kind] = replace(
            so_far,
            minted=so_far.minted + row["minted"],
            free=so_far.free + (row["free"] if row["state"] in references.LIVE else 0),
            in_force=so_far.in_force + (row["free"] if in_force.get(row["model"]) == row["reference"] else 0),
        )
    if only is not None:
        demand = {model: wanted for model, wanted in demand.items() if model in only}
    return levels_of(counts.values(), demand)
