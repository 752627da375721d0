"""
LiteLLM's choice among N deployments of one model; runs in the bench's own venv.

    .venv-bench/bin/python -m bench.gateway_peers.litellm_router N SECONDS

Prints, as JSON, how long it took to build, and the seconds of each choice, sync and async.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from time import perf_counter
from typing import Any

_MOST = 20_000
_LEAST = 20
_MODEL = "bench/tiny"


def build(count: int) -> Any:
    """A router by simple shuffle, its default."""
    deployments = [
        {
            "model_name": _MODEL,
            "litellm_params": {
                "model": f"openai/{_MODEL}",
                "api_base": f"http://127.0.0.1:9/{number}",
                "api_key": "sk-unused",
            },
        }
        for number in range(count)
    ]
    return import_module("litellm").Router(model_list=deployments, routing_strategy="simple-shuffle")


def sync_choices(router: Any, seconds: float) -> list[float]:
    """Seconds of each."""
    messages = [{"role": "user", "content": "Say it."}]
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < _LEAST or (len(times) < _MOST and perf_counter() < end):
        start = perf_counter()
        router.get_available_deployment(model=_MODEL, messages=messages)
        times.append(perf_counter() - start)
    return times


async def async_choices(router: Any, seconds: float) -> list[float]:
    """Seconds of each, as its proxy makes them."""
    messages = [{"role": "user", "content": "Say it."}]
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < _LEAST or (len(times) < _MOST and perf_counter() < end):
        start = perf_counter()
        await router.async_get_available_deployment(model=_MODEL, request_kwargs={}, messages=messages)
        times.append(perf_counter() - start)
    return times


def main() -> None:
    """Measure and print."""
    count, seconds = int(sys.argv[1]), float(sys.argv[2])
    import_module("litellm")
    start = perf_counter()
    router = build(count)
    built = perf_counter() - start
    found = {
        "build_s": built,
        "sync": sync_choices(router, seconds),
        "async": asyncio.run(async_choices(router, seconds)),
    }
    # LiteLLM says things on standard output as well; ours is the last line.
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
