"""
What OPA refuses about the heads of rules, and regorus reads in its own way.

OPA finds these when it parses and compiles: ``ast/parser.go`` ("else keyword cannot be used on rules
with variables in head") and ``ast/compile.go`` ("conflicting rules … found").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from verifier.policy.syntax import full_path, head_of, position_of

_SET, _VALUE = "Set", "Compr"
_KINDS: Final = {_SET: "contains", _VALUE: "a value"}


@dataclass(frozen=True)
class HeadFault:
    """A head that OPA refuses."""

    rule: str
    place: tuple[str, int, int]
    """File, line and column."""
    sentence: str


def faults(modules: Sequence[Any]) -> Iterator[HeadFault]:
    """Every fault in heads, for modules as ``json.loads(engine.get_ast_as_json())`` gives them."""
    first: dict[tuple[str, ...], str] = {}
    """By the names of a head up to its first variable, the kind of the first such rule."""
    for module in modules:
        file, source = module["source"]["file"], module["source"]["contents"].encode()
        package, _ = full_path(module["ast"]["package"]["refr"], source)
        for rule in module["ast"]["rules"]:
            kind, head = head_of(rule)
            if kind not in _KINDS:
                continue
            names, computed = full_path(head["refr"], source)
            place = (file, *position_of(head["span"], source))
            if computed and any(body["is_else"] for body in rule["Spec"]["bodies"]):
                sentence = (
                    f"a rule with a variable in its head cannot have else. Give {'.'.join(names)}[…] the value of a "
                    "function, and write else there"
                )
                yield HeadFault("else-variable", place, sentence)
            other = first.setdefault((*package, *names), kind)
            if other != kind:
                sentence = (
                    f"{'.'.join(names)} is defined with {_KINDS[other]} and here with {_KINDS[kind]}, which OPA refuses. "
                    "Collect the set under a name of its own, and refer to it"
                )
                yield HeadFault("conflict", place, sentence)
