"""The routes by which routers take checks of answers and bring what was answered: once, bound, bounded, judged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.minted_answers import ENGINE, WORDS, chat, put
from fixtures.simulator import MODEL, SimulatedNode
from tests.integration.revisions import mint, resaved, upgrade
from verifier.answers.checks import EngineUsed, Given, Minted
from verifier.roles import Role
from verifier.service import sweep

STORES = ("sqlite", "postgres")
pytestmark = pytest.mark.usefixtures("only_our_calls")
OTHER = EngineUsed(
    name="touchstone-fixture-engine", version="1.0.0", dtype="float32", family="touchstone-fixture-engine"
)


@pytest.fixture
def verifier_settings(verifier_settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **verifier_settings,
        "answers": {"router_per_hour": 6, "router_per_node_hour": 4, "lifetime_s": 600},
    }


async def reference_of(verifier) -> str:
    (row,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'active'")
    return str(row["digest"])


async def fill(verifier, *minted: Minted) -> None:
    given = minted or tuple(chat(f"Question {number}?", engine=OTHER) for number in range(8))
    await put(verifier.service.db, verifier.service.pool_key, MODEL, await reference_of(verifier), given)


async def serving(verifier, operator: str = "acme") -> tuple[SimulatedNode, str]:
    """A node with a live result, and the result's id."""
    node = await verifier.enrol(operator=operator)
    result = await verifier.attest(node)
    return node, result["jti"]


async def post(verifier, path: str, body: Any, router: str = "r1") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = await verifier.key(router, Role.ROUTER)
    async with verifier.stranger.post(verifier.url + path, data=data, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def take(
    verifier, node: SimulatedNode, count: int = 1, *, router: str = "r1", **more: Any
) -> tuple[int, Any]:
    body = {"model": MODEL, "node": node.id, "count": count, **more}
    return await post(verifier, "/api/v1/answer-checks", body, router)


async def take_one(verifier, node: SimulatedNode) -> Any:
    status, taken = await take(verifier, node)
    assert status == 200, taken
    return taken["checks"][0]


async def bring(
    verifier,
    check: str,
    node: SimulatedNode,
    jti: str,
    text: str = "".join(WORDS),
    *,
    router: str = "r1",
    **more: Any,
) -> tuple[int, Any]:
    given = Given(
        outcome="completed", text=text, finish_reason="length", prompt_tokens=9, completion_tokens=8
    )
    body = {"node": node.id, "result": jti, "at_ms": verifier.clock.ms, "given": msgspec.to_builtins(given)}
    return await post(verifier, f"/api/v1/answer-checks/{check}", body | more, router)


async def states(verifier) -> list[tuple[str, str | None]]:
    rows = await verifier.rows("SELECT state, verdict FROM answer_checks ORDER BY taken_ms, id")
    return [
        (row["state"], None if row["verdict"] is None else msgspec.json.decode(row["verdict"])["kind"])
        for row in rows
    ]


async def test_a_check_is_what_to_ask_and_nothing_of_the_answer(verifier) -> None:
    await fill(verifier, chat("What is a harbour?", engine=OTHER))
    node, _ = await serving(verifier)
    status, taken = await take(verifier, node)
    assert status == 200
    (check,) = taken["checks"]
    assert check.keys() == {"id", "operation", "body", "streamed"}
    assert check["operation"] == "chat.completions"
    assert check["body"] == chat("What is a harbour?").body
    assert taken["expires_in_s"] == 600


async def test_an_answer_that_agrees_is_judged_so(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    assert await bring(verifier, check["id"], node, jti) == (200, {"verdict": "agrees"})
    assert await states(verifier) == [("judged", "agrees")]


async def test_an_answer_of_other_words_differs_and_is_counted(verifier) -> None:
    """The verdict and what follows from it are stored together."""
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    assert await bring(verifier, check["id"], node, jti, "The market is empty.") == (
        200,
        {"verdict": "differs"},
    )
    (row,) = await verifier.rows("SELECT differs, node_id FROM answer_scores")
    assert row == {"differs": 1, "node_id": node.id}


async def test_no_two_checks_are_the_same_answer(verifier) -> None:
    """Also not if they are taken at once."""
    await fill(verifier)
    nodes = [await serving(verifier, operator) for operator in ("acme", "blue", "cyan")]
    taken = await asyncio.gather(
        *(take(verifier, node, 2, router=f"r{n}") for n, (node, _) in enumerate(nodes))
    )
    asked = [check["body"]["messages"][0]["content"] for _, answer in taken for check in answer["checks"]]
    assert len(asked) == len(set(asked)) == 6


async def test_an_empty_pool_is_said(verifier) -> None:
    node, _ = await serving(verifier)
    status, answer = await take(verifier, node)
    assert (status, answer["type"].rpartition("#")[2]) == (409, "challenges.exhausted")


async def test_what_is_left_is_given_if_more_is_wanted(verifier) -> None:
    await fill(verifier, chat("One?", engine=OTHER), chat("Two?", engine=OTHER))
    node, _ = await serving(verifier)
    assert len((await take(verifier, node, 4))[1]["checks"]) == 2


async def test_only_a_wanted_operation_is_given(verifier) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    assert (await take(verifier, node, wants={"operation": "embeddings"}))[0] == 409
    assert (await take(verifier, node, wants={"operation": "chat.completions", "later": 1}))[0] == 200


async def test_a_node_without_a_live_result_is_not_asked(verifier) -> None:
    await fill(verifier)
    node = await verifier.enrol()
    status, answer = await take(verifier, node)
    assert (status, answer["type"].rpartition("#")[2]) == (409, "answers.node.not-serving")


async def test_a_node_whose_result_expired_is_not_asked(verifier) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    verifier.clock.forward(verifier.service.config.results.lifetime_s + 1)
    assert (await take(verifier, node))[0] == 409


async def test_a_node_is_not_asked_about_a_model_that_it_is_not_enrolled_with(verifier) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    assert (await take(verifier, node, model="example/other"))[0] == 409
    assert await states(verifier) == []


@pytest.mark.parametrize("count", [0, 33, "1", True, 1.5, -1])
async def test_a_count_out_of_bounds_takes_nothing(verifier, count: Any) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    assert (await take(verifier, node, count))[0] == 400
    assert await states(verifier) == []


async def test_one_router_takes_only_so_many_of_a_node(verifier) -> None:
    """The others of the node, and the same router of others, go on; after an hour it may again."""
    await fill(verifier)
    node, _ = await serving(verifier)
    assert len((await take(verifier, node, 8))[1]["checks"]) == 4
    status, answer = await take(verifier, node)
    assert (status, answer["type"].rpartition("#")[2]) == (429, "challenges.quota")
    assert (await take(verifier, node, router="r2"))[0] == 200
    verifier.clock.forward(3601)
    await verifier.attest(node)
    assert (await take(verifier, node))[0] == 200


async def test_one_router_takes_only_so_many_of_all_nodes(verifier) -> None:
    await fill(verifier)
    first, _ = await serving(verifier)
    second, _ = await serving(verifier, "blue")
    assert len((await take(verifier, first, 4))[1]["checks"]) == 4
    assert len((await take(verifier, second, 4))[1]["checks"]) == 2
    assert (await take(verifier, second))[0] == 429


async def test_the_same_bytes_again_are_counted_once(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    assert await bring(verifier, check["id"], node, jti, "Wrong") == (200, {"verdict": "differs"})
    assert await bring(verifier, check["id"], node, jti, "Wrong") == (200, {"verdict": "differs"})
    (row,) = await verifier.rows("SELECT differs FROM answer_scores")
    assert row["differs"] == 1


async def test_two_deliveries_at_once_are_counted_once(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    answers = await asyncio.gather(*(bring(verifier, check["id"], node, jti, "Wrong") for _ in range(5)))
    assert answers == [(200, {"verdict": "differs"})] * 5
    (row,) = await verifier.rows("SELECT differs FROM answer_scores")
    assert row["differs"] == 1


async def test_other_bytes_are_refused_and_change_nothing(verifier) -> None:
    """A router cannot take back what it said, nor try what agrees."""
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    await bring(verifier, check["id"], node, jti)
    status, answer = await bring(verifier, check["id"], node, jti, "Wrong")
    assert (status, answer["type"].rpartition("#")[2]) == (409, "answers.check.reused")
    assert await states(verifier) == [("judged", "agrees")]


async def test_an_answer_that_never_came_has_no_verdict(verifier) -> None:
    """It is not asked again, and nothing is counted; nor may an answer follow."""
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    path = f"/api/v1/answer-checks/{check['id']}"
    assert await post(verifier, path, {"node": node.id, "failed": "crashed"}) == (200, {"verdict": None})
    assert await post(verifier, path, {"node": node.id, "failed": "crashed"}) == (200, {"verdict": None})
    assert (await bring(verifier, check["id"], node, jti))[0] == 409
    assert await states(verifier) == [("failed", None)]
    assert await verifier.rows("SELECT * FROM answer_scores") == []


async def test_another_routers_check_does_not_exist(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    assert (await bring(verifier, check["id"], node, jti, router="r2"))[0] == 404
    assert await states(verifier) == [("open", None)]


async def test_a_check_cannot_be_answered_for_another_node(verifier) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    other, jti = await serving(verifier, "blue")
    check = await take_one(verifier, node)
    assert (await bring(verifier, check["id"], other, jti))[0] == 400
    assert await states(verifier) == [("open", None)]


async def test_the_result_must_be_the_nodes(verifier) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    _, others = await serving(verifier, "blue")
    check = await take_one(verifier, node)
    for jti in (others, "0" * 32, ""):
        status, answer = await bring(verifier, check["id"], node, jti)
        assert (status, answer["type"].rpartition("#")[2]) == (409, "answers.result.unknown")
    assert await states(verifier) == [("open", None)]


async def test_a_check_expires(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    verifier.clock.forward(601)
    status, answer = await bring(verifier, check["id"], node, jti)
    assert (status, answer["type"].rpartition("#")[2]) == (410, "answers.check.expired")


@pytest.mark.parametrize(
    "change",
    [
        {"failed": "crashed"},
        {"given": {"outcome": "completed", "unknown": 1}},
        {"given": {"outcome": "completed", "vectors": ["AADAfw=="]}},
        {"given": None},
        {"at_ms": -1},
        {"more": 1},
    ],
    ids=["both", "unknown member", "not finite", "null", "before 1970", "more"],
)
async def test_a_malformed_answer_leaves_the_check_open(verifier, change: dict[str, Any]) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    assert (await bring(verifier, check["id"], node, jti, **change))[0] == 400
    assert await states(verifier) == [("open", None)]


async def test_a_drawn_answer_is_only_for_engines_of_its_family(verifier) -> None:
    """What is drawn follows from how an engine draws; a greedy answer is held against every engine."""
    await fill(verifier, chat("Drawn?", seed=7, engine=ENGINE), chat("Greedy?", engine=ENGINE))
    node, _ = await serving(verifier)
    (check,) = (await take(verifier, node, 4))[1]["checks"]
    assert check["body"]["temperature"] == 0
    (row,) = await verifier.rows("SELECT count(*) AS n FROM minted_answers WHERE check_id IS NULL")
    assert row["n"] == 1


async def test_answers_of_the_nodes_own_family_come_first(verifier) -> None:
    await fill(verifier, *(chat(f"Other {n}?", engine=ENGINE) for n in range(3)))
    await fill(verifier, chat("Own?", seed=3, engine=OTHER))
    node, _ = await serving(verifier)
    first, second = (await take(verifier, node, 2))[1]["checks"]
    assert first["body"]["messages"][0]["content"] == "Own?"
    assert second["body"]["messages"][0]["content"].startswith("Other")


async def asked_of(verifier, precision: str | None) -> set[str]:
    """What a node is asked whose engine declares a precision, by the precision of what was minted."""
    node = SimulatedNode(verifier.model_folder, arguments={} if precision is None else {"dtype": precision})
    await verifier.enrol(node)
    await verifier.attest(node)
    status, taken = await take(verifier, node, 4)
    return (
        {check["body"]["messages"][0]["content"][:2] for check in taken["checks"]} if status == 200 else set()
    )


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("torch.float16", {"16"}),
        ("float32", {"32"}),
        ("bfloat16", {"16", "32"}),
        (None, {"16", "32"}),
        ("a new one", {"16", "32"}),
    ],
)
async def test_a_node_is_asked_what_was_minted_in_its_precision(
    verifier, declared: str | None, expected: set[str]
) -> None:
    """If there is such: otherwise it is held to what the operator minted."""
    for precision, name in (("16", "float16"), ("32", "F32")):
        engine = msgspec.structs.replace(OTHER, dtype=name)
        await fill(verifier, *(chat(f"{precision}: {number}?", engine=engine) for number in range(20)))
    found = set()
    for _ in range(4):
        found |= await asked_of(verifier, declared)
        verifier.clock.forward(3601)
    assert found == expected


async def test_where_the_answers_of_its_precision_are_used_up_it_is_asked_none(verifier) -> None:
    """Those of another precision would accuse it."""
    half = msgspec.structs.replace(OTHER, dtype="float16")
    await fill(verifier, chat("16: one?", engine=half))
    await fill(verifier, *(chat(f"32: {number}?", engine=OTHER) for number in range(4)))
    assert await asked_of(verifier, "float16") == {"16"}
    assert await asked_of(verifier, "float16") == set()


async def test_answers_of_another_revision_are_not_for_the_node(verifier, tmp_path: Path) -> None:
    """What was minted for a value that is no longer in force, a node with the new one is not asked."""
    await fill(verifier)
    await mint(verifier, resaved(verifier.model_folder, tmp_path / "new"), replace=True)
    node = await verifier.enrol(SimulatedNode(tmp_path / "new"))
    await verifier.attest(node)
    assert (await take(verifier, node))[0] == 409


async def test_a_node_that_changed_its_revision_meanwhile_is_not_judged(verifier, tmp_path: Path) -> None:
    """The router asked it by a result about another revision than the answer is of: nobody is to blame."""
    await fill(verifier)
    node, _ = await serving(verifier)
    check = await take_one(verifier, node)
    folder = resaved(verifier.model_folder, tmp_path / "new")
    await upgrade(verifier, node, folder, await mint(verifier, folder, replace=True))
    later = await verifier.attest(node)
    assert await bring(verifier, check["id"], node, later["jti"], "Wrong") == (200, {"verdict": "unusable"})
    assert await verifier.rows("SELECT * FROM answer_scores") == []


async def test_the_database_has_neither_prompt_nor_answer(verifier) -> None:
    await fill(verifier, chat("Wherefore is a harbour?", engine=OTHER))
    rows = await verifier.rows("SELECT * FROM minted_answers")
    stored = repr(rows) + repr(await verifier.rows("SELECT * FROM answer_prompts"))
    assert "Wherefore" not in stored
    assert "harbour" not in stored


async def test_an_entry_that_was_put_elsewhere_does_not_open(verifier) -> None:
    """Nor one that was changed; the check is refused, and no node is asked."""
    await fill(verifier, chat("One?", engine=OTHER))
    await verifier.service.db.write(lambda tx: tx.execute("UPDATE minted_answers SET idx = 7"))
    node, _ = await serving(verifier)
    assert (await take(verifier, node))[0] == 409


async def test_what_was_answered_is_deleted_and_old_checks_too(verifier) -> None:
    await fill(verifier)
    node, jti = await serving(verifier)
    check = await take_one(verifier, node)
    await bring(verifier, check["id"], node, jti)
    await take_one(verifier, node)
    assert (await verifier.rows("SELECT count(*) AS n FROM minted_answers"))[0]["n"] == 7
    verifier.clock.forward(31 * 86400)
    await sweep.delete_old(verifier.service)
    assert await states(verifier) == []
    assert (await verifier.rows("SELECT count(*) AS n FROM minted_answers"))[0]["n"] == 6


async def test_minted_answers_count_among_the_challenges(verifier) -> None:
    """With their hours, by how many checks are expected of the enrolled nodes."""
    await fill(verifier)
    node, _ = await serving(verifier)
    await take_one(verifier, node)
    _, answer = await verifier.get("/api/v1/challenges")
    (level,) = [level for level in answer["pools"] if level["kind"] == "answ"]
    assert (level["minted"], level["free"], level["in_force"]) == (8, 7, 7)
    assert level["low"] == (level["hours"] < verifier.service.config.pool.low_hours)
    assert 0 < level["hours"] < 7 / 2


async def test_the_marks_are_above_what_was_taken(verifier) -> None:
    """A restore must not give it out again."""
    await fill(verifier)
    node, _ = await serving(verifier)
    await take(verifier, node, 3)
    assert verifier.service.marks.marks.pool[MODEL]["answ"] >= 3


async def test_a_check_keeps_what_the_node_renders_and_samples_by(verifier) -> None:
    """As the result named it by which the node was asked; the answer is counted on its day."""
    await fill(verifier)
    node, _ = await serving(verifier)
    for said in ("aa", "bb"):
        node.arguments = {"chat_template": f"sha256:{said}"}
        verifier.clock.forward(1)
        jti = (await verifier.attest(node))["jti"]
        check = await take_one(verifier, node)
        assert (await bring(verifier, check["id"], node, jti))[0] == 200
    rows = await verifier.rows("SELECT template, reference FROM node_prompting ORDER BY first_ms")
    digest = await reference_of(verifier)
    assert [(row["template"], row["reference"]) for row in rows] == [
        ("engine sha256:aa", digest),
        ("engine sha256:bb", digest),
    ]
    (day,) = await verifier.rows("SELECT agrees, reference FROM answer_days")
    assert (day["agrees"], day["reference"]) == (2, digest)
