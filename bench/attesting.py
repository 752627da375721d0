"""
What attesting costs a node: processor time, bytes read and bytes sent, per call and per hour.

Real processes on the real weights of all-MiniLM-L6-v2: a verifier that calls every second,
the fixture engine, the attester; a forwarder between attester and verifier counts bytes.
Calls with a read alone and calls with read and walk are measured apart, and put together
at the verifier's default intervals and shares.

    python -m bench.attesting [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from attester.weights.folder import open_folder
from bench.attestations import cpu_seconds
from bench.common import machine, row
from fixtures.fleet import Fleet, Node, free_port
from fixtures.minilm import MODEL, published_folder
from verifier.config import CallsConfig


@dataclass
class Forwarder:
    """Between attester and verifier; counts the bytes of both ways."""

    listen: int
    target: int
    sent: int = 0
    received: int = 0

    def start(self) -> None:
        """In a thread of its own, until the process ends."""
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.listen)
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            # The verifier is not there yet, or no longer: as if nobody listened.
            writer.close()
            return

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
            while data := await source.read(1 << 16):
                if up:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(
            pump(reader, up_writer, up=True), pump(up_reader, writer, up=False), return_exceptions=True
        )


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    attester_s: float
    engine_s: float
    bytes_read: float
    sent: float
    received: float
    calls: int


def file_bytes(pid: int) -> int:
    """Bytes that a process has read through system calls, files mostly."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def measure(walk_share: float, seconds: float) -> Cost:
    """A node under calls of one kind."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        calls = {
            "min_interval_s": 0.9, "max_interval_s": 1.1, "walk_share": walk_share,
            "together_share": 0.0, "wide_share": 0.0,
        }  # fmt: skip
        fleet = Fleet(root, {"calls": calls})
        # The verifier is called by the forwarder's name, and listens elsewhere.
        behind, front = free_port(), int(fleet.verifier_url.rpartition(":")[2])
        config = {"service": {"listen": f"127.0.0.1:{behind}", "url": fleet.verifier_url}}
        fleet.config = {**fleet.config, **config}
        forwarder = Forwarder(front, behind)
        forwarder.start()
        fleet.make_verifier()
        published = published_folder()
        home = str(fleet.verifier_home)
        fleet.touchstone("reference", "measure", str(published), "--model", MODEL, "--home", home)
        fleet.touchstone(
            "challenges", "mint", "--model", MODEL, "--dir", str(published), "--home", home,
            "--reads", "300", "--walks", "128",
        )  # fmt: skip
        try:
            fleet.start_verifier()
            node = fleet.add_node("node", "operator", published)
            fleet.enrol(node)
            fleet.start_attester(node)
            return _watch(fleet, node, forwarder, seconds)
        finally:
            fleet.stop()


def _watch(fleet: Fleet, node: Node, forwarder: Forwarder, seconds: float) -> Cost:
    assert node.engine is not None
    assert node.attester is not None
    log = fleet.root / "node-attester.log"

    def attested() -> int:
        return log.read_text().count("attested") if log.exists() else 0

    # The first calls find everything new.
    while attested() < 3:
        time.sleep(0.2)
    pids = (node.attester.pid, node.engine.pid)
    before = [cpu_seconds(pid) for pid in pids], file_bytes(pids[0]), forwarder.sent, forwarder.received
    count = attested()
    time.sleep(seconds)
    count = attested() - count
    after = [cpu_seconds(pid) for pid in pids], file_bytes(pids[0]), forwarder.sent, forwarder.received
    return Cost(
        (after[0][0] - before[0][0]) / count,
        (after[0][1] - before[0][1]) / count,
        (after[1] - before[1]) / count,
        (after[2] - before[2]) / count,
        (after[3] - before[3]) / count,
        count,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    size = open_folder(published_folder()).total
    sys.stdout.write(f"what attesting costs, {MODEL}, {size / 1e6:.0f} MB; {machine()}\n")
    kinds = {"read": measure(0.0, args.seconds), "read and walk": measure(1.0, args.seconds)}
    for name, cost in kinds.items():
        row(f"a call with {name}", f"{cost.calls} calls")
        row("  attester, processor time", f"{cost.attester_s * 1000:.0f} ms")
        row("  engine, processor time", f"{cost.engine_s * 1000:.0f} ms")
        row("  attester, bytes read from files", f"{cost.bytes_read / 1e6:.2f} MB")
        row("  bytes sent to the verifier", f"{cost.sent / 1e3:.1f} kB")
        row("  bytes received", f"{cost.received / 1e3:.1f} kB")
    calls = CallsConfig()
    hourly = 3600 / ((calls.min_interval_s + calls.max_interval_s) / 2)
    share = calls.walk_share

    def an_hour(of: str) -> float:
        read, walk = (getattr(kinds[name], of) for name in kinds)
        return float(hourly * ((1 - share) * read + share * walk))

    row(
        "an hour at the default intervals", f"{hourly:.0f} calls", f"{hourly * share:.0f} of them with a walk"
    )
    row("  attester, processor time", f"{an_hour('attester_s'):.1f} s")
    row("  engine, processor time", f"{an_hour('engine_s'):.1f} s")
    row("  bytes read from files", f"{an_hour('bytes_read') / 1e6:.0f} MB")
    row("  bytes sent", f"{an_hour('sent') / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
