"""
What a batch beside them costs live requests: their latencies with one and without, in turns on one router.

Three processes: the nodes, the router, and the one that asks.  A node answers as an engine with continuous batching
does: the more requests it has, the longer each takes.  Live requests come at random moments, at a rate that does not
wait for answers.

    python -m bench.batches [--rounds 6] [--seconds 8] [--rate 20] [--nodes 4] [--store URL] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import ssl
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization

from attester import identity
from attester.config import create_certificate
from attester.cose import PrivateKey
from bench.common import machine, row
from bench.gateway_peers.answers import MODEL
from bench.gateway_peers.verifier import LIFE_S, StandIn
from fixtures.fleet import free_port

_ALONE_S: Final = 0.08
"""What a request takes at a node that has no other."""
_SLOWED: Final = 1 / 16
"""By how much of that it takes longer for each other one."""
_LINES: Final = 5000
_LIVE, _BATCH = "sk-live", "sk-batch"
_CHATS: Final = "/v1/chat/completions"


def _request(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 64}


class Node:
    """An engine, as far as its times go."""

    def __init__(self) -> None:
        self.open = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer after as long as an engine of so many requests takes."""
        await request.read()
        self.open += 1
        try:
            await asyncio.sleep(_ALONE_S * (1 + _SLOWED * (self.open - 1)))
        finally:
            self.open -= 1
        message = {"role": "assistant", "content": "amber birch cedar delta " * 8}
        document = {
            "id": "x", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 32, "total_tokens": 40},
        }  # fmt: skip
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def _context(path: Path, key: PrivateKey) -> ssl.SSLContext:
    pem = key.native.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + create_certificate(key, "127.0.0.1"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def serve_nodes(count: int) -> None:
    """Serve nodes until the end of the input; the first line of output says where."""
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            key = PrivateKey.generate()
            context = _context(Path(folder, f"{number}.pem"), key)
            app = web.Application()
            app.router.add_post(_CHATS, Node().answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            said.append([runner.addresses[0][1], hashlib.sha256(identity.spki(key)).hexdigest()])
    sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


class Bench:
    """A router over nodes, and what it is asked."""

    def __init__(self, http: aiohttp.ClientSession, url: str, rng: random.Random) -> None:
        self._http = http
        self._url = url
        self._rng = rng

    async def ask(self) -> float | None:
        """Ask once; seconds, or `None` if it failed."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        headers = {"Authorization": f"Bearer {_LIVE}"}
        async with self._http.post(self._url + _CHATS, json=_request("hello"), headers=headers) as response:
            await response.read()
            return loop.time() - began if response.status == 200 else None

    async def live(self, seconds: float, rate: float) -> list[float | None]:
        """Ask at random moments for *seconds*, *rate* times a second on average."""
        loop = asyncio.get_running_loop()
        end, tasks = loop.time() + seconds, []
        while loop.time() < end:
            await asyncio.sleep(self._rng.expovariate(rate))
            tasks.append(asyncio.create_task(self.ask()))
        return list(await asyncio.gather(*tasks))

    async def call(self, method: str, path: str, **given: Any) -> Any:
        """Call a resource with the key of the batch."""
        headers = {"Authorization": f"Bearer {_BATCH}"}
        async with self._http.request(method, self._url + path, headers=headers, **given) as response:
            document = await response.json()
            if response.status != 200:
                raise SystemExit(f"{path}: {document}")
            return document

    async def begin(self) -> str:
        """Begin a batch, and wait until lines are done."""
        lines = [
            {"custom_id": str(n), "method": "POST", "url": _CHATS, "body": _request(f"line {n}")}
            for n in range(_LINES)
        ]
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", b"\n".join(map(msgspec.json.encode, lines)), filename="in.jsonl")
        file = await self.call("POST", "/v1/files", data=form)
        asked = {"input_file_id": file["id"], "endpoint": _CHATS, "completion_window": "24h"}
        batch = str((await self.call("POST", "/v1/batches", json=asked))["id"])
        await self._wait(batch, lambda found: found["request_counts"]["completed"] > 0)
        return batch

    async def _wait(self, batch: str, is_good: Callable[[Any], bool]) -> None:
        while True:
            if is_good(await self.call("GET", f"/v1/batches/{batch}")):
                return
            await asyncio.sleep(0.1)

    async def done(self, batch: str) -> int:
        """How many lines are done."""
        return int((await self.call("GET", f"/v1/batches/{batch}"))["request_counts"]["completed"])

    async def cancel(self, batch: str) -> None:
        """Cancel a batch, and wait for its end."""
        await self.call("POST", f"/v1/batches/{batch}/cancel")
        await self._wait(batch, lambda found: found["status"] == "cancelled")


async def _spawn(stack: AsyncExitStack, *command: str, log: Path) -> asyncio.subprocess.Process:
    file = stack.enter_context(log.open("wb"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdin=PIPE, stdout=PIPE if command[0] == "bench.batches" else file, stderr=file
    )  # fmt: skip

    async def end() -> None:
        process.terminate()
        await process.wait()

    stack.push_async_callback(end)
    return process


@asynccontextmanager
async def running(nodes: int, store: str, per_node: int) -> AsyncIterator[str]:
    """A router over nodes; its URL."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process = await _spawn(stack, "bench.batches", "--serve", str(nodes), log=folder / "nodes.log")
        assert process.stdout is not None
        verifier = StandIn()
        runner = web.AppRunner(verifier.app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        issuer = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for number, (port, pin) in enumerate(msgspec.json.decode(await process.stdout.readline())):
            verifier.trust(issuer, f"node-{number}", f"https://127.0.0.1:{port}", pin)
        listen = f"127.0.0.1:{free_port()}"
        (folder / "router.token").write_text("the verifier of the benchmark takes any\n")
        digests = {
            name: hashlib.sha256(key.encode()).hexdigest() for name, key in (("l", _LIVE), ("b", _BATCH))
        }
        place = f'url = "{store}"' if store else 'path = "router.db"'
        (folder / "router.toml").write_text(
            f'[verifier]\nurl = "{issuer}"\nrouter_token_file = "router.token"\n[service]\nlisten = "{listen}"\n'
            f"[gateway]\nallow_private = true\n[store]\n{place}\n[batches]\nplaces_per_node = {per_node}\n"
            "max_stored_bytes = 100000000000\n"
            + "".join(f'[[keys]]\nname = "{n}"\nsha256 = "{digest}"\n' for n, digest in digests.items())
        )
        table = {
            "tiers": {"small": {"max_age_s": LIFE_S}},
            "workloads": {"tiny": {"model": MODEL, "tier": "small"}},
        }
        (folder / "workloads.yaml").write_bytes(msgspec.json.encode(table))
        config = str(folder / "router.toml")
        await _spawn(stack, "touchstone", "router", "serve", "--config", config, log=folder / "router.log")
        yield f"http://{listen}"


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds with a batch and without one, in turns."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    by_round: dict[str, list[float]] = {"without": [], "with": []}
    failed, paces = 0, []
    async with running(args.nodes, args.store, args.per_node) as url, aiohttp.ClientSession() as http:
        bench = Bench(http, url, random.Random(7))
        await _until_it_answers(bench)
        await bench.live(args.seconds, args.rate)
        for number in range(args.rounds):
            for side in ("without", "with")[:: 1 if number % 2 else -1]:
                batch = await bench.begin() if side == "with" else ""
                before = await bench.done(batch) if batch else 0
                answers = await bench.live(args.seconds, args.rate)
                if batch:
                    paces.append((await bench.done(batch) - before) / args.seconds)
                    await bench.cancel(batch)
                good = sorted(each for each in answers if each is not None)
                failed += len(answers) - len(good)
                found[side] += good
                by_round[side].append(_p99(good))
    summary: dict[str, Any] = {
        "rounds": args.rounds,
        "failed": failed,
        "lines_per_s": round(median(paces), 1),
    }
    for side, latencies in found.items():
        summary[side] = {
            "requests": len(latencies),
            "p50_ms": round(1000 * median(latencies), 1),
            "p99_ms": round(1000 * _p99(latencies), 1),
            "p99_ms_by_round": [round(1000 * each, 1) for each in by_round[side]],
        }
    for name in ("p50_ms", "p99_ms"):
        summary[f"{name[:3]}_ratio"] = round(summary["with"][name] / summary["without"][name], 3)
    return summary


def _p99(latencies: list[float]) -> float:
    return quantiles(latencies, n=100)[98]


async def _until_it_answers(bench: Bench) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if await bench.ask() is not None:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side of a round")
    parser.add_argument("--rate", type=float, default=20.0, help="live requests a second")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--per-node", type=int, default=2, help="places_per_node of [batches]")
    parser.add_argument("--store", default="", help="postgresql://…; default: SQLite")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve_nodes(args.serve))
        return
    summary = asyncio.run(measure(args))
    if args.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        return
    sys.stdout.write(f"{machine()}, load {os.getloadavg()[0]:.1f}\n")
    for side in ("without", "with"):
        one = summary[side]
        row(f"live, {side} a batch", f"p50 {one['p50_ms']} ms, p99 {one['p99_ms']} ms")
    row("lines a second beside them", str(summary["lines_per_s"]))
    row("ratio of p50, of p99", f"{summary['p50_ratio']}, {summary['p99_ratio']}")
    sys.stdout.write(f"failed live requests: {summary['failed']}\n")


if __name__ == "__main__":
    main()
