"""Bodies of requests: what they cost is bounded before they are parsed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import ApiKey
from router.gateway.body import LARGE, MANY, MAX_DEPTH, _count, _count_outside_strings, decode, is_large
from router.gateway.errors import GatewayError
from router.gateway.request import read_request
from router.model.operations import OPERATIONS
from router.model.workload import Table, Workload
from tests.unit.router.support import MODEL

CHAT = OPERATIONS["chat/completions"]
MOST = 1000


def values(document: Any) -> int:
    """Items of lists and members of objects."""
    inner = (
        document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    )
    return sum(1 + values(each) for each in inner)


documents = st.dictionaries(
    st.text(max_size=4) | st.sampled_from(['"', "\\", '\\"', ",", "[{"]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8) | st.sampled_from([",,,", '"[', "\\\\", "{}"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


@given(documents, st.booleans())
def test_the_count_of_bytes_is_never_less_than_the_values(document: dict[str, Any], escapes: bool) -> None:  # noqa: FBT001
    """Whatever is in strings; without the strings it is exact to the containers."""
    data = json.dumps(document, ensure_ascii=escapes).encode(errors="replace")
    plain = _count_outside_strings(data, 1 << 20)
    assert values(document) <= plain <= _count(data)
    containers = 1 + sum(data_is_container for data_is_container in _containers(document))
    assert plain <= values(document) + containers


def _containers(document: Any) -> list[int]:
    inner = (
        document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    )
    found: list[int] = []
    for each in inner:
        found.append(int(isinstance(each, (dict, list))))
        found += _containers(each)
    return found


MANY_VALUES = {
    "empty lists": b'{"a":[' + b"[]," * MOST + b"[]]}",
    "empty objects": b'{"a":[' + b"{}," * MOST + b"{}]}",
    "numbers": b'{"a":[' + b"0," * MOST + b"0]}",
    "members": b"{" + b",".join(b'"%d":0' % n for n in range(MOST + 2)) + b"}",
    "empty texts": b'{"a":[' + b'"",' * (4 * MOST) + b'""]}',
    "texts full of quotes": b'{"a":[' + b'"\\"",' * MOST + b'""]}',
    "unfinished": b'{"a":[' + b"[]," * MOST,
    "a quote too many": b'{"a":[' + b"[]," * MOST + b'"',
}


@pytest.mark.parametrize("data", MANY_VALUES.values(), ids=MANY_VALUES.keys())
def test_a_body_of_too_many_values_is_not_parsed(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how many there may be."""
    monkeypatch.setattr("router.gateway.body._document", None)
    with pytest.raises(GatewayError, match=f"more than {MOST} values") as raised:
        decode(data, MOST)
    assert (raised.value.status, raised.value.code) == (413, "too_many_values")


def test_commas_in_texts_are_no_values() -> None:
    """A long text in prose, with quotes and backslashes in it, is one value."""
    text = 'a, "b" [c] {d} \\ ' * MOST
    assert decode(msgspec.json.encode({"text": text}), MOST) == {"text": text}


@pytest.mark.parametrize("kind", ["lists", "objects"])
@pytest.mark.parametrize(
    ("depth", "is_refused"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True), (100_000, True)]
)
def test_depth_is_bounded(kind: str, depth: int, is_refused: bool) -> None:  # noqa: FBT001
    """The object itself is the first level."""
    inner = depth - 1
    nested = b"[" * inner + b"]" * inner if kind == "lists" else b'{"a":' * inner + b"0" + b"}" * inner
    data = b'{"a":' + nested + b"}"
    if not is_refused:
        decode(data, 1 << 18)
        return
    with pytest.raises(GatewayError, match=f"more than {MAX_DEPTH} levels") as raised:
        decode(data, 1 << 18)
    assert raised.value.status == 400


def test_many_shallow_values_are_not_deep() -> None:
    """More brackets than levels."""
    decode(b'{"a":[' + b"[]," * 500 + b"[]]}", 1 << 18)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"{}", False), (b" " * (LARGE + 1), True), (b"," * (MANY + 1), True), (b"," * MANY, False)],
)
def test_what_takes_long_is_read_aside(data: bytes, expected: bool) -> None:  # noqa: FBT001
    """By its bytes, or by its values."""
    assert is_large(data) is expected


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_as_many_tokens_as_its_engines(name: str) -> None:
    """A prompt of 128 Ki token ids; of embeddings 300,000, as OpenAI takes."""
    least = 300_000 if name == "embeddings" else 131_072
    assert OPERATIONS[name].max_values > least


# Numbers.

TABLE = Table([msgspec.convert({"model": MODEL, "name": "tiny", "tier": "small"}, Workload)])
KEY = ApiKey(name="k", sha256="0" * 64)


def read(number: str, name: str = "max_tokens") -> Any:
    """What nodes get, if a request has a number written so."""
    data = b'{"model":"%b","messages":[],"%b":%b}' % (MODEL.encode(), name.encode(), number.encode())
    request = read_request(data, CHAT, TABLE, KEY, workload=None)
    assert msgspec.json.decode(request.body) == request.document
    return request


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("number", ["16", "16.0", "16.000", "1.6e1", "160e-1"])
def test_an_integer_may_be_written_with_a_fraction(number: str, name: str) -> None:
    """JSON does not tell them apart; router and engine read the same integer."""
    request = read(number, name)
    assert f'"{name}":16'.encode() in request.body
    assert (request.document[name], type(request.document[name])) == (16, int)


def test_the_router_counts_by_the_same_number() -> None:
    """Not by none."""
    assert read("16.0").max_shown_tokens == 16


@pytest.mark.parametrize(
    "number",
    ["16.5", "-1", "-1.0", "true", '"16"', "[16]", "1e300", "9007199254740994.0", "9007199254740993"],
)
def test_no_other_number_passes(number: str) -> None:
    """What engines may read in another way than the router."""
    with pytest.raises(GatewayError, match="max_tokens must be a non-negative integer"):
        read(number)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "016", "16."])
def test_no_number_of_no_json_passes(number: str) -> None:
    """Readers of JSON disagree about them."""
    with pytest.raises(GatewayError) as raised:
        read(number)
    assert raised.value.status == 400


def test_no_number_is_no_limit() -> None:
    """Null says nothing, and stays."""
    assert read("null").max_shown_tokens is None
