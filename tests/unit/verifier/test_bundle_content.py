"""What OPA's users have in a folder: YAML, data in folders, documents, shared libraries; and what they are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.test_bundle import (
    BUNDLE,
    DATA,
    FILES,
    encode,
    folder_of,
    refusal,
    with_file,
    without,
    zip_of,
)
from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import ar4si, bundle, rooted
from verifier.policy.archive import read_archive, write_archive

YAML = b"""# What we approve.
approved_engines:
  vllm: {}
thresholds:
  walk_max_age_s: 3600
  missed_limit: 3
  classes: {}
"""


def data(files: Mapping[str, bytes]) -> Any:
    return json.loads(bundle.of_files(files).data)


# YAML.


@pytest.mark.parametrize("name", ["data.yaml", "data.yml"])
def test_data_may_be_yaml(name: str) -> None:
    """The row "A block of OPA habits refused": `data.yaml` is `data`, and what it says is JSON from there on."""
    assert data({**without("data.json"), name: YAML}) == {**DATA, "ar4si": ar4si.names()}


def test_data_of_a_folder_may_be_yaml_beside_json() -> None:
    """Both are merged."""
    files = with_file("limits/data.yaml", b"most: 3\nshare: 0.5\nnames: [a, 'b']\nnone: null\n")
    assert data(files)["limits"] == {"most": 3, "share": 0.5, "names": ["a", "b"], "none": None}


def test_thresholds_may_be_a_folder_of_their_own() -> None:
    """As OPA roots them; a fault in them is said of their file."""
    thresholds = yaml.safe_dump(DATA["thresholds"]).encode()
    files = {**with_file("data.json", b"{}"), "thresholds/data.yaml": thresholds}
    assert bundle.of_files(files).thresholds.missed_limit == 3
    assert refusal(bundle.of_files, {**files, "thresholds/data.yaml": b"missed_limit: 3\n"}).startswith(
        "thresholds/data.yaml: Object missing"
    )


def test_trust_values_may_be_yaml() -> None:
    """They are checked all the same."""
    files = {**without("ar4si/data.json"), "ar4si/data.yaml": yaml.safe_dump(ar4si.names()).encode()}
    assert data(files)["ar4si"] == ar4si.names()
    wrong = {**files, "ar4si/data.yaml": b"hardware: {genuine: 3}\n"}
    assert refusal(bundle.of_files, wrong).startswith("ar4si/data.yaml: hardware.genuine is 3")


ODD = {
    "an anchor": (b"x: &a 1\n", "line 1, column 4: an anchor or an alias is not allowed"),
    "an alias": (b"x: *a\n", "line 1, column 4: an anchor or an alias is not allowed"),
    "a merge key": (b"<<: {a: 1}\n", "line 1, column 1: '<<': this is a merge key"),
    "a key twice": (b"x: 1\nx: 2\n", "line 2, column 1: the key 'x' comes twice"),
    "a tag": (b"x: !!int '3'\n", "a tag is not allowed"),
    "yes": (b"x: yes\n", "'yes': some readers take it for a truth value"),
    "a number to base 8": (b"x: 010\n", "readers disagree about this number"),
    "a number to base 60": (b"x: 1:30\n", "some readers take it for a number to base 60"),
    "an exponent": (b"x: 1e3\n", "floats are not allowed"),
    "a fraction without digits": (b"x: .5\n", "floats are not allowed"),
    "a version that is a number": (
        b"x: [0.10]\n",
        "line 1, column 5: '0.10': as a number it loses its last zeros",
    ),
    "infinity": (b"x: .inf\n", "floats are not allowed"),
    "a date": (b"x: 2026-01-01\n", "some readers take it for a timestamp"),
    "two documents": (b"x: 1\n---\ny: 2\n", "a second document is not allowed"),
    "a list": (b"- 1\n", "the file is not a JSON object"),
    "nothing": (b"", "the file is empty"),
    "a key that is a number": (b"1: 2\n", "a key must be text"),
    "half a bracket": (b"x: [\n", "this is not YAML"),
    "a tabulator": (b"x:\n\ty: 1\n", "this is not YAML"),
    "deep": (b"x: " + b"[" * 40 + b"]" * 40, "nested deeper than 32"),
    "large": (b"x: " + b"a" * rooted.MAX_YAML, "YAML data may have 262144 bytes"),
}


@pytest.mark.parametrize(("text", "message"), ODD.values(), ids=ODD)
def test_yaml_on_which_readers_disagree_is_refused(text: bytes, message: str) -> None:
    """By name and place."""
    found = refusal(bundle.of_files, with_file("limits/data.yaml", text))
    assert found.startswith("limits/data.yaml: ")
    assert message in found


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.decimals(-1000, 1000, places=3).map(float)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(_TEXT, _VALUES, max_size=4))
def test_what_yaml_says_is_what_json_says(value: dict[str, Any]) -> None:
    """Whatever a writer of YAML makes of a value is read as that value, or refused."""
    text = yaml.safe_dump(value, allow_unicode=True).encode()
    try:
        found = rooted.data_of({"data.yaml": text})
    except BundleError:
        return
    assert found == value
    assert json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True)


@given(st.binary(max_size=60) | st.text("ab:-[]{},&*!|>'\"#?%@` \n\t01.", max_size=40).map(str.encode))
def test_any_bytes_are_yaml_data_or_an_error_of_the_bundle(text: bytes) -> None:
    """No other exception comes out."""
    message = "data.yaml: "
    try:
        assert isinstance(rooted.data_of({"data.yaml": text}), dict)
    except BundleError as error:
        message = str(error)
    assert message.startswith("data.yaml: ")


# Folders.


def test_the_folder_is_the_path_of_its_data() -> None:
    """The row "A block of OPA habits refused": nested data, as OPA roots it."""
    files = {**FILES, "a/b-c/D/data.json": b'{"x": 1}', "a/data.yaml": b"v: 2\n"}
    assert data(files)["a"] == {"v": 2, "b-c": {"D": {"x": 1}}}


def test_rules_and_tests_may_be_in_folders() -> None:
    """As deep as data."""
    more = {"lib/s/up.rego": b"package lib.s\n", "lib/s/up_test.rego": b"package lib.s_test\n"}
    found = bundle.of_files({**FILES, **more})
    assert [name for name, _ in found.modules] == ["lib/s/up.rego", "rules.rego"]
    assert [name for name, _ in found.tests] == ["lib/s/up_test.rego", "rules_test.rego"]


def test_deep_conflict_names_both_files_and_the_place() -> None:
    """And not a file that only has the folder on the way."""
    files = {**FILES, "a/data.json": b'{"b": {"c": 1}}', "a/b/d/data.json": b"{}", "a/b/data.yaml": b"c: 2\n"}
    assert refusal(bundle.of_files, files) == (
        "a/b/data.yaml: a/data.json has data.a.b.c too, and only objects can be merged. Keep one of the two"
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a/", "a/b/", "b/"]), _VALUES), max_size=4, unique_by=lambda p: p[0]
    )
)
def test_merged_data_has_every_file_or_none(parts: list[tuple[str, Any]]) -> None:
    """What a file says is found at its place; where two cannot be merged, nothing is."""
    files = {f"{folder}data.json": encode({"k": value}) for folder, value in parts}
    merged: dict[str, Any] = {}
    named = list(files)
    try:
        merged = rooted.data_of(files)
    except BundleError as error:
        named = [name for name in files if name in str(error)]
    assert merged or len(named) >= 2 or not files
    for folder, value in parts if merged else ():
        at: Any = merged
        for part in folder.split("/")[:-1]:
            at = at[part]
        assert at["k"] == value or isinstance(value, dict)


# Documents, and what is left out.

DOCUMENTS = [
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "CODEOWNERS",
    "docs/why.md",
    "README",
    "a.rst",
    "references/README.md",
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_part_of_what_is_signed(name: str) -> None:
    """The row "A block of OPA habits refused": LICENSE.  No rule reads it, and the digest covers it."""
    made = bundle.of_files(with_file(name, b"as is\n"))
    assert made.digest != BUNDLE.digest
    assert (made.data, made.modules, made.references) == (BUNDLE.data, BUNDLE.modules, BUNDLE.references)
    assert read_archive(write_archive(made, None))[0].files[name] == b"as is\n"


LEFT_OUT = [
    ".gitignore", ".regal/config.yaml", "rules.rego~", "#rules.rego#", "a/.rules.rego.swp", "Thumbs.db", "x.swp",
    "__pycache__/a.pyc",
]  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_tools_leave_behind_is_no_part_of_a_folder(name: str, tmp_path: Path) -> None:
    """And changes no digest."""
    assert bundle.load(folder_of(with_file(name, b"\0"), tmp_path / "p")).digest == BUNDLE.digest


def test_manifest_of_opa_is_no_part_of_a_folder(tmp_path: Path) -> None:
    """It says nothing that matters here."""
    manifest = b'{"revision": "7", "roots": ["touchstone"], "rego_version": 1, "metadata": {"a": 1}}'
    assert bundle.load(folder_of(with_file(".manifest", manifest), tmp_path / "p")).digest == BUNDLE.digest


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (
            b'{"rego_version": 0}',
            ".manifest: rules are Rego v1 here. Rewrite them with opa fmt --write --v0-v1",
        ),
        (b'{"file_rego_versions": {"*.rego": 0}}', ".manifest: rules are Rego v1 here"),
        (b'{"wasm": [{"entrypoint": "a", "module": "/p.wasm"}]}', ".manifest: compiled rules (wasm)"),
        (b"{", ".manifest: "),
        (b"[]", ".manifest: the file is not a JSON object"),
    ],
)
def test_manifest_of_opa_that_asks_for_something_is_refused(
    manifest: bytes, message: str, tmp_path: Path
) -> None:
    """With the reason, because what it asks for would not happen."""
    assert message in refusal(bundle.load, folder_of(with_file(".manifest", manifest), tmp_path / "p"))


HINTS = {
    "limits.json": "limits/data.json is data.limits",
    "a/limits.yaml": "a/limits/data.json is data.a.limits",
    "input.json": "Inputs for tests belong into the tests",
    "policy.wasm": "a bundle has sources",
    "bundle.tar.gz": "a bundle has sources",
    "rules.rego.orig": "a merge or an editor left it behind",
    "rules.rego.v2": "rules are in files *.rego",
    "notes.txt": "put notes into README.md",
    "Makefile": "Keep anything else beside the folder",
    "lib/run.sh": "Keep anything else beside the folder",
}


@pytest.mark.parametrize(("name", "hint"), HINTS.items())
def test_file_that_may_not_be_there_is_refused_with_what_to_do(name: str, hint: str) -> None:
    """The row "refused with misleading hints": each hint leads to a bundle that is accepted."""
    message = refusal(bundle.of_files, with_file(name, b"{}"))
    assert message.startswith(f"{name}: a bundle may not have this file: ")
    assert hint in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            zip_of({f"acme/{name}": text for name, text in FILES.items()}),
            "It is in acme/: take what is in that folder",
        ),
        (b"\x1f\x8b" + bytes(40), "This is gzip, as opa build writes it: use touchstone policy pack"),
        (
            zip_of(with_file(".manifest", b"{}")),
            "Leave it out: name and version of this bundle are in bundle.json",
        ),
        (zip_of(with_file(".gitignore", b"")), "Hidden files are no part of a bundle"),
    ],
    ids=["the folder itself", "of opa build", "with OPA's manifest", "with a hidden file"],
)
def test_archive_that_others_made_is_refused_with_what_to_do(files: bytes, message: str) -> None:
    """Most tools pack more than they should."""
    assert message in refusal(read_archive, files)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}(\.md|/data\.json|\.rego)", fullmatch=True),
                       st.sampled_from([b"{}", b"package x\n", b'{"k": 1}']), max_size=4))  # fmt: skip
def test_folder_and_archive_of_any_files_are_the_same_bundle(files: dict[str, bytes]) -> None:
    """Or both are refused."""
    try:
        made = bundle.of_files({**FILES, **files})
    except BundleError:
        return
    assert read_archive(write_archive(made, None))[0] == made


# Libraries that several bundles share.


def shared(tmp_path: Path, include: Any = ("../lib",), **files: bytes) -> Path:
    """A bundle that includes the folder *lib* beside it."""
    manifest = {**json.loads(FILES["bundle.json"]), "include": include}
    folder_of({"s.rego": b"package lib.s\n", ".hidden": b"", **files}, tmp_path / "lib")
    return folder_of(with_file("bundle.json", encode(manifest)), tmp_path / "p")


def test_shared_library_is_part_of_each_bundle_that_includes_it(tmp_path: Path) -> None:
    """In the archive and under the digest, so that nothing else is needed where the bundle judges."""
    made = bundle.load(shared(tmp_path))
    assert made.files["lib/s.rego"] == b"package lib.s\n"
    assert ("lib/s.rego", "package lib.s\n") in made.modules
    assert read_archive(write_archive(made, None))[0] == made
    (tmp_path / "lib" / "s.rego").write_bytes(b"package lib.t\n")
    assert bundle.load(tmp_path / "p").digest != made.digest


def test_archive_with_a_library_is_the_same_bundle_when_it_is_unpacked(tmp_path: Path) -> None:
    """Also where no library stands beside it, or the same one."""
    made = bundle.load(shared(tmp_path))
    assert bundle.load(folder_of(made.files, tmp_path / "elsewhere" / "p")) == made
    assert bundle.load(folder_of(made.files, tmp_path / "q")) == made


def test_library_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Nobody could say which one counts."""
    made = bundle.load(shared(tmp_path))
    folder = folder_of({**made.files, "lib/s.rego": b"package lib.other\n"}, tmp_path / "q")
    assert "lib/s.rego: bundle.json includes ../lib under the same name" in refusal(bundle.load, folder)


def test_library_that_is_missing_is_named(tmp_path: Path) -> None:
    """From a folder and from an archive."""
    assert "there is no folder ../other beside" in refusal(bundle.load, shared(tmp_path, ["../other"]))
    files = bundle.load(shared(tmp_path / "b")).files
    left = {name: text for name, text in files.items() if not name.startswith("lib/")}
    assert "no file of ../lib is in the bundle" in refusal(read_archive, zip_of(left))


def test_library_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """It could lead anywhere."""
    folder = shared(tmp_path, ["../link"])
    (tmp_path / "link").symlink_to(tmp_path / "lib")
    assert "include: ../link is a link" in refusal(bundle.load, folder)


def test_library_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    """As in the bundle's own folder."""
    folder = shared(tmp_path)
    (tmp_path / "lib" / "x.rego").symlink_to("/etc/passwd")
    assert refusal(bundle.load, folder).startswith("lib/x.rego: this is a link")


def test_library_that_is_a_bundle_is_refused(tmp_path: Path) -> None:
    """Its thresholds and references would be meant for others."""
    assert "../lib is a bundle itself" in refusal(bundle.load, shared(tmp_path, **{"bundle.json": b"{}"}))


@pytest.mark.parametrize(
    "path",
    ["lib", "/etc", "../../../../lib", "../a/b", "..", "../.git", "../", "../lib/", "../lib\n", "~/lib", ""],
)
def test_library_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    """A bundle of a stranger must not collect the files of a machine."""
    assert refusal(bundle.load, shared(tmp_path, [path])).startswith("bundle.json: ")


def test_files_of_a_library_count(tmp_path: Path) -> None:
    """The number of files is bounded for both together."""
    more = {f"f{number:03}.md": b"" for number in range(125)}
    assert "the bundle has more than 128 files" in refusal(bundle.load, shared(tmp_path, **more))


def test_bundles_of_today_keep_their_digests() -> None:
    """Results name them, and stored bundles are found by them."""
    assert BUNDLE.digest == "3adf451fc74dfbfbad2844d0e712dc2720ab13ea18c27cb3505c7cb4df35753d"
    assert bundle.load(default_policy()).manifest.include == ()
