"""What the checker finds refuses a bundle, by the way that every bundle goes, and within bounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.verifier import test_checker as cases
from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import admission
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle

BASE = bundles.load(default_policy())
PAGE = (Path(__file__).parents[3] / "docs" / "lint-rules.md").read_text()


def with_rules(text: str) -> Bundle:
    """The default bundle with one file more."""
    return bundles.of_files({**BASE.files, "more.rego": f"package touchstone\n\n{text}\n".encode()})


ROW = {
    "an undefined function": ("x := aproved(input.date)", "more.rego:3:6: there is no function aproved"),
    "a misspelt function": ('x if startwith(input.date, "2")', "Did you mean startswith?"),
    "a wrong arity": ("x if startswith(input.date)", "takes 2 arguments"),
    "wrong types": ("x if startswith(input.node, input.date)", "must be a string"),
    "an unused import": (
        "import data.thresholds\n\nx := input.date",
        "the import data.thresholds is not used",
    ),
    "a misspelt input field": (
        "x contains name if {\n\tsome name, facts in input.checked\n\tfacts.manifset == name\n}",
        "more.rego:5:8: facts has no field manifset. Did you mean manifest?",
    ),
    "an impossible value": (
        'x contains name if {\n\tsome name, facts in input.checked\n\tfacts.walk == "caled"\n}',
        'more.rego:5:2: facts.walk is never "caled". Did you mean "called"?',
    ),
    "data that are not there": ("x := data.approved_engine", "Did you mean approved_engines?"),
    "an unknown reason code": (
        (
            'outcome["npu/0"] := {"trust_vector": {"hardware": data.ar4si.hardware.declared}, "reasons": ["gpu.bad"]} if'
            ' {\n\tinput.checked["npu/0"].kind == "unknown"\n}'
        ),
        "there is no reason code gpu.bad",
    ),
}


@pytest.mark.parametrize(("text", "message"), ROW.values(), ids=ROW)
async def test_lint_refuses_what_opas_checker_refuses(text: str, message: str) -> None:
    """Lint passes an undefined function, a misspelt one, a wrong arity, wrong types, unused imports, misspelt fields."""
    with pytest.raises(BundleError) as refused:
        await admission.check(with_rules(text))
    assert message in str(refused.value)


async def test_the_default_bundle_has_no_finding() -> None:
    assert (await admission.inspect(BASE)).findings == ()


def test_there_are_at_most_a_hundred_findings_in_a_file() -> None:
    """So a policy of mistakes does not keep the checker busy with suggestions."""
    source = "package touchstone\n" + "".join(f"r{i} := zz{i}(q{i})\n" for i in range(500))
    findings = cases.found(source + cases.ENTRY)
    assert len(findings) == 100
    assert {f.file for f in findings} == {"a.rego"}


def test_a_query_in_an_odd_order_is_left() -> None:
    """No order of statements makes the checker go through a query again and again, and none is called wrong for it."""
    count = 400
    order = sorted(range(count), key=lambda i: (i * 149) % count)
    lines = "".join(f"\tv{i} = v{i + 1}\n" for i in order)
    assert cases.in_policy(f"x if {{\n{lines}\tv{count} = 1\n\tv0 == 1\n}}") == []


TABLES: tuple[tuple[Callable[[str], list[str]], dict[str, tuple[str, str]]], ...] = (
    (cases.in_policy, cases.NAMES),
    (cases.in_policy, cases.CALLS),
    (cases.in_policy, cases.FIELDS),
    (cases.in_policy, cases.VALUES),
    (cases.in_policy, cases.CONFLICTS),
)


def test_the_page_has_every_rule() -> None:
    """docs/lint-rules.md lists the rules that these tests have seen, and no other."""
    shown = [case[1] for _, table in TABLES for case in table.values()]
    shown += [case[1] for case in cases.OUTCOMES.values()]
    seen = {text.rpartition("(")[2].rstrip(")") for text in shown} | {"depth"}
    table = PAGE.partition("## Names, types and values")[2].partition("## What must not")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == seen
