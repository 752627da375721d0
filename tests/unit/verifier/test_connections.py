"""Who is cut if there are too many connections, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.service.connections import Connection, ConnectionLimits, Connections


class Book:
    """Connections, and what became of them."""

    def __init__(self, *, total: int = 10, strangers: int = 6, per_address: int = 4) -> None:
        self.noted: list[str] = []
        self.cut: list[Connection] = []
        limits = ConnectionLimits(total=total, strangers=strangers, per_address=per_address)
        self.connections = Connections(limits, self.noted.append)

    def come(self, address: str = "a", *, is_proxy: bool = False) -> Connection:
        connection = Connection(address, lambda: self.cut.append(connection), is_proxy=is_proxy)
        if not self.connections.admit(connection):
            self.cut.append(connection)
        return connection

    def known(self, who: str, address: str = "a") -> Connection:
        connection = self.come(address)
        self.connections.identify(connection, who)
        return connection


def test_one_address_has_only_so_many() -> None:
    """The one that has waited longest makes room."""
    book = Book()
    first, *_ = [book.come() for _ in range(5)]
    assert (book.cut, book.noted) == ([first], ["address"])


def test_many_addresses_have_only_so_many_together() -> None:
    """Whoever comes is let in, and the one that has waited longest goes."""
    book = Book()
    first, *_ = [book.come(f"a{n}") for n in range(7)]
    assert (book.cut, book.noted, len(book.connections)) == ([first], ["strangers"], 6)


def test_a_request_in_progress_is_cut_last() -> None:
    """Half-open connections are worth less."""
    book = Book()
    first, second, *_ = [book.come(f"a{n}") for n in range(6)]
    book.connections.begin(first)
    book.come("new")
    assert book.cut == [second]


def test_the_oldest_request_in_progress_is_cut_if_all_have_one() -> None:
    """Slow bodies keep nobody out either."""
    book = Book()
    first, *others = [book.come(f"a{n}") for n in range(6)]
    for each in (*others, first):
        book.connections.begin(each)
    book.come("new")
    assert book.cut == [others[0]]


def test_strangers_never_have_what_is_kept_for_the_known() -> None:
    """However many come, those who prove who they are find room."""
    book = Book()
    for n in range(100):
        book.come(f"a{n}")
    before = len(book.cut)
    known = [book.known(f"node:{n}") for n in range(4)]
    assert not set(known) & set(book.cut)
    assert len(book.cut) - before == 1
    assert (len(book.connections), book.connections.strangers) == (9, 5)


def test_no_flood_of_strangers_cuts_the_known() -> None:
    """Not even if all places are taken: then strangers cut each other, or find none."""
    book = Book()
    known = [book.known(f"node:{n}", f"a{n}") for n in range(10)]
    for n in range(100):
        book.come(f"b{n}")
    assert not set(known) & set(book.cut)
    assert set(book.noted) == {"connections"}


def test_one_who_is_known_cannot_have_all() -> None:
    """With every place its own, it gives one to the next who comes."""
    book = Book()
    mine = [book.known("node:1") for _ in range(10)]
    book.connections.begin(mine[0])
    other = book.come("other")
    book.connections.identify(other, "node:2")
    assert book.cut == [mine[1]]


def test_one_who_is_known_leaves_strangers_more_than_one_place() -> None:
    """Else each who comes would cut the one before, and nobody could prove anything."""
    book = Book(total=40, strangers=32, per_address=32)
    for _ in range(40):
        book.known("node:1")
    come = [book.come(f"a{n}") for n in range(4)]
    assert not set(come) & set(book.cut)
    assert len(book.cut) == 4


def test_a_known_connection_does_not_count_for_its_address() -> None:
    """Ten thousand nodes may live behind one address."""
    book = Book(total=100, per_address=2)
    for n in range(50):
        book.known(f"node:{n}")
    assert book.cut == []


def test_a_proxys_connection_belongs_to_nobody() -> None:
    """It carries requests of all, so no one's proof makes it his, and no limit of an address holds for it."""
    book = Book(total=8, per_address=1)
    proxies = [book.come("proxy", is_proxy=True) for _ in range(8)]
    book.connections.identify(proxies[0], "node:1")
    assert (book.cut, book.connections.strangers) == ([], 0)
    last = book.come("b")
    assert book.cut == [last]


@pytest.mark.parametrize("files", [16, 400])
def test_few_open_files_are_shared_as_well(files: int) -> None:
    """Strangers have at most half of them."""
    book = Book(total=1000, strangers=900)
    book.connections.limit(files)
    assert (book.connections.limits.total, book.connections.limits.strangers) == (files, min(900, files // 2))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "known", "begin", "end", "remove", "proxy"]),
            st.integers(0, 40),
            st.integers(0, 4),
        )
    )
)
def test_the_limits_hold_whatever_comes(steps: list[tuple[str, int, int]]) -> None:
    """And what is cut or gone is nowhere in the book."""
    book = Book()
    open_: list[Connection] = []
    for step, which, who in steps:
        if step in ("come", "proxy"):
            open_.append(book.come(f"a{who}", is_proxy=step == "proxy"))
        elif open_:
            connection = open_[which % len(open_)]
            match step:
                case "known":
                    book.connections.identify(connection, f"node:{who}")
                case "begin":
                    book.connections.begin(connection)
                case "end":
                    book.connections.end(connection)
                case _:
                    book.connections.remove(connection)
                    open_.remove(connection)
        open_ = [each for each in open_ if each not in book.cut]
        kinds = [each.kind for each in open_]
        assert len(book.connections) == len(open_) <= 10
        assert book.connections.strangers == kinds.count("stranger") <= 6
        for address in {each.address for each in open_}:
            assert sum(each.kind == "stranger" and each.address == address for each in open_) <= 4
