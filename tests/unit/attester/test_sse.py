"""Reading server-sent events: the same from any chunking, and bounded."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import VerifierError
from attester.sse import Event, read_events


class Chunks:
    """A stream that comes in given pieces."""

    def __init__(self, *chunks: bytes):
        self.chunks = chunks
        self.taken = 0

    async def iter_any(self):
        for chunk in self.chunks:
            self.taken += 1
            yield chunk


def events(*chunks: bytes, max_size: int = 1000) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in read_events(Chunks(*chunks), max_size=max_size)]

    return asyncio.run(collect())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


LINE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0"), max_size=12)
FIELD = LINE.filter(bool)
EVENTS = st.lists(
    st.builds(
        Event,
        kind=FIELD.filter(lambda kind: not kind.startswith(" ")),
        data=st.lists(LINE, min_size=1, max_size=3).map("\n".join),
        id=LINE,
    ),
    max_size=5,
)


def written(sent: list[Event], newline: str) -> bytes:
    text = ""
    for event in sent:
        text += f": comment{newline}event: {event.kind}{newline}id: {event.id}{newline}retry: 3{newline}"
        text += "".join(f"data: {line}{newline}" for line in event.data.split("\n")) + newline
    return text.encode()


@given(EVENTS, st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=120, deadline=None)
def test_any_chunking_gives_the_same_events(sent, newline, places):
    """Cut anywhere, in the middle of a character or a line end too."""
    assert events(*cut(written(sent, newline), places), max_size=100_000) == sent


@given(EVENTS)
@settings(max_examples=30, deadline=None)
def test_single_bytes_give_the_same_events(sent):
    """The smallest pieces there are."""
    data = written(sent, "\n")
    assert events(*(data[i : i + 1] for i in range(len(data))), max_size=100_000) == sent


@given(st.lists(st.binary(max_size=40), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_stream_is_read_or_refused(chunks):
    """Whatever comes, reading raises nothing but our error."""
    try:
        found = events(*chunks)
    except VerifierError:
        return
    assert all(isinstance(event.data, str) for event in found)


READ = {
    "data alone": (b"data: x\n\n", [Event("message", "x", None)]),
    "no space": (b"data:x\n\n", [Event("message", "x", None)]),
    "two spaces": (b"data:  x\n\n", [Event("message", " x", None)]),
    "two lines": (b"data: x\ndata: y\n\n", [Event("message", "x\ny", None)]),
    "an empty line": (b"data\n\n", [Event("message", "", None)]),
    "a colon inside": (b"data: a:b\n\n", [Event("message", "a:b", None)]),
    "no data": (b"event: x\n\n", []),
    "the kind of an event without data": (b"event: x\n\ndata: y\n\n", [Event("message", "y", None)]),
    "the kind does not stay": (
        b"event: x\ndata: 1\n\ndata: 2\n\n",
        [Event("x", "1", None), Event("message", "2", None)],
    ),
    "the id stays": (
        b"id: 1\ndata: x\n\ndata: y\n\n",
        [Event("message", "x", "1"), Event("message", "y", "1")],
    ),
    "the id of an event without data": (b"id: 7\n\ndata: y\n\n", [Event("message", "y", "7")]),
    "comments": (b": a\n:b\n\n: c\n\n", []),
    "unknown fields": (b"foo: x\nDATA: y\n data: z\ndata: w\n\n", [Event("message", "w", None)]),
    "blank lines": (b"\n\n\n\ndata: x\n\n\n\n", [Event("message", "x", None)]),
    "cut off": (b"data: x\n\ndata: y\n", [Event("message", "x", None)]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("name", READ)
def test_a_stream_is_read_as_the_standard_has_it(name):
    """WHATWG HTML §9.2.6."""
    data, expected = READ[name]
    assert events(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", [Event("message", "x", None)]),
        (b"event:\ndata: x\n\n", [Event("message", "x", None)]),
        (b"id: a\x00b\ndata: x\n\n", [Event("message", "x", None)]),
    ],
    ids=["byte order mark", "empty kind", "id with NUL"],
)
def test_the_corners_of_the_standard(data, expected):
    """A stream that another writer of the standard sends is read as it is meant."""
    assert events(data) == expected


@pytest.mark.parametrize(
    "data", [b"data: \xff\n\n", b"\xff\n", b"event: \xc3\n\n", b"data: \xed\xa0\x80\n\n"], ids=repr
)
def test_a_stream_that_is_not_utf8_is_refused(data):
    """By our error."""
    with pytest.raises(VerifierError, match="not UTF-8"):
        events(data)


FLOODS = {
    "one line in one piece": [b"data: " + b"x" * 200],
    "one line in many pieces": [b"data: ", *[b"x" * 10] * 20],
    "one line byte by byte": [b"x"] * 101,
    "many lines": [b"data: x\n"] * 20,
    "unknown fields": [b"foo: bar\n"] * 20,
    "a kind": [b"event: " + b"x" * 100],
    "after an event": [b"data: x\n\n", b"data: " + b"x" * 100],
}


@pytest.mark.parametrize("name", FLOODS)
def test_an_event_without_end_is_refused(name):
    """At the bound, not when memory ends."""
    with pytest.raises(VerifierError, match="an event of more than 100 bytes"):
        events(*FLOODS[name], max_size=100)


def test_a_flood_is_refused_before_the_rest_is_taken():
    """What comes after the bound is not even read."""
    chunks = Chunks(*[b"x" * 60] * 50)

    async def drain() -> None:
        async for _ in read_events(chunks, max_size=100):
            pass

    with pytest.raises(VerifierError):
        asyncio.run(drain())
    assert chunks.taken == 2


def test_the_bound_is_for_each_event():
    """A stream may go on for ever."""
    assert len(events(*[b"data: " + b"x" * 80 + b"\n\n"] * 50, max_size=100)) == 50


def test_small_events_in_one_piece_are_events():
    """The bound is an event's, whatever else came with it."""
    assert len(events((b"data: " + b"x" * 80 + b"\n\n") * 3, max_size=100)) == 3


def test_lines_that_came_with_the_end_of_another_event_count():
    """An event that began in the piece before is bounded with all of its lines."""
    with pytest.raises(VerifierError):
        events(b"\ndata: " + b"x" * 80 + b"\n", b"data: " + b"x" * 80 + b"\n", b"\n", max_size=100)
