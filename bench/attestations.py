"""
Complete attestations through HTTP against the bare cryptography they need, in one run.

The verifier runs as a process pinned to one core, its policy workers with it; nodes ask
from another.  One attestation is a signed request for a session with a read and a walk,
and evidence that answers them.

    python -m bench.attestations [--seconds 8] [--nodes 16]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import aiohttp

from attester.client import Session, VerifierClient
from attester.cose import PrivateKey
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from bench.common import machine, row
from fixtures.fleet import Fleet
from fixtures.simulator import MODEL, SimulatedNode, tiny_model
from fixtures.transactions import transaction
from verifier import appraisal, opening, result_keys, results
from verifier.appraisal import NodeSnapshot, ResultSettings
from verifier.challenges import posing
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import PoolKey, ReadParameters, WalkParameters
from verifier.config import Home
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


async def load(fleet: Fleet, folder: Path, nodes: int, seconds: float) -> tuple[int, float, float]:
    """Attest as fast as it goes; how many, in what time, for how much processor time."""
    done = 0
    pid = fleet.processes[0].pid

    async def one(http: aiohttp.ClientSession, token: str) -> None:
        nonlocal done
        node = SimulatedNode(folder)
        client = VerifierClient(http, fleet.verifier_url, node.key)
        given = await client.enrol(token, [MODEL])
        node.id, node.audience = given["node"], given["verifier"]
        node.ueid = result_keys.unb64url(given["ueid"].replace("+", "-").replace("/", "_").rstrip("="))
        ready.release()
        await go.wait()
        while time.monotonic() < deadline:
            session = await client.open_session()
            await client.submit(session, node.evidence(session, iat=int(time.time())))
            done += 1

    ready, go = asyncio.Semaphore(0), asyncio.Event()
    deadline = float("inf")
    tokens = [await asyncio.to_thread(fleet.token, f"operator-{i}", MODEL) for i in range(nodes)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        tasks = [asyncio.create_task(one(http, token)) for token in tokens]
        for _ in tasks:
            await ready.acquire()
        start, before = time.monotonic(), cpu_seconds(pid)
        deadline = start + seconds
        go.set()
        await asyncio.gather(*tasks)
        return done, time.monotonic() - start, cpu_seconds(pid) - before


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--nodes", type=int, default=16)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = tiny_model(root / "model")
        much = {
            "per_node_per_minute": 100_000,
            "per_address_per_minute": 1_000_000,
            "announced_per_hour": 1_000_000,
        }
        fleet = Fleet(root, {"sessions": much, "policy": {"workers": 1}})
        fleet.make_verifier()
        home = Home(fleet.verifier_home)

        async def prepare() -> None:
            async with SqliteDatabase(home.database) as db:
                await fill(db, home.pool_key(), folder)

        asyncio.run(prepare())
        try:
            # Inherited by the process and its workers: the verifier has one core, the nodes another.
            os.sched_setaffinity(0, {cores[0]})
            fleet.start_verifier()
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
            before = bare_crypto()
            done, wall, cpu = asyncio.run(load(fleet, folder, args.nodes, args.seconds))
            bare = median([before, bare_crypto()])
        finally:
            fleet.stop()
        cost = asyncio.run(steps(folder))
    sys.stdout.write(f"attestations, {args.nodes} nodes at once; {machine()}\n")
    row(
        "complete attestations through HTTP",
        f"{done / wall:.0f} /s",
        "session and evidence, verifier on one core",
    )
    row(
        "the verifier's processor time for one",
        f"{cpu / done * 1000:.2f} ms",
        f"so {done / cpu:.0f} /s if nodes kept up",
    )
    row("bare cryptography of one", f"{bare * 1000:.2f} ms", "3 ES256 verifications, 1 signature")
    row("ratio, bare cryptography to all", f"{bare / (cpu / done):.2f}")
    for step, micros in cost.items():
        row(step, f"{micros:.0f} us")
    rest = cpu / done * 1e6 - sum(cost.values())
    row("HTTP twice, SQLite twice (synchronous=FULL), rest", f"{rest:.0f} us")


if __name__ == "__main__":
    main()
