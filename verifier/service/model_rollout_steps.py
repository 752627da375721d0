"""
The steps of a model's roll-out: start, finish, abort; what must hold before each, and how far it is.

    start ─▶ both revisions are valid and affirming ─▶ finish: the old one is superseded
                                                    └▶ abort:  the new one waits again

A step that must not be is refused with its reason, and with the command that mends it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from verifier.challenges.demand import KINDS, Demand, ModelDemand, demand_of
from verifier.challenges.stock import read_fleet
from verifier.config import VerifierConfig
from verifier.errors import RequestError
from verifier.references.measured import read_document
from verifier.service.inputs import InputLoader
from verifier.store import blocks, model_rollouts, pool, references, revisions
from verifier.store.database import Row, Tx
from verifier.store.model_rollouts import STATE, ModelRollout
from verifier.store.policies import ChangeAuthor
from verifier.store.revisions import FleetNode

_MAX_NAMED_NODES: Final = 5


@dataclass(frozen=True)
class NewRollout:
    """What a roll-out is started with."""

    model: str
    to: str
    """The digest of the new value, or its first digits."""
    until_ms: int | None = None


@dataclass(frozen=True)
class Stock:
    """The challenges that are left of one reference value."""

    digest: str
    free: Mapping[str, int]
    wanted: ModelDemand

    def hours(self, kind: str) -> float:
        """For how many hours of calls to the whole fleet those of a kind last; infinite if none are used."""
        return self.wanted.rate(kind, has_wides=self.has_wides).hours_of(self.free.get(kind, 0))

    @property
    def has_wides(self) -> bool:
        """Whether there are wide walks; if not, ordinary ones are taken in their place."""
        return self.free.get("wide", 0) > 0

    def lacking(self, low_hours: float) -> dict[str, int]:
        """How many challenges of each kind are missing for so many hours of calls; at least one of each is needed."""
        found = {}
        for kind in KINDS:
            if kind == "wide" and not self.has_wides:
                continue
            needed = max(self.wanted.rate(kind, has_wides=self.has_wides).within(low_hours), 1)
            if self.free.get(kind, 0) < needed:
                found[kind] = needed - self.free.get(kind, 0)
        return found


async def read_demand(tx: Tx, inputs: InputLoader, config: VerifierConfig) -> Demand:
    """Read what the calls to the enrolled fleet use.  Raises `PolicyError` if no policy is active."""
    rollout = await inputs.load_rollout(tx)
    classes = (await inputs.load_bundle(tx, rollout.active)).thresholds.classes
    wide = {name for name, hardware in classes.items() if hardware.int8_ops is not None}
    return demand_of(config.calls, await read_fleet(tx), wide)


async def start(
    tx: Tx,
    inputs: InputLoader,
    config: VerifierConfig,
    new: NewRollout,
    author: ChangeAuthor,
    now_ms: int,
) -> ModelRollout:
    """
    Start a roll-out: from now on, the new value is valid beside the one in force.

    Raises:
        RequestError: It must not start now; the message says why, and what to do.
        ReferenceValueError: There is no such value, or more than one.
        PolicyError: No policy is active.
    """
    await model_rollouts.check_none(tx, new.model)
    old = await references.active(tx, new.model)
    if old is None:
        raise RequestError(
            f"{new.model} has no value in force to go from. Put one in force: touchstone reference activate DIGEST",
            code=STATE,
        )
    row = await references.find(tx, new.to)
    _check_value(row, new.model, now_ms)
    _check_period(old, now_ms)
    if new.until_ms is not None and new.until_ms <= now_ms:
        raise RequestError("--until is in the past. Name a moment to come", code=STATE)
    await _check_policies(tx, inputs, new.model)
    await _check_not_blocked(tx, row)
    if _check_tensors(old, row):
        await _check_pools(tx, inputs, config, old, row)
    rollout = ModelRollout(
        model=new.model, old=old["digest"], new=row["digest"], started_ms=now_ms, until_ms=new.until_ms
    )
    await model_rollouts.begin(tx, rollout, author)
    return rollout


def _check_value(row: Row, model: str, now_ms: int) -> None:
    digest = row["digest"]
    if row["model"] != model:
        raise RequestError(
            f"{digest} is a value of {row['model']}, and not of {model}. List those of it: touchstone reference list "
            f"--model {model}",
            code=STATE,
        )
    if row["state"] == "active":
        raise RequestError(f"{digest} is in force for {model} already. Name the value to go to", code=STATE)
    if row["state"] == "retired":
        raise RequestError(
            f"{digest} was retired. If it is the value to go to: touchstone reference restore {digest[:12]}",
            code=STATE,
        )
    _check_period(row, now_ms)


def _check_period(row: Row, now_ms: int) -> None:
    now = now_ms // 1000
    ended = row["not_after"] is not None and row["not_after"] < now
    begins = row["not_before"] is not None and row["not_before"] > now
    if ended or begins:
        what = "has expired" if ended else "is not valid yet"
        raise RequestError(
            f"the reference value {row['digest']} {what}. Import it with another validity: touchstone reference import-corim",
            code=STATE,
        )


async def _check_policies(tx: Tx, inputs: InputLoader, model: str) -> None:
    rollout = await inputs.load_rollout(tx)
    for role, digest in (("active policy", rollout.active), ("canary", rollout.canary)):
        if digest is None:
            continue
        bundle = await inputs.load_bundle(tx, digest)
        if model in bundle.references:
            raise RequestError(
                f"the {role} {bundle.id} brings its own reference value of {model}, so its nodes would not follow the "
                "roll-out. Publish the policy without that file in references/, and promote it first",
                code=STATE,
            )


async def _check_not_blocked(tx: Tx, row: Row) -> None:
    if row["digest"] in (await blocks.in_force(tx)).digests:
        raise RequestError(
            f"{row['digest']} is blocked. Lift the block first:"
            f" touchstone policy block --digest {row['digest']} --lift --reason TEXT",
            code=STATE,
        )


def _check_tensors(old: Row, new: Row) -> bool:
    """Whether both values have tensors.  Raises `RequestError` if one alone has: walks of the other cannot be asked."""
    with_tensors = [row["digest"] for row in (old, new) if read_document(row["document"]).tensors]
    if len(with_tensors) == 1:
        without = next(row["digest"] for row in (old, new) if row["digest"] not in with_tensors)
        raise RequestError(
            f"{without} has no tensors, and {with_tensors[0]} has: its nodes could not be asked to walk. Make a value "
            f"from the weights: touchstone reference measure FOLDER --model {new['model']}, or import-oms --dir FOLDER",
            code=STATE,
        )
    return bool(with_tensors)


async def _check_pools(tx: Tx, inputs: InputLoader, config: VerifierConfig, old: Row, new: Row) -> None:
    wanted = (await read_demand(tx, inputs, config)).get(old["model"], ModelDemand())
    problems = []
    for row in (old, new):
        stock = Stock(row["digest"], await pool.free_of(tx, row["digest"]), wanted)
        if lacking := stock.lacking(config.pool.low_hours):
            counts = ", ".join(f"{count} {kind}s" for kind, count in lacking.items())
            # Twice as much: while it is minted, some are used.
            options = " ".join(
                f"--{kind}s {count}" for kind, count in stock.lacking(2 * config.pool.low_hours).items()
            )
            engine = "" if read_document(row["document"]).loaded_by is None else " --engine URL"
            problems.append(
                f"{row['digest'][:12]} lacks {counts}: touchstone challenges mint --model {row['model']} "
                f"--reference {row['digest'][:12]} --dir FOLDER {options}{engine}"
            )
    if problems:
        raise RequestError(
            f"the pools of both revisions must last the enrolled fleet for {config.pool.low_hours:g} hours. "
            + "; ".join(problems),
            code=STATE,
        )


async def finish(
    tx: Tx,
    model: str,
    author: ChangeAuthor,
    now_ms: int,
    *,
    grace_ms: int,
    anyway: bool = False,
) -> tuple[ModelRollout, int]:
    """
    Finish a roll-out: the new value is in force, and the old one is superseded.

    Args:
        grace_ms: For how long the old value is only a warning.
        anyway: Whether nodes may be on the old value still.

    Returns:
        The roll-out, and how many nodes are on the old value still.

    Raises:
        RequestError: None runs, nodes are on the old value still, or the new one is not valid now.
    """
    rollout = await model_rollouts.require(tx, model)
    row = await references.by_digest(tx, rollout.new)
    assert row is not None
    _check_period(row, now_ms)
    nodes = await revisions.fleet(tx, model)
    left = [node.id for node in nodes if node.held == rollout.old]
    if left and not anyway:
        named = ", ".join(left[:_MAX_NAMED_NODES]) + (", …" if len(left) > _MAX_NAMED_NODES else "")
        raise RequestError(
            f"{len(left)} of {len(nodes)} nodes are on {rollout.old[:12]} still: {named}. Wait for them, or finish "
            f"--anyway: they are a warning then for {grace_ms // 1000} s, and a mismatch afterwards",
            code=STATE,
        )
    await model_rollouts.end(tx, rollout)
    # As it is valid now: a source that was added meanwhile waits until it is asked for.
    await references.put_in_force(tx, model, rollout.new, author, now_ms, grace_ms=grace_ms)
    await model_rollouts.note_finish(tx, rollout, author, now_ms, left=len(left))
    return rollout, len(left)


async def abort(
    tx: Tx, model: str, author: ChangeAuthor, now_ms: int, *, grace_ms: int
) -> tuple[ModelRollout, int]:
    """
    Abort a roll-out: the new value waits again, and for nodes that have it it is a warning for *grace_ms*.

    Returns:
        The roll-out, and how many nodes are on the new value.

    Raises:
        RequestError: None runs.
    """
    rollout = await model_rollouts.require(tx, model)
    moved = sum(node.held == rollout.new for node in await revisions.fleet(tx, model))
    await model_rollouts.abort(tx, rollout, author, now_ms, grace_ms=grace_ms)
    return rollout, moved


async def show(
    tx: Tx, inputs: InputLoader, config: VerifierConfig, now_ms: int, model: str | None = None
) -> list[dict[str, object]]:
    """
    Say of each roll-out that runs how far it is, as JSON-compatible data.

    Args:
        model: The one model to look at.
    """
    running = [each for each in await model_rollouts.running(tx) if model in (None, each.model)]
    demand = await read_demand(tx, inputs, config) if running else {}
    return [await _show(tx, rollout, demand, now_ms) for rollout in running]


async def _show(tx: Tx, rollout: ModelRollout, demand: Demand, now_ms: int) -> dict[str, object]:
    nodes = await revisions.fleet(tx, rollout.model)
    wanted = demand.get(rollout.model, ModelDemand())
    sides = {
        name: {
            "digest": digest,
            "nodes": sum(node.attested == digest for node in nodes),
            "moving": sum(_moves_to(node, digest) for node in nodes),
            "challenges": _challenges(Stock(digest, await pool.free_of(tx, digest), wanted)),
        }
        for name, digest in (("from", rollout.old), ("to", rollout.new))
    }
    both = (rollout.old, rollout.new)
    return {
        "model": rollout.model,
        **sides,
        "nodes": len(nodes),
        "neither": sum(node.has_result and node.attested not in both for node in nodes),
        "unknown": sum(not node.has_result for node in nodes),
        "started": rollout.started_ms // 1000,
        "until": None if rollout.until_ms is None else rollout.until_ms // 1000,
        "left_s": None if rollout.until_ms is None else (rollout.until_ms - now_ms) // 1000,
        "overdue": rollout.is_overdue(now_ms),
    }


def _moves_to(node: FleetNode, digest: str) -> bool:
    """Whether a node says that it has a revision which it has not attested yet."""
    return node.said == digest and node.attested != digest


def _challenges(stock: Stock) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for kind in KINDS:
        if kind != "wide" or stock.has_wides:
            hours = stock.hours(kind)
            found[kind] = {
                "free": stock.free.get(kind, 0),
                "hours": None if math.isinf(hours) else round(hours, 2),
            }
    return found
