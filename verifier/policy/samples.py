"""
Inputs that a policy must be able to judge: made from the types of the contract, and always the same.  Pure.

    ordinary       one or two submodules of each kind, with and without reference values: every value of
                   every field, and every pair of values at two places
    combinations   for each kind, every combination of its facts, as far as each has a fixed set of values
    words          the strings and numbers of the policy itself, where a node may write what it likes

The first two come from the types alone (`verifier.schemes.facts` and the registries of kinds), so a
new fact or a new kind is in them without a change here.  The inputs are what the schema allows, also
where no scheme says two such things together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import islice
from math import prod
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import inspect

from attester import kinds
from attester.kinds import KINDS
from verifier.policy.contract import input_type
from verifier.policy.cover import Place, pairs, products
from verifier.policy.words import Words
from verifier.schemes import platform
from verifier.schemes.facts import PolicyInput, ReferenceFacts
from verifier.schemes.registry import SCHEMES, UNKNOWN, Scheme

MAX_COMBINATIONS: Final = 10_000
"""A kind with more combinations of facts is covered by pairs alone."""
MAX_OF_WORDS: Final = 2000
"""So many inputs are made of a policy's words."""
_TOGETHER: Final = 16
"""Submodules of one kind in one input, where all combinations of its facts are asked."""
_MEMBERS: Final = ("a", "b/c-1", "0", "1")
"""Names of submodules, of which each kind takes those that have its form."""
_UNKNOWN: Final = ("npu/0", "model/")
"""Names of which no kind has the form."""
_TEXTS: Final = ("x", "", "1.2.3", "-", "ü")
"""Strings, of which each field takes those that it allows."""
_OWN: Final = 2
"""The length of the path of a fact, below ``facts``."""
_OF_INPUT: Final = 3
"""The same in an input: below ``checked`` and the submodule."""


class _Mark(Enum):
    """What stands for an object or for nothing among values."""

    PRESENT = "present"
    ABSENT = "absent"


_PRESENT: Final = _Mark.PRESENT
"""An object, whose fields are places of their own."""
_ABSENT: Final = _Mark.ABSENT
"""No such key."""

_Path: TypeAlias = tuple[str, ...]
_Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One place in the input, with the values that are tried there."""

    path: _Path
    kind: inspect.Type
    values: tuple[Any, ...]
    """The plainest first."""
    is_closed: bool = True
    """Whether there are no other values."""
    needs: tuple[int, int] | None = None
    """The number of a field, and the index of its value, without which there is no such place."""


def of_types() -> tuple[bytes, ...]:
    """Give the inputs that come from the types, as JSON, each once: the ordinary ones first."""
    return _of_types(tuple(SCHEMES.items()))


def of_words(words: Words, best: Mapping[str, Mapping[str, Any]]) -> Iterator[bytes]:
    """
    Give the inputs with the words of a policy, as JSON, each once.

    Args:
        words: What stands in the policy.
        best: By kind, the facts that the policy likes best: what it says of words may depend on the rest being good.
    """
    known: set[bytes] = set()
    for document in islice(_of_words(words, best), MAX_OF_WORDS):
        encoded = encode(document)
        if encoded not in known:
            known.add(encoded)
            yield encoded


def encode(document: _Document) -> bytes:
    """Make an input as the verifier makes it.  Raises `msgspec.ValidationError` if the schema does not allow it."""
    whole = {"checked": {}, "references": {}, **document}
    return msgspec.json.encode(msgspec.convert(whole, _input_type(tuple(SCHEMES.items()))))


@lru_cache(maxsize=4)
def _input_type(schemes: tuple[tuple[str, Scheme], ...]) -> Any:
    del schemes  # what the cache goes by
    return input_type()


@lru_cache(maxsize=4)
def _of_types(schemes: tuple[tuple[str, Scheme], ...]) -> tuple[bytes, ...]:
    fields = _input_fields()
    rows = pairs([Place(len(field.values), field.needs) for field in fields])
    documents = [
        _document(fields, {n: fields[n].values[option] for n, option in row.items()}) for row in rows
    ]
    for name, scheme in (*schemes, ("", UNKNOWN)):
        documents += _combinations(name, scheme)
    return tuple(dict.fromkeys(map(encode, documents)))


def _document(fields: Sequence[Field], values: Mapping[int, Any]) -> _Document:
    """A document with *values* by the number of their field."""
    document: _Document = {}
    for number, value in values.items():
        *above, last = fields[number].path
        into = document
        for name in above:
            into = into.setdefault(name, {})
        if value is _PRESENT:
            info = fields[number].kind
            assert isinstance(info, inspect.StructType)
            into[last] = {} if info.tag_field is None else {info.tag_field: info.tag}
        elif value is not _ABSENT:
            into[last] = value
    return document


def _plain(fields: Sequence[Field], turn: int) -> dict[int, Any]:
    """Everything that can be there, each closed field with its first value; open fields take theirs in turn."""
    return {n: f.values[0 if f.is_closed else turn % len(f.values)] for n, f in enumerate(fields)}


def _good(fields: Sequence[Field], best: Mapping[str, Mapping[str, Any]]) -> dict[int, Any]:
    """The best value of each fact that has a fixed set of them."""
    found = {}
    for number, field in enumerate(fields):
        is_object = isinstance(field.kind, inspect.StructType)
        if field.is_closed and not is_object and field.path[0] == "checked" and len(field.path) == _OF_INPUT:
            facts = best.get(kinds.kind_of(field.path[1]) or "", {})
            value = facts.get(field.path[-1], _ABSENT)
            if any(value is known or value == known for known in field.values):
                found[number] = value
    return found


def _input_fields() -> list[Field]:
    """The places of an input with up to two submodules of each kind."""
    fields: list[Field] = []
    for name, scheme in (*SCHEMES.items(), ("", UNKNOWN)):
        needs: tuple[int, int] | None = None
        for submod in _submods(name)[:2]:
            values = (_PRESENT,) if submod == platform.SUBMOD else (_PRESENT, _ABSENT)
            needs = _add_struct(fields, ("checked", submod), _struct(scheme.facts), needs, values)
            if (model := kinds.model_of(submod)) is not None:
                _add_struct(
                    fields, ("references", model), _struct(ReferenceFacts), needs, (_PRESENT, _ABSENT)
                )
    for part in _struct(PolicyInput).fields:
        if part.encode_name not in ("checked", "references"):
            _add(fields, (part.encode_name,), part.type, None)
    return fields


def _submods(kind: str) -> list[str]:
    """Names of submodules of a kind; of no kind if it is empty."""
    if not kind:
        return list(_UNKNOWN)
    form = KINDS[kind]
    if form.members is None:
        return [kind]
    return [f"{kind}/{member}" for member in _MEMBERS if form.has_member(member)]


def _struct(kind: type) -> inspect.StructType:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info


def _add_struct(
    fields: list[Field],
    path: _Path,
    info: inspect.StructType,
    needs: tuple[int, int] | None,
    values: tuple[Any, ...],
) -> tuple[int, int]:
    """Add an object and its fields.  Returns what its fields need."""
    mine = (len(fields), values.index(_PRESENT))
    fields.append(Field(path, info, values, needs=needs))
    for field in info.fields:
        _add(fields, (*path, field.encode_name), field.type, mine)
    return mine


def _add(fields: list[Field], path: _Path, kind: inspect.Type, needs: tuple[int, int] | None) -> None:
    options = _options(kind)
    struct = next((option for option in options if isinstance(option, inspect.StructType)), None)
    if struct is None:
        values, is_closed = _values(kind)
        fields.append(Field(path, kind, values, is_closed=is_closed, needs=needs))
        return
    others = [value for option in options if option is not struct for value in _values(option)[0]]
    _add_struct(fields, path, struct, needs, (_PRESENT, *others))


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """The types of which a value may be."""
    bare = kind.type if isinstance(kind, inspect.Metadata) else kind
    return bare.types if isinstance(bare, inspect.UnionType) else (bare,)


def _values(kind: inspect.Type) -> tuple[tuple[Any, ...], bool]:
    """
    Values of a type, the plainest first, and whether there are no others.

    Raises:
        NotImplementedError: none is known.
    """
    if isinstance(kind, inspect.Metadata):
        examples = (kind.extra_json_schema or {}).get("examples")
        return _values(kind.type) if examples is None else (tuple(examples), False)
    match kind:
        case inspect.NoneType():
            return (None,), True
        case inspect.BoolType():
            return (False, True), True
        case inspect.LiteralType(values=values):
            return tuple(values), True
        case inspect.UnionType(types=types):
            several = [_values(option) for option in types]
            return tuple(v for found, _ in several for v in found), all(closed for _, closed in several)
    if found := tuple(_open_values(kind)):
        return found, False
    raise NotImplementedError(f"no value of {kind} is known. Give its field Meta(examples=[...])")


def _open_values(kind: inspect.Type) -> Iterable[Any]:
    """Values of a type of which there are more."""
    match kind:
        case inspect.StrType():
            return (text for text in _TEXTS if _allows(kind, text))
        case inspect.IntType(ge=least, le=most):
            low, high = -1 if least is None else least, 1 << 31 if most is None else most
            return sorted({low, max(low, min(high, 1)), high}, key=lambda number: (number != 1, number))
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            some = _values(item)[0]
            return [list(some[:1]), [], list(some)]
        case inspect.DictType(key_type=key, value_type=value):
            names, some = _values(key)[0], _values(value)[0]
            return [*({names[0]: one} for one in some), {}, dict(zip(names, some, strict=False))]
        case _:
            return ()


def _allows(kind: inspect.Type, value: Any) -> bool:
    """Whether *value* is a text or a number that a type allows."""
    match kind:
        case inspect.StrType(min_length=least, max_length=most, pattern=pattern) if isinstance(value, str):
            within = (least or 0) <= len(value) <= (len(value) if most is None else most)
            return within and (pattern is None or re.search(pattern, value) is not None)
        case inspect.IntType(ge=least, le=most) if type(value) is int:
            return (value if least is None else least) <= value <= (value if most is None else most)
        case inspect.BoolType():
            return isinstance(value, bool)
        case _:
            return False


def _combinations(kind: str, scheme: Scheme) -> Iterator[_Document]:
    """Inputs with every combination of the facts of a kind; several submodules in one where there may be several."""
    around = _input_fields()
    document = _document(around, {n: f.values[0] for n, f in enumerate(around) if _is_common(f)})
    facts: list[Field] = []
    _add_struct(facts, ("facts",), _struct(scheme.facts), None, (_PRESENT,))
    closed = [number for number, field in enumerate(facts) if field.is_closed and len(field.path) == _OWN]
    if prod(len(facts[number].values) for number in closed) > MAX_COMBINATIONS:
        return
    rows = enumerate(products([Place(len(facts[number].values)) for number in closed]))
    together = 1 if _submods(kind) == [kind] else _TOGETHER
    while some := list(islice(rows, together)):
        submods = {}
        for turn, row in some:
            values = _plain(facts, turn)
            values |= {closed[place]: facts[closed[place]].values[option] for place, option in row.items()}
            name = kind if together == 1 else f"{_submods(kind)[0]}{turn % together}"
            submods[name] = _document(facts, _that_are(facts, values))["facts"]
        yield {**document, "checked": {**document["checked"], **submods}}


def _is_common(field: Field) -> bool:
    """Whether a field is in every input."""
    return field.path[0] not in ("checked", "references") or field.path[:2] == ("checked", platform.SUBMOD)


def _that_are(fields: Sequence[Field], values: Mapping[int, Any]) -> dict[int, Any]:
    """Those of *values* whose place exists."""
    kept: dict[int, Any] = {}
    for number, value in sorted(values.items()):
        needs = fields[number].needs
        if needs is None or kept.get(needs[0], _ABSENT) is fields[needs[0]].values[needs[1]]:
            kept[number] = value
    return kept


def _of_words(words: Words, best: Mapping[str, Mapping[str, Any]]) -> Iterator[_Document]:
    fields = _input_fields()
    places = [number for number, field in enumerate(fields) if not field.is_closed]
    good = _good(fields, best)

    def document(turn: int, found: Mapping[int, Any]) -> _Document:
        made = {number: value for number, value in found.items() if value is not None}
        return _document(fields, _that_are(fields, _plain(fields, turn) | good | made))

    worded = {n: values for n in places if (values := _word_values(fields[n].kind, words))}
    for turn in range(max(len(words.strings), len(words.numbers))):
        yield document(turn, {n: values[(turn + n) % len(values)] for n, values in worded.items()})
    # Of two places, one takes the key and the other the value, in both ways: their numbers differ in some bit.
    sides = [(bit, side) for bit in range(len(fields).bit_length()) for side in (0, 1)]
    for turn, (keys, value) in enumerate(words.entries):
        for key in keys:
            for bit, side in sides:
                yield document(
                    turn,
                    {n: _with_entry(fields[n].kind, key, value, is_key=n >> bit & 1 == side) for n in places},
                )


def _word_values(kind: inspect.Type, words: Words) -> list[Any]:
    """Values of a type made of the words; none if no word has its form."""
    for option in _options(kind):
        match option:
            case inspect.StrType() | inspect.IntType():
                some = words.strings if isinstance(option, inspect.StrType) else words.numbers
                if found := [word for word in some if _allows(option, word)]:
                    return found
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return [[word] for word in _word_values(item, words)]
            case inspect.DictType(key_type=key, value_type=value):
                names = _word_values(key, words)
                values = [*_values(value)[0], *_word_values(value, words)[:1]]
                return [
                    {names[(first + n) % len(names)]: one for n, one in enumerate(values)}
                    for first in range(len(names))
                ]
    return []


def _with_entry(kind: inspect.Type, key: str, entry: Any, *, is_key: bool) -> Any:
    """A value of a type made of a key and the value below it; `None` if there is none."""
    for option in _options(kind):
        match option:
            case inspect.StrType() | inspect.IntType():
                word = key if is_key else entry
                if _allows(option, word):
                    return word
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                if any(_allows(o, entry) for o in _options(item)):
                    return [entry]
            case inspect.DictType(key_type=name, value_type=value):
                if any(_allows(o, key) for o in _options(name)) and any(
                    _allows(o, entry) for o in _options(value)
                ):
                    return {key: entry}
    return None
