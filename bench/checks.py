"""
What checks of answers cost a request at the gateway, in processor time: the one form, the profile, the draw.

    python -m bench.checks
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from router.config import ApiKey
from router.gateway.check_run import operation_of
from router.gateway.request import NodeRequest, read_request
from router.model.arrivals import Arrivals
from router.model.traffic import ModelTraffic, describe
from router.model.uniform import Added, hide
from router.model.workload import CheckSettings, Table, Workload
from router.state.random_bytes import random_bytes

MODEL: Final = "org/model"
ROUNDS: Final = 20_000
KEY: Final = ApiKey(name="bench", sha256="")
BODY: Final = msgspec.json.encode(
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "Why is the sky blue at noon and red in the evening? " * 6},
        ],
        "temperature": 0.7,
        "max_tokens": 128,
        "stream": True,
        "user": "u-1",
    }
)


def each_us(work: Callable[[], Any]) -> float:
    """Microseconds of processor time for one, the best of five rounds."""
    found = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(ROUNDS):
            work()
        found.append((time.process_time() - began) / ROUNDS * 1e6)
    return min(found)


def read(table: Table, *, is_asked: bool) -> NodeRequest:
    """The request as the gateway reads it."""
    operation = operation_of("chat.completions")
    assert operation is not None
    return read_request(BODY, operation, table, KEY, workload=None, is_asked=lambda _: is_asked)


def event() -> bytes:
    """An event of a stream with five alternatives, as llama.cpp words it."""
    top = [{"id": n, "token": f"token{n}", "bytes": [65], "logprob": -0.5 - n} for n in range(5)]
    position = {"id": 1, "token": "token", "bytes": [65], "logprob": -0.5, "top_logprobs": top}
    choice = {
        "index": 0,
        "delta": {"content": "token"},
        "finish_reason": None,
        "logprobs": {"content": [position]},
    }
    return msgspec.json.encode(
        {"id": "x", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
    )


def main() -> None:
    """Print the figures."""
    table = Table([Workload(MODEL, name="w", checks=CheckSettings())])
    plain, asked = read(table, is_asked=False), read(table, is_asked=True)
    traffic, arrivals = ModelTraffic(), Arrivals()
    data, added = event(), Added(hides_logprobs=True)

    def note() -> None:
        if random_bytes(1)[0] < 64:
            traffic.note(describe(asked.document, "chat.completions", asked.added))
        arrivals.note(time.monotonic())
        _ = int.from_bytes(random_bytes(4), "little") / 2**32 < 0.02

    without = each_us(lambda: read(table, is_asked=False))
    within = each_us(lambda: read(table, is_asked=True))
    print(f"reading a request of {len(plain.body)} bytes: {without:.1f} µs; in the one form: {within:.1f} µs")
    print(f"its shape (of one in four), the moment and the draw: {each_us(note):.1f} µs")
    print(f"a seed: {each_us(lambda: secrets.randbelow(1 << 31)):.1f} µs (within the one form)")
    print(
        f"log-probabilities taken out of an event of {len(data)} bytes: {each_us(lambda: hide(data, added)):.1f} µs"
    )


if __name__ == "__main__":
    main()
