"""Trials: what counts as a change, how changes are counted, and whom a policy is asked about."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import regorus
from hypothesis import given
from hypothesis import strategies as st

from fixtures.recorded import Template
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL
from verifier import appraisal, recording, results, trial
from verifier.appraisal import NodeSnapshot
from verifier.changes import Change, SubmodVerdict, compare, verdicts_of
from verifier.config import default_policy
from verifier.errors import PolicyError
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.reappraisal import Reappraiser
from verifier.recording import AppraisalSummary, Recording, RecordingHead, ReferenceName, SubmodSummary
from verifier.schemes.context import ModelReference
from verifier.trial import MAX_FAILURES, ChangeCount, TrialReport

DEFAULT = bundles.load(default_policy())
NOW = 1_795_000_000_000
GOOD = SubmodVerdict({"configuration": 2}, ())
FAIR = SubmodVerdict({"configuration": 36}, ("runtime.engine.weak",))
BAD = SubmodVerdict({"configuration": 96}, ("runtime.engine.unapproved",))
NONE = SubmodVerdict({"configuration": 0}, ())
FAILED = SubmodVerdict({"configuration": -1}, ("policy.failed",))


# What counts as a change.


def test_equal_verdicts_are_no_change() -> None:
    """However many there are."""
    assert compare({"a": GOOD, "b": BAD}, {"b": BAD, "a": GOOD}) == []
    assert compare({}, {}) == []


SAME = {
    "order of reasons": (("policy.failed", "policy.ceiling"), ("policy.ceiling", "policy.failed")),
    "a reason twice": (("policy.failed",), ("policy.failed", "policy.failed")),
}


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_reasons_are_compared_as_a_set(old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Neither their order nor their number matters."""
    assert (
        compare({"a": SubmodVerdict({"hardware": 2}, old)}, {"a": SubmodVerdict({"hardware": 2}, new)}) == []
    )


DIFFERENT = {
    "another value": SubmodVerdict({"configuration": 3}, ()),
    "another claim": SubmodVerdict({"hardware": 2}, ()),
    "a claim more": SubmodVerdict({"configuration": 2, "hardware": 2}, ()),
    "no claim": SubmodVerdict({}, ()),
    "a reason": SubmodVerdict({"configuration": 2}, ("policy.failed",)),
}


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT)
def test_anything_else_is_a_change(other: SubmodVerdict) -> None:
    """Also where the status stays."""
    assert compare({"a": GOOD}, {"a": other}) == [Change("a", GOOD, other)]
    assert compare({"a": other}, {"a": GOOD}) == [Change("a", other, GOOD)]


def test_submodule_that_comes_or_goes_is_a_change() -> None:
    """With nothing on the other side; in the order of names."""
    assert compare({"b": GOOD, "c": BAD}, {"a": BAD, "c": BAD}) == [
        Change("a", None, BAD),
        Change("b", GOOD, None),
    ]


VERDICTS = st.builds(
    SubmodVerdict,
    st.dictionaries(st.sampled_from(["hardware", "configuration"]), st.sampled_from([-1, 2, 36, 96])),
    st.lists(st.sampled_from(["policy.failed", "policy.ceiling"]), max_size=3).map(tuple),
)
RESULTS = st.dictionaries(st.sampled_from("abc"), VERDICTS)


@given(RESULTS, RESULTS)
def test_changes_are_exactly_what_differs(
    old: dict[str, SubmodVerdict], new: dict[str, SubmodVerdict]
) -> None:
    """Each submodule once, none too many, and the same ones the other way round."""
    assert compare(old, old) == []
    found = {change.submod: (change.before, change.after) for change in compare(old, new)}

    def meaning(verdict: SubmodVerdict | None) -> Any:
        return None if verdict is None else (verdict.vector, set(verdict.reasons))

    names = old.keys() | new.keys()
    differing = {name for name in names if meaning(old.get(name)) != meaning(new.get(name))}
    assert found == {name: (old.get(name), new.get(name)) for name in differing}
    assert {c.submod: (c.after, c.before) for c in compare(new, old)} == found


RANKED: list[SubmodVerdict] = [BAD, NONE, FAIR, GOOD]


@pytest.mark.parametrize(("low", "high"), list(itertools.combinations(range(4), 2)))
def test_change_has_a_direction(low: int, high: int) -> None:
    """From contraindicated over none and warning to affirming is better, and back is worse."""
    assert Change("a", RANKED[low], RANKED[high]).direction == "better"
    assert Change("a", RANKED[high], RANKED[low]).direction == "worse"


@pytest.mark.parametrize("before", [*RANKED, None])
def test_that_a_policy_fails_is_never_better(before: SubmodVerdict | None) -> None:
    """`warning → none (policy.failed)` was printed as better.  A node that was bad is no better off either."""
    assert Change("a", before, FAILED).direction == "worse"
    assert Change("a", FAILED, FAILED).direction == "other"


def test_that_a_policy_no_longer_fails_goes_by_the_status() -> None:
    """A node of which nothing was known turns out to be good, or bad."""
    assert [Change("a", FAILED, after).direction for after in RANKED] == [
        "worse",
        "other",
        "better",
        "better",
    ]


@pytest.mark.parametrize("verdict", RANKED, ids=["contraindicated", "none", "warning", "affirming"])
def test_change_within_a_status_has_none(verdict: SubmodVerdict) -> None:
    """What a router does stays."""
    other = SubmodVerdict(verdict.vector, ("policy.ceiling",))
    assert Change("a", verdict, other).direction == "other"


def test_submodule_that_goes_is_worse() -> None:
    """What was affirmed is so no longer; and one that comes is better."""
    assert Change("a", GOOD, None).direction == "worse"
    assert Change("a", None, GOOD).direction == "better"


def test_status_of_a_verdict_is_that_of_its_worst_claim() -> None:
    """As for a result."""
    assert SubmodVerdict({"configuration": 2, "hardware": 96}, ()).tier == "contraindicated"
    assert SubmodVerdict({}, ()).tier == "none"


# Counting.


def taken(
    node: str = "n", at_ms: int = 0, *, appraisal_id: str = "", given: bytes = b"{}", **gist: Any
) -> RecordingHead:
    made = AppraisalSummary(
        build=results.BUILD, policy=DEFAULT.digest, references={}, held=NodeSnapshot(), submods={}
    )
    return RecordingHead(appraisal_id, node, at_ms, given, msgspec.structs.replace(made, **gist))


def report_of(*appraisals: tuple[str, int, Sequence[Change]]) -> TrialReport:
    report = TrialReport("p@1")
    for node, at_ms, changes in appraisals:
        report.count(taken(node, at_ms), changes)
    return report


WORSE, BETTER, OTHER = (
    Change("platform", GOOD, BAD),
    Change("model/m", BAD, GOOD),
    Change("model/m", BAD, SubmodVerdict({"configuration": 97}, ())),
)


def test_empty_report() -> None:
    """Nothing was tried, and nothing is said of anybody."""
    assert TrialReport("p@1").to_wire() == {
        "policy": "p@1", "appraisals": 0, "unchanged": 0, "nodes": 0, "nodes_changed": 0, "better": 0,
        "worse": 0, "other": 0, "examined": 0, "failures": 0, "first_failure": None, "gave_up": False, "samples": 0,
        "failed_sample": None, "changes": [],
    }  # fmt: skip


def test_report_counts_appraisals_and_nodes() -> None:
    """And among them those that change."""
    report = report_of(("a", 1, []), ("a", 2, [WORSE]), ("b", 3, []), ("c", 4, [WORSE, BETTER]), ("c", 5, []))
    found = report.to_wire()
    assert (found["appraisals"], found["unchanged"]) == (5, 3)
    assert (found["nodes"], found["nodes_changed"]) == (3, 2)
    assert (found["worse"], found["better"], found["other"]) == (2, 1, 0)


def test_same_change_of_a_node_is_counted_together() -> None:
    """How often, and when last, whatever the order in which they come."""
    report = report_of(("a", 5000, [WORSE]), ("a", 9999, [WORSE]), ("a", 7000, [WORSE]))
    assert report.in_order() == [ChangeCount("a", WORSE, 3, 9999)]
    (shown,) = report.to_wire()["changes"]
    assert (shown["count"], shown["last"]) == (3, 9)


def test_equal_change_written_otherwise_is_counted_together() -> None:
    """The order of claims is no difference."""
    claims = {"configuration": 96, "instance-identity": 2}
    one = Change("platform", GOOD, SubmodVerdict(claims, ()))
    other = Change("platform", GOOD, SubmodVerdict(dict(reversed(claims.items())), ()))
    assert [c.count for c in report_of(("a", 1, [one]), ("a", 2, [other])).in_order()] == [2]


def test_different_changes_of_a_node_are_told_apart() -> None:
    """By submodule, and by what they come from and to."""
    report = report_of(("a", 1, [BETTER, WORSE]), ("a", 2, [OTHER]))
    assert [(c.change, c.count) for c in report.in_order()] == [(BETTER, 1), (OTHER, 1), (WORSE, 1)]


def test_same_change_of_two_nodes_is_two() -> None:
    """An operator asks for whom."""
    report = report_of(("b", 1, [WORSE]), ("a", 2, [WORSE]))
    assert [(c.node, c.count) for c in report.in_order()] == [("a", 1), ("b", 1)]
    assert report.to_wire()["worse"] == 2


def test_change_is_shown_with_both_verdicts() -> None:
    """As JSON has it, with nothing where there was none."""
    (shown,) = report_of(("a", 1999, [Change("gpu/0", None, BAD)])).to_wire()["changes"]
    assert json.loads(json.dumps(shown)) == {
        "node": "a", "submod": "gpu/0", "direction": "other", "from": None,
        "to": {"vector": {"configuration": 96}, "reasons": ["runtime.engine.unapproved"]},
        "count": 1, "last": 1,
    }  # fmt: skip


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 10**6),
        st.lists(st.sampled_from([WORSE, BETTER]), unique_by=lambda c: c.submod),
    )
)


@given(EVENTS)
def test_counts_add_up(events: list[tuple[str, int, list[Change]]]) -> None:
    """Nothing is counted twice or lost."""
    report = report_of(*events)
    found = report.to_wire()
    assert found["appraisals"] == len(events)
    assert sum(c["count"] for c in found["changes"]) == sum(len(changes) for _, _, changes in events)
    assert found["unchanged"] == sum(not changes for _, _, changes in events)
    times: Counter[tuple[str, str]] = Counter()
    for node, at_ms, changes in events:
        for change in changes:
            times[node, change.submod] = max(times[node, change.submod], at_ms)
    assert {(c.node, c.change.submod): c.last_ms for c in report.in_order()} == times
    assert found["better"] + found["worse"] + found["other"] == len(found["changes"])


# Asking.


class Library:
    """What recordings name, and which of them were looked up."""

    def __init__(self, *known: Bundle, active: Mapping[str, ModelReference] | None = None) -> None:
        self.known = {each.digest: each for each in known}
        self.recordings: dict[str, Recording] = {}
        self.references: dict[str, ModelReference] = {}
        self.in_force = dict(active or {})
        self.read: list[str] = []

    async def bundle(self, digest: str) -> Bundle:
        return self.known[digest]

    async def reference(self, name: ReferenceName) -> ModelReference:
        return self.references[name.digest]

    async def active(self, model: str) -> ModelReference | None:
        return self.in_force.get(model)

    async def recording(self, appraisal_id: str) -> Recording:
        self.read.append(appraisal_id)
        return self.recordings[appraisal_id]


class Policy:
    """An engine that answers, fails, and counts."""

    def __init__(self, answer: Callable[[bytes], Any]) -> None:
        self.answer = answer
        self.asked: Counter[bytes] = Counter()

    async def __call__(self, question: bytes) -> bytes:
        self.asked[question] += 1
        await asyncio.sleep(0)
        found = self.answer(question)
        if isinstance(found, Exception):
            raise found
        return msgspec.json.encode(found)


def entry(vector: dict[str, int], *reasons: str) -> dict[str, Any]:
    return {"trust_vector": vector, "reasons": list(reasons)}


def summary(
    may_affirm: dict[str, int],
    *,
    vector: dict[str, int],
    blocked: dict[str, str] | None = None,
    found: tuple[str, ...] = (),
) -> SubmodSummary:
    """What was recorded of one submodule."""
    return SubmodSummary(may_affirm=may_affirm, blocked=blocked or {}, found=found, vector=vector, reasons=())


CONFIGURATION = summary({"configuration": 2}, vector={"configuration": 2})


def platform(node: str = "n", given: bytes = b"{}", at_ms: int = 0, **gist: Any) -> RecordingHead:
    """A recording of one submodule that was affirming."""
    return taken(node, at_ms, given=given, **{"submods": {"platform": CONFIGURATION}, **gist})


def replay(policy: Policy, library: Library | None = None, bundle: Bundle = DEFAULT) -> Reappraiser:
    return Reappraiser(bundle, policy, library or Library(DEFAULT))


async def pages(*given: list[RecordingHead]) -> AsyncIterator[list[RecordingHead]]:
    for page in given:
        yield page


def failing(_: bytes) -> PolicyError:
    return PolicyError("broken")


async def test_trial_finds_what_changes() -> None:
    """For whom, how often, from what to what."""
    policy = Policy(lambda q: {"platform": entry({"configuration": 96 if q == b"old" else 2})})
    page = [platform("a", b"old", 1000), platform("b", b"new", 2000), platform("a", b"old", 3000)]
    report = await trial.run(pages(page), replay(policy), "p@1")
    assert (report.appraisals, report.unchanged, report.examined, report.failures) == (3, 1, 0, 0)
    after = SubmodVerdict({"configuration": 96}, ())
    assert report.in_order() == [ChangeCount("a", Change("platform", GOOD, after), 2, 3000)]


async def test_equal_inputs_are_asked_once() -> None:
    """Within a page and from page to page."""
    policy = Policy(lambda _: {"platform": entry({"configuration": 2})})
    page = [platform(f"n{number}", b"%d" % (number % 3)) for number in range(30)]
    report = await trial.run(pages(page, page), replay(policy), "p@1")
    assert (report.appraisals, report.unchanged) == (60, 60)
    assert policy.asked == {b"0": 1, b"1": 1, b"2": 1}


async def test_large_outcomes_do_not_fill_the_memory() -> None:
    """They are asked for again rather than kept."""
    text = "x" * 100_000
    policy = Policy(lambda _: {"platform": {"trust_vector": {"configuration": 2}, "reasons": [], "x": text}})
    trying = replay(policy)
    for number in range(20):
        await trying.verdicts([platform(given=b"%d" % number)])
    assert sum(map(len, trying._outcomes._known.values())) < 1_000_000


async def test_progress_is_told_by_page() -> None:
    """How many were tried."""
    told: list[int] = []
    policy = Policy(lambda _: {"platform": entry({"configuration": 2})})
    await trial.run(pages([platform()] * 3, [], [platform()]), replay(policy), "p@1", told.append)
    assert sum(told) == 4


async def test_verdict_is_the_policys_under_the_ceiling_of_the_evidence() -> None:
    """As an appraisal would lower it, and for the same reasons."""
    submods = {
        "platform": summary({}, found=("evidence.time",), vector={"configuration": 2}),
        "model/m": summary(
            {"executables": -2}, blocked={"file-system": "file x"}, vector={"executables": -2}
        ),
    }
    policy = Policy(
        lambda _: {
            "platform": entry({"configuration": 2}, "runtime.engine.weak", "evidence.time"),
            "model/m": entry({"executables": 2, "file-system": 2}),
        }
    )
    (found,) = await replay(policy).verdicts([taken(submods=submods)])
    assert found["platform"].vector == {"configuration": -33}
    assert found["platform"].reasons == ("evidence.time", "policy.ceiling", "runtime.engine.weak")
    assert found["model/m"].vector == {"executables": -2, "file-system": 96}
    assert set(found["model/m"].reasons) == {"policy.blocked", "policy.ceiling"}


async def test_what_is_held_against_a_node_stays_held() -> None:
    """No policy ends a quarantine."""
    policy = Policy(lambda _: {"platform": entry({"instance-identity": 2})})
    submods = {"platform": summary({"instance-identity": 2}, vector={"instance-identity": 96})}
    (found,) = await replay(policy).verdicts([taken(submods=submods, held=NodeSnapshot(quarantined_by="i1"))])
    assert found["platform"] == SubmodVerdict({"instance-identity": 96}, ("identity.node.quarantined",))


WRONG: dict[str, Any] = {
    "an error": PolicyError("broken"),
    "nothing": None,
    "a submodule left out": {},
    "a submodule invented": {"platform": entry({"configuration": 2}), "gpu/0": entry({"hardware": 2})},
    "a wrong value": {"platform": entry({"configuration": 258})},
    "an unknown reason": {"platform": entry({"configuration": 2}, "nothing.known")},
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
async def test_failing_policy_comes_to_none(answer: Any) -> None:
    """−1 and never contraindicated, as an appraisal would; and it is counted."""
    trying = replay(Policy(lambda _: answer))
    (found,) = await trying.verdicts([platform()])
    assert found == {
        "platform": SubmodVerdict({"instance-identity": -1, "configuration": -1}, ("policy.failed",))
    }
    assert trying.failures == 1


async def test_outcome_that_is_no_json_is_a_failure() -> None:
    """Whatever the engine lets through."""

    async def ask(_: bytes) -> bytes:
        return b"{"

    trying = Reappraiser(DEFAULT, ask, Library(DEFAULT))
    (found,) = await trying.verdicts([platform()])
    assert found["platform"].reasons == ("policy.failed",)
    assert trying.failures == 1


async def test_failure_is_asked_again_on_the_next_page() -> None:
    """It may have been the machine's fault."""
    answers = iter([PolicyError("busy"), {"platform": entry({"configuration": 2})}])
    policy = Policy(lambda _: next(answers))
    report = await trial.run(pages([platform()], [platform()]), replay(policy), "p@1")
    assert (report.failures, report.unchanged) == (1, 1)
    assert policy.asked == {b"{}": 2}


async def test_policy_that_fails_too_often_is_given_up() -> None:
    """A second each for all the rest would be for nothing."""
    policy = Policy(failing)
    given = [[platform(given=b"%d" % n) for n in range(k, k + 40)] for k in range(0, 400, 40)]
    report = await trial.run(pages(*given), replay(policy), "p@1")
    assert report.gave_up
    assert MAX_FAILURES <= report.failures < MAX_FAILURES + 40
    assert report.appraisals == report.failures
    assert policy.asked.total() == report.failures
    assert report.to_wire()["gave_up"] is True


async def test_policy_that_fails_less_often_is_not_given_up() -> None:
    """The last that is tried is the last there is."""
    policy = Policy(
        lambda q: failing(q) if int(q) < MAX_FAILURES - 1 else {"platform": entry({"configuration": 2})}
    )
    given = [[platform(given=b"%d" % n) for n in range(k, k + 50)] for k in range(0, 200, 50)]
    report = await trial.run(pages(*given), replay(policy), "p@1")
    assert not report.gave_up
    assert (report.appraisals, report.failures) == (200, MAX_FAILURES - 1)
    assert report.unchanged == 201 - MAX_FAILURES


async def test_error_that_is_not_the_policys_is_nobodys_verdict() -> None:
    """A trial that cannot go on says so."""
    policy = Policy(lambda _: RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        await trial.run(pages([platform()]), replay(policy), "p@1")


# Examining again: with real evidence, and the real rules in this process.


@pytest.fixture(scope="module")
def template(model_folder: Path) -> Template:
    """An honest appraisal under a policy that approves the engine."""
    data = json.loads(DEFAULT.files["data.json"])
    data["approved_engines"] = {ENGINE: {"versions": [ENGINE_VERSION]}}
    return Template(model_folder, with_files({"data.json": json.dumps(data).encode()}), NOW)


def with_files(files: Mapping[str, bytes], base: Bundle = DEFAULT) -> Bundle:
    return bundles.of_files({**base.files, **files})


def rules(bundle: Bundle) -> Policy:
    engine = regorus.Engine()
    for name, source in bundle.modules:
        engine.add_policy(name, source)
    engine.add_data_json(bundle.data)

    def answer(question: bytes) -> Any:
        engine.set_input_json(question.decode())
        return json.loads(engine.eval_rule_as_json("data.touchstone.outcome"))

    return Policy(answer)


def recorded(template: Template, library: Library, **changes: Any) -> RecordingHead:
    """An appraisal of the template's node as it was recorded, also with the library."""
    given, record = template.record("n1", "j1", ENGINE_VERSION, {})
    record = msgspec.structs.replace(record, **changes)
    checked = appraisal.CheckedEvidence(record.checked)
    outcome = appraisal.read_outcome(rules(template.bundle).answer(given), record.checked)
    result = recording.conclude(record, checked, outcome, template.context, template.bundle.id)
    library.recordings["j1"] = Recording(template.evidence(ENGINE_VERSION), given, record)
    library.references[template.document.digest] = template.verifier_inputs.references[MODEL]
    return RecordingHead("j1", "n1", NOW, given, recording.summary_of(record, result))


async def try_on(template: Template, bundle: Bundle, library: Library, **changes: Any) -> TrialReport:
    page = [recorded(template, library, **changes)]
    return await trial.run(pages(page), Reappraiser(bundle, rules(bundle), library), bundle.id)


async def test_same_policy_changes_nothing(template: Template) -> None:
    """Claim for claim, without looking at the evidence."""
    library = Library(template.bundle)
    report = await try_on(template, template.bundle, library)
    assert (report.unchanged, report.examined, report.failures) == (1, 0, 0)
    assert library.read == []


async def test_other_rules_are_asked_with_what_was_true(template: Template) -> None:
    """Evidence is not examined again for them."""
    library = Library(template.bundle)
    report = await try_on(template, with_files({}, DEFAULT), library)
    assert library.read == []
    (found,) = report.in_order()
    assert (found.change.submod, found.change.direction) == ("platform", "worse")
    assert found.change.after is not None
    assert "runtime.engine.unapproved" in found.change.after.reasons


def with_thresholds(template: Template, **values: Any) -> Bundle:
    data = json.loads(template.bundle.files["data.json"])
    data["thresholds"].update(values)
    return with_files({"data.json": json.dumps(data).encode()}, template.bundle)


async def test_other_thresholds_have_the_evidence_examined(template: Template) -> None:
    """What is true depends on them."""
    library = Library(template.bundle)
    report = await try_on(template, with_thresholds(template, missed_limit=9), library)
    assert (report.examined, report.unchanged, library.read) == (1, 1, ["j1"])


async def test_another_build_has_the_evidence_examined(template: Template) -> None:
    """It may find other things true."""
    library = Library(template.bundle)
    report = await try_on(template, template.bundle, library, build="touchstone 0.0.1")
    assert (report.examined, report.unchanged) == (1, 1)


def bringing(template: Template, document: Any, rules_text: str | None = None) -> Bundle:
    """The template's policy with a reference value, and other rules for models."""
    files = {"references/tiny.json": msgspec.json.encode(document)}
    if rules_text is not None:
        files["weights.rego"] = rules_text.encode()
    return with_files(files, template.bundle)


async def test_another_reference_value_has_the_evidence_examined(template: Template) -> None:
    """And is held against it."""
    file = msgspec.structs.replace(template.document.files[0], sha256="00" * 32)
    other = msgspec.structs.replace(template.document, files=(file, *template.document.files[1:]), tensors=())
    report = await try_on(template, bringing(template, other), Library(template.bundle))
    assert report.examined == 1
    (found,) = report.in_order()
    assert (found.change.submod, found.change.direction) == (f"model/{MODEL}", "worse")


BY_SOURCE = """package touchstone

outcome[name] := {"trust_vector": model_vector(facts), "reasons": []} if {
	some name, facts in input.checked
	facts.kind == "model"
}

model_vector(facts) := {"file-system": 32} if {
	facts.manifest
	some _, reference in input.references
	reference.source == "bundle"
} else := {"file-system": 96}
"""


async def test_policy_is_told_that_it_brings_the_reference_value(template: Template) -> None:
    """Also where the value is the same: its origin is not, and rules may ask for it."""
    bundle = bringing(template, template.document, BY_SOURCE)
    report = await try_on(template, bundle, Library(template.bundle))
    (found,) = report.in_order()
    assert found.change.after is not None
    assert found.change.after.vector["file-system"] == 32


async def test_reference_value_that_left_with_its_policy_is_not_used(template: Template) -> None:
    """But the one that is in force for the model now."""
    old = bringing(template, template.document)
    before = dataclasses.replace(
        template.verifier_inputs,
        references={MODEL: template.document.to_reference(source="bundle", signer="x")},
    )
    library = Library(old)
    report = await try_on(template, template.bundle, library, basis=before.basis(old.digest))
    assert report.examined == 1
    (found,) = report.in_order()
    assert found.change.submod == f"model/{MODEL}"
    library = Library(old, active=template.verifier_inputs.references)
    report = await try_on(template, template.bundle, library, basis=before.basis(old.digest))
    assert (report.examined, report.unchanged) == (1, 1)


def test_recording_keeps_what_it_was(template: Template) -> None:
    """Packed and unpacked it is the same, as JSON has it."""
    _, record = template.record("n1", "j1", ENGINE_VERSION, {"numpy": "2"})
    again = recording.unpack(recording.pack(record))
    assert msgspec.json.encode(again) == msgspec.json.encode(record)
    assert again.context({}, {}, DEFAULT.thresholds, record.basis.blocks).node == record.node


@given(st.binary(max_size=60))
def test_damaged_recording_is_an_error_of_the_store(data: bytes) -> None:
    """No other exception comes out."""
    with pytest.raises(recording.RecordingError):
        recording.unpack(data)
    with pytest.raises(recording.RecordingError):
        recording.read_summary(data.hex())


def test_verdicts_are_read_from_a_result() -> None:
    """Vector and codes of each submodule."""
    claims = {
        "submods": {
            "platform": {
                "ear_trustworthiness_vector": {"configuration": 36},
                "ear_verifier_claims": {"reasons": [{"code": "runtime.engine.weak", "detail": "…"}]},
            }
        }
    }
    assert verdicts_of(json.dumps(claims)) == {"platform": FAIR}
