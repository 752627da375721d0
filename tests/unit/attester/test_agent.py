"""The agent outlives whatever goes wrong, and sends what it was asked for, in order."""

from __future__ import annotations

import asyncio
import base64
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from attester import agent as agent_module
from attester import cbor, evidence
from attester.agent import Agent, decode_unverified, read_reasons
from attester.client import Session
from attester.config import Enrolment
from attester.cose import PrivateKey
from attester.errors import EngineError, VerifierError, WeightsError
from attester.evidence import ReadAnswer, Token, WalkAnswer
from attester.kinds import model_submod, read_submod, write_submod
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge

NOW = 1_795_000_000.75
KEY = PrivateKey.generate()
ENROLMENT = Enrolment(node="n1", ueid=b"\x01" + bytes(16), operator="o", models=("a",), verifier="https://v")
RESULT = "e30.e30.c2ln"


def session(name: str = "s", *, expiry: float | None = None, models: tuple[str, ...] = ("a",)) -> Session:
    seed = "0" * 64
    asked = tuple(
        ModelChallenge(m, ReadChallenge(seed, 1), WalkChallenge(seed, rows=4, passes=1)) for m in models
    )
    return Session(name, name.encode().ljust(32, b"."), asked, expiry)


@pytest.fixture(autouse=True)
def logs():
    """What is logged, kept; drawing tracebacks would take most of the time there is."""
    with capture_logs() as kept:
        yield kept


class Ended(BaseException):
    """The test has seen enough."""


class Client:
    """A verifier that pushes what the test gives it, and notes what comes back."""

    def __init__(self, *channels: object):
        self.channels = list(channels)
        self.log: list[tuple[object, ...]] = []
        self.fail: dict[str, BaseException] = {}
        self.opened: list[str] = []

    async def calls(self, node: str):
        self.opened.append(node)
        for step in self.channels.pop(0) if self.channels else ():
            if isinstance(step, BaseException):
                raise step
            yield step

    async def open_session(self) -> Session:
        return session("own")

    def _do(self, name: str, *what: object) -> None:
        self.log.append((name, *what))
        if name in self.fail:
            raise self.fail[name]

    async def answer_call(self, given: Session, answers: object) -> None:
        self._do("answers", given.id, answers)

    async def submit(self, given: Session, data: bytes) -> str:
        self._do("evidence", given.id, data)
        return RESULT

    def names(self, kind: str) -> list[object]:
        return [entry[1] for entry in self.log if entry[0] == kind]


class Collector:
    """Answers at once; a model may fail once each, or hang for ever."""

    def __init__(self):
        self.fail: list[BaseException] = []
        self.hang: set[bytes] = set()
        self.stopped: list[bytes] = []
        self.asked: list[str] = []
        self.prepared = 0
        self.unready: BaseException | None = None
        self.hang_for_models: set[str] = set()

    async def prepare(self) -> None:
        self.prepared += 1
        if self.unready is not None:
            raise self.unready

    async def answer(self, challenge: ModelChallenge):
        self.asked.append(challenge.model)
        if self.fail:
            raise self.fail.pop(0)
        number = len(self.asked)
        read = ReadAnswer(answer=bytes([number]) * 32, micros=1)
        walk = WalkAnswer(answers=(bytes([number, 1]) * 16,) * 4, source="engine", device="cpu", micros=1)
        return read, walk

    async def submods(self, nonce: bytes, answers):
        if nonce in self.hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.append(nonce)
        submods = {"platform": {}}
        for model, (read, walk) in answers.items():
            submods[model_submod(model)] = write_submod({"read": read, "walk": walk})
        return submods


class Waits:
    """Notes each wait and ends the test after as many as were asked for."""

    def __init__(self, count: int):
        self.left = count

    async def __call__(self, _: float) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Ended


class Dice(random.Random):
    """Draws the upper end, and notes between what it was asked to draw."""

    def __init__(self):
        super().__init__(0)
        self.drawn: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.drawn.append((a, b))
        return b


def make(client: Client, collector: Collector | None = None, *, waits: int = 1, dice=None) -> Agent:
    return Agent(
        client, collector or Collector(), KEY, ENROLMENT, now=lambda: NOW, sleep=Waits(waits), rng=dice
    )


async def run(agent: Agent) -> None:
    with pytest.raises(Ended):
        await agent.run()


def token_of(data: bytes) -> Token:
    envelope = evidence.decode_envelope(data)
    envelope.verify(KEY.public)
    return Token.from_payload(envelope.payload)


FAILURES = {
    "the engine": EngineError("no answer"),
    "the weights": WeightsError("gone"),
    "the verifier": VerifierError("refused", status=409),
    "a slip of ours": ZeroDivisionError("surprise"),
    "a key that is not there": KeyError("x"),
    "a time-out of another": TimeoutError(),
    "an error of the system": OSError(24, "Too many open files"),
    "memory": MemoryError(),
    "recursion": RecursionError(),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_round_that_fails_does_not_cost_the_next(name):
    """The channel stays open, and the next call on it is answered."""
    client, collector = Client([session("1"), session("2")]), Collector()
    collector.fail = [FAILURES[name]]
    await run(make(client, collector))
    assert (client.names("evidence"), client.opened) == (["2"], ["n1"])


@pytest.mark.parametrize("step", ["answers", "evidence"])
@pytest.mark.parametrize("name", FAILURES)
async def test_a_verifier_that_fails_in_a_round_is_called_on_again(name, step):
    """Whatever sending raises, each call is tried."""
    client = Client([session("1"), session("2")])
    client.fail = {step: FAILURES[name]}
    await run(make(client))
    assert client.names("answers") == ["1", "2"]


@pytest.mark.parametrize("name", FAILURES)
async def test_a_channel_that_fails_is_opened_again(name):
    """And calls on the new one are answered."""
    client = Client([FAILURES[name]], [session("1")])
    await run(make(client, waits=2))
    assert (client.names("evidence"), client.opened) == (["1"], ["n1", "n1"])


async def test_a_channel_that_ends_is_opened_again():
    """A verifier that was restarted has its node back."""
    client = Client([], [session("1")])
    await run(make(client, waits=2))
    assert client.names("evidence") == ["1"]


async def test_a_result_that_is_no_jwt_does_not_end_the_agent(monkeypatch):
    """The result is shown where it can be read, and passed over where not."""
    client = Client([session("1"), session("2")])
    monkeypatch.setattr("tests.unit.attester.test_agent.RESULT", "\ud800..")
    await run(make(client))
    assert client.names("evidence") == ["1", "2"]


async def test_the_wait_grows_to_its_bound():
    """From half a second, doubled, to a minute."""
    dice = Dice()
    await run(make(Client(), waits=10, dice=dice))
    assert [b for _, b in dice.drawn] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_the_wait_is_jittered_from_nothing():
    """Drawn anew from the whole range, so that a fleet does not come back at once."""
    dice = Dice()
    await run(make(Client(), waits=5, dice=dice))
    assert [a for a, _ in dice.drawn] == [0] * 5


async def test_what_is_drawn_is_what_is_waited():
    """The wait is the draw, not the range's end."""
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 8:
            raise Ended

    given_rng, expected_rng = random.Random(5), random.Random(5)
    await run(Agent(Client(), Collector(), KEY, ENROLMENT, sleep=sleep, rng=given_rng))
    assert waited == [expected_rng.uniform(0, bound) for bound in (0.5, 1, 2, 4, 8, 16, 32, 60)]


async def test_two_agents_do_not_wait_alike():
    """Without a generator of the test's, each has its own."""
    seen = []

    async def sleep(seconds: float) -> None:
        seen.append(seconds)
        raise Ended

    for _ in range(8):
        await run(Agent(Client(), Collector(), KEY, ENROLMENT, sleep=sleep))
    assert len({*seen}) == 8


async def test_a_call_resets_the_wait():
    """A channel that worked is opened again soon."""
    dice = Dice()
    await run(make(Client([], [], [], [session("1")], []), waits=5, dice=dice))
    assert [b for _, b in dice.drawn] == [0.5, 1, 2, 0.5, 1]


async def test_a_round_that_fails_resets_the_wait_too():
    """The channel was good: the round's failure is no reason to stay away."""
    dice, collector = Dice(), Collector()
    collector.fail = [EngineError("no answer")]
    await run(make(Client([], [], [session("1")]), collector, waits=3, dice=dice))
    assert [b for _, b in dice.drawn] == [0.5, 1, 0.5]


async def test_a_channel_that_opens_and_fails_does_not_reset_the_wait():
    """Only a call does: a verifier that accepts and drops is not hammered."""
    dice = Dice()
    await run(make(Client(*[[VerifierError("dropped")]] * 4), waits=4, dice=dice))
    assert [b for _, b in dice.drawn] == [0.5, 1, 2, 4]


@pytest.mark.parametrize("name", ["the engine", "the weights"])
async def test_an_engine_that_is_not_ready_is_logged_and_calls_are_answered(name, logs):
    """Once, with its reason: calls find the same and are answered as far as they can."""
    client, collector = Client([session("1")], [session("2")]), Collector()
    collector.unready = FAILURES[name]
    await run(make(client, collector, waits=2))
    told = [(log["log_level"], log["why"]) for log in logs if log["event"] == "not ready for calls"]
    assert told == [("error", str(FAILURES[name]))]
    assert client.names("evidence") == ["1", "2"]


async def test_an_engine_that_is_ready_is_not_complained_of(logs):
    """Nothing above a note is logged where all goes well."""
    await run(make(Client([session("1")])))
    assert {log["log_level"] for log in logs} == {"info"}


async def test_nothing_is_called_before_everything_is_ready():
    """The verifier's clock measures the walk, not what a first walk would have to make ready."""
    client, collector = Client([session("1")]), Collector()
    reached, ready = asyncio.Event(), asyncio.Event()

    async def prepare():
        reached.set()
        await ready.wait()

    collector.prepare = prepare
    task = asyncio.create_task(run(make(client, collector)))
    await reached.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert (client.opened, client.log, collector.asked) == ([], [], [])
    ready.set()
    await task
    assert client.names("evidence") == ["1"]


async def test_a_channel_that_is_opened_again_does_not_make_ready_again():
    """What was made ready stays so."""
    client, collector = Client([session("1")], [session("2")], [session("3")]), Collector()
    await run(make(client, collector, waits=3))
    assert (collector.prepared, client.names("evidence")) == (1, ["1", "2", "3"])


@pytest.mark.parametrize("late", [0, 0.001, 1, 10_000_000])
async def test_an_expired_session_is_given_up(late):
    """What would come too late is given up, and the next call is answered."""
    client, collector = Client([session("1", expiry=NOW - late), session("2", expiry=NOW + 100)]), Collector()
    collector.hang = {session("1").nonce}
    await run(make(client, collector))
    assert client.names("evidence") == ["2"]


async def test_an_engine_that_hangs_does_not_cost_the_next_call():
    """At the session's expiry the round is stopped, and the next begins."""
    client, collector = Client([session("1", expiry=NOW + 0.01), session("2")]), Collector()
    collector.hang = {session("1").nonce}
    await run(make(client, collector))
    assert (client.names("evidence"), collector.stopped) == (["2"], [session("1").nonce])


async def test_the_round_has_as_long_as_the_session(monkeypatch):
    """Neither less nor more than what is left of it by the agent's clock."""
    given_times = []
    timeout = asyncio.timeout
    monkeypatch.setattr(agent_module.asyncio, "timeout", lambda s: (given_times.append(s), timeout(s))[1])
    await run(make(Client([session("1", expiry=NOW + 120), session("2")])))
    assert given_times == [120, None]


async def test_answers_go_out_before_evidence():
    """The verifier's clock stops at the answers: nothing is collected or signed before."""
    client = Client([session("1"), session("2")])
    await run(make(client))
    assert [entry[:2] for entry in client.log] == [
        ("answers", "1"),
        ("evidence", "1"),
        ("answers", "2"),
        ("evidence", "2"),
    ]


async def test_evidence_is_not_even_collected_before_the_answers_are_out(monkeypatch):
    """A slow manifest does not make a walk late."""
    client, collector = Client([session("1")]), Collector()
    submods = collector.submods

    async def noted(nonce, answers):
        client.log.append(("collected", nonce))
        return await submods(nonce, answers)

    monkeypatch.setattr(collector, "submods", noted)
    await run(make(client, collector))
    assert [entry[0] for entry in client.log] == ["answers", "collected", "evidence"]


async def test_the_answers_are_the_same_in_both():
    """Each model is asked once, and what went ahead is what is signed."""
    client, collector = Client([session("1", models=("a", "org/b"))]), Collector()
    await run(make(client, collector))
    (_, _, ahead), (_, _, data) = client.log
    signed = {
        name.removeprefix("model/"): read_submod(name, raw)
        for name, raw in token_of(data).submods.items()
        if name != "platform"
    }
    assert signed == {name: {"read": read, "walk": walk} for name, (read, walk) in ahead.items()}
    assert collector.asked == ["a", "org/b"]


async def test_evidence_is_for_its_session_and_node():
    """Nonce, ueid, audience and whole seconds, signed by the node key."""
    client = Client([session("1")])
    await run(make(client))
    token = token_of(client.log[1][2])
    assert (token.nonce, token.ueid, token.aud, token.iat) == (
        session("1").nonce,
        ENROLMENT.ueid,
        "https://v",
        1_795_000_000,
    )


async def test_no_evidence_follows_answers_that_were_refused():
    """A call that the verifier has closed gets nothing more."""
    client = Client([session("1")])
    client.fail = {"answers": VerifierError("too late", status=409)}
    await run(make(client))
    assert client.names("evidence") == []


async def test_a_session_of_our_own_has_no_answers_ahead():
    """Nobody called: there is no clock to stop."""
    client = Client()
    assert await make(client).once() == RESULT
    assert [entry[0] for entry in client.log] == ["evidence"]


async def test_once_tells_what_went_wrong():
    """The operator who asked for one round is told, not the log."""
    client = Client()
    client.fail = {"evidence": VerifierError("refused", status=403)}
    with pytest.raises(VerifierError, match="refused"):
        await make(client).once()


async def cancelled(agent: Agent, reached: asyncio.Event) -> asyncio.Task[None]:
    task = asyncio.create_task(agent.run())
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_cancelling_ends_a_wait():
    """The agent stops where it is, and does not take it for a failure."""
    reached = asyncio.Event()

    async def sleep(_: float) -> None:
        reached.set()
        await asyncio.Event().wait()

    client = Client()
    task = await cancelled(Agent(client, Collector(), KEY, ENROLMENT, sleep=sleep), reached)
    assert (task.cancelled(), client.opened) == (True, ["n1"])


async def test_cancelling_ends_the_making_ready():
    """However long a kernel compiles: no channel is opened afterwards."""
    reached, client, collector = asyncio.Event(), Client([session("1")]), Collector()

    async def prepare():
        reached.set()
        await asyncio.Event().wait()

    collector.prepare = prepare
    task = await cancelled(make(client, collector), reached)
    assert (task.cancelled(), client.opened) == (True, [])


@pytest.mark.parametrize("expiry", [None, NOW + 1000], ids=["no expiry", "an expiry"])
async def test_cancelling_ends_a_round(expiry):
    """In the midst of collecting, with nothing sent afterwards and no new channel."""
    reached, collector = asyncio.Event(), Collector()
    client = Client([session("1", expiry=expiry), session("2")])
    collector.hang = {session("1").nonce}
    answer_call = client.answer_call

    async def noted(given, answers):
        await answer_call(given, answers)
        reached.set()

    client.answer_call = noted
    task = await cancelled(make(client, collector), reached)
    assert (task.cancelled(), client.names("evidence"), client.opened) == (True, [], ["n1"])


async def test_cancelling_closes_the_channel():
    """While it waits for a call: the connection is given back."""
    reached, closed = asyncio.Event(), []

    class Waiting(Client):
        async def calls(self, node):
            try:
                reached.set()
                await asyncio.Event().wait()
                yield session("never")
            finally:
                closed.append(node)

    task = await cancelled(make(Waiting()), reached)
    assert (task.cancelled(), closed) == (True, ["n1"])


def jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


def test_a_result_is_shown():
    """Its claims, without looking at the signature."""
    assert decode_unverified(jwt({"ear_status": "affirming"})) == {"ear_status": "affirming"}


@pytest.mark.parametrize(
    "result",
    ["", ".", "a.b.c", "a.é.c", "a.\ud800.c", "a..c", jwt([1]), jwt("x"), jwt(None), "a." + "[" * 99],
)
def test_a_result_that_cannot_be_read_is_empty(result):
    """For the operator's eyes only: it must never fail."""
    assert decode_unverified(result) == {}


@given(st.one_of(st.text(max_size=40), st.binary(max_size=40).map(lambda b: jwt(b.hex()))))
@settings(max_examples=100)
def test_any_result_is_read_or_empty(result):
    """Whatever the verifier answers."""
    assert isinstance(decode_unverified(result), dict)


def test_a_nested_result_is_empty():
    """A bomb of brackets is not followed."""
    body = base64.urlsafe_b64encode(b'{"a":' + b"[" * 100_000).decode()
    assert decode_unverified(f"e30.{body}.c2ln") == {}


FINDINGS = {
    "no submods": ({}, []),
    "submods a list": ({"submods": []}, []),
    "an appraisal null": ({"submods": {"a": None}}, []),
    "no claims of ours": ({"submods": {"a": {"ear_status": "affirming"}}}, []),
    "a reason without a code": (
        {"submods": {"a": {"ear_verifier_claims": {"reasons": [{"detail": "d"}]}}}},
        [],
    ),
    "a reason": (
        {"submods": {"a": {"ear_verifier_claims": {"reasons": [{"code": "c", "detail": "d", "x": 1}]}}}},
        [("c", "a: d")],
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_are_shown_where_they_are(name):
    """And what is not of a result's form is passed over."""
    claims, expected = FINDINGS[name]
    assert read_reasons(claims) == expected


def test_a_tokens_bytes_are_deterministic():
    """What is signed can be written again from what was read."""
    token = Token(bytes(32), ENROLMENT.ueid, 1, "https://v", {"platform": {}})
    payload = evidence.decode_envelope(token.sign(KEY)).payload
    assert cbor.encode(cbor.decode(payload, max_size=1000)) == payload


async def test_a_verifier_that_asks_for_patience_is_given_it() -> None:
    """The channel is not opened again before the seconds of Retry-After have passed."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise Ended

    busy = VerifierError("busy", status=503, retry_after_s=7.0)
    agent = Agent(Client([busy], [VerifierError("gone")]), Collector(), KEY, ENROLMENT, sleep=sleep)
    with pytest.raises(Ended):
        await agent.run()
    assert waits[0] >= 7 > waits[1]


async def test_a_call_that_comes_again_is_attested_without_a_second_answer() -> None:
    """The verifier has the answers and waits for the evidence, which it failed to take."""
    client = Client([session(), session(), Ended()])
    client.fail["evidence"] = VerifierError("the service failed", status=500)
    with pytest.raises(Ended):
        await Agent(client, Collector(), KEY, ENROLMENT).run()
    assert client.names("answers") == ["s"]
    assert client.names("evidence") == ["s", "s"]


async def test_answers_that_were_not_taken_are_given_again() -> None:
    """The verifier pushes the call again if it still waits."""
    client = Client([session(), session(), Ended()])
    client.fail["answers"] = VerifierError("the service failed", status=500)
    with pytest.raises(Ended):
        await Agent(client, Collector(), KEY, ENROLMENT).run()
    assert client.names("answers") == ["s", "s"]


# Calls in two steps.


class TwoSteps(Client):
    """A verifier that tells of the walk in return for the read."""

    async def answer_call(self, given: Session, answers: object) -> tuple[ModelChallenge, ...]:
        await super().answer_call(given, answers)
        if len(self.names("answers")) > 1:
            return ()
        return (ModelChallenge("a", None, WalkChallenge("0" * 64, rows=4, passes=1)),)


class Exact(Collector):
    """Answers what is asked and no more; it may be unable to walk."""

    can_walk = True

    async def answer(self, challenge: ModelChallenge):
        read, walk = await super().answer(challenge)
        return (
            read if challenge.read is not None else None,
            walk if challenge.walk is not None and self.can_walk else None,
        )


def claims_of(data: bytes) -> set[str]:
    raw = token_of(data).submods[model_submod("a")]
    given = {key: value for key, value in raw.items() if value is not None}
    return set(read_submod(model_submod("a"), given))


def read_alone(name: str = "s") -> Session:
    whole = session(name)
    return Session(name, whole.nonce, (ModelChallenge("a", whole.models[0].read, None),), None)


async def test_the_walk_that_follows_a_read_is_answered_and_is_in_the_evidence():
    """The read first, then the walk alone, and both in what is signed."""
    client = TwoSteps([read_alone()])
    await run(make(client, Exact()))
    sent = [
        {m: [part is not None for part in pair] for m, pair in entry[2].items()} for entry in client.log[:2]
    ]
    assert sent == [{"a": [True, False]}, {"a": [False, True]}]
    assert {"read", "walk"} <= claims_of(client.log[2][2])


async def test_a_walk_that_cannot_be_answered_is_left_out_of_the_evidence():
    """The read counts all the same."""
    client, collector = TwoSteps([read_alone()]), Exact()
    collector.can_walk = False
    await run(make(client, collector))
    assert [entry[0] for entry in client.log] == ["answers", "evidence"]
    assert claims_of(client.log[1][2]) == {"read"}


async def test_answers_that_an_earlier_process_has_sent_do_not_keep_the_evidence_back():
    """The verifier pushes the call again to the attester that was restarted."""
    client = Client([session("1")])
    client.fail = {"answers": VerifierError("answered", status=409, code="session.closed")}
    await run(make(client))
    assert client.names("evidence") == ["1"]
