"""
Reading regorus' syntax tree (``get_ast_as_json``, decoded): expressions, references, heads, imports.

Nothing here calls itself: the tree comes from a stranger and may be deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def kind_of(node: Any) -> tuple[str, Any]:
    """An expression's kind and content: ``{"Var": {…}}``."""
    ((kind, content),) = node.items()
    return kind, content


def start_of(expr: Any) -> Any:
    """The span of an expression's leftmost part. The span of a reference begins at its last dot."""
    kind, content = kind_of(expr)
    while kind in ("RefDot", "RefBrack", "Call"):
        kind, content = kind_of(content["fcn" if kind == "Call" else "refr"])
    return content["span"]


def text_of(span: Any, source: bytes) -> str:
    """The source text of a span, which counts bytes."""
    return source[span["start"] : span["end"]].decode(errors="replace")


def position_of(span: Any, source: bytes) -> tuple[int, int]:
    """
    Line and column, from 1, in characters.

    The engine's own columns count bytes, and four for a tab.  It accepts no line longer than 1,024.
    """
    start = span["start"]
    return span["line"], len(source[source.rfind(b"\n", 0, start) + 1 : start].decode(errors="replace")) + 1


def path_of(expr: Any, source: bytes) -> tuple[Any, list[str], list[Any]]:
    """
    The parts of a reference: its base, the names after it up to the first computed one, and what is computed.

    Names are split at dots, because the engine joins them with dots before it looks them up.  A
    string with escapes counts as computed, because the engine looks up some of them as written.
    """
    links: list[tuple[str, Any]] = []
    kind, content = kind_of(expr)
    while kind in ("RefDot", "RefBrack"):
        links.append((kind, content))
        expr = content["refr"]
        kind, content = kind_of(expr)
    names: list[str] = []
    computed: list[Any] = []
    all_named = True
    for link, content in reversed(links):
        if link == "RefDot":
            name: str | None = content["field"][1]
        else:
            name = _plain_string(content["index"], source)
            if name is None:
                computed.append(content["index"])
        all_named = all_named and name is not None
        if all_named and name is not None:
            names += name.split(".")
    return expr, names, computed


def _plain_string(index: Any, source: bytes) -> str | None:
    kind, content = kind_of(index)
    if kind not in ("String", "RawString") or text_of(content["span"], source) != content["value"]:
        return None
    return str(content["value"])


def full_path(refr: Any, source: bytes) -> tuple[list[str], list[Any]]:
    """All names of a head, a package or an import, and what is computed in it."""
    base, names, computed = path_of(refr, source)
    kind, content = kind_of(base)
    return ([content["value"], *names] if kind == "Var" else names), computed


def head_of(rule: Any) -> tuple[str, Any]:
    """The kind of a rule's head (``Default``, ``Func``, ``Set`` or ``Compr``) and its content, which has a ``refr``."""
    kind, content = kind_of(rule)
    return ("Default", content) if kind == "Default" else kind_of(content["head"])


def imports_of(module: Any, source: bytes) -> Iterator[tuple[Any, list[str], str]]:
    """Each import: its span, its path, and the name that it has in the module."""
    for imported in module["ast"]["imports"]:
        path, _ = full_path(imported["refr"], source)
        alias = imported.get("as")
        yield imported["span"], path, text_of(alias, source) if alias else path[-1]
