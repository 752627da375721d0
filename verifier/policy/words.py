"""What stands in a policy: the strings and numbers of its rules and data, with which samples are made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_WORDS: Final = 256
"""So many of each sort are kept."""
_OWN_DATA: Final = ("ar4si", "thresholds")
"""Data that says nothing about what nodes write: the values of trust claims, and what schemes measure by."""


@dataclass(frozen=True)
class Words:
    """The words of a policy, each once."""

    strings: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    """With the number before and after each."""
    entries: tuple[tuple[tuple[str, ...], Any], ...] = ()
    """From the data: a text, number or boolean, with the keys above it from the top."""


def of_rules(modules: Sequence[Any]) -> tuple[list[str], list[int]]:
    """The strings and the integers in modules, as ``json.loads(engine.get_ast_as_json())`` gives these."""
    strings: dict[str, None] = {}
    numbers: dict[int, None] = {}
    # Without recursion, because the tree may be deep.
    work: list[Any] = [rule for module in modules for rule in module["ast"]["rules"]]
    while work:
        node = work.pop(0)
        if isinstance(node, list):
            work[:0] = node
        elif isinstance(node, dict) and "line" not in node:
            for kind, content in node.items():
                if kind in ("String", "RawString"):
                    strings.setdefault(str(content["value"]))
                elif kind == "Number" and isinstance(content["value"], int):
                    numbers.setdefault(content["value"])
                elif kind == "RefDot":
                    strings.setdefault(str(content["field"][1]))
            work[:0] = list(node.values())
    return list(strings)[:MAX_WORDS], list(numbers)[:MAX_WORDS]


def of_policy(strings: Sequence[str], numbers: Sequence[int], data: str) -> Words:
    """
    The words of a policy.

    Args:
        strings: The strings of its rules.
        numbers: The numbers of its rules.
        data: Its data as JSON.
    """
    own = {name: value for name, value in json.loads(data).items() if name not in _OWN_DATA}
    entries = list(dict.fromkeys(_entries(own)))[:MAX_WORDS]
    parts = [word for keys, value in entries for word in (*keys, value)]
    texts = dict.fromkeys([*(word for word in parts if isinstance(word, str)), *strings])
    counts = dict.fromkeys([*(word for word in parts if type(word) is int), *numbers])
    around = dict.fromkeys(number + step for number in counts for step in (0, -1, 1))
    return Words(tuple(texts)[:MAX_WORDS], tuple(around)[:MAX_WORDS], tuple(entries))


def _entries(data: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    work: list[tuple[tuple[str, ...], Any]] = [((), data)]
    while work:
        keys, value = work.pop()
        if isinstance(value, dict):
            work += [((*keys, name), below) for name, below in reversed(value.items())]
        elif isinstance(value, list):
            work += [(keys, below) for below in reversed(value)]
        elif isinstance(value, str | int):
            yield keys, value
