"""The feed: what a verifier says, kept as a snapshot, and what is not taken on its word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import msgspec
import pytest
from aiohttp import web

from router.choose.gates import FEED_SILENT_S
from router.config import VerifierSection
from router.model.workload import Table
from router.state.feed import Feed
from router.state.fleet import Fleet
from tests.integration.following import code, followed, node, settled
from tests.unit.router.doubles import FakeVerifier, Moved, fake_verifier, result_key, until
from tests.unit.router.support import MODEL, WEIGHTS, WORKLOAD
from verifier.results import encode_jwt


@pytest.fixture
async def verifier() -> AsyncIterator[FakeVerifier]:
    async with fake_verifier(Moved()) as fake:
        yield fake


# What is said is heard.


async def test_a_live_result_lets_a_node_in(verifier) -> None:
    """From the first snapshot on."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        assert code(feed) is None


async def test_a_result_by_event_lets_a_node_in(verifier) -> None:
    """Without another snapshot."""
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=verifier.token("a"))
        await until(lambda: code(feed) is None)
        assert verifier.loads == 1


async def test_a_failing_result_takes_the_place_of_a_passing_one(verifier) -> None:
    """Also when both were issued in the same second."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=verifier.token("a", weights={**WEIGHTS, "executables": 96}))
        await settled(verifier, feed)
        assert code(feed) == "result.not-affirming"


async def test_a_revocation_closes(verifier) -> None:
    """At once, by the stream alone."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        await settled(verifier, feed)
        assert code(feed) == "result.revoked"


async def test_a_revocation_is_of_one_node(verifier) -> None:
    """Its neighbour stays."""
    verifier.trust("a")
    verifier.trust("b")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        await settled(verifier, feed)
        assert code(feed, "b") is None


@pytest.mark.parametrize("state", ["open", "under-review"])
async def test_an_incident_holds(verifier, state: str) -> None:
    """Whatever the newest result says."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("incident", node="a", incident="i", state=state)
        verifier.send("result", node="a", token=verifier.token("a"))
        await settled(verifier, feed)
        assert code(feed) == "incident.quarantine"


@pytest.mark.parametrize("state", ["suspected", "noted", "flagged"])
async def test_a_suspicion_holds_nobody(verifier, state: str) -> None:
    """Right after a change of the verifier's own it may be the verifier that errs."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("incident", node="a", incident="i", state=state)
        await settled(verifier, feed)
        assert code(feed) is None


async def test_a_release_lets_go(verifier) -> None:
    """Of the incident that was decided."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("incident", node="a", incident="i", state="open")
        verifier.send("incident", node="a", incident="i", state="released")
        await settled(verifier, feed)
        assert code(feed) is None


async def test_one_release_does_not_let_go_of_another_incident(verifier) -> None:
    """Each of them holds on its own."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        for incident in ("i", "j"):
            verifier.send("incident", node="a", incident=incident, state="open")
        verifier.send("incident", node="a", incident="i", state="released")
        await settled(verifier, feed)
        assert node(feed).incidents == {"j"}


@pytest.mark.parametrize("state", ["open", "under-review"])
async def test_an_incident_of_the_snapshot_holds(verifier, state: str) -> None:
    """A router that starts later knows of it too."""
    verifier.trust("a")
    verifier.incidents = [{"id": "i", "node": "a", "state": state}]
    async with followed(verifier) as feed:
        assert code(feed) == "incident.quarantine"


async def test_an_incident_comes_before_the_node(verifier) -> None:
    """A node that becomes known later is held by what was known of it."""
    async with followed(verifier) as feed:
        verifier.send("incident", node="a", incident="i", state="open")
        verifier.send("result", node="a", token=verifier.token("a"))
        await settled(verifier, feed)
        assert code(feed) == "incident.quarantine"


async def test_a_retired_node_stays_out(verifier) -> None:
    """Also where another result comes after it."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("node", node="a", state="retired")
        verifier.send("result", node="a", token=verifier.token("a"))
        await settled(verifier, feed)
        assert code(feed) == "identity.retired"


async def test_a_reset_leads_to_a_new_snapshot(verifier) -> None:
    """What was forgotten in between is forgotten here too."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.results.clear()
        verifier.trust("b")
        verifier.send_raw(b"event: reset\ndata: {}\n\n")
        await until(lambda: code(feed, "b") is None)
        assert code(feed, "a") == "result.missing"


async def test_a_stream_whose_events_are_gone_leads_to_a_new_snapshot(verifier) -> None:
    """Followed from the number that came with it."""
    async with followed(verifier):
        verifier.seq = 41
        verifier.hang_up()
        await until(lambda: verifier.connections == 3)
        assert verifier.asked[-1] == "/api/v1/events?after=41"


async def test_pages_are_followed_to_the_last(verifier) -> None:
    """And the events from the first page's number on, so that none falls between."""
    pages = iter(
        [
            {"results": [{"node": "a", "token": verifier.token("a")}], "seq": 5, "next": "a"},
            {"results": [{"node": "b", "token": verifier.token("b")}], "seq": 9, "next": None},
        ]
    )
    verifier.bodies["/api/v1/results"] = lambda: web.json_response(next(pages))
    for _ in range(9):
        verifier.send("weather")
    async with followed(verifier) as feed:
        assert (code(feed, "a"), code(feed, "b"), verifier.asked[-1]) == (
            None,
            None,
            "/api/v1/events?after=5",
        )


async def test_a_cursor_that_does_not_advance_ends_the_list(verifier) -> None:
    """A verifier gone round in circles does not keep the router there."""
    verifier.bodies["/api/v1/results"] = msgspec.json.encode({"results": [], "seq": 0, "next": "a"})
    async with followed(verifier):
        assert sum("/results" in path for path in verifier.asked) == 2


# What is signed wrongly is refused.


def changed(verifier: FakeVerifier, **claims: Any) -> str:
    """An honest result with other claims, rightly signed."""
    given = {**verifier.ear("a").to_claims(), **claims}
    return jwt.encode(given, verifier.key.private, algorithm="ES256", headers={"kid": verifier.key.kid})


def unsigned(verifier: FakeVerifier) -> str:
    return jwt.encode(
        verifier.ear("a").to_claims(), None, algorithm="none", headers={"kid": verifier.key.kid}
    )


def hmac_signed(verifier: FakeVerifier) -> str:
    """HS256 with what everybody knows, the public key's own members, as the secret."""
    secret = verifier.key.verifying.jwk_members()["x"].encode()
    return jwt.encode(
        verifier.ear("a").to_claims(), secret, algorithm="HS256", headers={"kid": verifier.key.kid}
    )


def forged_under_the_kid(verifier: FakeVerifier) -> str:
    return jwt.encode(
        verifier.ear("a").to_claims(),
        result_key().private,
        algorithm="ES256",
        headers={"kid": verifier.key.kid},
    )


def brings_its_key(verifier: FakeVerifier) -> str:
    own = result_key()
    return jwt.encode(
        verifier.ear("a").to_claims(),
        own.private,
        algorithm="ES256",
        headers={"kid": own.kid, "jwk": own.verifying.jwk()},
    )


def tampered(verifier: FakeVerifier) -> str:
    head, _, signature = encode_jwt(
        verifier.ear("a", weights={**WEIGHTS, "executables": 96}), verifier.key
    ).split(".")
    body = encode_jwt(verifier.ear("a"), verifier.key).split(".")[1]
    return f"{head}.{body}.{signature}"


def unknown_claim(verifier: FakeVerifier) -> str:
    raw = verifier.ear("a").to_claims()
    raw["submods"]["platform"]["ear_trustworthiness_vector"]["goodness"] = 2
    return changed(verifier, submods=raw["submods"])


def flattering_status(verifier: FakeVerifier) -> str:
    raw = verifier.ear("a", weights={**WEIGHTS, "file-system": 96}).to_claims()
    raw["submods"][f"model/{MODEL}"]["ear_status"] = "affirming"
    return changed(verifier, submods=raw["submods"], ear_status="affirming")


REFUSED = {
    "unknown key": lambda v: encode_jwt(v.ear("a"), result_key()),
    "known kid, other key": forged_under_the_kid,
    "its own key in the header": brings_its_key,
    "tampered": tampered,
    "alg none": unsigned,
    "HS256": hmac_signed,
    "other issuer": lambda v: v.token("a", issuer="https://other.test"),
    "issuer with a slash": lambda v: v.token("a", issuer=v.url + "/"),
    "wrong profile": lambda v: changed(v, eat_profile="tag:github.com,2023:veraison/ear"),
    "no profile": lambda v: changed(v, eat_profile=None),
    "a number for a text": lambda v: changed(v, jti=7),
    "no submodules": lambda v: changed(v, submods={}),
    "unknown trust claim": unknown_claim,
    "a flattering status": flattering_status,
    "too large": lambda v: v.token("a", claims={"x": "y" * (256 * 1024)}),
    "not a token": lambda _: "x",
    "empty": lambda _: "",
    "three dots": lambda _: "...",
    "no UTF-8 within": lambda _: "_w._w._w",
    "not ASCII": lambda _: "é.é.é",
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
async def test_a_wrong_result_by_event_lets_nobody_in(verifier, make) -> None:
    """Signature, algorithm, issuer, profile, time and form each count; the stream lives on."""
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=make(verifier))
        await settled(verifier, feed)
        assert node(feed).result is None
        assert verifier.loads == 1


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
async def test_a_wrong_result_of_the_snapshot_lets_nobody_in(verifier, make) -> None:
    """It costs its node its place, and no other."""
    verifier.results["a"] = make(verifier)
    verifier.trust("b")
    async with followed(verifier) as feed:
        assert (node(feed, "a").result, code(feed, "b")) == (None, None)


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
async def test_a_result_that_cannot_be_read_voids_nothing(verifier, make) -> None:
    """The verifier revokes what must count no more; what was good stays good until it runs out."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=make(verifier))
        await settled(verifier, feed)
        before = code(feed)
        verifier.clock.forward(600)
        feed.fleet.note_verifier_contact()
        assert (before, code(feed)) == (None, "result.expired")


@pytest.mark.parametrize("late", [5, 30])
async def test_clocks_may_differ_a_little(verifier, late: int) -> None:
    """By thirty seconds, as those of nodes may."""
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=verifier.token("a", iat=verifier.clock.seconds + late))
        await settled(verifier, feed)
        assert code(feed) is None


@pytest.mark.parametrize(
    ("skew_s", "late", "said"), [(0, 1, "result.untimely"), (300, 300, None), (300, 301, "result.untimely")]
)
async def test_how_much_is_a_setting(verifier, skew_s: int, late: int, said: str | None) -> None:
    """``skew_s`` of the section ``[verifier]``."""
    async with followed(verifier, skew_s=skew_s) as feed:
        verifier.send("result", node="a", token=verifier.token("a", iat=verifier.clock.seconds + late))
        await settled(verifier, feed)
        assert code(feed) == said


async def test_a_leeway_lets_nobody_work_on_an_expired_result(verifier) -> None:
    """It is accepted, and the gate is closed to it all the same."""
    async with followed(verifier) as feed:
        token = verifier.token("a", iat=verifier.clock.seconds - 60, exp=verifier.clock.seconds - 1)
        verifier.send("result", node="a", token=token)
        await settled(verifier, feed)
        assert code(feed) == "result.expired"


# Old results.


async def test_an_older_result_never_replaces_a_newer_one(verifier) -> None:
    """A replayed pass does not undo a failure."""
    old = verifier.token("a", iat=verifier.clock.seconds - 10)
    verifier.trust("a", weights={**WEIGHTS, "executables": 96})
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=old)
        await settled(verifier, feed)
        assert code(feed) == "result.not-affirming"


async def test_an_older_result_does_not_void_a_newer_one(verifier) -> None:
    """A replay of yesterday's is no way to keep a node out."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=verifier.token("a", iat=verifier.clock.seconds - 10))
        await settled(verifier, feed)
        assert code(feed) is None


async def test_a_revoked_result_that_comes_again_stays_revoked(verifier) -> None:
    """The same jti is the same result."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        verifier.send("result", node="a", token=verifier.results["a"])
        await settled(verifier, feed)
        assert code(feed) == "result.revoked"


async def test_an_older_result_does_not_come_back_after_a_revocation(verifier) -> None:
    """Nor does one that the revoked one had replaced."""
    old = verifier.token("a", iat=verifier.clock.seconds - 10)
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        verifier.send("result", node="a", token=old)
        await settled(verifier, feed)
        assert code(feed) == "result.revoked"


async def test_a_newer_result_ends_a_revocation(verifier) -> None:
    """It is another result, and it passes."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("revocation", node="a")
        verifier.clock.forward(1)
        verifier.send("result", node="a", token=verifier.token("a"))
        await settled(verifier, feed)
        assert code(feed) is None


async def test_a_new_snapshot_does_not_bring_an_older_result(verifier) -> None:
    """None gives way to an older one, whichever way that comes."""
    old = verifier.token("a", iat=verifier.clock.seconds - 10)
    verifier.trust("a", weights={**WEIGHTS, "executables": 96})
    async with followed(verifier) as feed:
        verifier.results["a"] = old
        verifier.forget_events()
        verifier.hang_up()
        await until(lambda: verifier.connections == 3)
        assert (code(feed), verifier.loads) == ("result.not-affirming", 2)


async def test_another_nodes_result_is_refused(verifier) -> None:
    """A ueid belongs to the node that it came with first."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("result", node="b", token=verifier.token("b", ueid="ueid-a"))
        await settled(verifier, feed)
        assert (node(feed, "b").result, code(feed, "a")) == (None, None)


async def test_another_nodes_result_is_refused_within_a_snapshot(verifier) -> None:
    """Also where both come at once."""
    verifier.trust("a")
    verifier.results["b"] = verifier.results["a"]
    async with followed(verifier) as feed:
        assert (node(feed, "b").result, code(feed, "a")) == (None, None)


async def test_a_node_does_not_change_its_ueid(verifier) -> None:
    """Another one is another node's; what is known of this one is void."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send("result", node="a", token=verifier.token("a", ueid="ueid-z"))
        await settled(verifier, feed)
        assert code(feed) == "result.revoked"


# A verifier that talks nonsense, or not at all.

HOSTILE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "a text": b'"x"',
    "nothing in it": b"{}",
    "not JSON": b"{",
    "not UTF-8": b'{"keys": "\xff"}',
    "a lone surrogate": b'{"results": [], "seq": 0, "next": "\\ud800"}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"keys": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "wrong types": b'{"keys": {}, "results": {}, "incidents": 7, "seq": "x", "next": 1}',
    "wrong entries": b'{"keys": [7], "results": [7], "incidents": [7], "seq": 0, "next": null}',
    "nulls": b'{"keys": [null], "results": [{"node": null, "token": null}], "incidents": [{}], "seq": 0, "next": null}',
    "negative": b'{"keys": [], "results": [], "incidents": [{"id": 1, "state": 2}], "seq": -1, "next": null}',
    "huge": b'{"keys": [], "results": [], "incidents": [{"id": "i"}], "seq": 1e999, "next": null}',
    "keys that are none": b'{"keys": [{"kty": "EC", "crv": "P-256", "x": 1, "y": []}], "results": 1, "incidents": 1}',
    "off the curve": b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}], "results": 1, "incidents": 1}',
}
PAGES = ["/.well-known/jwks.json", "/api/v1/results", "/api/v1/incidents"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_malformed_page_does_not_end_the_feed(verifier, path: str, body: bytes) -> None:
    """It asks again, and recovers when there is sense in the answer."""
    verifier.trust("a")
    verifier.bodies[path] = body
    async with followed(verifier, ready=False) as feed:
        await until(lambda: sum(asked.startswith(path) for asked in verifier.asked) >= 3)
        before = code(feed)
        verifier.bodies.clear()
        await until(lambda: code(feed) is None)
        assert before in ("incident.feed-silent", "result.missing")


@pytest.mark.parametrize("path", [*PAGES, "/api/v1/events"])
@pytest.mark.parametrize("status", [204, 302, 401, 404, 429, 500])
async def test_a_refusal_does_not_end_the_feed(verifier, path: str, status: int) -> None:
    """Nor is a redirect followed."""
    verifier.trust("a")
    headers = {"Location": "/elsewhere"}
    verifier.bodies[path] = lambda: web.Response(status=status, headers=headers)
    async with followed(verifier, ready=False) as feed:
        await until(lambda: sum(asked.startswith(path) for asked in verifier.asked) >= 3)
        verifier.bodies.clear()
        await until(lambda: verifier.followers)
        assert code(feed) is None


HOSTILE_EVENTS = {
    "not JSON": b"event: result\ndata: {\n\n",
    "null": b"event: result\ndata: null\n\n",
    "a list": b"event: result\ndata: []\n\n",
    "a number": b"event: revocation\ndata: 7\n\n",
    "numbers for texts": b'event: result\ndata: {"node": 1, "token": 2}\n\n',
    "lists for texts": b'event: incident\ndata: {"node": ["a"], "incident": {}, "state": []}\n\n',
    "not UTF-8": b'event: result\ndata: {"node": "\xff\xfe"}\n\n',
    "deep": b"event: result\ndata: " + b"[" * 50_000 + b"\n\n",
    "deep in a field": b'event: result\ndata: {"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n\n",
    "empty data": b"event: result\ndata:\n\n",
    "a lone surrogate": b'event: result\ndata: {"node": "\\ud800"}\n\n',
    "too large": b"event: result\ndata: " + b"x" * (2 << 20) + b"\n\n",
    "a line without an end": b"x" * (2 << 20),
    "reset of another form": b"event: reset\ndata: nonsense\n\n",
}


@pytest.mark.parametrize("event", HOSTILE_EVENTS.values(), ids=HOSTILE_EVENTS.keys())
async def test_a_malformed_event_leads_to_a_new_snapshot(verifier, event: bytes) -> None:
    """What it was about is not known, so that everything is asked for anew."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.trust("b")
        verifier.send_raw(event)
        await until(lambda: verifier.connections == 2)
        assert (code(feed, "a"), code(feed, "b")) == (None, None)


HARMLESS_EVENTS = {
    "unknown kind": b'event: weather\ndata: {"node": "a"}\n\n',
    "no kind": b'data: {"node": "a"}\n\n',
    "no node": b'event: result\ndata: {"token": "x"}\n\n',
    "no token": b'event: result\ndata: {"node": "a"}\n\n',
    "unknown node": b'event: revocation\ndata: {"node": "zz"}\n\n',
    "release of an unknown node": b'event: incident\ndata: {"node": "zz", "incident": "i", "state": "released"}\n\n',
    "unknown state": b'event: node\ndata: {"node": "a", "state": "promoted"}\n\n',
    "ids that are none": b"event: weather\nid: \xd9\xa3\ndata: {}\n\nevent: weather\nid: -1\ndata: {}\n\n",
    "a long id": b"event: weather\nid: " + b"9" * 5000 + b"\ndata: {}\n\n",
    "comments": b": hello\n\n:\n\n",
    "fields that nobody knows": b"retry: 1\nfoo: bar\n\n",
    "ends of other systems": b"event: heartbeat\r\ndata: {}\r\n\r\n",
    "in pieces": b"event: heartbeat\nda",
}


@pytest.mark.parametrize("event", HARMLESS_EVENTS.values(), ids=HARMLESS_EVENTS.keys())
async def test_an_event_that_says_nothing_changes_nothing(verifier, event: bytes) -> None:
    """And needs no new snapshot."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.send_raw(event + (b"ta: {}\n\n" if event.endswith(b"da") else b""))
        await settled(verifier, feed)
        assert (code(feed), verifier.loads) == (None, 1)


async def test_a_silent_verifier_closes_the_pool(verifier) -> None:
    """After 60 s without a word that was understood, for everybody."""
    verifier.trust("a", exp=verifier.clock.seconds + 3000)
    async with followed(verifier) as feed:
        before = code(feed)
        verifier.clock.forward(61)
        assert (before, code(feed)) == (None, "incident.feed-silent")


async def test_a_heartbeat_keeps_the_pool_open(verifier) -> None:
    """It says that there was nothing to say."""
    verifier.trust("a", exp=verifier.clock.seconds + 3000)
    async with followed(verifier) as feed:
        verifier.clock.forward(59)
        verifier.send_raw(b"event: heartbeat\ndata: {}\n\n")
        await until(lambda: feed.fleet.silent_s == 0)
        verifier.clock.forward(59)
        assert code(feed) is None


@pytest.mark.parametrize("noise", [b": keep-alive\n\n", b"\n\n", b"id: 7\n\n", b"event: heartbeat\n\n"])
async def test_noise_does_not_keep_the_pool_open(verifier, noise: bytes) -> None:
    """A proxy that fills the silence is not the verifier."""
    verifier.trust("a", exp=verifier.clock.seconds + 3000)
    async with followed(verifier) as feed:
        verifier.clock.forward(61)
        verifier.send_raw(noise)
        await asyncio.sleep(0.05)
        assert code(feed) == "incident.feed-silent"


async def test_a_verifier_that_only_talks_nonsense_closes_the_pool(verifier) -> None:
    """To have been there is not to have said something."""
    verifier.trust("a", exp=verifier.clock.seconds + 3000)
    async with followed(verifier) as feed:
        verifier.bodies["/api/v1/results"] = b"nonsense"
        verifier.forget_events()
        verifier.hang_up()
        await until(lambda: len(verifier.asked) > 10)
        verifier.clock.forward(61)
        await asyncio.sleep(0.05)
        assert code(feed) == "incident.feed-silent"


async def test_a_router_that_has_heard_nothing_yet_is_closed(verifier) -> None:
    """It starts with silence, not with trust."""
    async with aiohttp.ClientSession() as http:
        clock = verifier.clock.clock()
        feed = Feed(http, VerifierSection(verifier.url), clock, Fleet(Table([WORKLOAD]), clock))
        assert feed.fleet.silent_s > FEED_SILENT_S


# Keys.


async def test_new_keys_are_taken_up_after_a_reconnect(verifier) -> None:
    """Results of a key that was added since count from then on."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.key = result_key()
        verifier.keys.append(verifier.key.verifying.jwk())
        verifier.trust("b")
        verifier.hang_up()
        await until(lambda: code(feed, "b") is None)
        assert code(feed, "a") is None


async def test_a_withdrawn_key_ends_what_it_signed(verifier) -> None:
    """After a reconnect nothing rests on it."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.keys = [result_key().verifying.jwk()]
        verifier.hang_up()
        await until(lambda: verifier.connections == 2)
        assert code(feed) == "result.missing"


async def test_only_pinned_keys_are_trusted(verifier) -> None:
    """Where the configuration names them, another key in the verifier's own list is not enough."""
    mine, other = verifier.key, result_key()
    verifier.keys.append(other.verifying.jwk())
    verifier.trust("a")
    verifier.results["b"] = encode_jwt(verifier.ear("b"), other)
    async with followed(verifier, kids=(mine.kid,)) as feed:
        assert (code(feed, "a"), code(feed, "b")) == (None, "result.missing")


async def test_a_kid_is_computed_not_believed(verifier) -> None:
    """A key that is listed under another's name is not that one."""
    mine, other = verifier.key, result_key()
    verifier.keys = [{**other.verifying.jwk(), "kid": mine.kid}]
    verifier.results["a"] = jwt.encode(
        verifier.ear("a").to_claims(), other.private, algorithm="ES256", headers={"kid": mine.kid}
    )
    async with followed(verifier) as feed:
        assert code(feed) == "result.missing"


async def test_a_verifier_without_a_pinned_key_is_not_followed(verifier) -> None:
    """Whoever answers there, it is not the one that was meant."""
    verifier.trust("a")
    async with followed(verifier, ready=False, kids=(result_key().kid,)) as feed:
        await until(lambda: len(verifier.asked) >= 3)
        assert feed.fleet.silent_s > FEED_SILENT_S
        assert set(verifier.asked) == {"/.well-known/jwks.json"}
