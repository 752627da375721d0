"""What callers require of nodes: read strictly, only ever tighter than the workload, and met or not by each node."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.choose.gates import GateContext
from router.choose.requirements import changes_in, find_unmet
from router.model.errors import RequirementsError
from router.model.node import AsideResult, NodeView, signer_tag
from router.model.requirements import (
    MAX_HEADER,
    MEMBERS,
    CallerRequirements,
    combine,
    parse_header,
    read_requirements,
)
from router.model.workload import ASSURANCES, Workload
from tests.unit.router.support import MODEL, NOW, PIN, PLATFORM, TICKS, WEIGHTS, WORKLOAD, ear, view

DIGEST, OTHER = "ab" * 32, "cd" * 32
NOW_CONTEXT = GateContext(now_ms=NOW * 1000, monotonic=TICKS)
often = settings(max_examples=80, deadline=None)

GOOD: dict[str, Any] = {
    "claims": {"platform": ["configuration"], "model": ["executables"]},
    "assurance": "challenged",
    "max_age_s": 120,
    "max_walk_age_s": 600,
    "reference": [DIGEST],
    "nodes": ["n", "m"],
    "operators": ["acme"],
    "regions": ["eu"],
    "not_nodes": ["x"],
    "not_operators": ["evil"],
    "not_regions": ["us"],
    "spki_sha256": [PIN],
    "kids": ["kid-1"],
    "policies": ["policy"],
}


def read(workload: Workload = WORKLOAD, **given: Any) -> CallerRequirements:
    return read_requirements(given, workload)


def refused(given: Any, workload: Workload = WORKLOAD) -> tuple[str, str]:
    """The code and the member of the error."""
    with pytest.raises(RequirementsError) as caught:
        read_requirements(given, workload)
    assert str(caught.value).startswith(caught.value.member)
    return caught.value.code, caught.value.member.removeprefix("provider.touchstone").removeprefix(".")


# Reading.


def test_every_member_is_read() -> None:
    """And named by the submodules' own names."""
    required = read_requirements(GOOD, WORKLOAD)
    assert set(msgspec.to_builtins(required)) == set(MEMBERS) == set(GOOD)
    assert required.claims == {f"model/{MODEL}": ("executables",), "platform": ("configuration",)}
    assert required.assurance == {f"model/{MODEL}": "challenged"}


def test_the_same_requirements_have_one_form() -> None:
    """In whatever order, and however often, their entries are given."""
    one = read(nodes=["a", "b", "b"], claims={"platform": ["configuration"], "gpu": ["hardware"]})
    other = read(nodes=["b", "a"], claims={"gpu": ["hardware"], "platform": ["configuration"]})
    assert one.key == other.key
    assert one.key != read(nodes=["a"]).key


@pytest.mark.parametrize(
    "name", ["max_age", "Nodes", "node", "assurances", "", "claims ", "spki", "\x00", "x" * 500]
)
def test_a_member_that_does_not_exist_is_refused_by_its_name(name: str) -> None:
    """It may be the very thing that the caller relies on."""
    code, member = refused({"max_age_s": 60, name: 1})
    assert code == "requirements.malformed"
    assert not name or name[:10].strip("\x00") in member


@pytest.mark.parametrize("given", [None, [], "x", 1, True, [{"max_age_s": 1}]], ids=str)
def test_what_is_no_object_is_refused(given: Any) -> None:
    assert refused(given) == ("requirements.malformed", "")


def test_an_empty_object_is_refused() -> None:
    """It asks nothing, and its sender means something."""
    assert refused({}) == ("requirements.malformed", "")


MALFORMED: list[tuple[str, Any]] = [
    ("max_age_s", 0),
    ("max_age_s", -1),
    ("max_age_s", True),
    ("max_age_s", "60"),
    ("max_age_s", 1.5),
    ("max_age_s", None),
    ("max_age_s", 1 << 80),
    ("max_walk_age_s", 0),
    ("max_walk_age_s", [60]),
    ("max_walk_age_s", None),
    ("reference", []),
    ("reference", DIGEST),
    ("reference", [DIGEST.upper()]),
    ("reference", [DIGEST + "\n"]),
    ("reference", [DIGEST[:-1]]),
    ("reference", ["sha-256;" + DIGEST]),
    ("reference", [None]),
    ("nodes", []),
    ("nodes", "n"),
    ("nodes", [""]),
    ("nodes", ["x" * 129]),
    ("nodes", ["n"] * 257),
    ("nodes", {"n": 1}),
    ("not_nodes", []),
    ("operators", [1]),
    ("not_operators", None),
    ("regions", [["eu"]]),
    ("not_regions", ""),
    ("spki_sha256", ["zz" * 32]),
    ("spki_sha256", [PIN[:10]]),
    ("kids", []),
    ("kids", ["k"] * 17),
    ("policies", [0]),
    ("policies", ["p" * 513]),
    ("claims", {}),
    ("claims", []),
    ("claims", ["configuration"]),
    ("claims", {"platform": []}),
    ("claims", {"platform": "configuration"}),
    ("claims", {"platform": ["no-such-claim"]}),
    ("claims", {"nowhere": ["configuration"]}),
    ("claims", {"gpu/x": ["hardware"]}),
    ("claims", {"": ["hardware"]}),
    ("claims", None),
    ("assurance", "certain"),
    ("assurance", ""),
    ("assurance", 3),
    ("assurance", {}),
    ("assurance", {"model": "certain"}),
    ("assurance", {"nowhere": "declared"}),
    ("assurance", ["challenged"]),
    ("assurance", None),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED, ids=lambda value: str(value)[:40])
def test_what_is_malformed_is_refused_by_its_member(name: str, value: Any) -> None:
    assert refused({name: value}) == ("requirements.malformed", name)


CONTRADICTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("max_age_s", {"max_age_s": 301}, {}),
    ("max_age_s", {"max_age_s": 61}, {"max_age_s": 60}),
    ("assurance", {"assurance": "declared"}, {}),
    ("assurance", {"assurance": {"model": "declared"}}, {}),
    ("assurance", {"assurance": {f"model/{MODEL}": "challenged"}}, {"model_assurance": "confidential"}),
    ("assurance", {"assurance": {"platform": "declared"}}, {"platform_assurance": "hardware-rooted"}),
    (
        "assurance",
        {"assurance": {"gpu": "declared"}},
        {"submods": {"gpu": {"claims": ["hardware"], "assurance": "challenged"}}},
    ),
    ("reference", {"reference": [OTHER]}, {"digests": [DIGEST]}),
    ("reference", {"reference": [DIGEST, OTHER]}, {"digests": [DIGEST]}),
    ("regions", {"regions": ["us"]}, {"regions": ["eu"]}),
    ("not_regions", {"not_regions": ["eu"]}, {"regions": ["eu"]}),
    ("not_regions", {"regions": ["eu", "us"], "not_regions": ["us"]}, {}),
    ("not_nodes", {"nodes": ["n"], "not_nodes": ["n"]}, {}),
    ("not_operators", {"operators": ["a", "b"], "not_operators": ["b"]}, {}),
    ("claims", {"claims": {"model/another/one": ["executables"]}}, {}),
    ("claims", {"claims": {"model": ["executables"], f"model/{MODEL}": ["file-system"]}}, {}),
    ("assurance", {"assurance": {"model/another/one": "challenged"}}, {}),
]


@pytest.mark.parametrize(("member", "asked", "workload"), CONTRADICTIONS, ids=lambda value: str(value)[:60])
def test_what_contradicts_the_workload_or_itself_is_refused_by_its_member(
    member: str, asked: dict[str, Any], workload: dict[str, Any]
) -> None:
    """Less than the workload requires is a mistake, and must not be read as consent to it."""
    table = msgspec.convert({"model": MODEL, "name": "tiny", **workload}, Workload)
    assert refused(asked, table) == ("requirements.contradiction", member)


@pytest.mark.parametrize(
    ("asked", "workload"),
    [
        ({"max_age_s": 300}, {}),
        ({"assurance": "challenged"}, {}),
        ({"assurance": {"platform": "declared"}}, {}),
        ({"reference": [DIGEST]}, {"digests": [DIGEST, OTHER]}),
        ({"regions": ["eu"]}, {"regions": ["eu", "us"]}),
        ({"not_regions": ["us"]}, {"regions": ["eu", "us"]}),
    ],
    ids=str,
)
def test_as_much_as_the_workload_requires_may_be_required(
    asked: dict[str, Any], workload: dict[str, Any]
) -> None:
    read_requirements(asked, msgspec.convert({"model": MODEL, "name": "tiny", **workload}, Workload))


names = st.sampled_from([*MEMBERS, "x", ""])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100_000),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([DIGEST, PIN, "eu", "platform", "model", "configuration", *ASSURANCES]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["platform", "model", "gpu", "gpu/0", "x", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)


@often
@given(st.dictionaries(names, values, max_size=5) | values)
def test_whatever_comes_is_read_or_refused(given: Any) -> None:
    """With an error that names a member; and what is read again is the same."""
    refusal = None
    try:
        required = read_requirements(given, WORKLOAD)
    except RequirementsError as error:
        refusal = error
    if refusal is not None:
        assert refusal.member.startswith("provider.touchstone")
        assert len(str(refusal)) < 1200
        return
    again = read_requirements(json.loads(required.key), WORKLOAD)
    assert (again, required.key != b"{}") == (required, True)


# The header.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nul",
        "{'max_age_s': 1}",
        '{"max_age_s": 1, "max_age_s": 900}',
        '{"max_age_s": NaN}',
        "\ud800",
    ],
    ids=repr,
)
def test_a_header_that_is_not_json_is_refused(text: str) -> None:
    """Of a member that stands twice nobody knows which is meant."""
    with pytest.raises(RequirementsError):
        parse_header(text)


def test_a_header_that_is_too_long_is_refused() -> None:
    text = '{"nodes": ["' + "n" * MAX_HEADER + '"]}'
    with pytest.raises(RequirementsError, match="8192"):
        parse_header(text)


@often
@given(st.text(max_size=60))
def test_any_header_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(RequirementsError):
        parse_header(text)


# Header and body together.


def test_both_together_are_stricter_than_each() -> None:
    one = read(max_age_s=100, nodes=["a", "b"], claims={"platform": ["configuration"]}, not_nodes=["x"])
    other = read(
        max_age_s=50,
        max_walk_age_s=9,
        nodes=["b", "c"],
        assurance="confidential",
        claims={"platform": ["instance-identity"]},
        not_nodes=["y"],
    )
    both = combine(one, other, WORKLOAD)
    assert both == combine(other, one, WORKLOAD)
    assert both == read(
        max_age_s=50,
        max_walk_age_s=9,
        nodes=["b"],
        not_nodes=["x", "y"],
        assurance="confidential",
        claims={"platform": ["configuration", "instance-identity"]},
    )


@pytest.mark.parametrize(
    "name", ["reference", "nodes", "operators", "regions", "spki_sha256", "kids", "policies"]
)
def test_two_lists_without_a_common_entry_contradict_each_other(name: str) -> None:
    """An empty list would allow everything."""
    entries = [DIGEST, OTHER]
    with pytest.raises(RequirementsError) as caught:
        combine(read(**{name: entries[:1]}), read(**{name: entries[1:]}), WORKLOAD)
    assert (caught.value.code, caught.value.member) == (
        "requirements.contradiction",
        f"provider.touchstone.{name}",
    )


def test_what_one_allows_and_the_other_excludes_is_a_contradiction() -> None:
    with pytest.raises(RequirementsError):
        combine(read(nodes=["a"]), read(not_nodes=["a"]), WORKLOAD)


# What a node meets.


def unmet(node: NodeView, context: GateContext = NOW_CONTEXT, **required: Any) -> str | None:
    """What of the requirements a node lacks."""
    verdict = find_unmet(node, read_requirements(required, WORKLOAD), MODEL, context)
    return None if verdict is None else verdict.code.removeprefix("requirements.")


def walked(ago_s: float = 100.0, **given: Any) -> NodeView:
    return view(measured={"walk_at_ms": int((NOW - ago_s) * 1000)}, **given)


def signed(kid: str) -> NodeView:
    return msgspec.structs.replace(view(), token_digest=b"x" * 32 + signer_tag(kid))


HAS = {"platform": {**PLATFORM, "hardware": 2}}
MET: list[tuple[dict[str, Any], NodeView]] = [
    ({"nodes": ["n", "m"]}, view()),
    ({"not_nodes": ["m"]}, view()),
    ({"operators": ["acme"]}, view(operator="acme")),
    ({"not_operators": ["evil"]}, view(operator="acme")),
    ({"regions": ["eu"]}, view(capabilities={"region": "eu"})),
    ({"not_regions": ["us"]}, view(capabilities={"region": "eu"})),
    ({"spki_sha256": [PIN]}, view()),
    ({"max_age_s": 60}, view(iat=NOW - 60)),
    ({"max_walk_age_s": 100}, walked(100)),
    ({"kids": ["k", "l"]}, signed("l")),
    ({"claims": {"platform": ["hardware"]}}, view(**HAS)),
    ({"claims": {"model": ["executables"]}}, view()),
    ({"assurance": "confidential"}, view(model_assurance="confidential")),
    ({"assurance": {"platform": "hardware-rooted"}}, view(platform_assurance="confidential")),
    ({"reference": [DIGEST, OTHER]}, view(revision=DIGEST)),
    ({"policies": ["policy"]}, view()),
]
UNMET: list[tuple[str, dict[str, Any], NodeView]] = [
    ("result", {"nodes": ["n"]}, NodeView("n")),
    ("node", {"nodes": ["m"]}, view()),
    ("node", {"not_nodes": ["n"]}, view()),
    ("operator", {"operators": ["acme"]}, view(operator="beta")),
    ("operator", {"operators": ["acme"]}, view()),
    ("operator", {"not_operators": ["evil"]}, view(operator="evil")),
    ("region", {"regions": ["eu"]}, view(capabilities={"region": "us"})),
    ("region", {"regions": ["eu"]}, view()),
    ("region", {"regions": ["eu"]}, view(capabilities={"region": ["eu"]})),
    ("region", {"not_regions": ["us"]}, view(capabilities={"region": "us"})),
    ("region", {"not_regions": ["us"]}, view()),
    ("pin", {"spki_sha256": ["cd" * 32]}, view()),
    ("pin", {"spki_sha256": [PIN]}, view(endpoint={})),
    ("age", {"max_age_s": 60}, view(iat=NOW - 61)),
    ("age", {"max_age_s": 60}, msgspec.structs.replace(view(), issued_at=TICKS - 61)),
    ("walk-age", {"max_walk_age_s": 99}, walked(100)),
    ("walk-age", {"max_walk_age_s": 99}, view()),
    ("walk-age", {"max_walk_age_s": 99}, view(measured={"walk_at_ms": "today"})),
    ("walk-age", {"max_walk_age_s": 99}, msgspec.structs.replace(walked(60), issued_at=TICKS - 40)),
    ("kid", {"kids": ["k"]}, signed("l")),
    ("kid", {"kids": ["k"]}, view()),
    ("claim", {"claims": {"platform": ["hardware"]}}, view()),
    ("claim", {"claims": {"platform": ["hardware"]}}, view(platform={**PLATFORM, "hardware": 32})),
    ("claim", {"claims": {"gpu": ["hardware"]}}, view()),
    ("claim", {"claims": {"model": ["executables"]}}, view(weights={**WEIGHTS, "executables": 0})),
    ("assurance", {"assurance": "confidential"}, view()),
    ("assurance", {"assurance": {"platform": "challenged"}}, view()),
    ("reference", {"reference": [DIGEST]}, view(revision=OTHER)),
    ("reference", {"reference": [DIGEST]}, view()),
    ("policy", {"policies": ["policy@1"]}, view()),
]


@pytest.mark.parametrize(("required", "node"), MET, ids=lambda value: str(value)[:60])
def test_a_node_meets_what_it_shows(required: dict[str, Any], node: NodeView) -> None:
    assert unmet(node, **required) is None


@pytest.mark.parametrize(("code", "required", "node"), UNMET, ids=lambda value: str(value)[:60])
def test_a_node_does_not_meet_what_it_does_not_show(
    code: str, required: dict[str, Any], node: NodeView
) -> None:
    """What is missing is not met, whatever the reason."""
    assert unmet(node, **required) == code


def test_all_submodules_of_a_kind_must_show_it() -> None:
    """And there must be one."""
    result = ear("n")
    two = {"gpu/0": result.submods["platform"], "gpu/1": result.submods[f"model/{MODEL}"]}
    node = NodeView("n", result=msgspec.structs.replace(result, submods={**result.submods, **two}))
    assert unmet(node, claims={"gpu": ["configuration"]}) == "claim"
    assert unmet(node, claims={"gpu/0": ["configuration"]}) is None


@pytest.mark.parametrize(
    ("code", "required"),
    [
        ("reference", {"reference": [DIGEST]}),
        ("kid", {"kids": ["k"]}),
        ("pin", {"spki_sha256": [PIN]}),
        ("assurance", {"assurance": "challenged"}),
    ],
)
def test_a_newer_result_that_is_set_aside_must_show_it_too(code: str, required: dict[str, Any]) -> None:
    """Bad news needs no right clock."""
    newer = ear(
        "n", revision=OTHER, model_assurance="declared", endpoint={"url": "https://x", "spki_sha256": "00"}
    )
    node = msgspec.structs.replace(
        view(revision=DIGEST),
        token_digest=b"x" * 32 + signer_tag("k"),
        aside=AsideResult(newer, b"y" * 32 + signer_tag("l"), TICKS),
    )
    assert unmet(node, **required) == code
    assert unmet(msgspec.structs.replace(node, aside=None), **required) is None


@often
@given(
    st.sampled_from([None, 1, 30, 300]),
    st.sampled_from([None, 1, 30, 1000]),
    st.integers(0, 300),
    st.integers(0, 900),
    st.floats(0, 400),
)
def test_time_changes_a_verdict_when_it_is_said_to(
    max_age_s: int | None, max_walk_age_s: int | None, age: int, walk_age: int, later: float
) -> None:
    """Neither before that nor later: a pool looks again then, and at no other time."""
    required = CallerRequirements(max_age_s=max_age_s, max_walk_age_s=max_walk_age_s)
    node = msgspec.structs.replace(
        view(iat=NOW - age, measured={"walk_at_ms": (NOW - age - walk_age) * 1000}), issued_at=TICKS - age / 2
    )
    due = changes_in(node, required, MODEL, NOW_CONTEXT)
    before = find_unmet(node, required, MODEL, NOW_CONTEXT)
    then = GateContext(now_ms=NOW * 1000 + int(later * 1000), monotonic=TICKS + later)
    after = find_unmet(node, required, MODEL, then)
    if later < due - 0.01:
        assert (before is None) == (after is None)
    elif later >= due:
        assert after is not None
