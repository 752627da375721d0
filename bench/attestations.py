"""
Complete attestations through HTTP against the bare cryptography they need, in one run.

The verifier runs as a process pinned to one core, its policy workers with it; nodes ask
from another.  One attestation is a signed request for a session with a read and a walk,
and evidence that answers them.

Before, each node has answered a call with a walk, as every node in operation has: so its results are affirming,
and none of them revokes the one before it.  While it is measured, nobody is called.

    python -m bench.attestations [--seconds 8] [--nodes 64] [--fleet 100000 --results 1000000] [--followers 100]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import aiohttp
import msgspec

from attester.client import Session, VerifierClient
from attester.cose import PrivateKey
from attester.proof import Request
from attester.settings import to_toml
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from bench.common import machine, row
from bench.filled import fill_history
from fixtures.fleet import Fleet
from fixtures.simulator import MODEL, SimulatedNode, tiny_model
from fixtures.transactions import transaction
from verifier import appraisal, opening, result_keys, results
from verifier.appraisal import NodeSnapshot, ResultSettings
from verifier.challenges import posing
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import PoolKey, ReadParameters, WalkParameters
from verifier.config import CallsConfig, Home
from verifier.policy import bundle
from verifier.policy.engine import Limits
from verifier.policy.engine import opened as workers
from verifier.references import measured
from verifier.result_keys import ResultKey
from verifier.schemes.context import Channel, Context, Node
from verifier.schemes.context import Session as AppraisalSession
from verifier.store import pool, references
from verifier.store.database import Database
from verifier.store.policies import ChangeAuthor
from verifier.store.sqlite import SqliteDatabase

_ENTRIES = 20_000
_APPRAISED = 'touchstone_appraisals_total{status="'
MUCH: Final[Mapping[str, Mapping[str, Any]]] = {
    "sessions": {
        "per_node_per_minute": 100_000,
        "per_address_per_minute": 1_000_000,
        "strangers_per_minute": 1_000_000,
        "announced_per_hour": 1_000_000,
    },
    "policy": {"workers": 1},
    "pool": {"low_water": 0},
    # While it is measured, the nodes hold no channel: nobody calls them.  A verifier that begins calls each node
    # before its result ends.
    "calls": {"min_interval_s": 80_000, "max_interval_s": 86_400},
    "results": {"lifetime_s": 80_000},
}
"""Settings under which nothing but the work limits the nodes."""
_CALLED_WITHIN_S: Final = 60
_CALLS: Final = CallsConfig(min_interval_s=6, max_interval_s=6, walk_share=1)
"""Before, each node is called with a walk within so many seconds."""


async def fill(db: Database, key: PoolKey, folder: Path) -> None:
    """A reference value, and more challenges than a run can use."""
    opened = open_folder(folder)
    document = measured.measure_folder(MODEL, opened)
    now_ms = time.time_ns() // 1_000_000
    async with transaction(db) as tx:
        await references.add(tx, document, references.Provenance(), ChangeAuthor("bench", "measured"), now_ms)
        batch = await pool.open_batch(tx, MODEL, document.digest, now_ms)
        minter = Minter(
            model=MODEL,
            folder=opened,
            tensors=TensorFiles(opened),
            key=key,
            kernel=kernel("numpy"),
            batch=batch,
        )
        await pool.add(tx, list(minter.reads(0, _ENTRIES, ReadParameters(1))))
        for group in minter.walks(0, _ENTRIES, WalkParameters(rows=4)):
            await pool.add(tx, group)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children that are alive."""
    ticks = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (str(pid), *children):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """What one load cost."""

    done: int
    wall_s: float
    cpu_s: float
    statements: float
    commits: float
    written: int
    """Bytes that the process had written to disk."""
    statuses: Mapping[str, int]
    """How many results had each status."""


def counters(url: str, credential: Mapping[str, str]) -> dict[str, float]:
    """The verifier's counters of its store and of its results."""
    found = {}
    request = urllib.request.Request(f"{url}/metrics", headers=dict(credential))
    with urllib.request.urlopen(request) as response:
        for line in response.read().decode().splitlines():
            name, _, value = line.partition(" ")
            if name.startswith("touchstone_store_"):
                found[name.removeprefix("touchstone_store_")] = float(value)
            elif name.startswith(_APPRAISED):
                found[name] = float(value)
    return found


def written_bytes(pid: int) -> int:
    """Bytes that a process had written to disk."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    return 0


def stored_bytes(path: Path) -> int:
    """The size of a database file, after its write-ahead log was copied into it."""
    with sqlite3.connect(path, timeout=10) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    return int((pages - free) * size)


class ReplicaClient(VerifierClient):
    """A client of one process of a verifier: requests are signed for the verifier's name, whichever process it is."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: PrivateKey, verifier: str) -> None:
        super().__init__(http, url, key)
        self._authority = verifier.partition("://")[2]

    def _request(self, method: str, target: str, body: bytes) -> Request:
        return Request(method, self._authority, target, body)


class Nodes:
    """Nodes that attest as fast as the verifier answers."""

    def __init__(self, fleet: Fleet, folder: Path, count: int, urls: Sequence[str] = ()) -> None:
        self.fleet = fleet
        self.urls = urls or (fleet.verifier_url,)
        self._folder = folder
        self._count = count
        self._made: list[SimulatedNode] = []
        self._done = 0
        self.total = 0
        """Attestations of all measurements."""

    async def be_called(self) -> None:
        """Enrol, and answer calls with walks until the results are affirming."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await self._enrol(http)
            async with asyncio.timeout(_CALLED_WITHIN_S):
                await asyncio.gather(*(self._be_called(http, node) for node in self._made))

    async def _be_called(self, http: aiohttp.ClientSession, node: SimulatedNode) -> None:
        client = VerifierClient(http, self.fleet.verifier_url, node.key)
        async with aclosing(cast("AsyncGenerator[Session, None]", client.calls(node.id))) as calls:
            async for session in calls:
                answers = await node.answer_call(client, session)
                evidence = node.evidence(session, iat=int(time.time()), answers=answers)
                token = await client.submit(session, evidence)
                claims = msgspec.json.decode(result_keys.unb64url(token.split(".")[1]))
                if claims["ear_status"] == "affirming":
                    return

    async def measure(self, seconds: float, trips: int) -> Measured:
        """Let them attest for some seconds, in so many round trips each."""
        pids = [process.pid for process in self.fleet.processes]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            self._done = 0
            start = time.monotonic()
            cpu, written = sum(map(cpu_seconds, pids)), sum(map(written_bytes, pids))
            before = await asyncio.to_thread(self._counters)
            deadline = start + seconds
            await asyncio.gather(
                *(
                    self._attest(self._client(http, number, node.key), node, deadline, trips)
                    for number, node in enumerate(self._made)
                )
            )
            self.total += self._done
            after = await asyncio.to_thread(self._counters)
            return Measured(
                done=self._done,
                wall_s=time.monotonic() - start,
                cpu_s=sum(map(cpu_seconds, pids)) - cpu,
                statements=after["statements"] - before["statements"],
                commits=after["commits"] - before["commits"],
                written=sum(map(written_bytes, pids)) - written,
                statuses={
                    name.removeprefix(_APPRAISED).rstrip('"}'): int(count - before.get(name, 0))
                    for name, count in after.items()
                    if name.startswith(_APPRAISED)
                },
            )

    def _counters(self) -> dict[str, float]:
        found = [counters(url, self.fleet.administrator) for url in self.urls]
        return {name: sum(each.get(name, 0) for each in found) for name in set().union(*found)}

    def _client(self, http: aiohttp.ClientSession, number: int, key: PrivateKey) -> VerifierClient:
        return ReplicaClient(http, self.urls[number % len(self.urls)], key, self.fleet.verifier_url)

    async def _enrol(self, http: aiohttp.ClientSession) -> None:
        for number in range(self._count):
            token = await asyncio.to_thread(self.fleet.token, f"bench-{number % 16}", MODEL)
            node = SimulatedNode(self._folder)
            given = await self._client(http, number, node.key).enrol(token, [MODEL])
            node.id, node.audience = given["node"], given["verifier"]
            node.ueid = result_keys.unb64url(given["ueid"].replace("+", "-").replace("/", "_").rstrip("="))
            self._made.append(node)

    async def _attest(self, client: VerifierClient, node: SimulatedNode, deadline: float, trips: int) -> None:
        session: Session | None = None
        while time.monotonic() < deadline:
            session = session or await client.open_session()
            evidence = node.evidence(session, iat=int(time.time()))
            if trips == 1:
                _, session = await client.submit_and_go_on(session, evidence)
            else:
                await client.submit(session, evidence)
                session = None
            self._done += 1


def call_nodes(fleet: Fleet, nodes: Nodes) -> None:
    """Start the fleet's verifier, let it call each node, and end it.  Afterwards it calls as `MUCH` says."""
    home = Home(fleet.verifier_home)
    config = home.config()
    path = home.path / "verifier.toml"
    path.write_text(to_toml(msgspec.structs.replace(config, calls=_CALLS)), encoding="utf-8")
    try:
        fleet.start_verifier()
        asyncio.run(nodes.be_called())
    finally:
        fleet.stop()
        fleet.processes.clear()
        path.write_text(to_toml(config), encoding="utf-8")


async def follow(url: str, count: int, credential: Mapping[str, str]) -> None:
    """Follow the events *count* times at once, until cancelled."""

    async def one(http: aiohttp.ClientSession) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with http.get(f"{url}/api/v1/events", timeout=timeout) as response:
            async for _ in response.content.iter_any():
                pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=credential) as http:
        await asyncio.gather(*(one(http) for _ in range(count)))


class Steps:
    """The core's steps on one piece of evidence, each measured alone."""

    def __init__(self, folder: Path) -> None:
        opened = open_folder(folder)
        key = PoolKey(bytes(32))
        minter = Minter(
            model=MODEL, folder=opened, tensors=TensorFiles(opened), key=key, kernel=kernel("numpy"), batch=1
        )
        entries = [*minter.reads(0, 1, ReadParameters(1)), *next(minter.walks(0, 1, WalkParameters(rows=4)))]
        asked = posing.pose(entries, {}, key)
        self.node = SimulatedNode(folder, audience="v", ueid=b"\x01" + bytes(16))
        now = int(time.time())
        session = Session("s", bytes(32), tuple(posing.to_wire(asked)))
        self.evidence = self.node.evidence(session, iat=now)
        self.policy = bundle.load(Path(__file__).parent.parent / "policies" / "default")
        reference = measured.measure_folder(MODEL, opened).to_reference()
        node = Node(
            id="n",
            ueid=self.node.ueid,
            key=self.node.key.public,
            operator="o",
            models=(MODEL,),
            hardware_class="cpu",
            state="active",
        )
        appraisal_session = AppraisalSession(
            id="s",
            channel=Channel.ANNOUNCED,
            nonce=bytes(32),
            issued_ms=now * 1000,
            expires_ms=now * 1000 + 1,
            asked=asked,
        )
        self.context = Context(
            now_ms=now * 1000,
            audience="v",
            skew_s=30,
            session=appraisal_session,
            node=node,
            references={MODEL: reference},
            history={},
            thresholds=self.policy.thresholds,
        )
        self.key = ResultKey(PrivateKey.generate().native)  # type: ignore[arg-type]  # ES256 by default

    def open(self) -> opening.OpenedEvidence:
        """Steps 0 to 4."""
        sealed = opening.read_envelope("application/eat+cwt", self.evidence)
        return opening.authenticate(sealed, self.context.node)

    def check(self) -> appraisal.CheckedEvidence:
        """All steps, 0 to 8."""
        return appraisal.check(self.open(), self.context)

    def sign(self, checked: appraisal.CheckedEvidence, outcome: appraisal.PolicyOutcome) -> str:
        """Conclude and sign."""
        terms = ResultSettings("v", 300, "{jti}")
        result = appraisal.conclude(
            checked, outcome, self.context, NodeSnapshot(), terms, jti="0" * 32, policy_id=self.policy.id
        )
        return results.encode_jwt(result, self.key)


def microseconds(work: Callable[[], object], count: int = 300) -> float:
    """Median microseconds of *work*."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times) * 1e6


async def steps(folder: Path) -> dict[str, float]:
    """The cost of each step, microseconds."""
    s = Steps(folder)
    opened = microseconds(s.open)
    check = microseconds(s.check) - opened
    checked = s.check()
    given = checked.policy_input(s.context)
    async with workers(s.policy, Limits(workers=1)) as engine:
        times = []
        for _ in range(300):
            start = time.perf_counter()
            raw = await engine.evaluate(given)
            times.append(time.perf_counter() - start)
    outcome = appraisal.read_outcome(raw, checked.submods)
    return {
        "open: envelope, signature, payload (0-4)": opened,
        "check: session, schemes, endpoint (5-8)": check,
        "policy: Rego in its worker process": median(times) * 1e6,
        "conclude and sign the EAR": microseconds(lambda: s.sign(checked, outcome)),
    }


def bare_crypto(count: int = 400) -> float:
    """Seconds of cryptography in one attestation: three ES256 verifications and one signature."""
    key = PrivateKey.generate()
    data = bytes(4096)
    signature = key.sign(data)
    public = key.public

    def once() -> None:
        for _ in range(3):
            public.verify(signature, data)
        key.sign(data)

    return microseconds(once, count) / 1e6


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--nodes", type=int, default=64, help="Nodes that attest.")
    parser.add_argument("--fleet", type=int, default=0, help="Other nodes that the database knows.")
    parser.add_argument("--results", type=int, default=0, help="Results of theirs that the database holds.")
    parser.add_argument("--followers", type=int, default=0, help="Routers that follow the events.")
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = tiny_model(root / "model")
        fleet = Fleet(root, MUCH)
        fleet.make_verifier()
        home = Home(fleet.verifier_home)

        async def prepare() -> None:
            async with SqliteDatabase(home.database) as db:
                await fill(db, home.pool_key(), folder)

        asyncio.run(prepare())
        nodes = Nodes(fleet, folder, args.nodes)
        call_nodes(fleet, nodes)
        if args.fleet:
            fill_history(home.database, args.fleet, args.results, time.time_ns() // 1_000_000)
        try:
            # Inherited by the process and its workers: the verifier has one core, the nodes another.
            os.sched_setaffinity(0, {cores[0]})
            start = time.monotonic()
            fleet.start_verifier()
            ready_s = time.monotonic() - start
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
            size = stored_bytes(home.database)
            bare, found = asyncio.run(_rounds(nodes, fleet, args))
            stored = (stored_bytes(home.database) - size) / nodes.total
        finally:
            fleet.stop()
        cost = asyncio.run(steps(folder))
    sys.stdout.write(f"attestations, {args.nodes} nodes at once; {machine()}\n")
    if args.fleet:
        row("other nodes and results in the database", f"{args.fleet}, {args.results}")
    row("restart to ready", f"{ready_s:.1f} s")
    row("stored for one attestation", f"{stored / 1024:.1f} KiB", "in the file")
    row("bare cryptography of one", f"{bare * 1e6:.0f} us", "3 ES256 verifications, 1 signature")
    for title, each in found:
        _print(title, each, bare)
    for step, micros in cost.items():
        row(step, f"{micros:.0f} us")


async def _rounds(
    nodes: Nodes, fleet: Fleet, args: argparse.Namespace
) -> tuple[float, list[tuple[str, Measured]]]:
    found: list[tuple[str, Measured]] = []
    crypto = []
    await nodes.measure(1.0, 2)
    for _ in range(args.rounds):
        for trips, title in ((2, "two round trips"), (1, "one round trip")):
            crypto.append(bare_crypto())
            found.append((title, await nodes.measure(args.seconds, trips)))
        if args.followers:
            following = asyncio.create_task(follow(fleet.verifier_url, args.followers, fleet.administrator))
            await asyncio.sleep(1)
            found.append(
                (f"one round trip, {args.followers} followers", await nodes.measure(args.seconds, 1))
            )
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    return median(crypto), found


def _print(title: str, measured: Measured, bare: float) -> None:
    each = measured.cpu_s / measured.done
    row(
        f"{title}: complete attestations",
        f"{measured.done / measured.wall_s:.0f} /s",
        f"{each * 1e6:.0f} us of the verifier's processor each, so {1 / each:.0f} /s and core",
    )
    row("  ratio to bare cryptography", f"{each / bare:.1f}")
    row("  results", ", ".join(f"{count} {status}" for status, count in measured.statuses.items() if count))
    row(
        "  statements and commits for one",
        f"{measured.statements / measured.done:.1f}, {measured.commits / measured.done:.2f}",
        f"{measured.written / measured.done / 1024:.0f} KiB written to disk",
    )


if __name__ == "__main__":
    main()
