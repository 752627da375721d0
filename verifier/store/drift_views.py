"""How answers have moved, for people: by model, engine version and node, day by day, with what was concluded of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from verifier.answers import days, drift
from verifier.answers.drift import OperatorScores
from verifier.errors import RequestError
from verifier.store import (
    answer_days,
    answer_drift,
    drifting,
    incident_facts,
    node_prompting,
    nodes,
    policies,
)
from verifier.store.database import Row, Tx
from verifier.store.incident_facts import HOLDING_SQL
from verifier.store.policies import ChangeAuthor

MAX_DAYS: Final = 366
_MOST_NODES: Final = 100
_MOST_MODELS: Final = 50
_MOST_VERSIONS: Final = 100


def day_text(day: int) -> str:
    """A day as YYYY-MM-DD."""
    return datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()


async def overview(tx: Tx, now_ms: int, span: int, model: str | None = None) -> dict[str, Any]:
    """
    Give all models, or one, over the last *span* days.

    Raises:
        RequestError: The span is not between a day and a year.
    """
    since_day = _since(now_ms, span)
    models = await answer_days.models(tx, since_day) if model is None else [model]
    return {
        "since": day_text(since_day),
        "days": span,
        "models": [await _model(tx, each, since_day, now_ms) for each in models[:_MOST_MODELS]],
        "reviews": [_scores(row) for row in await answer_drift.reviews(tx)],
    }


def _since(now_ms: int, span: int) -> int:
    if not 1 <= span <= MAX_DAYS:
        raise RequestError(f"days must be between 1 and {MAX_DAYS}")
    return now_ms // days.DAY_MS - span + 1


async def open_reviews(tx: Tx) -> tuple[int, int]:
    """Give how many nodes wait for a person because their answers moved, and how many engine versions."""
    nodes_waiting = await tx.one("SELECT count(*) AS n FROM node_drift WHERE review_ms IS NOT NULL")
    suspect = await tx.one(
        # By the beginning of the cause: that is in the index.
        f"SELECT count(*) AS n FROM incidents WHERE cause >= ? AND cause < ? AND state IN ({HOLDING_SQL})",
        f"{drifting.VERSION}@",
        f"{drifting.VERSION}A",
    )
    assert nodes_waiting is not None
    assert suspect is not None
    return int(nodes_waiting["n"]), int(suspect["n"])


async def _model(tx: Tx, model: str, since_day: int, now_ms: int) -> dict[str, Any]:
    rows = await answer_days.of_model(tx, model, since_day)
    # Of a large fleet it takes a while.
    versions, worst = await asyncio.to_thread(_put_together, rows)
    for each in versions:
        each.update(await _concluded(tx, model, each["reference"], each["engine"], now_ms))
    return {
        "model": model,
        "versions": versions,
        "nodes": worst,
        "usual": await answer_drift.all_usual(tx, model),
    }


def _put_together(rows: list[Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_version: dict[tuple[str, str], list[Row]] = defaultdict(list)
    by_node: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_version[row["reference"], row["engine"]].append(row)
        by_node[row["node_id"]].append(row)
    most = sorted(by_version.items(), key=lambda item: (-len(item[1]), item[0]))[:_MOST_VERSIONS]
    versions = [
        {
            "reference": reference,
            "engine": engine,
            "nodes": len({row["node_id"] for row in found}),
            **_shown(found),
            "by_day": _by_day(found),
        }
        for (reference, engine), found in sorted(most)
    ]
    return versions, _worst(by_node)


async def _concluded(tx: Tx, model: str, reference: str, engine: str, now_ms: int) -> dict[str, Any]:
    operators = await answer_drift.of_version(tx, model, reference, engine, now_ms)
    cause = drifting.cause_of(drifting.VERSION, reference, engine)
    review = (await incident_facts.read_cause(tx, cause, now_ms)).review
    return {
        "operators": [_operator(each) for each in operators],
        "limit": drift.version_limit(len(operators)),
        "suspect": None if review is None else review.id,
    }


def _operator(found: OperatorScores) -> dict[str, Any]:
    scores = {name: round(found.scores.of(name), 3) for name in drift.CHANNELS}
    return {"operator": found.operator, "nodes": found.nodes, "checks": found.checks, "scores": scores}


def _shown(rows: Iterable[Row]) -> dict[str, Any]:
    return days.shown(days.merge(answer_days.of_row(row) for row in rows))


def _by_day(rows: Iterable[Row]) -> list[dict[str, Any]]:
    by_day: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_day[row["day"]].append(row)
    return [{"day": day_text(day), **_shown(found)} for day, found in sorted(by_day.items())]


def _worst(by_node: Mapping[str, list[Row]]) -> list[dict[str, Any]]:
    """The nodes whose answers part most often, or are near the limit."""
    found = [
        {"node": node, "operator": rows[0]["operator"], "engine": rows[0]["engine"], **_shown(rows)}
        for node, rows in by_node.items()
    ]

    def key(each: dict[str, Any]) -> tuple[float, str]:
        return -max(
            each[name]["low"] for name in drift.CHANNELS if each[name]["of"] or name == "differs"
        ), each["node"]

    return sorted(found, key=key)[:_MOST_NODES]


async def of_node(tx: Tx, node_id: str, now_ms: int, span: int) -> dict[str, Any]:
    """
    Give one node over the last *span* days, by model and engine version.

    Raises:
        RequestError: There is no such node, or the span is not between a day and a year.
    """
    since_day = _since(now_ms, span)
    node = await nodes.by_id(tx, node_id)
    if node is None:
        raise RequestError("there is no such node", code="request.not-found")
    by_place: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in await answer_days.of_node(tx, node_id, since_day, now_ms // days.DAY_MS):
        by_place[row["model"], row["reference"], row["engine"]].append(row)
    return {
        "node": node_id,
        "operator": node.operator,
        "since": day_text(since_day),
        "days": span,
        "scores": [_scores(row) for row in await answer_drift.of_node(tx, node_id)],
        "limit": round(drift.NODE_LIMIT, 3),
        "versions": [
            {
                "model": model,
                "reference": reference,
                "engine": engine,
                **_shown(rows),
                "by_day": _by_day(rows),
            }
            for (model, reference, engine), rows in sorted(by_place.items())
        ],
        "prompting": _changes(await node_prompting.of_node(tx, node_id)),
    }


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    found = {"node": row["node_id"], **{name: value for name, value in row.items() if name != "node_id"}}
    return {**found, "parts": round(row["parts"], 3), "far": round(row["far"], 3)}


async def templates(tx: Tx, model: str) -> dict[str, Any]:
    """Give which templates and sampling defaults nodes of a model have, by revision, and who has changed one."""
    rows = await node_prompting.of_model(tx, model)
    newest: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = (row["reference"], row["node_id"])
        if place not in newest or row["last_ms"] >= newest[place]["last_ms"]:
            newest[place] = row
    sets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (reference, node_id), row in sorted(newest.items()):
        sets[reference, row["template"], row["sampling"]].append(node_id)
    return {
        "model": model,
        "in_use": [
            {"reference": reference, "template": template, "sampling": sampling, "nodes": found}
            for (reference, template, sampling), found in sorted(sets.items(), key=lambda item: -len(item[1]))
        ],
        "changed": [each for each in _changes(rows) if each["changed"]],
    }


def _changes(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Of each node, model and revision what it had, oldest first, and whether it changed without a new revision."""
    by_place: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_place[row["node_id"], row["model"], row["reference"]].append(row)
    names = ("template", "sampling", "first_ms", "last_ms")
    return [
        {
            "node": node_id,
            "model": model,
            "reference": reference,
            "changed": len(found) > 1,
            "had": [{name: row[name] for name in names} for row in found],
        }
        for (node_id, model, reference), found in sorted(by_place.items())
    ]


async def accept(
    tx: Tx, model: str, reference: str, family: str, who: tuple[str, str], now_ms: int
) -> dict[str, Any]:
    """
    Take a person's word that what the nodes of an engine family do is usual; their scores begin at 0 again.

    It moves when answers part and how near distances are, never what counts as a difference.

    Args:
        who: The person, and the reason.

    Raises:
        RequestError: The reason is blank, or fewer operators than three were checked enough.
    """
    actor, reason = who
    since_day = now_ms // days.DAY_MS - answer_drift.ACCEPTED_OVER_DAYS + 1
    by_operator: dict[str, list[days.Counts]] = defaultdict(list)
    engines = set()
    for row in await answer_days.of_model(tx, model, since_day):
        if row["reference"] == reference and answer_drift.family(row["engine"]) == family:
            by_operator[row["operator"]].append(answer_days.of_row(row))
            engines.add(row["engine"])
    counts = {operator: days.merge(found) for operator, found in by_operator.items()}
    usual = drift.accept(counts)
    if usual is None:
        raise RequestError(
            f"of {family[:60]!r}, fewer than three operators have {drift.LEAST_CHECKS} checks each of this"
            " revision in four weeks: what is usual is not known",
            code="answers.drift.few",
        )
    await answer_drift.set_usual(tx, (model, reference, family), usual, actor, reason, now_ms)
    await policies.note(
        tx,
        "reference-usual",
        reference,
        ChangeAuthor(actor, reason),
        now_ms,
        {"model": model, "engine": family, **usual._asdict()},
    )
    for engine in sorted(engines):
        await answer_drift.reset_version(tx, model, reference, engine)
    return {"model": model, "reference": reference, "family": family, **usual._asdict()}
