"""The rules of a module, read off regorus' syntax tree: for running tests and for comparing versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What says where something stands, and nothing of what it means.
_PLACES = ("span", "eidx", "sidx", "qidx")


def of(modules: Sequence[Any]) -> dict[str, list[tuple[str, str, str]]]:
    """
    By file the rules in it: full name, digest of its meaning, source text.

    The digest is over the tree without places, so that comments and layout do not matter.
    """
    found = {}
    for module in modules:
        package, imports = package_of(module), _imports(module)
        found[module["source"]["file"]] = [
            (f"{package}.{name_of(rule)}", _meaning(rule, imports), _text(rule, module))
            for rule in module["ast"]["rules"]
        ]
    return found


def _imports(module: Any) -> dict[str, Any]:
    """What each imported name of a module stands for."""
    source, found = module["source"]["contents"].encode(), {}
    for each in module["ast"]["imports"]:
        (kind,) = each["refr"]
        last = each["refr"][kind]
        if given := each.get("as"):
            name = source[given["start"] : given["end"]].decode()
        elif kind == "RefDot":
            name = str(last["field"][1])
        else:
            name = str(last["value"] if kind == "Var" else last["index"].get("String", {}).get("value", ""))
        found[name] = _bare(each["refr"])
    return found


def tests(modules: Sequence[Any], files: Sequence[str]) -> Iterator[tuple[str, str, str, int]]:
    """File, package, name and line of every rule named ``test_*`` in *files*, each name once."""
    seen = set()
    for module in modules:
        file, package = module["source"]["file"], package_of(module)
        if file not in files:
            continue
        for rule in module["ast"]["rules"]:
            name = name_of(rule)
            # A default alone would hold whatever the policy does.
            if "Spec" in rule and name.startswith("test_") and (package, name) not in seen:
                seen.add((package, name))
                yield file, package, name, span_of(rule)["line"]


def package_of(module: Any) -> str:
    """``data.PACKAGE``."""
    return f"data.{_path(module['ast']['package']['refr'])}"


def name_of(rule: Any) -> str:
    """A rule's name as it stands in its head, brackets left out."""
    if "Default" in rule:
        return _path(rule["Default"]["refr"])
    (head,) = rule["Spec"]["head"].values()
    return _path(head["refr"])


def span_of(rule: Any) -> Any:
    """Where a rule stands: line and column from 1, start and end in characters."""
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
    # A rule that ends in a string ends for regorus before its quote.
    end += source[end : end + 1] in (b'"', b"`")
    return str(source[span["start"] : end].decode(errors="replace"))


def _meaning(rule: Any, imports: Mapping[str, Any]) -> str:
    bare = json.dumps(_bare(rule), sort_keys=True)
    used = {name: path for name, path in imports.items() if f'"value": {json.dumps(name)}' in bare}
    return hashlib.sha256((bare + json.dumps(used, sort_keys=True)).encode()).hexdigest()


def _bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if key not in _PLACES}
    if isinstance(node, list):
        # A field is a place and a name: [{"line": …}, "name"].
        return [_bare(item) for item in node if not (isinstance(item, dict) and "line" in item)]
    return node
