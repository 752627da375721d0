"""
A node that learns to tell checks from users' requests by everything it sees, to answer checks alone with the true weights.

Real users' clients, a real router and real nodes on sockets.  The checks are drawn as minting draws them, from the
router's own profile and from texts that no user sends.  The node knows of half of the requests which were checks, learns
from them, and guesses the rest.  Its guesses are worth what chance is worth; with one defence switched off they are not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router.gateway import request
from router.gateway.openai import GATEWAY
from router.gateway.salting import Salts
from router.model.arrivals import Arrivals
from router.model.uniform import MAX_SEED, NOTHING
from router.state import random_bytes
from tests.adversary.virtual_time import LoopClock, run
from tests.integration.checking import Minter, Recorded, checks_of, record, sections, settle
from tests.integration.gateway import CHATS, Fleet, by, key, opened
from tests.unit.router.support import MODEL
from verifier.answers.composing import compose
from verifier.answers.draws import Draws
from verifier.answers.material import Material

ROOT = Path(__file__).parents[2]
REQUESTS, FEWER = 600, 260
"""Of users.  Where a defence is switched off, fewer are enough to see it."""
GAP_S = 0.006
NODES = ("a", "b", "c")
SHARED = "You answer for a shop that sells tea. " * 8
"""A system prompt that several tenants have: longer than what salts are made of."""
TENANTS = ("ada", "ada", "ada", "bob", "bob", "eve")
"""Who asks, as often as it stands here."""
VLLM = {"runtime": {"engine": "vllm", "version": "0.32.0"}}


def texts() -> list[str]:
    """
    Sentences: the users have one half of them, and the operator who mints has another.

    They are made of words of the licence, which does not change: a sentence that is added somewhere changes no verdict.
    """
    words = [word for word in (ROOT / "LICENSE").read_text().split() if word.isalpha()]
    lots = random.Random(3)
    return [" ".join(lots.choices(words, k=lots.randrange(5, 50))) + "." for _ in range(2400)]


@pytest.fixture(autouse=True)
def no_other_chance(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that the router draws follows from one seed: the same is sent in each run, and the verdict is the same."""
    lots = random.Random(5)
    monkeypatch.setattr(random_bytes, "os", SimpleNamespace(urandom=lots.randbytes))
    monkeypatch.setattr(request, "_draw_seed", lambda: lots.randrange(MAX_SEED))
    random_bytes._shared._forget()
    yield
    random_bytes._shared._forget()


class Users:
    """Three kinds of clients, each with its own habits."""

    def __init__(self, words: Sequence[str], lots: random.Random) -> None:
        self._words = words
        self._lots = lots

    def request(self) -> dict[str, Any]:
        lots = self._lots
        said = [{"content": lots.choice(self._words), "role": "user"}]
        match lots.choices(("sdk", "app", "script"), (5, 3, 2))[0]:
            case "sdk":
                return {
                    "messages": said,
                    "model": MODEL,
                    "stream": True,
                    "max_tokens": lots.choice((16, 32)),
                    "user": f"u{lots.randrange(50)}",
                }
            case "app":
                return {
                    "model": MODEL,
                    "temperature": 0.7,
                    "top_p": 0.95,
                    "max_completion_tokens": 24,
                    "n": 1,
                    "metadata": {"app": "notes"},
                    "messages": [{"role": "system", "content": "Answer in one sentence."}, *said],
                }
            case _:
                return {"messages": said, "temperature": 0.0, "model": MODEL, "max_tokens": 16, "stop": None}


class Population:
    """Users that send requests for a while, and what nodes see meanwhile."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._lots = random.Random(seed)
        words = texts()
        self._lots.shuffle(words)
        half = len(words) // 2
        self.users = Users(words[:half], self._lots)
        self.material = Material(texts=tuple(words[half:]), systems=("Answer in one sentence.",))
        self._theirs = set(words[half:])
        self._draws = Draws(f"population {seed}".encode())

    def minter(self) -> Minter:
        streamed = [False]

        def make(operation: str) -> dict[str, Any]:
            shapes = checks_of(self._fleet).profile().models[MODEL]
            made = compose(self._draws, shapes, self.material, lambda _: True, operation)  # type: ignore[arg-type]
            assert made is not None
            streamed[0] = made.streamed
            return made.body

        return Minter(make, streamed=lambda: streamed[0])

    def is_check(self, seen: Recorded) -> bool:
        return seen.document["messages"][-1]["content"] in self._theirs

    async def talk(self, count: int) -> None:
        sent = []
        for _ in range(count):
            await asyncio.sleep(self._lots.expovariate(1 / GAP_S))
            sent.append(asyncio.create_task(self._fleet.ask(self.users.request(), CHATS)))
        await asyncio.gather(*sent)
        await settle(self._fleet)


async def seen_by_nodes(folder: Path, seed: int, count: int = REQUESTS) -> tuple[list[Recorded], np.ndarray]:
    """What three nodes that agree have seen, in the order of time, and which of it were checks."""
    async with opened(folder, LoopClock(asyncio.get_running_loop())) as fleet:
        people = Population(fleet, seed)
        nodes = [await fleet.engine(name) for name in NODES]
        fleet.verifier.offers = people.minter()
        await fleet.start(sections=sections(folder), timeout_s=60, attempt_timeout_s=60, stall_s=60)
        fleet.establish(*NODES)
        lots = random.Random(seed)
        fleet.app[GATEWAY].dispatcher.seed = lambda: lots.getrandbits(63)
        seen = record(*nodes)
        await people.talk(count)
        checks = np.array([people.is_check(each) for each in seen])
    # Until the router has learnt what comes, it asks nothing.
    first = int(np.argmax(checks))
    return seen[first:], checks[first:]


async def seen_by_salted_nodes(folder: Path, seed: int, count: int) -> tuple[list[Recorded], np.ndarray]:
    """The same, of tenants that share a system prompt, at nodes whose engines keep prefixes apart by salts."""
    async with opened(folder, LoopClock(asyncio.get_running_loop())) as fleet:
        people = Population(fleet, seed)
        people.material = replace(people.material, systems=(SHARED,))
        nodes = [await fleet.engine(name, claims=VLLM) for name in NODES]
        fleet.verifier.offers = people.minter()
        keys = {"keys": [key(name) for name in sorted({*TENANTS})]}
        await fleet.start(sections=sections(folder) | keys, timeout_s=60, attempt_timeout_s=60, stall_s=60)
        fleet.establish(*NODES)
        lots = random.Random(seed)
        fleet.app[GATEWAY].dispatcher.seed = lambda: lots.getrandbits(63)
        recorded = [record(node) for node in nodes]
        sent = []
        for _ in range(count):
            await asyncio.sleep(lots.expovariate(1 / GAP_S))
            said = [{"role": "system", "content": SHARED}, *people.users.request()["messages"][-1:]]
            body = {"model": MODEL, "messages": said, "max_tokens": 16, "temperature": 0}
            sent.append(asyncio.create_task(fleet.ask(body, CHATS, **by(lots.choice(TENANTS)))))
        await asyncio.gather(*sent)
        await settle(fleet)
        seen = sorted((each for own in recorded for each in own), key=lambda each: each.at)
        return seen, np.array([people.is_check(each) for each in seen])


def worth_of_salts(seen: Sequence[Recorded], checks: np.ndarray) -> tuple[float, float]:
    """What a guess by the salt alone is worth, once it is known of half of the requests; and the bound of chance."""
    salts = [each.document["cache_salt"] for each in seen]
    learnt = np.random.default_rng(7).permutation(len(checks)) < len(checks) // 2
    share = {
        salt: np.mean(
            [check for check, own, known in zip(checks, salts, learnt, strict=True) if known and own == salt]
        )
        for salt in {salt for salt, known in zip(salts, learnt, strict=True) if known}
    }
    usual = checks[learnt].mean()
    guess = np.array([share.get(salt, usual) for salt in salts])
    return worth(guess[~learnt], checks[~learnt]), by_chance(checks[~learnt])


def features(seen: Sequence[Recorded]) -> np.ndarray:
    """Everything that is in a request, in how it came, and in what came before it, as numbers."""
    names = sorted({name for each in seen for name in each.document})
    heads = sorted({name for each in seen for name, _ in each.head})
    orders = sorted({",".join(each.document) for each in seen})
    last_at: dict[str, float] = {}
    served: dict[Any, int] = {}
    rows, before = [], seen[0]
    for each in seen:
        document, node = each.document, each.node
        row = [
            np.log(each.at - before.at + 1e-6),
            np.log(each.at - last_at.get(node, each.at - 1) + 1e-6),
            each.open,
            served.get(each.peer, 0) == 0,
            np.log1p(served.get(each.peer, 0)),
            each.peer == before.peer,
            before.document.get("stream", False),
            len(before.body),
            len(each.body),
            len(each.head),
            len(document["messages"]),
            *(len(message["content"]) for message in document["messages"][-1:]),
            *(number(document.get(name)) for name in names),
            *(name in document for name in names),
            *(
                [name for name, _ in each.head].index(name) if (name in dict(each.head)) else -1
                for name in heads
            ),
            orders.index(",".join(document)),
            ",".join(document) == ",".join(before.document),
            number(document.get("seed")) % 2,
            number(document.get("seed")) < 1000,
            b": " in each.body,
            b".0" in each.body,
            b"\\u" in each.body,
        ]
        rows.append([*map(float, row), *grams(document["messages"][-1]["content"])])
        last_at[node], before = each.at, each
        served[each.peer] = served.get(each.peer, 0) + 1
    table = np.array(rows)
    spread = table.std(axis=0)
    return (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1)


def number(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else -1.0


def grams(text: str, size: int = 64) -> list[float]:
    """How often triples of characters come, hashed."""
    counts = [0.0] * size
    for at in range(len(text) - 2):
        first, second, third = text[at : at + 3].encode("latin-1", "replace")
        counts[(first * 7919 + second * 104729 + third * 1299709) % size] += 1 / len(text)
    return counts


def logistic(table: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A logistic regression with a penalty on its weights, by Newton's method."""
    with_one = np.column_stack([table, np.ones(len(table))])
    weights = np.zeros(with_one.shape[1])
    penalty = np.diag([3.0] * table.shape[1] + [1e-6])
    for _ in range(12):
        guess = 1 / (1 + np.exp(-np.clip(with_one @ weights, -30, 30)))
        slope = with_one.T @ (labels - guess) - penalty @ weights
        curve = (with_one * (guess * (1 - guess))[:, None]).T @ with_one + penalty
        weights += np.linalg.solve(curve, slope)
    return lambda rows: np.column_stack([rows, np.ones(len(rows))]) @ weights


def stump(table: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The one feature, above or below a value, that tells most."""
    best = (0.0, 0, 0.0)
    for column in range(table.shape[1]):
        for cut in np.unique(np.quantile(table[:, column], np.linspace(0.02, 0.98, 25))):
            above = table[:, column] > cut
            tells = above[labels].mean() - above[~labels].mean()
            if abs(tells) > abs(best[0]):
                best = (tells, column, cut)
    sign = np.sign(best[0])
    return lambda rows: sign * (rows[:, best[1]] > best[2])


def worth(scores: np.ndarray, labels: np.ndarray) -> float:
    """The area under the curve of hits against false alarms: 0.5 by chance."""
    ranks = np.empty(len(scores))
    order = np.argsort(scores, kind="stable")
    ranks[order] = np.arange(1, len(scores) + 1)
    for value in np.unique(scores):
        ranks[scores == value] = ranks[scores == value].mean()
    hits = int(labels.sum())
    return float((ranks[labels].sum() - hits * (hits + 1) / 2) / (hits * (len(labels) - hits)))


def by_chance(labels: np.ndarray) -> float:
    """What a guess without any knowledge is worth at most, but for a millionth of all orders of the labels."""
    hits = int(labels.sum())
    # Normal, with this spread (Mann and Whitney, 1947).
    return 0.5 + 4.75 * float(np.sqrt((len(labels) + 1) / (12 * hits * (len(labels) - hits))))


def best_guess(seen: Sequence[Recorded], checks: np.ndarray) -> tuple[float, float]:
    """The worth of the better of two ways to guess on requests that were not learnt from, and the bound of chance."""
    table = features(seen)
    learnt = np.random.default_rng(7).permutation(len(checks)) < len(checks) // 2
    found = []
    for learn in (logistic, stump):
        guess = learn(table[learnt], checks[learnt])
        found.append(worth(guess(table[~learnt]), checks[~learnt]))
    return max(found), by_chance(checks[~learnt])


def test_a_node_cannot_tell_a_check_from_a_request(tmp_path: Path) -> None:
    seen, checks = run(seen_by_nodes(tmp_path, 1))
    assert 60 < checks.sum() < len(checks) - 60
    found, bound = best_guess(seen, checks)
    assert found < bound, f"{found:.3f}, and chance gives {bound:.3f}"


def _without_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' requests get no seeds, and checks have theirs."""
    monkeypatch.setattr(request, "_write_uniform", _only_order)
    monkeypatch.setattr("router.model.traffic.ModelTraffic.admits", lambda _self, _kind: True)


def _only_order(document: dict[str, Any], _operation: Any, _workload: Any) -> tuple[dict[str, Any], Any]:
    return dict(sorted(document.items())), NOTHING


def _as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go to nodes as clients word them, seeds aside."""
    lots = random.Random(6)

    def with_a_seed(document: dict[str, Any], _operation: Any, _workload: Any) -> tuple[dict[str, Any], Any]:
        seeded = {} if document.get("temperature") == 0 else {"seed": lots.randrange(1 << 31)}
        return {**document, **{k: v for k, v in seeded.items() if k not in document}}, NOTHING

    monkeypatch.setattr(request, "_write_uniform", with_a_seed)
    monkeypatch.setattr("router.model.traffic.ModelTraffic.admits", lambda _self, _kind: True)


def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check follows its request at once."""
    monkeypatch.setattr(Arrivals, "draw_delay_s", lambda _self, _draw: 0.0)


@pytest.mark.parametrize("switch_off", [_without_seeds, _as_they_come, _at_once])
def test_without_one_defence_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch_off: Callable[[pytest.MonkeyPatch], None]
) -> None:
    switch_off(monkeypatch)
    seen, checks = run(seen_by_nodes(tmp_path, 2, FEWER))
    found, bound = best_guess(seen, checks)
    assert found > bound, f"{found:.3f}, and chance gives {bound:.3f}"


def test_the_salt_does_not_tell_a_check_from_a_request(tmp_path: Path) -> None:
    seen, checks = run(seen_by_salted_nodes(tmp_path, 3, FEWER))
    assert 20 < checks.sum() < len(checks) - 60
    # One for each tenant, whatever else it asks: that is what makes a cache of use.
    assert len({each.document["cache_salt"] for each in seen}) == len({*TENANTS})
    found, bound = worth_of_salts(seen, checks)
    assert found < bound, f"{found:.3f}, and chance gives {bound:.3f}"


def test_it_would_if_checks_were_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Salts, "as_of_late", lambda _self, request, _draw: request)
    seen, checks = run(seen_by_salted_nodes(tmp_path, 3, FEWER))
    found, bound = worth_of_salts(seen, checks)
    assert found > bound, f"{found:.3f}, and chance gives {bound:.3f}"
