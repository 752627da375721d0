"""The shapes of references: what a path of names and indices leads to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from verifier.policy.checker import comparisons, parts
from verifier.policy.checker.environment import INPUT, Environment, Place
from verifier.policy.checker.knowledge import Knowledge
from verifier.policy.checker.near import suggestion
from verifier.policy.checker.references import target
from verifier.policy.checker.scopes import WILD, Local, Reading
from verifier.policy.checker.shapes import ANY, Object, Shape, elements, select, written
from verifier.policy.checker.words import shown
from verifier.policy.checker.world import Module
from verifier.policy.syntax import kind_of, start_of


class References(ABC):
    """Reads references, in one module."""

    def __init__(self, knowledge: Knowledge, module: Module, *, reports: bool) -> None:
        self._knowledge = knowledge
        self._module = module
        self._source = module.source
        self._reports = reports
        self._is_negated = False
        self._is_inner = False
        """It reads a query within a query, whose conditions need not hold."""
        self.has_others = False
        """The function at hand has other definitions, or branches."""
        self.wanted: dict[Local, Shape] = {}
        """What the arguments of a function must be, because of what its conditions do with them."""
        self._reading = Reading()

    @abstractmethod
    def shape(self, expr: Any, env: Environment) -> Shape:
        """The shape of an expression."""

    @abstractmethod
    def bind(self, pattern: Any, shape: Shape, env: Environment, place: Place | None = None) -> None:
        """Give the variables of a pattern their shapes."""

    @abstractmethod
    def _binds(self, pattern: Any, env: Environment) -> bool:
        """Whether a pattern has variables that have no shape yet."""

    def _reference(self, expr: Any, env: Environment) -> Shape:
        base, links = _links(expr)
        if "Var" not in base:
            return self._go_on(self.shape(base, env), links, self._text(base), env)
        local = self._reading.meanings.get(id(base))
        if isinstance(local, Local):
            return self._go_on(env.shape(local), links, local.name, env)
        names = [name for _, name in _static(links)]
        found = target(self._reading, base, names)
        if found is None:
            return ANY
        root, path = found
        count = len(path) - len(names)
        if root == INPUT:
            shape = env.shape(INPUT)
            for name in path[:count]:
                shape = self._part(shape, base["Var"]["span"], written(name), INPUT)
            return self._go_on(shape, links, base["Var"]["value"], env)
        return self._data(expr, base, links, path, count, env)

    def _data(
        self, expr: Any, base: Any, links: list[Any], path: tuple[str, ...], count: int, env: Environment
    ) -> Shape:
        """The shape of a reference below ``data``; the first *count* names of *path* are those of its base."""
        world = self._knowledge.world
        if world.is_mocked(path):
            return self._go_on(ANY, links, "", env)
        rule = world.rule_at(path)
        if rule is not None:
            if world.rules[rule][0].arguments is not None:
                sentence = f"{rule[-1]} is a function. Write {self._text(expr)}(…)"
                self._error(start_of(expr), "type", sentence)
                return self._go_on(ANY, links, "", env)
            shape = ANY if world.is_above(rule) else self._knowledge.value(rule)
            for name in path[len(rule) : count]:
                shape = select(shape, written(name))
            left = links[max(len(rule) - count, 0) :]
            used = links[: max(len(rule) - count, 0)]
            return self._go_on(shape, left, self._text(used[-1] if used else base), env)
        if world.is_above(path):
            return self._go_on(ANY, links, "", env)
        shape, missing = self._knowledge.document(path)
        if missing is not None:
            missing = max([missing, *(n for n in range(1, len(path)) if world.is_above(path[:n]))])
            before, name = ".".join(["data", *path[:missing]]), path[missing]
            near = suggestion(name, world.below(path[:missing]))
            what = "the bundle has no" if missing == 0 else "there is no"
            self._error(start_of(expr), "undefined", f"{what} {before}.{name}.{near}")
            return self._go_on(ANY, links, "", env)
        return self._go_on(shape, links[len(path) - count :], self._text(expr), env)

    def _go_on(self, shape: Shape, links: list[Any], text: str, env: Environment) -> Shape:
        for link in links:
            kind, content = kind_of(link)
            if kind == "RefDot":
                span, key = content["field"][0], written(content["field"][1])
            else:
                index = content["index"]
                span, key = start_of(index), self._index(index, shape, env)
                if self._reports and not key.is_any:
                    for sentence in comparisons.unknown_keys(shape, text, key, self._text(index)):
                        self._error(span, "never", sentence)
            shape = self._part(shape, span, key, text)
            text = self._text(link)
        return shape

    def _index(self, index: Any, shape: Shape, env: Environment) -> Shape:
        """The shape of an index; a variable that has none yet goes through all keys."""
        if "Var" in index and index["Var"]["value"] == WILD:
            return ANY
        if self._binds(index, env):
            keys, _ = elements(shape)
            self.bind(index, keys, env)
            return ANY
        return self.shape(index, env)

    def _part(self, shape: Shape, span: Any, key: Shape, text: str) -> Shape:
        found = select(shape, key)
        if not found.is_never:
            return found
        if not shape.is_never and not key.is_never:
            has_fields = any(isinstance(option, Object) for option in shape.options or ())
            self._error(span, "field" if has_fields else "type", parts.sentence(text, shape, key))
        return ANY

    def _place(self, expr: Any, env: Environment) -> Place | None:
        """The place that a reference names, if it starts at a variable or the input and is static."""
        base, links = _links(expr)
        static = list(_static(links))
        if "Var" not in base or len(static) != len(links):
            return None
        names = [name for _, name in static]
        local = self._reading.meanings.get(id(base))
        if isinstance(local, Local):
            return (local, tuple(names)) if local in env.shapes else None
        found = target(self._reading, base, names)
        return (INPUT, found[1]) if found is not None and found[0] == INPUT else None

    def _text(self, expr: Any) -> str:
        """An expression as the policy has it, in bounded length."""
        start = start_of(expr)
        kind, content = kind_of(expr)
        if kind in ("String", "RawString"):
            return shown(content["value"])
        text = self._source.text[start["start"] : content["span"]["end"]].decode(errors="replace")
        return " ".join(text.split())[:60]

    def _error(self, span: Any, rule: str, sentence: str) -> None:
        if self._reports:
            self._source.error(span, rule, sentence)


def _links(expr: Any) -> tuple[Any, list[Any]]:
    """The base of a reference, and its links from left to right."""
    links = []
    while "RefDot" in expr or "RefBrack" in expr:
        links.append(expr)
        expr = kind_of(expr)[1]["refr"]
    links.reverse()
    return expr, links


def _static(links: list[Any]) -> Iterator[tuple[Any, str]]:
    """The links up to the first computed one, with their names."""
    for link in links:
        kind, content = kind_of(link)
        if kind == "RefDot":
            yield link, content["field"][1]
        elif kind_of(content["index"])[0] in ("String", "RawString"):
            yield link, kind_of(content["index"])[1]["value"]
        else:
            return
