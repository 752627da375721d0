"""Random bytes, fetched a page at a time."""

from __future__ import annotations

import os

import pytest

from router.state.random_bytes import RandomBytes


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pages that were fetched, each of its own bytes."""
    fetched: list[bytes] = []

    def fetch(count: int) -> bytes:
        fetched.append(bytes(range(256)) * (count // 256))
        return fetched[-1]

    monkeypatch.setattr(os, "urandom", fetch)
    return fetched


def test_each_byte_is_given_once(pages: list[bytes]) -> None:
    source = RandomBytes()
    assert b"".join(source.take(16) for _ in range(256)) == pages[0]
    assert len(pages) == 1


def test_a_page_that_does_not_suffice_is_given_up(pages: list[bytes]) -> None:
    source = RandomBytes()
    taken = [source.take(4000), source.take(200), source.take(8)]
    assert (len(pages), taken[1:]) == (2, [pages[1][:200], pages[1][200:208]])


def test_no_two_are_the_same() -> None:
    source = RandomBytes()
    assert len({source.take(16) for _ in range(2000)}) == 2000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_has_bytes_of_its_own() -> None:
    source = RandomBytes()
    source.take(8)
    mine, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.write(theirs, source.take(16))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(mine, 16) != source.take(16)
    os.close(mine)
    os.close(theirs)
