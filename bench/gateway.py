"""
The gateway against a bare proxy and LiteLLM, before the same backend, in one run and taken in turns.

Each is a process: a load, a backend that answers sixteen tokens over https, and between
them nothing (direct), the least that can be (bare), our gateway, or LiteLLM's proxy.  What
stands between has one core to itself, where there are two; load and backend share the other.

    python -m bench.gateway [--rounds 12] [--json] [--before ANOTHER_CHECKOUT] [--receipts]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization

from attester import identity
from attester.config import create_certificate
from attester.cose import PrivateKey
from bench.common import machine, row
from bench.gateway_peers import answers, peer
from bench.gateway_peers.load import Job, Report
from bench.gateway_peers.verifier import LIFE_S, StandIn
from fixtures.fleet import free_port

DIRECT, BARE, OURS, BEFORE, LITELLM = "direct", "bare", "touchstone", "before", "litellm"
WITHOUT: Final = "no receipts"
"""Our gateway with receipts switched off."""
_TRIES_S: Final = 120.0
_SILENCE_S: Final = 120.0


@dataclass(frozen=True)
class Kind:
    """A kind of load, and how many requests of it in a round: of the fast, and of the slow."""

    name: str
    body: bytes
    concurrency: int
    fast: int
    slow: int


KINDS: Final = (
    Kind("whole", answers.request(), 1, 200, 12),
    Kind("streamed", answers.request(stream=True), 1, 100, 12),
    Kind("at once", answers.request(stream=True, at_once=True), 1, 100, 0),
    Kind("sixteen", answers.request(), 16, 1000, 32),
    Kind("sixteen streamed", answers.request(stream=True), 16, 400, 32),
)


@dataclass
class Found:
    """What the rounds found of one target and kind; seconds."""

    latencies: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    """Of each round, the median until the first byte of content."""
    rates: list[float] = field(default_factory=list)
    status: int = 200


class Certificate:
    """A TLS key with its self-signed certificate, in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        key = PrivateKey.generate()
        self.pin = hashlib.sha256(identity.spki(key)).hexdigest()
        (folder / f"{name}.crt").write_bytes(create_certificate(key, "127.0.0.1"))
        (folder / f"{name}.key").write_bytes(
            key.native.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


class Bench:
    """The processes, and the one that asks them."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        cores = sorted(os.sched_getaffinity(0))
        self._ends, self._between = {cores[0]}, {cores[-1]}
        self._load: Process | None = None
        self.urls: dict[str, str] = {}
        self.pids: dict[str, int] = {}

    async def _start(
        self,
        name: str,
        *command: str,
        cores: set[int],
        cwd: Path = peer.ROOT,
        env: dict[str, str] | None = None,
        speaks: bool = False,
    ) -> Process:
        """A process that ends with the bench; what it does not say to us it says to a file."""
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=env,
            stdin=PIPE if speaks else asyncio.subprocess.DEVNULL,
            stdout=PIPE if speaks else log,
            stderr=log,
            limit=1 << 26,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self._stack.push_async_callback(_end, process)
        self.pids[name] = process.pid
        return process

    async def _python(self, name: str, *arguments: str, cores: set[int]) -> tuple[Process, list[int]]:
        """A module of ours that begins by saying its ports."""
        process = await self._start(
            name, sys.executable, "-m", f"bench.gateway_peers.{name}", *arguments, cores=cores, speaks=True
        )
        assert process.stdout is not None
        return process, [int(port) for port in (await process.stdout.readline()).split()]

    async def start(
        self, nodes: int, before: Path | None, python: Path | None, *, compares_receipts: bool
    ) -> None:
        """Start everything, also the router of another checkout, and one without receipts; wait until each answers."""
        self._load = await self._start(
            "load", sys.executable, "-m", "bench.gateway_peers.load", cores=self._ends, speaks=True
        )
        names = [f"node-{i}" for i in range(nodes)]
        certificates = [Certificate(self._folder, name) for name in names]
        _, ports = await self._python("backend", str(self._folder), *names, cores=self._ends)
        backend = f"https://127.0.0.1:{ports[0]}"
        _, (bare,) = await self._python(
            "bare", backend, str(self._folder / f"{names[0]}.crt"), cores=self._between
        )
        self.urls = {DIRECT: backend, BARE: f"http://127.0.0.1:{bare}"}
        verifier = StandIn()
        issuer = await self._stack.enter_async_context(_serving(verifier.app()))
        for name, certificate, port in zip(names, certificates, ports, strict=True):
            verifier.trust(issuer, name, f"https://127.0.0.1:{port}", certificate.pin)
        await self._start_router(OURS, peer.ROOT, issuer)
        if compares_receipts:
            await self._start_router(WITHOUT, peer.ROOT, issuer, "[receipts]\nenabled = false\n")
        if before is not None:
            await self._start_router(BEFORE, before, issuer)
        if python is not None:
            await self._start_litellm(python, backend)
        for name in list(self.urls):
            if not await self._answers(name):
                sys.stdout.write(f"  (without {name}: it does not answer)\n")
                del self.urls[name]

    async def _start_router(self, name: str, tree: Path, issuer: str, more: str = "") -> None:
        listen = f"127.0.0.1:{free_port()}"
        home = self._folder / name
        home.mkdir()
        path = home / "router.toml"
        (home / "router.token").write_text("the verifier of the benchmark takes any\n")
        # As text: another checkout may know of other settings.
        path.write_text(
            f'[verifier]\nurl = "{issuer}"\nrouter_token_file = "router.token"\n[service]\nlisten = "{listen}"\n'
            '[gateway]\nallow_private = true\n[store]\npath = "router.db"\n'
            f'{more}[[keys]]\nname = "bench"\nsha256 = "{hashlib.sha256(peer.KEY.encode()).hexdigest()}"\n'
        )
        table = {
            "tiers": {"small": {"max_age_s": LIFE_S}},
            "workloads": {"tiny": {"model": answers.MODEL, "tier": "small"}},
        }
        (home / "workloads.yaml").write_bytes(msgspec.json.encode(table))
        await self._start(
            name, sys.executable, "-m", "touchstone", "router", "serve", "--config", str(path),
            cores=self._between, cwd=tree,
        )  # fmt: skip
        self.urls[name] = f"http://{listen}"

    async def _start_litellm(self, python: Path, backend: str) -> None:
        config, port = self._folder / "litellm.yaml", free_port()
        peer.write_config(config, backend)
        await self._start(
            LITELLM, *peer.command(python, config, port), cores=self._between, env=peer.environment()
        )
        self.urls[LITELLM] = f"http://127.0.0.1:{port}"

    async def _answers(self, name: str) -> bool:
        deadline = asyncio.get_running_loop().time() + _TRIES_S
        while asyncio.get_running_loop().time() < deadline:
            if (await self.ask(name, KINDS[0], 1, 0)).status == 200:
                return True
            await asyncio.sleep(0.2)
        return False

    async def ask(self, name: str, kind: Kind, count: int, warm: int) -> Report:
        """Have the load do a job."""
        assert self._load is not None
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        url = f"{self.urls[name]}/v1/chat/completions"
        job = Job(url, kind.body.decode(), peer.KEY, count, kind.concurrency, warm)
        self._load.stdin.write(msgspec.json.encode(job) + b"\n")
        async with asyncio.timeout(_SILENCE_S):
            line = await self._load.stdout.readline()
        if not line:
            raise SystemExit((self._folder / "load.log").read_text())
        return msgspec.json.decode(line, type=Report)


async def _end(process: Process) -> None:
    if process.returncode is None:
        # Its children too: each process has a session of its own.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def rounds(bench: Bench, count: int) -> dict[str, dict[str, Found]]:
    """Every kind of load on every target, in turns; by kind and target."""
    found = {kind.name: {name: Found() for name in bench.urls} for kind in KINDS}
    for number in range(count):
        for kind in KINDS:
            # The order turns round each time, because a target may disturb the one after it.
            for name, target in list(found[kind.name].items())[:: 1 if number % 2 else -1]:
                requests = kind.slow if name == LITELLM else kind.fast
                if target.status != 200 or not requests:
                    continue
                # The first round warms all up: a gateway learns of its nodes, Python of its code.
                warm = requests if number == 0 else max(kind.concurrency, requests // 20)
                report = await bench.ask(name, kind, requests, warm)
                target.status = report.status
                if report.status == 200:
                    target.latencies += report.latencies
                    target.medians.append(median(report.latencies))
                    target.firsts.append(median(report.first))
                    target.rates.append(len(report.latencies) / report.seconds)
    return found


def added(of: list[float], direct: list[float]) -> list[float]:
    """Round by round, what a target takes more than nothing takes; seconds."""
    return [proxy - none for proxy, none in zip(of, direct, strict=True)]


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the rounds' ratios: what disturbs a round disturbs both."""
    return median(one / other for one, other in zip(of, to, strict=True))


def summary(found: dict[str, dict[str, Found]]) -> dict[str, Any]:
    """The figures, as JSON-compatible data: microseconds, requests per second, ratios."""
    targets: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for kind, by_name in found.items():
        direct = by_name[DIRECT]
        extra: dict[str, list[float]] = {}
        for name, target in by_name.items():
            if target.status != 200:
                targets.setdefault(name, {})[kind] = {"refused": target.status}
                continue
            if not target.rates:
                continue
            # Of a stream what counts is when it begins.
            whole = kind in ("whole", "sixteen")
            taken, none = (target.medians, direct.medians) if whole else (target.firsts, direct.firsts)
            extra[name] = added(taken, none)
            targets.setdefault(name, {})[kind] = {
                "p50_us": round(median(target.latencies) * 1e6, 1),
                "p99_us": round(quantiles(target.latencies, n=100)[98] * 1e6, 1),
                "first_us": round(median(target.firsts) * 1e6, 1),
                "added_us": round(median(extra[name]) * 1e6, 1),
                "per_s": round(median(target.rates), 1),
            }
        for other in (BARE, BEFORE, WITHOUT):
            if OURS not in extra or other not in extra:
                continue
            if kind in ("whole", "streamed", "at once"):
                ratios[f"{kind}: added, touchstone to {other}"] = round(ratio(extra[OURS], extra[other]), 3)
            else:
                rates = by_name[OURS].rates, by_name[other].rates
                ratios[f"{kind}: rate, touchstone to {other}"] = round(ratio(*rates), 3)
        if OURS in extra and LITELLM in extra:
            rates = by_name[OURS].rates, by_name[LITELLM].rates
            ratios[f"{kind}: rate, touchstone to litellm"] = round(ratio(*rates), 1)
    return {"targets": targets, "ratios": ratios}


def show(given: dict[str, Any]) -> None:
    """A small table and the ratios."""
    sys.stdout.write(
        f"  {'':<12}{'one at a time: p50':>20}{'added':>9}{'p99':>9}"
        f"{'first token':>13}{'added':>9}{'16 at once':>13}{'streamed':>11}\n"
    )

    def cell(kinds: dict[str, Any], kind: str, name: str) -> str:
        value = kinds.get(kind, {}).get(name)
        if value is None:
            return "–"
        return f"{value:.0f} /s" if name == "per_s" else f"{value / 1000:.2f} ms"

    for target, kinds in given["targets"].items():
        sys.stdout.write(
            f"  {target:<12}{cell(kinds, 'whole', 'p50_us'):>20}{cell(kinds, 'whole', 'added_us'):>9}"
            f"{cell(kinds, 'whole', 'p99_us'):>9}{cell(kinds, 'streamed', 'first_us'):>13}"
            f"{cell(kinds, 'streamed', 'added_us'):>9}{cell(kinds, 'sixteen', 'per_s'):>13}"
            f"{cell(kinds, 'sixteen streamed', 'per_s'):>11}\n"
        )
        for kind, of in kinds.items():
            if "refused" in of:
                sys.stdout.write(f"  {'':<12}({kind}: refused with {of['refused']})\n")
    for name, value in given["ratios"].items():
        row(name, f"{value:.2f}")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start, measure, end."""
    python = None if args.without_litellm else peer.peer_python()
    with tempfile.TemporaryDirectory() as name:
        async with AsyncExitStack() as stack:
            bench = Bench(stack, Path(name))
            await bench.start(args.nodes, args.before, python, compares_receipts=args.receipts)
            given = summary(await rounds(bench, args.rounds))
    about = {"machine": machine(), "nodes": args.nodes, "rounds": args.rounds}
    return {**about, **({"litellm": peer.version(python)} if python else {}), **given}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=3, help="Nodes that the gateway may choose from.")
    parser.add_argument("--without-litellm", action="store_true")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--receipts", action="store_true", help="Measure the gateway without receipts, too.")
    parser.add_argument("--before", type=Path, help="A checkout whose router is measured beside this one's.")
    args = parser.parse_args()
    given = asyncio.run(measure(args))
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(given), indent=2).decode() + "\n")
        return
    litellm = f"; LiteLLM {given['litellm']}" if "litellm" in given else ""
    sys.stdout.write(f"gateway, {args.nodes} nodes{litellm}; {given['machine']}\n")
    show(given)


if __name__ == "__main__":
    main()
