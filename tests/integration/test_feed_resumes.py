"""The feed after a break: it goes on where it was, and what was verified once is not verified again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from router.state import result_reader
from tests.integration.following import code, followed, node, settled
from tests.unit.router.doubles import FakeVerifier, Moved, fake_verifier, result_key, until
from tests.unit.router.support import WEIGHTS

FAILING = {**WEIGHTS, "executables": 96}


@pytest.fixture
async def verifier() -> AsyncIterator[FakeVerifier]:
    async with fake_verifier(Moved()) as fake:
        yield fake


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every token whose signature is checked."""
    tokens: list[str] = []
    decode = result_reader.results.decode_jwt

    def counted(token: str, *args: Any, **given: Any) -> Any:
        tokens.append(token)
        return decode(token, *args, **given)

    monkeypatch.setattr(result_reader.results, "decode_jwt", counted)
    return tokens


def pages_asked(verifier: FakeVerifier) -> list[str]:
    return [path.rpartition("after=")[2] for path in verifier.asked if "/results" in path]


async def snapshot_again(verifier: FakeVerifier) -> None:
    """The feed breaks, and nothing but a whole snapshot helps."""
    loads, connections = verifier.loads, verifier.connections
    verifier.forget_events()
    verifier.hang_up()
    # The first connection says that the events are gone, the second follows the snapshot.
    await until(lambda: (verifier.loads, verifier.connections) == (loads + 1, connections + 2))


# Going on with the event after the last one.


async def test_a_broken_stream_is_resumed_without_a_snapshot(verifier) -> None:
    """What happened meanwhile comes by its events."""
    for name in "abc":
        verifier.trust(name)
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        await settled(verifier, feed)
        verifier.hang_up()
        verifier.send("revocation", node="b")
        verifier.send("result", node="d", token=verifier.token("d"))
        verifier.send("node", node="c", state="retired")
        await until(lambda: verifier.connections == 2)
        await settled(verifier, feed)
        assert [code(feed, name) for name in "abcd"] == [
            "result.revoked",
            "result.revoked",
            "identity.retired",
            None,
        ]
        assert (verifier.loads, verifier.asked[-1]) == (1, "/api/v1/events?after=2")


async def test_keys_are_renewed_at_each_reconnect(verifier) -> None:
    """A snapshot costs much more than they do."""
    async with followed(verifier):
        verifier.hang_up()
        await until(lambda: verifier.connections == 2)
        assert [path for path in verifier.asked if "jwks" in path] == ["/.well-known/jwks.json"] * 2
        assert verifier.loads == 1


async def test_a_verifier_that_was_restored_is_asked_for_everything(verifier) -> None:
    """Its numbers have begun again below ours."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        for _ in range(3):
            await settled(verifier, feed)
        verifier.results.clear()
        verifier.trust("b")
        verifier.seq = 1
        verifier.hang_up()
        await until(lambda: verifier.connections == 3)
        assert (code(feed, "a"), code(feed, "b"), verifier.asked[-1]) == (
            "result.missing",
            None,
            "/api/v1/events?after=1",
        )


async def test_an_event_that_cannot_be_read_is_not_met_again(verifier) -> None:
    """The snapshot tells of what it was about, and the events after it are followed."""
    async with followed(verifier):
        verifier.send_raw(b"event: result\nid: 1\ndata: nonsense\n\n")
        verifier.seq, verifier._sent[1] = 1, b"event: result\nid: 1\ndata: nonsense\n\n"
        await until(lambda: verifier.connections == 2)
        assert (verifier.loads, verifier.asked[-1]) == (2, "/api/v1/events?after=1")


async def test_after_a_long_silence_everything_is_asked_for(verifier) -> None:
    """The events of an hour tell of each node many times."""
    async with followed(verifier):
        verifier.clock.forward(601)
        verifier.hang_up()
        await until(lambda: verifier.connections == 2)
        assert verifier.loads == 2


async def test_an_incident_that_ended_meanwhile_ends_by_its_event(verifier) -> None:
    """Both for the node and for who waits for its end."""
    ended: list[tuple[str, str]] = []
    given = {"on_incident_state": lambda *said: ended.append(said), "reported_incidents": lambda: {"i"}}
    verifier.trust("a")
    verifier.incidents = [{"id": "i", "node": "a", "state": "open"}]
    async with followed(verifier, given=given) as feed:
        before = (code(feed), list(ended))
        verifier.hang_up()
        verifier.release(verifier.incidents[0])
        await until(lambda: code(feed) is None)
        assert (before, verifier.loads) == (("incident.quarantine", []), 1)
        assert set(ended) == {("i", "released")}


async def test_an_end_that_was_lost_is_asked_for(verifier) -> None:
    """The stream told of it once, and the hold's end could not be written then."""
    ended: list[tuple[str, str]] = []
    given = {"on_incident_state": lambda *said: ended.append(said), "reported_incidents": lambda: {"i"}}
    verifier.ended = [{"id": "i", "state": "released"}]
    async with followed(verifier, given=given):
        ended.clear()
        verifier.hang_up()
        await until(lambda: verifier.connections == 2)
        assert (ended, verifier.loads) == ([("i", "released")], 1)


async def test_what_was_missed_while_the_gate_was_closed_is_taken_in_before_it_opens(verifier) -> None:
    """That the verifier is back does not show what it has revoked."""
    verifier.trust("a", exp=verifier.clock.seconds + 3000)
    verifier.trust("b", exp=verifier.clock.seconds + 3000)
    verifier.send("weather")
    async with followed(verifier) as feed:
        verifier.clock.forward(61)
        verifier.hang_up()
        missed = [verifier.seq + 1, verifier.seq + 2]
        verifier.send("revocation", node="a")
        verifier.send("revocation", node="b")
        late = verifier._sent[missed[1]]
        verifier._sent[missed[1]] = b"event: heartbeat\ndata: {}\n\n"
        await until(lambda: code(feed) is not None and node(feed).revoked)
        await asyncio.sleep(0.02)
        before = code(feed, "b")
        verifier.send_raw(late)
        await until(lambda: feed.fleet.silent_s == 0)
        assert (before, code(feed, "b"), verifier.loads) == ("incident.feed-silent", "result.revoked", 1)


# What was verified once.


async def test_known_tokens_are_not_verified_again(verifier, verified) -> None:
    """A snapshot of what is known costs nearly nothing."""
    for name in "abc":
        verifier.trust(name)
    async with followed(verifier) as feed:
        verifier.send("result", node="d", token=verifier.token("d"))
        await until(lambda: code(feed, "d") is None)
        first = len(verified)
        verifier.trust("e")
        await snapshot_again(verifier)
        assert (first, verified[first:]) == (4, [verifier.results["e"]])
        assert [code(feed, name) for name in "abcde"] == [None, None, None, "result.missing", None]


async def test_a_token_is_known_by_all_of_it(verifier) -> None:
    """The signature of a known one does not speak for another text."""
    verifier.trust("a", weights=FAILING)
    async with followed(verifier) as feed:
        before = code(feed)
        head, _, signature = verifier.results["a"].split(".")
        body = verifier.token("a").split(".")[1]
        verifier.results["a"] = f"{head}.{body}.{signature}"
        await snapshot_again(verifier)
        assert (before, code(feed)) == ("result.not-affirming", "result.missing")


async def test_a_known_token_is_of_one_node(verifier) -> None:
    """Another node that is listed with it has no result."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.results["b"] = verifier.results["a"]
        await snapshot_again(verifier)
        assert (code(feed, "a"), code(feed, "b")) == (None, "result.missing")


async def test_a_known_result_runs_out_all_the_same(verifier) -> None:
    """Listed once more or not."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.clock.forward(590)
        await snapshot_again(verifier)
        before = node(feed).result
        verifier.clock.forward(20)
        await snapshot_again(verifier)
        assert (before is None, code(feed)) == (False, "result.expired")


async def test_a_key_that_left_takes_its_known_results_along(verifier, verified) -> None:
    """With the next snapshot; those of the other key stay, and need not be verified once more."""
    other = result_key()
    verifier.keys.append(other.verifying.jwk())
    verifier.trust("a")
    verifier.key, first = other, verifier.key
    verifier.trust("b")
    async with followed(verifier) as feed:
        before = [code(feed, name) for name in "ab"]
        verifier.keys.remove(first.verifying.jwk())
        verifier.hang_up()
        await until(lambda: verifier.connections == 2)
        assert (before, [code(feed, name) for name in "ab"]) == ([None, None], ["result.missing", None])
        assert len(verified) == 3


async def test_a_revoked_result_that_is_listed_again_stays_revoked(verifier) -> None:
    """Also if its token need not be verified."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        await settled(verifier, feed)
        await snapshot_again(verifier)
        assert code(feed) == "result.revoked"


# Page by page.


@pytest.fixture
def paged(verifier: FakeVerifier) -> FakeVerifier:
    """Four nodes on pages of one."""
    verifier.page_size = 1
    for name in "abcd":
        verifier.trust(name, exp=verifier.clock.seconds + 3000)
    return verifier


async def test_pages_count_as_contact(paged) -> None:
    """A snapshot may take longer than the silence that closes the gate."""

    async def slowly(_: str) -> None:
        paged.clock.forward(15)

    async with followed(paged) as feed:
        silent: list[float] = []
        put = feed.fleet.put_node
        feed.fleet.put_node = lambda view: (silent.append(feed.fleet.silent_s), put(view))  # type: ignore[method-assign]
        paged.trust("b", exp=paged.clock.seconds + 3000)
        paged.trust("d", exp=paged.clock.seconds + 3000)
        paged.on_page = slowly
        await snapshot_again(paged)
        # Five pages took 75 seconds.  The two after that which is taken in are on their way already.
        assert (len(silent), all(each <= 45 for each in silent)) == (2, True)


async def test_work_goes_on_while_a_snapshot_is_slow(paged) -> None:
    """Each node is as it was until its page comes, and as the page says from then on."""
    async with followed(paged) as feed:
        asked: list[str] = []
        may_go_on = asyncio.Event()

        async def slowly(after: str) -> None:
            asked.append(after)
            if after == "b":
                await may_go_on.wait()

        paged.on_page = slowly
        paged.trust("a", weights=FAILING)
        paged.trust("d", weights=FAILING)
        del paged.results["b"], paged.results["c"]
        paged.trust("b", weights=FAILING)
        paged.forget_events()
        paged.hang_up()
        await until(lambda: "b" in asked and code(feed, "b") is not None)
        meanwhile = [code(feed, name) for name in "abcd"]
        may_go_on.set()
        await until(lambda: paged.connections == 3)
        after = [code(feed, name) for name in "abcd"]
    failing = "result.not-affirming"
    assert (meanwhile, after) == (
        [failing, failing, None, None],
        [failing, failing, "result.missing", failing],
    )


async def test_nobody_is_let_in_who_is_held(paged) -> None:
    """What is held is known before the first result is taken in."""
    paged.incidents = [{"id": "i", "node": "b", "state": "open"}]
    may_go_on = asyncio.Event()

    async def slowly(after: str) -> None:
        if after == "c":
            await may_go_on.wait()

    paged.on_page = slowly
    async with followed(paged, ready=False) as feed:
        await until(lambda: node(feed, "b").result is not None)
        assert (code(feed, "a"), code(feed, "b")) == (None, "incident.quarantine")
        may_go_on.set()


async def test_a_broken_snapshot_goes_on_where_it_broke(paged, verified) -> None:
    """Its pages are not asked for again, nor are its tokens verified again."""
    failures = iter([True, True])

    async def broken(after: str) -> None:
        if after == "b" and next(failures, False):
            raise web.HTTPInternalServerError

    paged.on_page = broken
    async with followed(paged) as feed:
        assert [code(feed, name) for name in "abcd"] == [None] * 4
        assert pages_asked(paged) == ["", "a", "b", "b", "b", "c", "d"]
        assert sorted(verified) == sorted(paged.results.values())


async def test_a_snapshot_that_cannot_be_completed_closes_the_gate(paged) -> None:
    """Each page counts once: what the pages after it would say is not known."""

    async def broken(after: str) -> None:
        if after == "b":
            raise web.HTTPInternalServerError

    paged.on_page = broken
    async with followed(paged, ready=False) as feed:
        await until(lambda: pages_asked(paged).count("b") > 1)
        before = code(feed, "a")
        paged.clock.forward(61)
        await until(lambda: pages_asked(paged).count("b") > 4)
        assert (before, code(feed, "a")) == (None, "incident.feed-silent")


async def test_a_gate_that_silence_closed_opens_with_the_whole_snapshot(paged) -> None:
    """Of the nodes on later pages a revocation may have been missed."""
    async with followed(paged) as feed:
        may_go_on = asyncio.Event()

        async def slowly(after: str) -> None:
            if after == "b":
                await may_go_on.wait()

        paged.on_page = slowly
        paged.clock.forward(61)
        paged.trust("a", exp=paged.clock.seconds + 1000)
        paged.forget_events()
        paged.hang_up()
        await until(lambda: node(feed, "a").result.iat == paged.clock.seconds)  # type: ignore[union-attr]
        meanwhile = code(feed, "a")
        may_go_on.set()
        await until(lambda: paged.connections == 3)
        assert (meanwhile, code(feed, "a")) == ("incident.feed-silent", None)


async def test_a_revocation_between_the_pages_is_of_the_result_before(paged) -> None:
    """The page that came after it has the newer one already."""

    async def meanwhile(after: str) -> None:
        if after == "b" and not paged.seq:
            paged.send("revocation", node="c")
            paged.clock.forward(1)
            paged.trust("c")
            paged.send("result", node="c", token=paged.results["c"])
            paged.send("revocation", node="a")

    paged.on_page = meanwhile
    async with followed(paged) as feed:
        await settled(paged, feed)
        assert (code(feed, "a"), code(feed, "c")) == ("result.revoked", None)


async def test_a_result_of_a_page_that_was_refused_may_come_by_its_event(paged) -> None:
    """Its key became known in between."""
    new = result_key()

    async def meanwhile(after: str) -> None:
        if after == "b" and not paged.seq:
            paged.key = new
            paged.trust("c")
            paged.send("result", node="c", token=paged.results["c"])
        if after == "d" and len(paged.keys) == 1:
            # The page with c was read before this one was asked for.
            paged.keys.append(new.verifying.jwk())
            paged.clock.forward(31)

    paged.on_page = meanwhile
    async with followed(paged) as feed:
        await until(lambda: code(feed, "c") is None)
        assert paged.loads == 1
