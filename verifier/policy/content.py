"""Which files a bundle may have, what each is, and what to do about one that it may not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from attester import strictjson
from verifier.errors import BundleError

MAX_FILES: Final = 128
MAX_FOLDERS: Final = 6
OPA_MANIFEST: Final = ".manifest"
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_NAME: Final = re.compile(rf"{_PART}(/{_PART}){{0,{MAX_FOLDERS}}}")
_DATA_FILE: Final = re.compile(r"(?:.*/)?data\.(?:json|yaml|yml)")
_DOCUMENT: Final = re.compile(
    r"(README|LICEN[CS]E|NOTICE|COPYING|COPYRIGHT|AUTHORS|CODEOWNERS|OWNERS|MAINTAINERS|CHANGELOG|CHANGES|"
    r"CONTRIBUTING|SECURITY|VERSION)([.-][A-Za-z0-9.-]*)?",
    re.IGNORECASE,
)
_DOCUMENT_ENDINGS: Final = (".md", ".markdown", ".rst", ".adoc")
_EDITORS: Final = re.compile(r".*~|#.*#|.*\.sw[a-p]|Thumbs\.db|desktop\.ini|__pycache__|__MACOSX")
"""What editors and systems leave behind."""
_HINTS: Final = (
    (
        re.compile(r".*\.(json|ya?ml)"),
        (
            "data is in files data.json or data.yaml, and the folder says where: {folder}{stem}/data.json is "
            "data.{path}{stem}. Inputs for tests belong into the tests"
        ),
    ),
    (re.compile(r".*\.(wasm|tar|gz|tgz|zip)"), "a bundle has sources, and nothing that was built of them"),
    (re.compile(r".*\.(orig|rej|bak|old)"), "a merge or an editor left it behind. Remove it"),
    (re.compile(r".*\.(txt|pdf|html?)"), "put notes into README.md, or any other file *.md"),
    (re.compile(r".*\.rego[^/]*"), "rules are in files *.rego, and tests in files *_test.rego"),
)
_ELSE: Final = (
    "it has rules (*.rego), data (data.json, data.yaml), reference values (references/) and documents "
    "(*.md, LICENSE, CODEOWNERS …). Keep anything else beside the folder"
)


def check_name(name: str, number: int) -> None:
    """Check that a bundle may have a file *name* after *number* others.  Raises `BundleError`."""
    if number >= MAX_FILES:
        raise BundleError(f"{name[:100]!r}: the bundle has more than {MAX_FILES} files")
    if is_name(name):
        return
    if name.rpartition("/")[2] == OPA_MANIFEST:
        advice = "Leave it out: name and version of this bundle are in bundle.json"
    elif name.startswith(".") and "/" not in name and name.strip("."):
        advice = "Hidden files are no part of a bundle. Leave it out, as touchstone policy pack does"
    else:
        advice = f"Use letters, digits, . _ - and at most {MAX_FOLDERS} folders"
    raise BundleError(f"{name[:100]!r}: no file of a bundle may have this name. {advice}")


def is_name(name: str) -> bool:
    """Whether a file or a folder of a bundle may have *name*."""
    return _NAME.fullmatch(name) is not None


def is_left_out(name: str) -> bool:
    """Whether a file of a folder is no part of the bundle in it: hidden files, and what editors leave behind."""
    return any(part.startswith(".") or _EDITORS.fullmatch(part) for part in name.split("/"))


def is_data(name: str) -> bool:
    """Whether a file is data: ``data.json``, ``data.yaml`` or ``data.yml``, in any folder but ``references``."""
    return _DATA_FILE.fullmatch(name) is not None and not name.startswith("references/")


def is_document(name: str) -> bool:
    """Whether a file is for people: no rule and no data, but signed with the bundle all the same."""
    last = name.rpartition("/")[2]
    return last.lower().endswith(_DOCUMENT_ENDINGS) or _DOCUMENT.fullmatch(last) is not None


def refusal(name: str) -> BundleError:
    """The error for a file that a bundle may not have, with what to do instead."""
    folder, _, last = name.rpartition("/")
    hint = next((hint for pattern, hint in _HINTS if pattern.fullmatch(last)), _ELSE)
    advice = hint.format(
        folder=f"{folder}/" if folder else "",
        path=f"{folder.replace('/', '.')}." if folder else "",
        stem=last.rpartition(".")[0],
    )
    return BundleError(f"{name}: a bundle may not have this file: {advice}")


def check_opa_manifest(data: bytes) -> None:
    """
    Check OPA's ``.manifest`` in a folder: it is no part of the bundle, so it must not ask for anything.

    Raises:
        BundleError: it says that the rules are of another version of Rego, or that they were compiled.
    """
    manifest = read_json(OPA_MANIFEST, data)
    if manifest.get("rego_version", 1) != 1 or any(v != 1 for v in _versions(manifest)):
        raise BundleError(
            f"{OPA_MANIFEST}: rules are Rego v1 here. Rewrite them with opa fmt --write --v0-v1, and "
            "remove rego_version"
        )
    if manifest.get("wasm"):
        raise BundleError(
            f"{OPA_MANIFEST}: compiled rules (wasm) are not evaluated here. The bundle needs the sources"
        )


def _versions(manifest: Mapping[str, Any]) -> Collection[object]:
    """The versions of Rego that an OPA manifest gives for single files."""
    found = manifest.get("file_rego_versions")
    return found.values() if isinstance(found, dict) else ()


def read_json(name: str, data: bytes) -> dict[str, Any]:
    """
    Read a JSON object of a bundle.

    Raises:
        BundleError: it is not one, or readers of JSON disagree about what it says.
    """
    try:
        value = strictjson.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {error}") from None
    return check_object(name, value)


def check_object(name: str, value: Any) -> dict[str, Any]:
    """Check that a value which was read is a JSON object that every reader takes alike.  Raises `BundleError`."""
    if not isinstance(value, dict):
        raise BundleError(f"{name}: the file is not a JSON object")
    try:
        # With half a character or a huge number the rules would get something else than the file says.
        same = msgspec.json.decode(msgspec.json.encode(value)) == value
    except (UnicodeEncodeError, OverflowError, msgspec.DecodeError):
        same = False
    if not same:
        raise BundleError(
            f"{name}: the file has half a character, or a number on which JSON readers disagree"
        )
    return value
