"""What a bundle must pass before it may judge anybody, and how it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.process import run_task

BASE = bundles.load(default_policy())
TESTS = """package other_test

test_holds if 1 == 1

test_is_false if {
\t1 == 2
}
"""


def policy(**files: str | None) -> Bundle:
    content = dict(BASE.files)
    for name, text in files.items():
        place = name.replace("__", "/").replace("_DOT_", ".")
        if text is None:
            del content[place]
        else:
            content[place] = text.encode()
    return bundles.of_files(content)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"gpu_DOT_rego": "package touchstone\n\nx := {\n"}, "gpu.rego:4:1: "),
        ({"more_DOT_rego": "package touchstone\n\nf(x) := f(x)\n"}, "more.rego:3:9: "),
        ({"more_DOT_rego": "package touchstone\n\nx := time.now_ns()\n"}, "more.rego:3:6: "),
        ({"more_DOT_rego": "package touchstone\n\nx := 2.5\n"}, "more.rego:3:6: "),
        ({"policy_test_DOT_rego": None}, "there is no test"),
        ({"other_test_DOT_rego": TESTS}, "other_test.rego:5: data.other_test.test_is_false: "),
    ],
    ids=["a parse error", "recursion", "a clock", "a float", "no tests", "a failing test"],
)
async def test_what_is_not_admitted_is_said_with_its_place(
    files: dict[str, str | None], message: str
) -> None:
    """One line for each reason."""
    with pytest.raises(BundleError) as refused:
        await admission.check(policy(**files))
    assert message in str(refused.value)


PARSING: dict[str, Callable[[], str]] = {
    "nested brackets": lambda: "package touchstone\n\nx := " + "[" * 100,
    "nested parentheses": lambda: "package touchstone\n\nx := " + "(" * 5000,
}


@pytest.mark.parametrize("source", PARSING.values(), ids=PARSING)
async def test_a_text_that_the_parser_never_ends_with(source: Callable[[], str]) -> None:
    """Parsed in a process of its own, for a limited time."""
    with pytest.raises(PolicyError):
        await run_task("inspect", policy(more_DOT_rego=source()), 0.5)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("package touchstone\n\nallow { input.x }\n", "a.rego:3:7: `if` keyword is required before rule body. Rules are Rego v1"),
        ("package touchstone\n\ndeny[x] { x := 1 }\n", "deny[x] { … } is deny contains x if { … }"),
        ("x := 1\n", "Begin the file with package touchstone"),
        ("package a\n\nimport rego.v1\nimport future.keywords.in\n", "remove import future.keywords"),
    ],
)  # fmt: skip
async def test_rego_of_other_versions_is_refused_with_what_to_write(source: str, hint: str) -> None:
    """The row "refused with misleading hints": users of OPA bring these."""
    with pytest.raises(BundleError) as error:
        await admission.inspect(dataclasses.replace(BASE, modules=(("a.rego", source),)))
    assert hint in str(error.value)
