"""A choice that nobody could steer: commitments, nonces, the seed that follows, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.choose import choice
from router.choose.choice import Choice, decode_nonce, derive_seed, split_header
from router.choose.decision import Decision, decide, replay
from router.gateway.commitments import LIFE_S, Commitments, Spent
from router.model.errors import ChoiceError, ReplayError
from tests.unit.router.doubles import Moved
from tests.unit.router.support import WORKLOAD, snapshot, view

NONCE = bytes(range(16))


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Router:
    """What commits, and the clock that its tests move."""

    def __init__(self, **given: Any) -> None:
        self.clock = Moved()
        self.commitments = Commitments(self.clock.clock(), **given)

    def issue(self, caller: str = "k") -> tuple[str, str]:
        """A commitment: its id, and the SHA-256."""
        commitment_id, _, digest = self.commitments.issue(caller).partition(".")
        return commitment_id, digest

    def take(self, commitment_id: str, nonce: bytes | str = NONCE, caller: str = "k") -> tuple[Choice, int]:
        text = b64url(nonce) if isinstance(nonce, bytes) else nonce
        return self.commitments.take(f"{commitment_id}.{text}", caller)

    def refused(self, commitment_id: str, nonce: bytes | str = NONCE, caller: str = "k") -> str:
        with pytest.raises(ChoiceError) as caught:
            self.take(commitment_id, nonce, caller)
        return caught.value.code


@pytest.fixture
def router() -> Router:
    return Router()


# The seed.


def test_the_seed_is_as_the_page_says() -> None:
    """Anybody can make it again: with nothing but SHA-256."""
    reveal = bytes(32)
    data = b"touchstone/choice/1\n" + reveal + NONCE
    assert derive_seed(reveal, NONCE) == int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    assert derive_seed(reveal, NONCE) == 0x59DCB2C1F5FC0766


def test_a_commitment_and_a_nonce_give_a_choice(router: Router) -> None:
    """What is revealed is what was committed to, and the seed follows."""
    commitment_id, digest = router.issue()
    found, seed = router.take(commitment_id)
    assert hashlib.sha256(bytes.fromhex(found.reveal)).hexdigest() == digest == found.commitment
    assert (found.id, found.nonce) == (commitment_id, b64url(NONCE))
    found.check(seed)
    found.check_held(f"{commitment_id}.{digest}", f"{commitment_id}.{b64url(NONCE)}")
    assert found.for_receipt() == {
        "commitment": f"{commitment_id}.{digest}",
        "reveal": found.reveal,
        "nonce_sha256": hashlib.sha256(NONCE).hexdigest(),
    }


def test_commitments_differ_and_tell_nothing_of_each_other(router: Router) -> None:
    """Neither by their ids nor by what is revealed of others."""
    given = [router.issue() for _ in range(200)]
    assert len({each for pair in given for each in pair}) == 400
    found, _ = router.take(given[0][0])
    assert not any(found.reveal[:8] in each for pair in given[1:] for each in pair)


def test_the_seed_is_uniform(router: Router) -> None:
    """Whatever the nonce: each bit is set half the time."""
    seeds = [router.take(router.issue()[0], secrets.token_bytes(16))[1] for _ in range(2000)]
    counts = [sum(seed >> bit & 1 for seed in seeds) for bit in range(64)]
    assert all(850 < count < 1150 for count in counts)


# What is refused, each by its own code.


def test_a_commitment_is_used_once(router: Router) -> None:
    commitment_id, _ = router.issue()
    router.take(commitment_id)
    assert router.refused(commitment_id, b"another nonce 16") == "choice.commitment.used"


def test_a_nonce_is_used_once(router: Router) -> None:
    """Whoever knows it before could have committed to what suits."""
    router.take(router.issue()[0])
    assert router.refused(router.issue()[0]) == "choice.nonce.repeated"


def test_the_nonces_of_two_callers_are_their_own(router: Router) -> None:
    """Nobody can use up another's."""
    router.take(router.issue("k")[0])
    router.take(router.issue("l")[0], caller="l")


def test_a_commitment_of_another_caller_is_refused(router: Router) -> None:
    """And stays good for its own."""
    commitment_id, _ = router.issue("l")
    assert router.refused(commitment_id, caller="k") == "choice.commitment.other-caller"
    router.take(commitment_id, caller="l")


def test_a_commitment_of_another_router_is_refused(router: Router) -> None:
    assert router.refused(Router().issue()[0]) == "choice.commitment.other-router"


def test_a_commitment_from_before_a_restart_is_refused() -> None:
    """What was used before the restart is not remembered, so nothing of then may be used."""
    before, after = Router(), Router()
    commitment_id, _ = before.issue()
    before.take(commitment_id)
    assert after.refused(commitment_id) == "choice.commitment.other-router"


def test_a_commitment_expires(router: Router) -> None:
    commitment_id, _ = router.issue()
    router.clock.forward(LIFE_S - 1)
    late, _ = router.issue()
    router.clock.forward(2)
    assert router.refused(commitment_id) == "choice.commitment.expired"
    router.take(late)


def test_a_clock_that_is_set_back_revives_no_commitment(router: Router) -> None:
    """It expires by the clock that nobody sets."""
    commitment_id, _ = router.issue()
    router.clock.ticks += LIFE_S + 1
    router.clock.ms -= 10**9
    assert router.refused(commitment_id) == "choice.commitment.expired"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 33), st.integers(1, 255))
def test_a_changed_id_is_refused(at: int, by: int) -> None:
    """Each byte of it counts: whose it is, of when, and that it was given out at all."""
    router = Router()
    data = bytearray(base64.urlsafe_b64decode(router.issue()[0] + "=="))
    data[at] ^= by
    assert router.refused(b64url(bytes(data))).startswith("choice.commitment.")


@pytest.mark.parametrize(
    "header",
    [
        "",
        ".",
        "x",
        "x.",
        ".AAAAAAAAAAAAAAAAAAAAAA",
        "x.y.z",
        "ä." + "A" * 22,
        "x" * 200 + "." + "A" * 22,
        "x." + "A" * 200,
    ],
    ids=repr,
)
def test_a_header_of_another_form_is_refused(router: Router, header: str) -> None:
    with pytest.raises(ChoiceError) as caught:
        router.commitments.take(header, "k")
    assert caught.value.code == "choice.malformed"


@pytest.mark.parametrize(
    "nonce",
    [
        b64url(bytes(15)),
        b64url(bytes(65)),
        b64url(NONCE) + "==",
        "AAAA AAAAAAAAAAAAAAAAAA",
        "A" * 21 + "B",
        "é" * 22,
        "+/" * 11,
    ],
)
def test_a_nonce_of_another_form_is_refused(router: Router, nonce: str) -> None:
    """There is one form of each nonce, or the same one could be sent twice."""
    assert router.refused(router.issue()[0], nonce) == "choice.malformed"


def test_what_is_refused_leaves_the_commitment_as_it_was(router: Router) -> None:
    commitment_id, _ = router.issue()
    router.refused(commitment_id, "short")
    router.refused(commitment_id, caller="another")
    router.take(commitment_id)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100) | st.binary(min_size=16, max_size=64).map(b64url).map("id.{}".format))
def test_any_header_is_split_or_refused(text: str) -> None:
    """And what is split is what was sent."""
    try:
        commitment_id, nonce = split_header(text)
    except ChoiceError:
        return
    assert f"{commitment_id}.{nonce}" == text
    assert 16 <= len(decode_nonce(nonce)) <= 64


# Memory.


def test_what_was_used_is_forgotten_when_it_has_expired(router: Router) -> None:
    for number in range(50):
        router.take(router.issue()[0], number.to_bytes(16, "big"))
    router.clock.forward(LIFE_S + 2)
    router.take(router.issue()[0], NONCE)
    assert len(router.commitments._spent) == 1


def test_what_is_no_more_remembered_cannot_be_used_again() -> None:
    """However many a caller uses, it is bounded; and the caller that has most loses, not another."""
    router = Router(max_spent=20)
    other, _ = router.issue("other")
    early, _ = router.issue("k")
    used = []
    for number in range(100):
        router.clock.forward(0.01)
        used.append(router.issue()[0])
        router.take(used[-1], number.to_bytes(16, "big"))
        assert len(router.commitments._spent) <= 20
    for commitment_id in [early, *used]:
        assert router.refused(commitment_id, secrets.token_bytes(16)) in (
            "choice.commitment.used",
            "choice.commitment.expired",
        )
    router.take(other, caller="other")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 12),
            st.integers(0, 12),
            st.sampled_from([0.0, 1.0, 150.0, 301.0]),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
)
@example([("a", 0, 0, 0.0), ("a", 0, 0, 150.0), ("a", 0, 0, 150.0)], 1)
def test_nothing_is_ever_taken_twice(steps: list[tuple[str, int, int, float]], limit: int) -> None:
    """Whatever the order, and however little is remembered."""
    spent, now, taken = Spent(limit), 0.0, set()
    issued: dict[tuple[str, int], float] = {}
    for caller, commitment, nonce, seconds in steps:
        now += seconds
        # Each was issued when it is first heard of.
        at = issued.setdefault((caller, commitment), now)
        try:
            spent.spend(caller, bytes([commitment]), bytes([nonce]), issued=at, now=now)
        except ChoiceError:
            continue
        assert (caller, commitment) not in taken
        taken.add((caller, commitment))
        assert len(spent) <= limit


# The record.


def made(router: Router) -> Decision:
    found, seed = router.take(router.issue()[0])
    fleet = snapshot(*(view(name) for name in "abcdef")).fleet()
    return decide(fleet.view_for(WORKLOAD), WORKLOAD, seed, choice=found)


def changed(decision: Decision, **members: Any) -> Decision:
    assert decision.choice is not None
    return msgspec.structs.replace(decision, choice=msgspec.structs.replace(decision.choice, **members))


def test_a_record_replays_with_its_choice(router: Router) -> None:
    decision = made(router)
    again = Decision.from_wire(msgspec.json.decode(msgspec.json.encode(decision.to_wire())))
    assert (again, replay(again)) == (decision, decision)


def test_without_a_nonce_the_record_says_that_the_router_drew_alone() -> None:
    fleet = snapshot(view("a")).fleet()
    assert decide(fleet.view_for(WORKLOAD), WORKLOAD, 7).to_wire()["choice"] is None


def test_another_seed_than_the_one_that_follows_is_found(router: Router) -> None:
    """The router that would rather have drawn another node."""
    decision = msgspec.structs.replace(made(router), seed=7)
    with pytest.raises(ReplayError, match="does not follow"):
        replay(decision)


def test_another_secret_than_the_one_that_was_committed_to_is_found(router: Router) -> None:
    with pytest.raises(ReplayError, match="not what it had committed to"):
        replay(changed(made(router), reveal="00" * 32))


def test_another_nonce_than_the_callers_is_found(router: Router) -> None:
    with pytest.raises(ReplayError, match="does not follow"):
        replay(changed(made(router), nonce=b64url(b"another nonce 16")))


def test_another_commitment_is_found_by_who_holds_the_right_one(router: Router) -> None:
    """A record that is sound in itself may still be of another commitment: the caller has the one that it was given."""
    commitment_id, digest = router.issue()
    decision = made(router)
    assert decision.choice is not None
    with pytest.raises(ReplayError, match="another commitment"):
        decision.choice.check_held(f"{commitment_id}.{digest}", None)
    with pytest.raises(ReplayError, match="another nonce"):
        decision.choice.check_held(None, f"{decision.choice.id}.{b64url(b'another nonce 16')}")


@pytest.mark.parametrize(
    "members",
    [{"reveal": "zz"}, {"reveal": "00"}, {"nonce": ""}, {"nonce": "é"}, {"commitment": ""}],
    ids=str,
)
def test_a_malformed_choice_is_found(router: Router, members: dict[str, str]) -> None:
    with pytest.raises(ReplayError):
        replay(changed(made(router), **members))


def test_the_nonce_decides_who_is_chosen(router: Router) -> None:
    """It is not only recorded: over many nonces each of the equals is chosen."""
    fleet = snapshot(*(view(name) for name in "abcdef")).fleet()
    chosen = set()
    for _ in range(200):
        _, seed = router.take(router.issue()[0], secrets.token_bytes(16))
        chosen.add(decide(fleet.view_for(WORKLOAD), WORKLOAD, seed).ranked[0].node)
    assert chosen == set("abcdef")
    assert choice.REVEAL_BYTES == 32
