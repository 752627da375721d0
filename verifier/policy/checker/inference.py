"""Shapes through all rules: first what each gives, then what is wrong in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from verifier.policy.checker.environment import Environment
from verifier.policy.checker.knowledge import Knowledge
from verifier.policy.checker.references import order
from verifier.policy.checker.scopes import Reading
from verifier.policy.checker.shapes import A_STRING, ANY, Field, Object, SetOf, Shape, join, written
from verifier.policy.checker.walk_queries import Walker
from verifier.policy.checker.world import Body, Definition, Module, Path, World


def check(
    world: World, readings: Mapping[Definition, Reading], input_: Shape, *, tests_only: bool
) -> Knowledge:
    """
    Report what can never be true, and return what is known of the rules.

    The values of rules are found in one round, each after those that it refers to, with arguments
    that may be anything.  Then each rule is reported on after those that call it, so that all that
    a function is called with is known.
    """
    knowledge = Knowledge(world, input_)
    paths = order(world, readings)
    for path in paths:
        knowledge.set_value(path, join(_values(knowledge, path, readings)))
    walkers: dict[Module, Walker] = {}
    for path in reversed(paths):
        for definition in world.rules[path]:
            module = definition.module
            if definition not in readings:
                continue
            walker = walkers.setdefault(
                module, Walker(knowledge, module, reports=not tests_only or module.is_test)
            )
            walker.has_others = len(world.rules[path]) > 1 or len(definition.bodies) > 1
            _report(knowledge, walker, path, definition, readings[definition])
    return knowledge


def _values(knowledge: Knowledge, path: Path, readings: Mapping[Definition, Reading]) -> Iterator[Shape]:
    wanted: list[list[Shape]] = []
    for definition in knowledge.world.rules[path]:
        if definition not in readings:
            yield ANY
            continue
        walker = Walker(knowledge, definition.module, reports=False)
        walker.use(readings[definition])
        arguments = definition.arguments or []
        for body in definition.bodies:
            env = Environment.with_input(knowledge.input)
            walker.bind_arguments(arguments, [ANY] * len(arguments), env)
            walker.query(body.statements, env)
            yield _value(walker, definition, body, env)
        wanted.append([walker.wanted_of(argument) for argument in arguments])
    knowledge.set_wanted(path, wanted)


def _value(walker: Walker, definition: Definition, body: Body, env: Environment) -> Shape:
    """What a body adds to its rule's value."""
    value = written(True) if body.value is None else walker.shape(body.value, env)
    if definition.kind == "Set" and body.key is not None:
        value = Shape((SetOf(walker.shape(body.key, env)),))
    if not definition.is_computed:
        return value
    if definition.tail is None or not body.indices:
        return ANY
    for name in reversed(definition.tail):
        # Other rules may add other fields.
        value = Shape((Object((Field(name, value),), (A_STRING, ANY)),))
    return Shape((Object((), (walker.shape(body.indices[0], env), value)),))


def _report(
    knowledge: Knowledge, walker: Walker, path: Path, definition: Definition, reading: Reading
) -> None:
    walker.use(reading)
    arguments = definition.arguments or []
    for body in definition.bodies:
        env = Environment.with_input(knowledge.input)
        walker.bind_arguments(arguments, knowledge.arguments(path, len(arguments)), env)
        walker.query(body.statements, env)
        for term in body.terms:
            walker.shape(term, env)
