"""Clocks that were wrong, on real sockets: what was good stays good, nothing dead lives, and it is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from router.choose.decision import Decision, replay
from tests.integration.following import code, followed, settled
from tests.integration.gateway import Fleet, opened
from tests.unit.router.doubles import FakeVerifier, Moved, Wrong, fake_verifier, result_key, until
from tests.unit.router.support import WEIGHTS
from verifier.results import encode_jwt

HOUR_S = 3600.0
BAD = {**WEIGHTS, "executables": 96}
LIFE_S = 300


class Place:
    """A verifier and a router, whose clocks differ from the time that passes as a test says."""

    def __init__(self, fleet: Fleet, verifier: Wrong, router: Wrong) -> None:
        self.fleet = fleet
        self.verifier_clock, self.router_clock = verifier, router
        self._sequence = 0

    @property
    def verifier(self) -> FakeVerifier:
        return self.fleet.verifier

    def attest(self, name: str, endpoint: Any, **given: Any) -> str:
        """A result by the verifier's clock, with its next number."""
        self._sequence += 1
        iat = self.verifier_clock.seconds
        return self.verifier.token(
            name, endpoint=endpoint, sequence=self._sequence, iat=iat, exp=iat + LIFE_S, **given
        )

    async def tell(self, name: str, endpoint: Any, **given: Any) -> None:
        token = self.attest(name, endpoint, **given)
        self.verifier.results[name] = token
        self.verifier.send("result", node=name, sequence=self._sequence, token=token)
        await self.settle()

    async def settle(self) -> None:
        """Everything sent so far has been read, and a heartbeat after it."""
        self.verifier.beat()
        self._sequence += 1
        marker = f"marker-{self._sequence}"
        self.verifier.send("node", node=marker, state="retired")
        await until(lambda: self.fleet.router.view(marker).retired)

    async def forward(self, seconds: float) -> None:
        self.verifier_clock.forward(seconds)
        await self.settle()

    def code(self, name: str) -> str | None:
        """The gate that is closed to a node."""
        verdict = self.fleet.router.verdict(name, next(iter(self.fleet.router.table.workloads.values())))
        return None if verdict is None else verdict.code

    async def served_by(self) -> str | None:
        """Who does a client's work; nobody: `None`."""
        status, _, headers = await self.fleet.post()
        if status == 503:
            return None
        assert status == 200
        _, record = await self.fleet.get(f"/api/v1/decisions/{headers['X-Touchstone-Decision']}")
        chosen: str = record["attempts"][-1]["node"]
        return chosen


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    passing = Moved()
    verifier, router = Wrong(passing), Wrong(passing)
    async with opened(tmp_path, verifier) as fleet:
        fleet.clock = router
        yield Place(fleet, verifier, router)


# 7a: verifier and router are an hour ahead, and then set right.


async def test_after_both_clocks_are_set_back_the_next_results_count(place: Place) -> None:
    """Their times are lower, and their numbers are higher."""
    place.verifier_clock.off_s = place.router_clock.off_s = HOUR_S
    a = await place.fleet.node("a")
    place.verifier.results["a"] = place.attest("a", a.endpoint)
    await place.fleet.start()
    assert await place.served_by() == "a"
    place.verifier_clock.off_s = place.router_clock.off_s = 0.0
    assert await place.served_by() == "a"
    await place.tell("a", a.endpoint, weights=BAD)
    assert await place.served_by() is None
    await place.tell("a", a.endpoint)
    assert await place.served_by() == "a"


async def test_a_silent_node_gets_no_work_for_the_hour_that_its_result_lives_too_long(place: Place) -> None:
    """By the clock that nobody sets, it has run out in its time."""
    place.verifier_clock.off_s = place.router_clock.off_s = HOUR_S
    a = await place.fleet.node("a")
    place.verifier.results["a"] = place.attest("a", a.endpoint)
    await place.fleet.start()
    place.verifier_clock.off_s = place.router_clock.off_s = 0.0
    await place.forward(LIFE_S - 10)
    before = await place.served_by()
    await place.forward(10)
    assert (before, await place.served_by()) == ("a", None)
    for _ in range(8):
        await place.forward(HOUR_S / 6)
        assert await place.served_by() is None


async def test_a_silent_node_is_not_let_in_by_a_router_that_starts_later(place: Place) -> None:
    """Neither now, nor when the time of its result comes."""
    place.verifier_clock.off_s = HOUR_S
    a = await place.fleet.node("a")
    place.verifier.results["a"] = place.attest("a", a.endpoint)
    place.verifier_clock.off_s = 0.0
    await place.fleet.start()
    for _ in range(8):
        assert await place.served_by() is None
        await place.forward(HOUR_S / 6)


# 7b: a router starts with a clock an hour fast.


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S])
async def test_a_router_recovers_once_its_clock_is_right_and_says_what_is_wrong_until_then(
    place: Place, off_s: float
) -> None:
    """In the 503, in the status, and within a minute."""
    place.router_clock.off_s = off_s
    a = await place.fleet.node("a")
    place.verifier.results["a"] = place.attest("a", a.endpoint)
    await place.fleet.start()
    await place.settle()
    status, document, _ = await place.fleet.post()
    where = "ahead of" if off_s > 0 else "behind"
    said = f"the router's clock is {abs(off_s):.0f} s {where} the verifier's: one of the two is wrong"
    assert status == 503
    assert said in document["error"]["message"]
    _, shown = await place.fleet.get("/api/v1/status")
    assert (shown["clock"]["ahead_of_verifier_s"], shown["clock"]["warning"]) == (off_s, said)
    place.router_clock.off_s = 0.0
    await place.forward(1)
    assert await place.served_by() == "a"
    _, shown = await place.fleet.get("/api/v1/status")
    assert (shown["clock"]["warning"], shown["clock"]["stepped_s"]) == (None, -off_s)


# 7c: the verifier is ahead of the router.


@pytest.mark.parametrize("ahead_s", [6.0, 31.0, HOUR_S, 24 * HOUR_S])
async def test_a_verifier_that_is_ahead_takes_nothing_away(place: Place, ahead_s: float) -> None:
    """What was good stays good until it runs out, and bad news count at once."""
    a, b = await place.fleet.node("a"), await place.fleet.node("b")
    for name, each in (("a", a), ("b", b)):
        place.verifier.results[name] = place.attest(name, each.endpoint)
    await place.fleet.start()
    place.verifier_clock.off_s = ahead_s
    await place.tell("a", a.endpoint)
    await place.tell("b", b.endpoint, weights=BAD)
    assert (place.code("a"), place.code("b")) == (None, "result.not-affirming")
    assert await place.served_by() == "a"
    place.verifier_clock.off_s = 0.0
    await place.forward(LIFE_S / 2)
    await place.tell("b", b.endpoint)
    await place.tell("a", a.endpoint)
    await place.forward(LIFE_S / 2 + 10)
    assert (place.code("a"), place.code("b")) == (None, None)


async def test_a_result_that_waits_counts_when_its_time_comes(place: Place) -> None:
    """No further word is needed."""
    a = await place.fleet.node("a")
    place.verifier.results.clear()
    await place.fleet.start()
    place.verifier_clock.off_s = 60.0
    await place.tell("a", a.endpoint)
    before = await place.served_by()
    await place.forward(30)
    assert (before, await place.served_by()) == (None, "a")


# 7d: keys.


def other_keys() -> dict[str, dict[str, Any]]:
    """What else a JWKS may list."""
    private = ec.generate_private_key(ec.SECP384R1())
    return {
        "P-384": ECAlgorithm.to_jwk(private.public_key(), as_dict=True),
        "RSA": RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True),
        "Ed25519": OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True),
        "oct": {"kty": "oct", "k": "AAAA"},
        "encryption": {**result_key().verifying.jwk(), "use": "enc"},
        "another algorithm": {**result_key().verifying.jwk(), "alg": "ES384"},
        "other operations": {**result_key().verifying.jwk(), "key_ops": ["sign"]},
        "unknown kind": {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA"},
        "off the curve": {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        "empty": {},
    }


OTHERS = other_keys()


@pytest.fixture
async def verifier() -> AsyncIterator[FakeVerifier]:
    async with fake_verifier(Moved()) as fake:
        yield fake


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_a_key_of_another_kind_shuts_nobody_out(verifier, other: dict[str, Any]) -> None:
    """It is ignored (RFC 7517 §5), and what it signs is not accepted."""
    verifier.keys.insert(0, other)
    verifier.trust("a")
    async with followed(verifier) as feed:
        assert code(feed) is None


async def test_without_any_key_that_can_be_used_nothing_is_followed(verifier) -> None:
    """Whoever lists only others is not the verifier that was meant."""
    verifier.keys = [OTHERS["RSA"]]
    verifier.trust("a")
    async with followed(verifier, ready=False) as feed:
        await until(lambda: len(verifier.asked) >= 3)
        assert code(feed) == "incident.feed-silent"


async def test_a_new_key_on_an_open_stream_is_fetched_at_once(verifier) -> None:
    """For the first result by it, without another connection or a snapshot."""
    verifier.trust("a", sequence=1)
    async with followed(verifier) as feed:
        verifier.clock.forward(4)
        verifier.key = result_key()
        verifier.keys.append(verifier.key.verifying.jwk())
        verifier.send("result", node="b", sequence=2, token=verifier.token("b", sequence=2))
        await settled(verifier, feed)
        assert (code(feed, "a"), code(feed, "b")) == (None, None)
        assert (verifier.connections, verifier.loads) == (1, 1)


async def test_a_result_by_a_key_that_is_not_listed_yet_waits_for_it(verifier) -> None:
    """What was good before it stays good meanwhile."""
    verifier.trust("a", sequence=1)
    async with followed(verifier) as feed:
        old, verifier.key = verifier.key, result_key()
        for name, number in (("a", 2), ("b", 3)):
            weights = BAD if name == "a" else WEIGHTS
            token = verifier.token(name, sequence=number, weights=weights)
            verifier.send("result", node=name, sequence=number, token=token)
        await settled(verifier, feed)
        before = (code(feed, "a"), code(feed, "b"))
        verifier.keys.append(verifier.key.verifying.jwk())
        verifier.clock.forward(31)
        verifier.beat()
        await until(lambda: code(feed, "b") is None)
        assert (before, code(feed, "a"), code(feed, "b")) == (
            (None, "result.missing"), "result.not-affirming", None,
        )  # fmt: skip
        assert old.kid != verifier.key.kid


async def test_an_unknown_key_has_the_keys_fetched_every_few_seconds_at_most(verifier) -> None:
    """Also if the feed is full of such results."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        for _ in range(10):
            verifier.key = result_key()
            verifier.send("result", node="b", token=verifier.token("b"))
            verifier.clock.forward(0.5)
        await settled(verifier, feed)
        assert sum("jwks" in path for path in verifier.asked) <= 3


async def test_a_key_that_leaves_on_an_open_stream_takes_its_results_along(verifier) -> None:
    """As soon as the verifier says that its keys have changed."""
    other = result_key()
    verifier.trust("a")
    verifier.keys.append(other.verifying.jwk())
    first, verifier.key = verifier.key, other
    verifier.trust("b")
    async with followed(verifier) as feed:
        verifier.keys.remove(first.verifying.jwk())
        verifier.send("key")
        await settled(verifier, feed)
        assert (code(feed, "a"), code(feed, "b"), verifier.connections) == ("result.revoked", None, 1)


async def test_keys_that_cannot_be_fetched_end_nothing(verifier) -> None:
    """Those that are known stay, and it is tried again."""
    verifier.trust("a")
    async with followed(verifier) as feed:
        verifier.bodies["/.well-known/jwks.json"] = lambda: web.Response(status=500)
        verifier.send("key")
        await settled(verifier, feed)
        assert (code(feed), verifier.connections) == (None, 1)


# What a snapshot says of results that cannot be read.


@pytest.mark.parametrize(("void", "expected"), [(0, None), (1, "result.missing"), (None, "result.missing")])
async def test_a_listed_result_that_cannot_be_read_voids_what_is_revoked(
    verifier, void: int | None, expected: str | None
) -> None:
    """And nothing else.  If the page does not say, what came before may have been revoked."""
    verifier.trust("a", sequence=1)
    async with followed(verifier) as feed:
        unreadable = verifier.token("a", sequence=2).rpartition(".")[0] + ".AAAA"
        entry = {"node": "a", "token": unreadable, "sequence": 2, "void": void}
        verifier.bodies["/api/v1/results"] = lambda: web.json_response(
            {"results": [entry], "seq": verifier.seq, "next": None}
        )
        verifier.forget_events()
        verifier.hang_up()
        await until(lambda: verifier.connections >= 3)
        assert code(feed) == expected


# What a decision rests on.


async def test_a_decision_names_the_results_that_it_rests_on(place: Place) -> None:
    """Of each node that was looked at, and of each that was excluded."""
    found: dict[str, str] = {}
    for name, weights in (("a", WEIGHTS), ("b", BAD)):
        each = await place.fleet.node(name)
        made = place.verifier.ear(name, endpoint=each.endpoint, weights=weights)
        found[name] = made.jti
        place.verifier.results[name] = encode_jwt(made, place.verifier.key)
    await place.fleet.start()
    status, document, _ = await place.fleet.post(**{"X-Touchstone-Explain": "1"})
    decided = document["touchstone"]
    assert status == 200
    assert {name: facts["jti"] for name, facts in decided["facts"].items()} == {"a": found["a"]}
    assert decided["excluded"]["b"]["jti"] == found["b"]
    assert replay(Decision.from_wire(decided)).chosen is not None
