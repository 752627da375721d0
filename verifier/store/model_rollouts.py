"""
Roll-outs of models: two reference values of one model are valid at once, until somebody ends it.

The value in force stays in force, and the one that it is to become is valid beside it.  Nodes go from one to the other
when their operators please, and back.  Nothing ends a roll-out but a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from verifier.errors import RequestError
from verifier.store import events, policies
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor

STATE: Final = "rollout.state"
"""The code of what refuses a step."""


@dataclass(frozen=True)
class ModelRollout:
    """A roll-out that runs."""

    model: str
    old: str
    """The digest of the value in force."""
    new: str
    """The digest of the value that is valid beside it."""
    started_ms: int
    until_ms: int | None
    """When somebody is reminded that it still runs; nothing ends then."""

    def is_overdue(self, now_ms: int) -> bool:
        """Whether it was to be ended by now."""
        return self.until_ms is not None and self.until_ms <= now_ms


async def running(tx: Tx) -> list[ModelRollout]:
    """Give all that run, by model."""
    rows = await tx.all("SELECT * FROM model_rollouts ORDER BY model")
    return [ModelRollout(**row) for row in rows]


async def of_model(tx: Tx, model: str) -> ModelRollout | None:
    """Give the one of a model, if it runs."""
    row = await tx.one("SELECT * FROM model_rollouts WHERE model = ?", model)
    return None if row is None else ModelRollout(**row)


async def require(tx: Tx, model: str) -> ModelRollout:
    """Give the one of a model.  Raises `RequestError` if none runs."""
    found = await of_model(tx, model)
    if found is None:
        raise RequestError(
            f"no roll-out of {model} runs. Start one: touchstone reference rollout start {model} --to DIGEST",
            code=STATE,
        )
    return found


async def check_none(tx: Tx, model: str) -> None:
    """
    Check that none runs: then the values of a model change in no other way.

    Raises:
        RequestError: One does; the message has the commands that end it.
    """
    if await of_model(tx, model) is not None:
        raise RequestError(
            f"a roll-out of {model} runs. End it first: touchstone reference rollout finish {model}, or abort {model}",
            code=STATE,
        )


async def begin(tx: Tx, rollout: ModelRollout, author: ChangeAuthor) -> None:
    """Store the start; who starts it has checked that it may."""
    await check_none(tx, rollout.model)
    await tx.execute(
        "INSERT INTO model_rollouts (model, old, new, started_ms, until_ms) VALUES (?, ?, ?, ?, ?)",
        rollout.model,
        rollout.old,
        rollout.new,
        rollout.started_ms,
        rollout.until_ms,
    )
    # Its age counts from now: a mistake in it quarantines nobody (`verifier.incidents`).
    await tx.execute(
        "UPDATE reference_values SET state = 'candidate', added_ms = ?, grace_until_ms = 0 WHERE digest = ?",
        rollout.started_ms,
        rollout.new,
    )
    await _note(tx, "rollout-start", rollout, author, rollout.started_ms)


async def end(tx: Tx, rollout: ModelRollout) -> None:
    """Let a roll-out run no longer; who ends it says what becomes of its values."""
    await tx.execute("DELETE FROM model_rollouts WHERE model = ?", rollout.model)


async def abort(tx: Tx, rollout: ModelRollout, author: ChangeAuthor, now_ms: int, *, grace_ms: int) -> None:
    """Let the new value wait again.  For nodes that have it, it is a warning until *grace_ms* is over."""
    await end(tx, rollout)
    await tx.execute(
        "UPDATE reference_values SET grace_until_ms = ? WHERE digest = ?", now_ms + grace_ms, rollout.new
    )
    await _note(tx, "rollout-abort", rollout, author, now_ms, grace_s=grace_ms // 1000)


async def note_finish(tx: Tx, rollout: ModelRollout, author: ChangeAuthor, now_ms: int, *, left: int) -> None:
    """
    Write down that a roll-out was finished.

    Args:
        left: How many nodes are on the old value still.
    """
    await _note(tx, "rollout-finish", rollout, author, now_ms, left=left)


async def _note(
    tx: Tx, action: str, rollout: ModelRollout, author: ChangeAuthor, now_ms: int, **more: int
) -> None:
    detail = {"model": rollout.model, "from": rollout.old, "until_ms": rollout.until_ms, **more}
    await policies.note(tx, action, rollout.new, author, now_ms, detail, decides=True)
    await events.append(tx, now_ms, "reference", {"model": rollout.model, "digest": rollout.new})


async def named(tx: Tx) -> list[Row]:
    """Give the new values of all that run, without their documents."""
    return await tx.all(
        "SELECT r.digest, r.model, r.source, r.signer, r.not_before, r.not_after, m.until_ms FROM model_rollouts m"
        " JOIN reference_values r ON r.digest = m.new ORDER BY m.model"
    )
