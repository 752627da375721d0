"""
What the front of a node adds to an answer, against nginx with the same rules, in one run and taken in turns.

Each is a process: an engine that answers at once over plain HTTP, the front, nginx with the rules that
``touchstone attester front --print nginx`` gives, and here a client.  What nginx and the front add is their median
less that of the engine asked directly.

    python -m bench.front [--rounds 30] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import msgspec

from attester.front import printed
from attester.front.receipts import REQUEST_HEADER
from bench.common import machine, row
from fixtures.fleet import free_port
from fixtures.fronted import Identity, keep_list, make_home

DIRECT, NGINX, OURS, SIGNED = "direct", "nginx", "front", "front with receipts"
"""The last is the front, asked as routers ask it: it digests what it serves."""
_ADDED: Final = (NGINX, OURS, SIGNED)
_TOKENS: Final = 16
_PAUSE_S: Final = 0.002
_EACH: Final = 20
"""Requests of each kind to each of them in a round."""
_WHOLE: Final = (
    b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}]}'
    % (b"word " * 100)
)
_CHUNK: Final = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
)
_BODY: Final = b'{"model":"org/model","messages":[{"role":"user","content":"%s"}],"stream":%s}'


class Engine(asyncio.Protocol):
    """The least that answers a request: whole at once, or token by token."""

    def __init__(self) -> None:
        self._got = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer, if that was all of a request."""
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end or len(body) < _length_of(head):
            return
        self._got = b""
        if b'"stream":true' not in body:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(_WHOLE)
                + _WHOLE
            )
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._token(head, _TOKENS)

    def _token(self, before: bytes, left: int) -> None:
        end = b"0\r\n\r\n" if left == 1 else b""
        self._transport.write(before + b"%x\r\n%s\r\n" % (len(_CHUNK), _CHUNK) + end)
        if left > 1:
            asyncio.get_running_loop().call_later(_PAUSE_S, self._token, b"", left - 1)


def _length_of(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0] or b"0")


async def _serve_engine(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


class Client:
    """One kept connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, has_ids: bool = False
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._has_ids = has_ids

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext | None, *, has_ids: bool = False) -> Client:
        """Open it; *has_ids*: each request gets an id, as those of routers have."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context), has_ids=has_ids)

    async def ask(self, *, stream: bool) -> tuple[float, float]:
        """Seconds to the first byte of the body, and to its end."""
        body = _BODY % (b"word " * 200, b"true" if stream else b"false")
        named = f"{REQUEST_HEADER}: {os.urandom(16).hex()}\r\n".encode() if self._has_ids else b""
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"%bContent-Length: %d\r\n\r\n" % (named, len(body))
        )
        begun = perf_counter()
        self._writer.write(head + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        if not stream:
            await self._reader.readexactly(_length_of(answer))
            took = perf_counter() - begun
            return took, took
        await self._reader.readuntil(b"data: ")
        first = perf_counter() - begun
        await self._reader.readuntil(b"0\r\n\r\n")
        return first, perf_counter() - begun

    def close(self) -> None:
        """Close it."""
        self._writer.transport.abort()


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[int]:
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


def _processor_us(pid: int) -> float:
    """Processor time of a process and its children, so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [
        Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in (str(pid), *children)
    ]
    return sum(int(each[11]) + int(each[12]) for each in fields) * 1e6 / os.sysconf("SC_CLK_TCK")


async def _processor(client: Client, pid: int, count: int = 2000) -> float:
    """Microseconds of processor time that a whole answer takes."""
    before = _processor_us(pid)
    for _ in range(count):
        await client.ask(stream=False)
    return (_processor_us(pid) - before) / count


async def _connected(port: int, context: ssl.SSLContext | None, *, has_ids: bool = False) -> Client:
    for _ in range(200):
        try:
            client = await Client.connect(port, context, has_ids=has_ids)
            await client.ask(stream=False)
        except (OSError, asyncio.IncompleteReadError, RuntimeError):
            await asyncio.sleep(0.1)
        else:
            return client
    raise RuntimeError(f"nothing serves on port {port}")


async def measure(rounds: int) -> dict[str, Any]:
    """Medians, in microseconds, of the first token and of the whole answer, and what each adds."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise SystemExit("nginx is not here")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        engine, nginx = free_port(), free_port()
        router = Identity(folder, "router-1")
        home = make_home(folder, f"http://127.0.0.1:{engine}")
        keep_list(home, [router], int(time.time()))
        config = home.config()
        text = printed.write(home, config, "nginx", time.time())
        front = int(config.serve.url.rpartition(":")[2])
        paths = "".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace(f"127.0.0.1:{front} ssl", f"127.0.0.1:{nginx} ssl")
        start = "daemon off; user root; worker_processes 1;"
        conf = folder / "nginx.conf"
        conf.write_text(f"{start} pid {folder}/pid; events {{ }} http {{ access_log off; {paths}\n{text} }}")
        here = [sys.executable, "-m"]
        pids = []
        for number, command in enumerate(
            (
                [*here, "bench.front", "--engine", str(engine)],
                [program, "-c", str(conf), "-p", str(folder), "-e", str(folder / "errors")],
                [*here, "touchstone", "attester", "front", "--home", str(home.path)],
            )
        ):
            pids.append(stack.enter_context(_process(command, folder / f"log-{number}")))
        clients = {
            DIRECT: await _connected(engine, None),
            NGINX: await _connected(nginx, router.context),
            OURS: await _connected(front, router.context),
            SIGNED: await _connected(front, router.context, has_ids=True),
        }
        try:
            given = summary(await _rounds(clients, rounds))
            places = ((1, NGINX), (2, OURS), (2, SIGNED))
            taken = {name: await _processor(clients[name], pids[at]) for at, name in places}
            ratios = {name: each / max(taken[NGINX], 1e-9) for name, each in taken.items()}
            return {**given, "processor_us": {"taken": taken, "ratio": ratios}}
        finally:
            for client in clients.values():
                client.close()


async def _rounds(clients: dict[str, Client], rounds: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {
        "whole": {name: [] for name in clients},
        "first token": {name: [] for name in clients},
        "whole stream": {name: [] for name in clients},
    }
    for number in range(rounds + 1):
        for name, client in clients.items():
            for _ in range(_EACH):
                _, whole = await client.ask(stream=False)
                first, streamed = await client.ask(stream=True)
                # The first round warms up.
                if number:
                    found["whole"][name].append(whole)
                    found["first token"][name].append(first)
                    found["whole stream"][name].append(streamed)
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """What was measured, and what nginx and the front add to it."""
    given: dict[str, Any] = {}
    for kind, times in found.items():
        middle = {name: median(each) * 1e6 for name, each in times.items()}
        added = {name: middle[name] - middle[DIRECT] for name in _ADDED}
        ratios = {name: each / max(added[NGINX], 1e-9) for name, each in added.items()}
        given[kind] = {"median_us": middle, "added_us": added, "ratio": ratios}
    return given


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        asyncio.run(_serve_engine(args.engine))
        return
    given = asyncio.run(measure(args.rounds))
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(given), indent=2).decode() + "\n")
        return
    sys.stdout.write(f"front against nginx, {args.rounds} rounds of {_EACH}; {machine()}\n")
    processor = given.pop("processor_us")
    for name, taken in processor["taken"].items():
        ratio = f"{processor['ratio'][name]:.2f} times nginx's"
        row(f"processor time of a whole answer, {name}", f"{taken:.0f} µs", ratio)
    for kind, each in given.items():
        for name, value in each["median_us"].items():
            added = f"adds {each['added_us'][name]:.0f} µs" if name != DIRECT else ""
            row(f"{kind}, {name}", f"{value:.0f} µs", added)
        for name in (OURS, SIGNED):
            row(f"{kind}: the {name} adds, by what nginx adds", f"{each['ratio'][name]:.2f}", "goal 1.3")


if __name__ == "__main__":
    main()
