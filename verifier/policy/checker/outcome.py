"""The outcome that a policy gives, compared with what the contract allows: claims, values and reason codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from verifier.policy.checker.near import nearest
from verifier.policy.checker.shapes import NUMBER, Array, Object, Scalar, SetOf, Shape, Value, elements
from verifier.policy.checker.words import described, listed, shown
from verifier.policy.checker.world import Definition, World
from verifier.policy.syntax import kind_of

ENTRY: Final = ("touchstone", "outcome")
_VECTOR, _REASONS = "trust_vector", "reasons"
_LEAST, _MOST = -128, 127


class Contract:
    """What an outcome may have."""

    def __init__(self, claims: Iterable[str], reasons: Iterable[str]) -> None:
        self.claims = sorted(claims)
        self.reasons = frozenset(reasons)


def check(world: World, entry: Shape, contract: Contract) -> None:
    """Report what an entry of the outcome certainly has wrong, where it is written."""
    definitions = [d for path, found in world.rules.items() if path[: len(ENTRY)] == ENTRY for d in found]
    if not definitions:
        return
    for text, rule, sentence in _findings(entry, contract):
        places = list(_written(world, text)) if text is not None else []
        for definition, span in places or [(definitions[0], definitions[0].span)]:
            definition.module.source.error(span, rule, sentence)


def _findings(entries: Shape, contract: Contract) -> Iterator[tuple[Value, str, str]]:
    """What is written in the policy and wrong (`None` if nothing is), the lint rule, and the sentence."""
    for entry in entries.options or ():
        if not isinstance(entry, Object):
            word = described(Shape((entry,)))
            yield (
                None,
                "outcome",
                f"an entry of outcome is {word}, not an object with {_VECTOR} and {_REASONS}",
            )
            continue
        for field in entry.fields:
            if field.name not in (_VECTOR, _REASONS):
                near = nearest(field.name, (_VECTOR, _REASONS))
                instead = f"Did you mean {near}?" if near else f"It has {_VECTOR} and {_REASONS} only"
                yield field.name, "outcome", f"an entry of outcome has no field {field.name}. {instead}"
        for name in (_VECTOR, _REASONS):
            if entry.at(name) is None:
                yield None, "outcome", f"an entry of outcome has no {name}, and it must have one. Add it"
        yield from _vector_findings(entry.at(_VECTOR), contract)
        yield from _reason_findings(entry.at(_REASONS), contract)


def _vector_findings(vector: Shape | None, contract: Contract) -> Iterator[tuple[Value, str, str]]:
    for option in (vector.options or ()) if vector is not None else ():
        if not isinstance(option, Object):
            word = described(Shape((option,)))
            yield None, "outcome", f"{_VECTOR} is {word}, not an object with an integer for each claim"
            continue
        for field in option.fields:
            if field.name not in contract.claims:
                near = nearest(field.name, contract.claims)
                instead = f"Did you mean {near}?" if near else f"The claims are {listed(contract.claims)}"
                yield field.name, "claim", f"AR4SI has no claim {field.name}. {instead}"
            yield from _value_findings(field.name, field.shape)


def _value_findings(claim: str, shape: Shape) -> Iterator[tuple[Value, str, str]]:
    for option in shape.options or ():
        if not isinstance(option, Scalar) or option.type != NUMBER:
            word = described(Shape((option,)))
            yield None, "claim", f"the value of {claim} is {word}, not an integer. Use a name of data.ar4si"
        elif option.values is not None:
            for value in sorted(v for v in option.values if isinstance(v, (int, float))):
                if not (_LEAST <= value <= _MOST) or value != int(value):
                    yield (
                        value,
                        "claim",
                        (
                            f"{shown(value)} is not a value of {claim}. "
                            f"Values are integers from {_LEAST} to {_MOST}; use a name of data.ar4si"
                        ),
                    )


def _reason_findings(reasons: Shape | None, contract: Contract) -> Iterator[tuple[Value, str, str]]:
    for option in (reasons.options or ()) if reasons is not None else ():
        if not isinstance(option, (Array, SetOf)):
            word = described(Shape((option,)))
            yield None, "reason", f"{_REASONS} is {word}, not an array of codes"
            continue
        _, items = elements(Shape((option,)))
        for item in items.options or ():
            if not isinstance(item, Scalar) or item.type != "string":
                word = described(Shape((item,)))
                yield None, "reason", f"{_REASONS} has {word}, not a code. Codes are strings"
            elif item.values is not None:
                for code in sorted(
                    v for v in item.values if isinstance(v, str) and v not in contract.reasons
                ):
                    near = nearest(code, contract.reasons)
                    instead = f"Did you mean {near}?" if near else "docs/reason-codes.md lists them"
                    yield code, "reason", f"there is no reason code {code}. {instead}"


def _written(world: World, value: Value) -> Iterator[tuple[Definition, Any]]:
    """Where the rules have a literal."""
    is_it: Callable[[Any], bool] = lambda v: type(v) is type(value) and v == value  # noqa: E731
    kinds: Collection[str] = ("String", "RawString", "Number")
    for definitions in world.rules.values():
        for definition in definitions:
            work: list[Any] = [definition.arguments or []]
            work += [[body.statements, body.terms] for body in definition.bodies]
            while work:
                node = work.pop()
                if isinstance(node, list):
                    work += node
                elif isinstance(node, dict) and "line" not in node:
                    if len(node) == 1 and kind_of(node)[0] in kinds and is_it(kind_of(node)[1]["value"]):
                        yield definition, kind_of(node)[1]["span"]
                    else:
                        work += node.values()
