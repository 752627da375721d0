"""
Compare two versions of a policy by what they mean: rules, data, reference values.

Comments and layout of Rego do not matter, and neither does the order of keys in JSON.
"""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from verifier.policy.admission import Inspection
from verifier.policy.bundle import TEST_SUFFIX, Bundle
from verifier.references.measured import Document

_MAX_SHOWN: Final = 200


class Difference(Struct, frozen=True):
    """One thing that differs."""

    part: Literal["manifest", "rule", "test", "data", "reference"]
    name: str
    change: Literal["added", "removed", "changed"]
    before: str | None = None
    after: str | None = None
    text: str = ""
    """Lines as a diff: the rule's own if a rule changed, names of files if a reference value changed."""


def compare(old: Bundle, old_rules: Inspection, new: Bundle, new_rules: Inspection) -> list[Difference]:
    """Everything in which *new* means something else than *old*."""
    return [
        *_manifest(old, new),
        *_rules(old_rules.rules, new_rules.rules),
        *_data("", json.loads(old.data), json.loads(new.data)),
        *_references(old, new),
    ]


def _manifest(old: Bundle, new: Bundle) -> list[Difference]:
    return [
        Difference(
            "manifest", name, "changed", before=getattr(old.manifest, name), after=getattr(new.manifest, name)
        )
        for name in ("name", "version", "author", "description")
        if getattr(old.manifest, name) != getattr(new.manifest, name)
    ]


def _rules(
    old: Mapping[str, list[tuple[str, str, str]]], new: Mapping[str, list[tuple[str, str, str]]]
) -> list[Difference]:
    before, after = _by_name(old), _by_name(new)
    found = []
    for name in sorted(before.keys() | after.keys()):
        was, becomes = before.get(name, []), after.get(name, [])
        # Rules with the same name are alternatives, so their order does not matter.
        if sorted(meaning for meaning, _ in was) == sorted(meaning for meaning, _ in becomes):
            continue
        kind: Literal["added", "removed", "changed"] = (
            "added" if not was else "removed" if not becomes else "changed"
        )
        lines = difflib.unified_diff(_lines(was), _lines(becomes), "before", "after", lineterm="", n=1)
        part: Literal["rule", "test"] = "test" if ".test_" in name else "rule"
        found.append(Difference(part, name, kind, text="\n".join(list(lines)[2:])))
    return found


def _by_name(files: Mapping[str, list[tuple[str, str, str]]]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file, rules in files.items():
        for name, meaning, text in rules:
            # Helper rules of tests do not matter: they judge nobody.
            if not file.endswith(TEST_SUFFIX) or ".test_" in name:
                found[name].append((meaning, text))
    return found


def _lines(rules: list[tuple[str, str]]) -> list[str]:
    return [line for _, text in sorted(rules) for line in text.splitlines()]


def _data(path: str, old: Any, new: Any) -> list[Difference]:
    # Compared as JSON, because in Python 1 equals true.
    if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            place = f"{path}.{name}" if path else name
            if name not in old:
                found.append(Difference("data", place, "added", after=_short(new[name])))
            elif name not in new:
                found.append(Difference("data", place, "removed", before=_short(old[name])))
            else:
                found += _data(place, old[name], new[name])
        return found
    return [Difference("data", path, "changed", before=_short(old), after=_short(new))]


def _references(old: Bundle, new: Bundle) -> list[Difference]:
    before = {document.model: document for document in old.documents}
    after = {document.model: document for document in new.documents}
    found = []
    for model in sorted(before.keys() | after.keys()):
        was, becomes = before.get(model), after.get(model)
        if was is None:
            assert becomes is not None
            found.append(Difference("reference", model, "added", after=becomes.digest))
        elif becomes is None:
            found.append(Difference("reference", model, "removed", before=was.digest))
        elif was.digest != becomes.digest:
            text = "\n".join(_files(was, becomes))
            found.append(
                Difference("reference", model, "changed", before=was.digest, after=becomes.digest, text=text)
            )
    return found


def _files(old: Document, new: Document) -> list[str]:
    before = {file.name: file for file in old.files}
    after = {file.name: file for file in new.files}
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            lines += [f"-{name}"] * (name in before) + [f"+{name}"] * (name in after)
    return lines[:_MAX_SHOWN]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
