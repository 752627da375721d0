"""
Asks witnesses to cosign the checkpoints of the log (c2sp.org/tlog-witness), beside everything else.

Each witness has a task of its own: one that is slow or away delays neither the others nor the log.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import structlog
from prometheus_client import Counter

from attester.bounded import read_all
from verifier.errors import LogError, LogFormatError, StoreError
from verifier.log.cosignatures import verify_answer
from verifier.log.notes import Note, Signature, VerifierKey, decode_number
from verifier.log.tree import MAX_SIZE, consistency_nodes, consistency_proof
from verifier.log.witnessing import AddCheckpoint
from verifier.log_config import AskedWitness
from verifier.service.duties import Duties
from verifier.service.sequencer import PERIOD_S
from verifier.store import log_tree
from verifier.store.database import Database, Tx
from verifier.store.log_tree import Log, Stored

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_MAX_ANSWER: Final = 64 << 10
_LONGEST_WAIT_S: Final = 60.0

_log = structlog.get_logger("verifier")
_answers = Counter("touchstone_log_witness_answers_total", "Answers of witnesses.", ["witness", "outcome"])


class WitnessError(Exception):
    """A witness did not cosign."""


class Witnesses:
    """The witnesses of a log, each asked about the newest checkpoint only."""

    def __init__(self, db: Database, duties: Duties, asked: tuple[AskedWitness, ...]) -> None:
        self._db = db
        self._duties = duties
        self._asked = [_Witness(config) for config in asked]

    async def run(self) -> None:
        """Ask them until cancelled."""
        if not self._asked:
            await asyncio.Event().wait()
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            for witness in self._asked:
                group.create_task(self._keep_asking(http, witness))

    async def _keep_asking(self, http: aiohttp.ClientSession, witness: _Witness) -> None:
        while True:
            if self._duties.held:
                await self.ask(http, witness)
            # One checkpoint in a period is enough, and what fails is asked more and more rarely.
            await asyncio.sleep(max(PERIOD_S, witness.wait_s))

    async def ask_all(self, http: aiohttp.ClientSession) -> None:
        """Ask each of them once."""
        for witness in self._asked:
            await self.ask(http, witness)

    async def ask(self, http: aiohttp.ClientSession, witness: _Witness) -> None:
        """Ask one witness to cosign the newest checkpoint, unless it has.  It never raises for what is the witness's."""
        try:
            async with self._db.read() as tx:
                current = await log_tree.newest(tx)
                head = None if current is None else await log_tree.head(tx, current.number)
            if current is None or head is None or witness.has_cosigned(current, head):
                return
            line = await self._cosignature(http, witness, current, head)
            await self._db.write(lambda tx: _add(tx, current, head, line), of="log")
        except (WitnessError, LogError, aiohttp.ClientError, TimeoutError, OSError) as error:
            witness.note_failure(str(error) or type(error).__name__)
        except StoreError as error:
            _log.error("a cosignature could not be kept", error=str(error))
        else:
            witness.note_success(current, head)

    async def _cosignature(
        self, http: aiohttp.ClientSession, witness: _Witness, log: Log, head: Stored
    ) -> Signature:
        """Ask a witness; if it has seen another size than we think, once more from there."""
        note = Note.parse(head.note.encode())
        for _ in range(2):
            old = witness.seen.get(log.origin, 0)
            body = str(AddCheckpoint(old, await self._proof(log, old, head.size), note)).encode()
            async with http.post(witness.url, data=body, allow_redirects=False) as answer:
                data = await read_all(answer.content, _MAX_ANSWER)
                if data is None:
                    raise WitnessError(f"its answer is longer than {_MAX_ANSWER} bytes")
                if answer.status == 200:
                    return verify_answer(data, note, witness.key)
                if answer.status != 409:
                    raise WitnessError(f"{answer.status}: {data[:200].decode('utf-8', 'replace')}")
            seen = _size_of(data)
            if seen > head.size:
                raise WitnessError(
                    f"it has signed size {seen}, and the log has {head.size} entries: was the log cut or restored?"
                )
            witness.seen[log.origin] = seen
        raise WitnessError("it has signed another size each time")

    async def _proof(self, log: Log, old: int, new: int) -> tuple[bytes, ...]:
        async with self._db.read() as tx:
            nodes = await log_tree.read_nodes(tx, log.number, new, consistency_nodes(old, new))
        return tuple(consistency_proof(old, new, nodes))


class _Witness:
    """A witness, and what is known of it."""

    def __init__(self, config: AskedWitness) -> None:
        self.key = VerifierKey.parse(config.key)
        self.url = f"{config.url.rstrip('/')}/add-checkpoint"
        self.seen: dict[str, int] = {}
        """By origin, the size that it has signed last."""
        self.wait_s = 0.0
        self._root: bytes | None = None
        self._failure: str | None = None

    def has_cosigned(self, log: Log, head: Stored) -> bool:
        return self.seen.get(log.origin) == head.size and self._root == head.root

    def note_success(self, log: Log, head: Stored) -> None:
        self.seen[log.origin], self._root = head.size, head.root
        self.wait_s = 0.0
        _answers.labels(self.key.name, "cosigned").inc()
        if self._failure is not None:
            self._failure = None
            _log.info("a witness cosigns the log again", witness=self.key.name)

    def note_failure(self, why: str) -> None:
        self.wait_s = min(max(2 * self.wait_s, 1.0), _LONGEST_WAIT_S)
        _answers.labels(self.key.name, "failed").inc()
        if self._failure != why:
            self._failure = why
            _log.warning("a witness does not cosign the log", witness=self.key.name, why=why)


def _size_of(data: bytes) -> int:
    """The size in the answer 409 of a witness.  Raises `WitnessError`."""
    try:
        return decode_number(data.decode("ascii").removesuffix("\n"), MAX_SIZE)
    except (UnicodeDecodeError, LogFormatError):
        raise WitnessError("its answer 409 has no size") from None


async def _add(tx: Tx, log: Log, head: Stored, line: Signature) -> None:
    """Add a cosignature to those that others gave meanwhile."""
    row = await log_tree.at_size(tx, log.number, head.size)
    if row is None or row.root != head.root:
        return
    note = Note.parse(row.text.encode()).with_signatures([line])
    own = VerifierKey.parse(log.vkey)
    await log_tree.cosign(
        tx, log.number, head.size, head.root, [str(each) for each in note.signatures if not each.is_of(own)]
    )
