"""Server-sent events of nodes: cut out of bytes in any pieces, with their names, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.sse import MAX_EVENT, EventError, EventParser, encode_event

NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
TEXTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=40)


def parse(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    """Name and data of each event."""
    parser = EventParser()
    return [(event.name, event.data) for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"event: x.delta\ndata: a\n\n", [(b"x.delta", b"a")]),
        (b"data: a\nevent: x\n\n", [(b"x", b"a")]),
        (b"event: x\ndata: a\ndata: b\n\n", [(b"x", b"a\nb")]),
        (b"event: x\r\ndata: a\r\n\r\n", [(b"x", b"a")]),
        (b"\xef\xbb\xbfevent: x\ndata: a\n\n", [(b"x", b"a")]),
        (b"id: 7\nretry: 5\ndata: a\n\n", [(b"", b"a")]),
        (b": a comment\n\n", []),
        (b"event: x\n\n", []),
        (b"data: a\n", []),
    ],
)
def test_an_event_has_a_name_and_data(data: bytes, events: list[tuple[bytes, bytes]]) -> None:
    """Its id and its retry time are nobody's business; without data it is no event."""
    assert parse(data) == events


@pytest.mark.parametrize("name", [b"\x1b[2J", "é".encode(), b"x" * 129, b"\x00"])
def test_a_name_that_is_not_plain_is_dropped(name: bytes) -> None:
    """The data goes on, and the client's screen is not written to."""
    assert parse(b"event: " + name + b"\ndata: a\n\n") == [(b"", b"a")]


@given(st.lists(st.tuples(st.none() | NAMES, TEXTS), max_size=5), st.integers(1, 9))
def test_any_pieces_give_the_same_events(events: list[tuple[str | None, str]], size: int) -> None:
    """What is encoded comes back, however the bytes arrive."""
    expected = [((name or "").encode(), text.encode()) for name, text in events if text]
    wire = b"".join(encode_event(data, name) for name, data in expected)
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    assert parse(*pieces) == expected


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_parsed(pieces: list[bytes]) -> None:
    """No exception but the one for size, and no line's end in a name."""
    assert all(b"\n" not in name for name, _ in parse(*pieces))


def test_an_event_is_bounded() -> None:
    """Before it is whole."""
    parser = EventParser()
    with pytest.raises(EventError, match="more than 1048576 bytes"):
        list(parser.feed(b"data: " + b"x" * MAX_EVENT))
