"""
How much walks disturb a vLLM that serves: tokens per second without walks, and with one walk after another.

What the verifier's default intervals make of it is computed from both: a walk comes every so often, and for as
long as it takes, serving has the lower rate.

    python -m bench.disturbance --url http://127.0.0.1:8000 --dir MODEL --model NAME [--rounds 5] [--window 8]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median

import aiohttp

from attester.engines.vllm import VllmEngine
from attester.weights.possession import WalkChallenge
from bench.common import machine, row
from verifier.config import CallsConfig

_CONCURRENT = 4
_TOKENS = 32


async def serve_for(http: aiohttp.ClientSession, url: str, model: str, seconds: float) -> float:
    """Tokens per second of a few clients, each of which asks again when it has its answer."""
    end, tokens, start = time.monotonic() + seconds, 0, time.monotonic()
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": _TOKENS, "ignore_eos": True}

    async def ask() -> None:
        nonlocal tokens
        while time.monotonic() < end:
            async with http.post(f"{url}/v1/completions", json=body) as response:
                response.raise_for_status()
                tokens += (await response.json())["usage"]["completion_tokens"]

    await asyncio.gather(*(ask() for _ in range(_CONCURRENT)))
    return tokens / (time.monotonic() - start)


async def walk_until(
    engine: VllmEngine, model: str, challenge: WalkChallenge, done: asyncio.Event
) -> list[float]:
    """One walk after another; the seconds that each took."""
    taken = []
    while not done.is_set():
        start = time.monotonic()
        await engine.walk(model, challenge)
        taken.append(time.monotonic() - start)
    return taken


async def measure(args: argparse.Namespace) -> None:
    """Windows of both kinds in turns."""
    challenge = WalkChallenge("56" * 32, args.rows, args.passes)
    quiet, walking, walks = [], [], []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        engine = VllmEngine(http, args.url, {args.model: args.dir})
        workers = (await engine.describe()).arguments["workers"]
        await engine.prepare()
        await serve_for(http, args.url, args.model, args.window)
        for _ in range(args.rounds):
            quiet.append(await serve_for(http, args.url, args.model, args.window))
            done = asyncio.Event()
            task = asyncio.create_task(walk_until(engine, args.model, challenge, done))
            walking.append(await serve_for(http, args.url, args.model, args.window))
            done.set()
            walks += await task
    calls = CallsConfig()
    every_s = (calls.min_interval_s + calls.max_interval_s) / 2 / calls.walk_share
    rate, slowed, taken = median(quiet), median(walking), median(walks)
    lost = max(1 - slowed / rate, 0) * taken / every_s
    row(f"vLLM, {workers} workers: without walks", f"{rate:.0f} tokens/s")
    row(
        "with one walk after another",
        f"{slowed:.0f} tokens/s",
        f"{1 - slowed / rate:.0%} fewer; {len(walks)} walks",
    )
    row(f"a walk of {args.rows} rows and {args.passes} passes", f"{taken:.2f} s", "while it serves")
    row(f"a walk every {every_s:.0f} s, the default", f"{lost:.3%} lost", "of tokens per second")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=float, default=8)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--passes", type=int, default=2)
    args = parser.parse_args()
    print(f"disturbance of serving; {machine()}")
    asyncio.run(measure(args))


if __name__ == "__main__":
    main()
