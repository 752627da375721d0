"""What requests ask of the form of their answers, and what answers are held against it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from router.model.dialects import Choice, Function, Message, ToolCall
from router.model.gathered import Gathered
from router.model.operations import OPERATIONS
from router.model.outcomes import Execution, Outcome
from router.model.standing import Standing, merge, rate
from router.model.statistics import StatisticsAggregate
from router.model.tool_calls import CallShares, compare_calls
from router.model.usage import Usage
from router.model.wishes import Form, Kept, Setting, Wishes, check_gathered, check_whole, read_wishes
from tests.unit.router.test_dialects import ENGINES, RECORDED, recorded, stream

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {}}, "required": ["a", "undescribed"]}},
}


def wishes_of(**document: Any) -> Wishes | None:
    return read_wishes(document, Form.TEXTS, None)


@pytest.mark.parametrize(
    ("document", "wishes"),
    [
        ({"messages": []}, None),
        ({"n": 1, "stop": None, "tools": [], "response_format": {"type": "text"}, "prompt": "a"}, None),
        ({"n": 3}, Wishes(choices=3)),
        ({"n": 2, "prompt": ["a", "b"]}, Wishes(choices=4)),
        ({"prompt": [1, 2, 3]}, None),
        ({"prompt": [[1, 2], [3]]}, Wishes(choices=2)),
        ({"stop": "x"}, Wishes(stops=("x",))),
        ({"stop": ["x", "", 1]}, Wishes(stops=("x",))),
        ({"stop": "x", "include_stop_str_in_output": True}, None),
        ({"stop": "x", "echo": True}, None),
        ({"stop": ["x"] * 17}, None),
        ({"response_format": {"type": "json_object"}}, Wishes(is_json=True, is_json_object=True)),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
         Wishes(is_json=True)),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
         Wishes(is_json=True, is_json_object=True)),
        ({"tools": [TOOL]}, Wishes(tools={"f": frozenset("a")})),
        ({"functions": [TOOL["function"]]}, Wishes(tools={"f": frozenset("a")})),
        ({"tools": [TOOL], "tool_choice": "required"}, Wishes(tools={"f": frozenset("a")}, must_call=True)),
        ({"tools": [TOOL], "tool_choice": "auto"}, Wishes(tools={"f": frozenset("a")})),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
         Wishes(tools={"f": frozenset("a")}, must_call=True, called="f")),
        ({"functions": [TOOL["function"]], "function_call": {"name": "f"}},
         Wishes(tools={"f": frozenset("a")}, must_call=True, called="f")),
        ({"tool_choice": "required"}, None),
        ({"tools": [TOOL, {"type": "custom", "custom": {"name": "g"}}], "tool_choice": "required"}, None),
    ],
)  # fmt: skip
def test_the_wishes_of_a_request(document: Any, wishes: Wishes | None) -> None:
    assert wishes_of(**document) == wishes


def test_candidates_that_are_thrown_away_may_be_counted() -> None:
    """Engines bill them too."""
    assert read_wishes({"best_of": 4}, Form.TEXTS, 16) is None
    assert read_wishes({}, Form.TEXTS, 16) == Wishes(max_tokens=16)


def gathered(*messages: Message, end: str = "stop") -> Gathered:
    found = Gathered()
    found.add([Choice(index=n, message=m, finish_reason=end) for n, m in enumerate(messages)])
    return found


def held(wishes: Wishes, *messages: Message, end: str = "stop", claimed: Usage | None = None) -> Kept:
    return check_gathered(wishes, gathered(*messages, end=end), len(messages), claimed)


def test_calls_are_put_together_from_their_chunks() -> None:
    """By their index; some engines repeat the name in each chunk, and some leave the index out."""
    found = Gathered()
    for index, name, arguments in ((0, "f", '{"a"'), (1, "g", "{}"), (0, "f", ": 1}"), (0, None, None)):
        call = ToolCall(index=index, function=Function(name, arguments))
        found.add([Choice(delta=Message(tool_calls=[call]))])
    assert found.choices[0].named_calls() == [("f", '{"a": 1}'), ("g", "{}")]


def test_an_answer_that_is_too_long_to_be_put_together_is_not_judged() -> None:
    """It is not kept either: a node could fill the memory."""
    wishes = Wishes(is_json=True)
    found = Gathered()
    for _ in range(6):
        found.add([Choice(delta=Message(content="x" * (1 << 19)), finish_reason="stop")])
    assert len(found.choices[0].text) < 2 << 20
    assert check_gathered(wishes, found, 1, None) == Kept()


def test_an_answer_of_too_many_calls_is_not_kept() -> None:
    """Each takes memory, also without a word."""
    found = Gathered()
    for place in range(5000):
        found.add([Choice(delta=Message(tool_calls=[ToolCall(index=place, function=Function())]))])
    assert len(found.choices[0].calls) < 2100
    assert not found.is_whole


@pytest.mark.parametrize(
    ("claimed", "most", "setting"),
    [(16, 16, None), (36, 16, None), (37, 16, Setting.MAX_TOKENS), (1250, 1000, None), (0, 1, None)],
)
def test_more_tokens_than_asked_for(claimed: int, most: int, setting: Setting | None) -> None:
    """By the node's own count, with room for what engines count besides."""
    found = held(Wishes(max_tokens=most), Message(content="a"), claimed=Usage(1, claimed))
    assert found.unhonoured is setting


def test_the_engines_settings_come_before_the_models() -> None:
    """They say more of the node."""
    wishes = Wishes(choices=2, is_json=True)
    found = held(wishes, Message(content="no"))
    assert (found.unhonoured, found.is_models) == (Setting.CHOICES, False)


def test_who_must_call_and_does_not_has_made_no_good_call() -> None:
    found = held(Wishes(tools={"f": frozenset()}, must_call=True), Message(content="a"))
    assert (found.unhonoured, found.is_models, found.calls_are_valid) == (Setting.TOOL_CHOICE, True, False)


def test_a_tool_without_parameters_may_be_called_without_arguments() -> None:
    call = ToolCall(function=Function("f", ""))
    assert held(Wishes(tools={"f": frozenset()}), Message(tool_calls=[call])).calls_are_valid


@pytest.mark.parametrize("text", ["{}", "[1]", "null", "1", ' {"a": "\\ud800"} '])
def test_any_json_is_json(text: str) -> None:
    assert held(Wishes(is_json=True), Message(content=text)) == Kept()


@pytest.mark.parametrize("text", ["", "no", '{"a": ', "```json\n{}\n```", "{} {}", "NaN"])
def test_what_is_no_json(text: str) -> None:
    assert held(Wishes(is_json=True), Message(content=text)).unhonoured is Setting.RESPONSE_FORMAT


def test_who_calls_a_tool_says_no_json() -> None:
    """And need not."""
    call = ToolCall(function=Function("f", "{}"))
    assert held(Wishes(is_json=True, tools={"f": frozenset()}), Message(tool_calls=[call])).unhonoured is None


# What real engines answered.


@pytest.mark.parametrize(("engine", "name"), RECORDED, ids=[f"{e}: {n}" for e, n in RECORDED])
def test_what_a_real_engine_kept_to(engine: str, name: str) -> None:
    """
    Recorded from real runs: both engines keep to all settings but two.

    This llama.cpp passes over `dimensions`, and over `tools`: the template of its model has no place for them.
    """
    answer = recorded(engine)[name]
    form = Form.VECTORS if answer["path"] == "/v1/embeddings" else Form.TEXTS
    wishes = read_wishes(answer["request"], form, answer["request"].get("max_tokens"))
    if answer["status"] != 200 or wishes is None:
        return
    if answer["request"].get("stream"):
        reader, parts = stream(answer)
        claims = [part.claimed for part in parts if part.claimed is not None]
        kept = check_gathered(wishes, reader.gathered, reader.ended, claims[-1])
    else:
        kept = check_whole(wishes, form, answer["body"].encode(), None)
    if form is Form.VECTORS:
        assert (kept.unhonoured, kept.detail) == (Setting.DIMENSIONS, "576 dimensions, and 64 were asked for")
        return
    must_call = engine == "llama.cpp" and "tool_choice" in answer["request"]
    assert kept.unhonoured is (Setting.TOOL_CHOICE if must_call else None)
    # vLLM's calls were cut at their limit, so nothing shows whether they would have been good.
    assert kept.calls_are_valid is (False if must_call else None)


def test_both_engines_were_recorded() -> None:
    assert ENGINES == ["llama.cpp", "llama.cpp-embeddings", "vllm"]


# Any JSON in any place.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = ["n", "prompt", "stop", "response_format", "tools", "functions", "tool_choice", "function_call", "input",
           "dimensions", "best_of", "echo"]  # fmt: skip
BASE: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "n": 2,
}
BODY = {
    "choices": [{"message": {"content": "{}", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
                 "finish_reason": "stop"}],
    "data": [{"embedding": [0.5]}],
}  # fmt: skip


@given(
    st.sampled_from(MEMBERS),
    JSON,
    st.sampled_from(["type", "function", "name", "parameters", "json_schema"]),
    JSON,
)
def test_any_request_has_wishes_or_none(member: str, value: Any, inner: str, odd: Any) -> None:
    """And any answer can be held against them."""
    for given_ in (
        value,
        {inner: odd},
        [{inner: odd}],
        [{"type": "function", "function": {"name": "f", inner: odd}}],
    ):
        document = BASE | {member: given_}
        for name in ("chat/completions", "embeddings"):
            operation = OPERATIONS[name]
            assert operation.form is not None
            wishes = read_wishes(document, operation.form, 4)
            if wishes is not None:
                answer = operation.judge_against(wishes, 200, json.dumps(BODY).encode())
                assert answer.outcome in (Outcome.COMPLETED, Outcome.UNHONOURED)


@given(
    JSON,
    st.sampled_from(["content", "tool_calls", "function", "name", "arguments", "finish_reason", "embedding"]),
)
def test_any_answer_is_held_against_its_wishes(value: Any, field: str) -> None:
    """However odd."""
    wishes = wishes_of(**BASE)
    assert wishes is not None

    def put(document: Any) -> Any:
        if isinstance(document, dict):
            return {k: value if k == field else put(v) for k, v in document.items()}
        return [put(each) for each in document] if isinstance(document, list) else document

    body = json.dumps(put(BODY)).encode()
    OPERATIONS["chat/completions"].judge_against(wishes, 200, body)
    given_ = read_wishes({"input": ["a"], "dimensions": 1}, Form.VECTORS, None)
    assert given_ is not None
    OPERATIONS["embeddings"].judge_against(given_, 200, body)


# Calls compared.


@pytest.mark.parametrize(
    ("calls", "bad", "usual", "low", "high"),
    [
        (0, 0, 0.9, 1, 1),
        (9, 9, 0.9, 1, 1),
        (100, 0, None, 1, 1),
        (100, 10, 0.9, 1, 1),
        (100, 60, 0.4, 1, 1),
        (100, 60, 0.9, 0.45, 0.6),
        (100, 100, 0.9, 0.05, 0.06),
        (100, 0, 0.5, 1.9, 2),
        (100, 0, 0.0, 4, 4),
        (100, 100, 0.0, 1, 1),
    ],
)
def test_calls_are_compared_with_the_usual(
    calls: float, bad: float, usual: float | None, low: float, high: float
) -> None:
    """Only a sure difference counts, and a model's own error rate is no difference."""
    assert low <= compare_calls(calls, bad, usual) <= high


def test_many_nodes_are_one_voice() -> None:
    """What is usual is the median over operators: none of them moves it far."""
    shares = CallShares()
    for operator, bad in (("a", 10), ("b", 20), ("c", 12)):
        shares.add(operator, 100, bad)
    for _ in range(50):
        shares.add("b", 100, 100)
    assert shares.usual == pytest.approx(0.88)


def test_who_leaves_takes_its_calls_along() -> None:
    shares = CallShares()
    shares.add("a", 100, 10)
    assert shares.usual == pytest.approx(0.9)
    shares.add("a", -100, -10)
    assert shares.usual is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6), st.floats(0, 1)), max_size=8))
def test_what_is_usual_is_a_share(seen: list[tuple[str, float, float]]) -> None:
    """Whatever was seen, and the comparison stays within its bounds."""
    shares = CallShares()
    for operator, calls, bad in seen:
        shares.add(operator, calls, calls * bad)
    usual = shares.usual
    assert usual is None or 0 <= usual <= 1
    for _, calls, bad in seen:
        assert 0.05 <= compare_calls(calls, calls * bad, usual) <= 4


def seen(*ends: Execution) -> Standing:
    standing = Standing(at=1000.0)
    for end in ends:
        standing = standing.add(end, 1000.0)
    return standing


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.UNHONOURED, Outcome.STALLED])
@pytest.mark.parametrize("valid", [False, True])
def test_calls_are_counted_however_the_attempt_ended(outcome: Outcome, *, valid: bool) -> None:
    """And an operator's own work counts none."""
    standing = seen(Execution(outcome, 1.0, calls_are_valid=valid), Execution(outcome, 1.0))
    assert (standing.calls, standing.bad_calls) == (1.0, 0.0 if valid else 1.0)
    assert seen(Execution(outcome, 1.0, calls_are_valid=valid, earns_credit=False)).calls == 0


def test_calls_fade_with_the_week_and_add_up_over_routers() -> None:
    standing = seen(*[Execution(Outcome.COMPLETED, 1.0, calls_are_valid=False)] * 4)
    week = 7 * 86400.0
    faded = standing.decayed_to(1000.0 + week)
    assert (faded.calls, faded.bad_calls) == pytest.approx((2.0, 2.0))
    later = standing.add(Execution(Outcome.COMPLETED, 1.0), 1000.0 + week)
    assert later.calls == pytest.approx(2.0)
    both = merge(standing, [standing], 1000.0)
    assert (both.calls, both.bad_calls) == (8.0, 8.0)
    rated = rate(both, 1000.0)
    assert (rated.calls, rated.bad_calls) == (8.0, 8.0)


def test_what_another_version_of_a_router_wrote_is_read() -> None:
    """It knows no calls; and it reads what this one writes."""

    class Older(Struct, frozen=True):
        completed: tuple[float, float] = (0.0, 0.0)
        at: float = 0.0

    older = msgspec.msgpack.decode(msgspec.msgpack.encode(Older((1.0, 1.0), 2.0)), type=Standing)
    assert (older.completed, older.calls) == ((1.0, 1.0), 0.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Standing(at=3.0, calls=4.0)), type=Older).at == 3.0


@pytest.mark.parametrize("wrong", [{"calls": -1.0}, {"bad_calls": float("nan")}, {"calls": 1e300}])
def test_impossible_numbers_of_calls_are_passed_over(wrong: dict[str, float]) -> None:
    """Another router wrote them."""
    assert not StatisticsAggregate(Standing(**wrong)).is_sound()


def test_who_turned_out_not_to_honour_a_setting_loses_little() -> None:
    """One and not three; and what is not blamed loses nothing."""
    assert seen(Execution(Outcome.UNHONOURED, 1.0)) == Standing(at=1000.0)
    assert seen(Execution(Outcome.UNHONOURED, 0.0, is_blamed=True)).failed == (1.0, 1.0)
    assert seen(Execution(Outcome.CRASHED, 0.0, is_blamed=True)).failed == (3.0, 3.0)
