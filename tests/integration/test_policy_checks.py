"""`touchstone policy lint`, `test` and `fmt` as a repository of policies runs them: what is printed, and exit codes."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from attester.cose import PrivateKey
from attester.identity import key_to_pem
from tests.unit.verifier.test_bundle import FILES
from touchstone import main

RULES = b"""package touchstone

import data.lib.kinds

outcome[name] := {"trust_vector": {"executables": value(facts)}, "reasons": []} if {
	some name, facts in input.checked
}

value(facts) := data.ar4si.executables.measured if {
	kinds.is_model(facts.kind)
} else := data.ar4si.executables.other
"""
LIBRARY = b'package lib.kinds\n\nis_model(kind) if kind in {"model"}\n'
TESTS = b"""package touchstone_test

import data.touchstone

test_kind[name] if {
	some name, row in {"model": ["model", 2], "platform": ["platform", 96]}
	print("kind", row[0])
	touchstone.value({"kind": row[0]}) == row[1]
}
"""
ASKED = "Asked N inputs that the contract allows: each has a valid outcome."


def touchstone(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["policy", *(str(each) for each in arguments)])


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def bundle_in(folder: Path, **changes: bytes) -> Path:
    """A bundle that shares a library with others beside it."""
    manifest = {**json.loads(FILES["bundle.json"]), "name": folder.name, "include": ["../lib"]}
    files = {name: data for name, data in FILES.items() if name not in ("rules.rego", "rules_test.rego")}
    return write(
        folder, {**files, "bundle.json": json.dumps(manifest).encode(), "a.rego": RULES, "a_test.rego": TESTS, **changes}
    )  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two bundles and the library that they share."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "policies" / "lib", {"kinds.rego": LIBRARY})
    for name in ("eu", "us"):
        bundle_in(tmp_path / "policies" / name)
    write(tmp_path / "policies" / ".hidden", {"bundle.json": b"{}"})
    return tmp_path / "policies"


def lines(result: Result) -> list[str]:
    """What was printed; how many inputs a policy is asked depends on the contract."""
    return re.sub(r"Asked \d+ inputs", "Asked N inputs", result.output).splitlines()


def test_each_bundle_of_a_repository_is_linted_and_tested(repository: Path) -> None:
    """Each by its name, and one exit code for all."""
    done = touchstone("lint", "policies")
    assert (done.exit_code, lines(done)) == (0, [
        "== policies/eu  eu@1", "4 rules, 0 errors, 0 warnings", ASKED,
        "== policies/us  us@1", "4 rules, 0 errors, 0 warnings", ASKED, "== 2 bundles: all are good",
    ])  # fmt: skip
    done = touchstone("test", "policies/eu", "policies/us", "--threshold", 60)
    shown = ["no test reaches a.rego: 5, 6", "1 of 1 tests pass. They reach 60.0 % of the lines.", ASKED]
    assert (done.exit_code, lines(done)) == (0, [
        "== policies/eu  eu@1", *shown, "== policies/us  us@1", *shown, "== 2 bundles: all are good",
    ])  # fmt: skip
    assert touchstone("test", "policies/eu", "policies/us", "--threshold", 61, "--run", "kind").exit_code == 1


def test_one_bundle_that_is_bad_fails_the_repository(repository: Path) -> None:
    """The others are looked at all the same, and it is named at the end."""
    (repository / "eu" / "data.json").write_bytes(b"{")
    done = touchstone("lint", "policies")
    assert done.exit_code == 1
    assert lines(done)[0] == "== policies/eu"
    assert lines(done)[1].startswith("error: data.json: ")
    assert lines(done)[-1] == "== 2 bundles: not good are policies/eu"
    assert touchstone("test", "policies").exit_code == 1


def test_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    """And so is one that does not exist."""
    assert "neither here nor in a folder below is a bundle.json" in touchstone("lint", tmp_path).output
    assert touchstone("lint", tmp_path / "x").exit_code == 1


def test_bundle_within_a_bundle_is_part_of_it(repository: Path) -> None:
    """It is not looked at by itself."""
    write(repository / "eu" / "examples", {"bundle.json": b"{}"})
    done = touchstone("lint", "policies/eu")
    assert "examples/bundle.json: a bundle may not have this file" in done.output


def test_lint_for_other_programs(repository: Path) -> None:
    """All bundles in one object; findings with file, line and column; the exit code as without."""
    (repository / "eu" / "a.rego").write_bytes(RULES + b"\nnow := time.now_ns()\n")
    (repository / "us" / "bundle.json").write_bytes(b"{}")
    done = touchstone("lint", "policies", "--json")
    assert done.exit_code == 1
    eu, us = json.loads(done.output)["bundles"]
    assert (eu["folder"], eu["policy"][:5], eu["rules"]) == ("policies/eu", "eu@1#", 5)
    (finding,) = eu["findings"]
    assert finding == {
        "level": "error", "rule": "clock", "file": "a.rego", "line": 13, "column": 8,
        "sentence": "time.now_ns reads the clock. Use input.date, the date of the appraisal",
    }  # fmt: skip
    assert us["policy"] is None
    assert us["error"].startswith("bundle.json: ")


def test_tests_for_other_programs(repository: Path) -> None:
    """OPA's keys for each test, and OPA's form of coverage."""
    done = touchstone("test", "policies/eu", "--json")
    assert done.exit_code == 0
    (eu,) = json.loads(done.output)["bundles"]
    (test,) = eu["tests"]
    assert test["sub_results"] == {"model": {"name": "model"}, "platform": {"name": "platform"}}
    assert eu["coverage"]["files"]["lib/kinds.rego"]["coverage"] == 100.0
    assert set(eu["coverage"]) == {"files", "covered_lines", "not_covered_lines", "coverage"}


def test_verbose_shows_cases_and_what_was_printed(repository: Path) -> None:
    """And without it neither, as long as the test passes."""
    done = touchstone("test", "policies/eu", "-v")
    assert lines(done)[:4] == [
        "ok    a_test.rego:5  data.touchstone_test.test_kind",
        "      ok    model",
        "      ok    platform",
        "      a_test.rego:7: kind model",
    ]
    assert "kind model" not in touchstone("test", "policies/eu").output


def test_failing_case_is_shown_with_its_values(repository: Path) -> None:
    """Without asking, and the exit code is 1."""
    (repository / "lib" / "kinds.rego").write_bytes(LIBRARY.replace(b'"model"', b'"model", "platform"'))
    done = touchstone("test", "policies/eu")
    assert done.exit_code == 1
    assert lines(done)[:6] == [
        "FAIL  a_test.rego:5  data.touchstone_test.test_kind: 1 of 2 cases do not hold: platform",
        "      FAIL  platform",
        "      case platform",
        '      a_test.rego:8: touchstone.value({"kind": row[0]}) == row[1]',
        '          touchstone.value({"kind": row[0]}) = 2',
        "          row[1] = 96",
    ]


def test_coverage_is_shown_by_file(repository: Path) -> None:
    """With the lines that no test reaches, as ranges."""
    (repository / "eu" / "a.rego").write_bytes(RULES + b"\nmore if {\n\tinput.a\n\tinput.b\n}\n")
    done = touchstone("test", "policies/eu", "--coverage", "--min-coverage", "99.5")
    assert done.exit_code == 1
    assert [line for line in lines(done) if ".rego" in line][-2:] == [
        "a.rego                     33.3 % of 6 lines, not 5-6, 14-15",
        "lib/kinds.rego            100.0 % of 1 lines",
    ]
    assert lines(done)[-2:] == ["At least 99.5 % are asked for.", ASKED]


def test_only_tests_with_a_name_are_run(repository: Path) -> None:
    """A name that no test has is an error: nothing was shown to hold."""
    assert touchstone("test", "policies/eu", "--run", "test_ki").exit_code == 0
    done = touchstone("test", "policies/eu", "--run", "^nothing$")
    assert done.exit_code == 1
    assert "no test has '^nothing$' in its name" in done.output
    assert touchstone("test", "policies/eu", "-r", "(").exit_code == 2


def test_report_for_ci_of_several_bundles(repository: Path) -> None:
    """A suite for each."""
    assert touchstone("test", "policies", "--junit", "report.xml").exit_code == 0
    suites = ET.fromstring(Path("report.xml").read_bytes())
    assert suites.tag == "testsuites"
    assert [str(suite.get("name"))[:4] for suite in suites] == ["eu@1", "us@1"]
    assert touchstone("test", "policies/eu", "--junit", "one.xml").exit_code == 0
    assert ET.fromstring(Path("one.xml").read_bytes()).tag == "testsuite"


def test_what_is_to_be_done_is_named(repository: Path) -> None:
    """And is no failure."""
    (repository / "eu" / "b_test.rego").write_bytes(b"package touchstone_test\n\ntodo_test_x if false\n")
    done = touchstone("test", "policies/eu")
    assert done.exit_code == 0
    assert lines(done)[0] == "todo  b_test.rego:3  data.touchstone_test.todo_test_x"
    assert " 1 more are to be done." in lines(done)[-2]


def test_shared_library_is_packed_with_each_bundle(repository: Path) -> None:
    """Nothing else is needed to publish it."""
    key = Path("author.pem")
    key.write_bytes(key_to_pem(PrivateKey.generate()))
    key.chmod(0o600)
    assert touchstone("pack", "policies/eu", "--key", key, "--out", "eu.zip").exit_code == 0
    assert "lib/kinds.rego" in zipfile.ZipFile("eu.zip").namelist()


def test_copy_of_a_policy_in_yaml_is_one_in_yaml(repository: Path) -> None:
    """The trust values of this verifier take the place of the copied ones."""
    eu = repository / "eu"
    for name in ("data.json", "ar4si/data.json"):
        (eu / name).rename((eu / name).with_suffix(".yaml"))
    done = touchstone("new", "copy", "--from", "policies/eu")
    assert done.exit_code == 0, done.output
    assert "1. list what you approve in copy/data.yaml" in done.output
    assert sorted(path.name for path in Path("copy/ar4si").iterdir()) == ["data.json"]
    assert touchstone("test", "copy", "--run", "kind").exit_code == 0


# fmt.

UGLY = b"package a\nx:=1\n# why\ny  :=  2\n"
PLAIN = "package a\n\nx := 1\n\n# why\ny := 2\n"


def test_fmt_prints_what_it_would_write(tmp_path: Path) -> None:
    """As `opa fmt` does without an option."""
    file = write(tmp_path, {"a.rego": UGLY}) / "a.rego"
    done = touchstone("fmt", file)
    assert (done.exit_code, done.output) == (0, PLAIN)
    assert file.read_bytes() == UGLY


def test_fmt_checks(repository: Path) -> None:
    """Names each file that is laid out otherwise, of all folders but hidden ones; exits with 1 if there is one."""
    assert touchstone("fmt", "policies", "--check").exit_code == 0
    write(repository, {"lib/b.rego": UGLY, "eu/c.rego": UGLY, ".hidden/d.rego": UGLY})
    done = touchstone("fmt", "policies", "--check")
    assert (done.exit_code, lines(done)) == (1, ["policies/eu/c.rego", "policies/lib/b.rego"])


def test_fmt_shows_a_difference(tmp_path: Path) -> None:
    """As a patch."""
    done = touchstone("fmt", write(tmp_path, {"a.rego": UGLY}), "--diff")
    assert done.exit_code == 0
    assert lines(done)[2:] == [
        "@@ -1,4 +1,6 @@",
        " package a",
        "-x:=1",
        "+",
        "+x := 1",
        "+",
        " # why",
        "-y  :=  2",
        "+y := 2",
    ]


def test_fmt_writes(tmp_path: Path) -> None:
    """Only files that change, and there is nothing to do the second time."""
    folder = write(tmp_path, {"a.rego": UGLY, "b/c.rego": PLAIN.encode()})
    assert lines(touchstone("fmt", folder, "--write")) == [f"wrote {folder / 'a.rego'}"]
    assert (folder / "a.rego").read_text() == PLAIN
    assert touchstone("fmt", folder, "-w").output == ""
    assert touchstone("fmt", folder, "--check").exit_code == 0


def test_fmt_names_what_it_cannot_read(tmp_path: Path) -> None:
    """With file, line and column; the others are written, and the exit code is 1."""
    folder = write(tmp_path, {"a.rego": UGLY, "b.rego": b"package b\n\nx := {\n"})
    done = touchstone("fmt", folder, "--write")
    assert done.exit_code == 1
    assert f"error: {folder / 'b.rego'}:4:" in done.output
    assert (folder / "a.rego").read_text() == PLAIN
    assert (folder / "b.rego").read_bytes() == b"package b\n\nx := {\n"


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["."], "there is no file *.rego"),
        ({}, ["x.rego"], "x.rego: this is not a file"),
        ({"a.rego": b"\xff"}, ["."], "a.rego: the file is not UTF-8"),
        ({"a.rego": b" " * 300_000}, ["."], "a.rego: more than 262144 bytes"),
        ({"a.rego": UGLY}, [".", "--write", "--check"], "--write cannot be together with --check or --diff"),
    ],
)
def test_fmt_refuses(
    files: dict[str, bytes],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a sentence that says what is wrong."""
    monkeypatch.chdir(write(tmp_path, files))
    done = touchstone("fmt", *arguments)
    assert done.exit_code in (1, 2)
    assert message in done.output


def test_fmt_follows_no_link(tmp_path: Path) -> None:
    """What it points at is another's."""
    write(tmp_path / "elsewhere", {"a.rego": UGLY})
    folder = write(tmp_path / "here", {"b.rego": UGLY})
    (folder / "a.rego").symlink_to(tmp_path / "elsewhere" / "a.rego")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    assert lines(touchstone("fmt", folder, "--check")) == [str(folder / "b.rego")]
    done: Any = touchstone("fmt", folder / "a.rego", "--write")
    assert done.exit_code == 1
    assert (tmp_path / "elsewhere" / "a.rego").read_bytes() == UGLY
