"""The rules of a module, read from regorus' syntax tree: to run tests and to compare versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Keys that say where something stands, and nothing about what it means.
_PLACE_KEYS = ("span", "eidx", "sidx", "qidx")


def of(modules: Sequence[Any]) -> dict[str, list[tuple[str, str, str]]]:
    """
    The rules by file: the full name, the digest of the meaning and the source text of each.

    The digest is over the tree without places, so comments and layout do not change it.
    """
    found = {}
    for module in modules:
        package, imports = package_of(module), _imports(module)
        found[module["source"]["file"]] = [
            (
                f"{package}.{name_of(rule)}",
                _meaning(rule, imports, module["source"]["contents"].encode()),
                _text(rule, module),
            )
            for rule in module["ast"]["rules"]
        ]
    return found


def _imports(module: Any) -> dict[str, Any]:
    """The path of each imported name of a module."""
    source, found = module["source"]["contents"].encode(), {}
    for imported in module["ast"]["imports"]:
        (kind,) = imported["refr"]
        last = imported["refr"][kind]
        if alias := imported.get("as"):
            name = source[alias["start"] : alias["end"]].decode()
        elif kind == "RefDot":
            name = str(last["field"][1])
        else:
            name = str(last["value"] if kind == "Var" else last["index"].get("String", {}).get("value", ""))
        found[name] = _without_places(imported["refr"], source)
    return found


def tests(modules: Sequence[Any], files: Sequence[str]) -> Iterator[tuple[str, str, str, int]]:
    """
    File, package, name and line of every rule named ``test_*`` or ``todo_test_*`` in *files*, each name once.

    A rule ``test_x[case]`` is part of the test ``test_x``.
    """
    seen = set()
    for module in modules:
        file, package = module["source"]["file"], package_of(module)
        if file not in files:
            continue
        for rule in module["ast"]["rules"]:
            name = test_name_of(rule)
            # A default alone would be true whatever the policy does.
            if "Spec" in rule and name.startswith(("test_", "todo_test_")) and (package, name) not in seen:
                seen.add((package, name))
                yield file, package, name, span_of(rule)["line"]


def package_of(module: Any) -> str:
    """``data.PACKAGE``."""
    return f"data.{_path(module['ast']['package']['refr'])}"


def name_of(rule: Any) -> str:
    """A rule's name as its head has it, without brackets."""
    if "Default" in rule:
        return _path(rule["Default"]["refr"])
    (head,) = rule["Spec"]["head"].values()
    return _path(head["refr"])


def test_name_of(rule: Any) -> str:
    """The first part of a rule's name: ``test_x`` of ``test_x[case]`` and ``test_x.case``."""
    return name_of(rule).partition(".")[0]


def span_of(rule: Any) -> Any:
    """The span of a rule: line and column from 1, start and end in bytes."""
    (kind,) = rule.values()
    return kind["span"]


def _path(refr: Any) -> str:
    parts: list[str] = []
    while "Var" not in refr:
        (kind,) = refr
        if kind == "RefDot":
            parts.append(str(refr[kind]["field"][1]))
        refr = refr[kind]["refr"]
    parts.append(str(refr["Var"]["value"]))
    return ".".join(reversed(parts))


def _text(rule: Any, module: Any) -> str:
    source, span = module["source"]["contents"].encode(), span_of(rule)
    end = span["end"]
    # If a rule ends in a string, the span of regorus ends before the closing quote.
    end += source[end : end + 1] in (b'"', b"`")
    return str(source[span["start"] : end].decode(errors="replace"))


def _meaning(rule: Any, imports: Mapping[str, Any], source: bytes) -> str:
    text = json.dumps(_without_places(rule, source), sort_keys=True)
    used = {name: path for name, path in imports.items() if f'"value": {json.dumps(name)}' in text}
    return hashlib.sha256((text + json.dumps(used, sort_keys=True)).encode()).hexdigest()


def _without_places(node: Any, source: bytes) -> Any:
    if _is_place(node):
        # Some names are in the tree as the place where they stand: some a, b; every key, value in …
        return source[node["start"] : node["end"]].decode(errors="replace")
    if isinstance(node, dict):
        return {key: _without_places(value, source) for key, value in node.items() if key not in _PLACE_KEYS}
    if isinstance(node, list):
        # A field is a list of its place and its name: [{"line": …}, "name"].
        has_place = bool(node) and _is_place(node[0]) and not all(map(_is_place, node))
        return [_without_places(item, source) for item in node[has_place:]]
    return node


def _is_place(node: Any) -> bool:
    return isinstance(node, dict) and "line" in node
