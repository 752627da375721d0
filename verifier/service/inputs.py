"""
What the verifier itself brings to an appraisal: the policy, the reference values and the blocks in force.

Policies and reference values never change under their digests, so they are read once and cached.
Every appraisal reads which of them are in force, because another process may have changed that:
one look at the number of the newest change tells.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, TypeVar

from verifier.errors import PolicyError, StoreError
from verifier.policy import archive
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.reappraisal import VerifierInputs
from verifier.recording import Recording, ReferenceName
from verifier.schemes.context import Blocks, IssuedChallenges, ModelReference, Node
from verifier.store import blocks, model_rollouts, policies, recordings, references, revisions
from verifier.store.database import SQL, Database, Row, Tx

_CACHE_ENTRIES: Final = 64

T = TypeVar("T")


class _LRU(Generic[T]):
    """A cache of values that never change under their keys; it drops the least recently used."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str) -> T | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: T) -> T:
        """Keep *value*, and return it."""
        self._values[key] = value
        while len(self._values) > _CACHE_ENTRIES:
            self._values.popitem(last=False)
        return value


@dataclass(frozen=True)
class _Superseded:
    digest: str
    until_ms: int


@dataclass(frozen=True)
class _InForce:
    """What is in force since one change (the generation), whatever the node."""

    generation: int
    blocks: Blocks
    active: Mapping[str, ReferenceName]
    beside: Mapping[str, ReferenceName]
    """By model that is rolled out, the value that is valid beside the one in force."""
    replaced: Mapping[str, tuple[_Superseded, ...]]
    """By model, values that another one has replaced, for all nodes or for some."""
    retired: frozenset[str]

    def in_grace(self, model: str, digest: str, now_ms: int) -> list[str]:
        """The values of a model beside *digest* that are only a warning for now."""
        return [
            replaced.digest
            for replaced in self.replaced.get(model, ())
            if replaced.until_ms > now_ms and replaced.digest != digest
        ]


def _name_of(row: Row) -> ReferenceName:
    return ReferenceName(
        digest=row["digest"],
        source=row["source"],
        signer=row["signer"],
        not_before=row["not_before"],
        not_after=row["not_after"],
    )


@dataclass(frozen=True)
class AppraisalInputs:
    """What the verifier brings to an appraisal of one node."""

    rollout: Rollout
    bundle: Bundle
    verifier_inputs: VerifierInputs
    """The reference values and the blocks."""


@dataclass(frozen=True)
class ValidRevision:
    """A reference value that evidence of a node may be judged on now."""

    reference: ModelReference
    state: Literal["in-force", "rolling-out", "superseded"]
    until_ms: int | None
    """When its grace ends, or when its roll-out is to be ended; `None` if there is no such moment."""


class NotKnownError(Exception):
    """Something is not cached, and must be read."""


class _Unread:
    """In place of a transaction, where nothing is to be read."""

    async def execute(self, _sql: SQL, *_parameters: Any) -> int:
        raise NotKnownError

    async def one(self, _sql: SQL, *_parameters: Any) -> Row | None:
        raise NotKnownError

    async def all(self, _sql: SQL, *_parameters: Any) -> list[Row]:
        raise NotKnownError

    async def last(self, _sql: SQL, *_parameters: Any) -> None:
        raise NotKnownError

    async def once(self, _sql: SQL, *_parameters: Any) -> None:
        raise NotKnownError

    async def alone(self) -> None:
        raise NotKnownError


UNREAD: Final[Tx] = _Unread()
"""Raises `NotKnownError` if anything is to be read: for what was read before, and is checked later."""


class InputLoader:
    """Reads what is in force, and caches what never changes."""

    def __init__(self) -> None:
        self.newest: Rollout | None = None
        """The rollout that was read last."""
        self._bundles: _LRU[Bundle] = _LRU()
        self._references: _LRU[ModelReference] = _LRU()
        self._in_force: _InForce | None = None

    async def load_rollout(self, tx: Tx) -> Rollout:
        """The current rollout.  Raises `PolicyError` if no policy was ever activated."""
        rollout = await policies.rollout(tx)
        if rollout is None:
            raise PolicyError("no policy is active")
        self.newest = rollout
        return rollout

    async def load_bundle(self, tx: Tx, digest: str) -> Bundle:
        """
        A published policy.

        Raises:
            PolicyError: no policy has this digest, or another version of the verifier wrote it.
        """
        cached = self._bundles.get(digest)
        if cached is not None:
            return cached
        row = await tx.one("SELECT archive FROM policies WHERE digest = ?", digest)
        if row is None:
            raise PolicyError(f"no policy has the digest {digest[:64]!r}")
        # Unpacking and parsing take long, and other requests must not wait.
        bundle, _ = await asyncio.to_thread(archive.read_archive, row["archive"])
        if bundle.digest != digest:
            raise PolicyError(f"the stored policy {digest} differs from the published one")
        # Another request may have read it meanwhile.
        return self._bundles.get(digest) or self._bundles.put(digest, bundle)

    async def load_inputs(
        self, tx: Tx, node_id: str, models: list[str], now_ms: int, rollout: Rollout | None = None
    ) -> AppraisalInputs:
        """
        What the verifier brings to an appraisal of a node, with the reference values of *models*.

        Args:
            rollout: The rollout, if it was read already.
        """
        rollout = rollout or await self.load_rollout(tx)
        bundle = await self.load_bundle(tx, rollout.policy_for(node_id))
        in_force = await self._load_in_force(tx, rollout.generation)
        found: dict[str, ModelReference] = {}
        beside: dict[str, tuple[ModelReference, ...]] = {}
        superseded: dict[str, tuple[ModelReference, ...]] = {}
        for model in models:
            own, other = bundle.references.get(model), in_force.beside.get(model)
            earlier: list[str] = []
            if own is not None and own.digest not in in_force.retired:
                found[model] = own
                # The policy's own value is the only one: the new one of a roll-out is a warning, as the old one is.
                earlier = [] if other is None or other.digest == own.digest else [other.digest]
            elif own is None and model in in_force.active:
                found[model] = await self.load_reference(tx, in_force.active[model])
                if other is not None:
                    beside[model] = (await self.load_reference(tx, other),)
            if model in found:
                earlier += in_force.in_grace(model, found[model].digest, now_ms)
            if earlier:
                superseded[model] = tuple([await self._load_by_digest(tx, digest) for digest in earlier])
        inputs = VerifierInputs(found, superseded, in_force.blocks, beside)
        return AppraisalInputs(rollout, bundle, inputs)

    async def load_valid(self, tx: Tx, node_id: str, model: str, now_ms: int) -> list[ValidRevision]:
        """
        The reference values of a model that evidence may be judged on now: the one in force first.

        Args:
            node_id: Whose policy counts; empty for the active one.
        """
        rollout = await self.load_rollout(tx)
        if not node_id:
            rollout = replace(rollout, canary=None)
        inputs = (await self.load_inputs(tx, node_id, [model], now_ms, rollout)).verifier_inputs
        in_force = await self._load_in_force(tx, rollout.generation)
        ends = {each.digest: each.until_ms for each in in_force.replaced.get(model, ())}
        found = []
        if model in inputs.references:
            found.append(ValidRevision(inputs.references[model], "in-force", None))
        for reference in inputs.beside.get(model, ()):
            running = await model_rollouts.of_model(tx, model)
            until_ms = None if running is None else running.until_ms
            found.append(ValidRevision(reference, "rolling-out", until_ms))
        found += (
            ValidRevision(reference, "superseded", ends.get(reference.digest))
            for reference in inputs.superseded.get(model, ())
        )
        return [each for each in found if each.reference.is_valid(now_ms // 1000)]

    async def load_asked(
        self, tx: Tx, node: Node, now_ms: int, rollout: Rollout | None = None
    ) -> dict[str, str]:
        """
        By model, the digest of the reference value that a node is challenged on.

        It is that of the revision that the node has, if it is valid or in its grace; otherwise the one in force.

        Args:
            rollout: The rollout, if this transaction has read it already.
        """
        rollout = rollout or await self.load_rollout(tx)
        asked = await self._load_digests(tx, rollout, rollout.policy_for(node.id))
        in_force = await self._load_in_force(tx, rollout.generation)
        choices: dict[str, set[str]] = {}
        for model in node.models:
            if model not in asked:
                continue
            others = set(
                await self._of_other_files(tx, asked[model], in_force.in_grace(model, asked[model], now_ms))
            )
            if model in in_force.beside:
                others.add(in_force.beside[model].digest)
            if others:
                choices[model] = others
        if choices:
            # Most often there is no choice, and nothing is to be read.
            held = await revisions.of_node(tx, node.id, choices.keys())
            asked |= {model: digest for model, digest in held.items() if digest in choices[model]}
        return asked

    async def _of_other_files(self, tx: Tx, digest: str, others: list[str]) -> list[str]:
        """Those of *others* whose files differ from those of *digest*: nodes with the same have what is in force."""
        if not others:
            return []
        files = (await self._load_by_digest(tx, digest)).files
        return [other for other in others if (await self._load_by_digest(tx, other)).files != files]

    async def load_digests_in_force(self, tx: Tx) -> dict[str, str]:
        """By model, the digest of the reference value in force for nodes under the active policy."""
        rollout = await self.load_rollout(tx)
        return await self._load_digests(tx, rollout, rollout.active)

    async def _load_digests(self, tx: Tx, rollout: Rollout, policy: str) -> dict[str, str]:
        in_force = await self._load_in_force(tx, rollout.generation)
        bundle = await self.load_bundle(tx, policy)
        found = {model: name.digest for model, name in in_force.active.items()}
        found |= {model: own.digest for model, own in bundle.references.items()}
        return {model: digest for model, digest in found.items() if digest not in in_force.retired}

    async def load_reference(self, tx: Tx, name: ReferenceName) -> ModelReference:
        """The reference value of this name, even if it is no longer in force.  Raises `PolicyError`."""
        key = f"{name.digest} {name.source} {name.signer} {name.not_before} {name.not_after}"
        cached = self._references.get(key)
        if cached is not None:
            return cached
        row = await references.by_digest(tx, name.digest)
        if row is None:
            raise PolicyError(f"the reference value {name.digest} is no longer stored")
        named = {
            **row, "source": name.source, "signer": name.signer, "not_before": name.not_before, "not_after": name.not_after
        }  # fmt: skip
        return self._references.put(key, references.to_reference(named))

    async def load_active_reference(self, tx: Tx, model: str) -> ModelReference | None:
        """The value in force for a model, apart from those that policies bring."""
        rollout = await self.load_rollout(tx)
        name = (await self._load_in_force(tx, rollout.generation)).active.get(model)
        return None if name is None else await self.load_reference(tx, name)

    async def load_posed(
        self, db: Database, issued: Mapping[str, IssuedChallenges]
    ) -> dict[str, ModelReference]:
        """By digest, the reference values that challenges were minted from."""
        asked = [each for pair in issued.values() for each in (pair.read, pair.walk) if each is not None]
        digests = {each.reference for each in asked if each.reference is not None}
        found = {digest: self._references.get(digest) for digest in digests}
        if None in found.values():
            async with db.read() as tx:
                found = {digest: await self._load_by_digest(tx, digest) for digest in digests}
        return {digest: reference for digest, reference in found.items() if reference is not None}

    async def _load_by_digest(self, tx: Tx, digest: str) -> ModelReference:
        cached = self._references.get(digest)
        if cached is not None:
            return cached
        row = await references.by_digest(tx, digest)
        assert row is not None
        return self._references.put(digest, references.to_reference(row))

    async def _load_in_force(self, tx: Tx, generation: int) -> _InForce:
        if self._in_force is not None and self._in_force.generation == generation:
            return self._in_force
        blocked = await blocks.in_force(tx)
        active: dict[str, ReferenceName] = {}
        beside = {row["model"]: _name_of(row) for row in await model_rollouts.named(tx)}
        replaced: dict[str, tuple[_Superseded, ...]] = {}
        retired = set()
        for row in await references.comparable(tx):
            model = row["model"]
            if row["state"] == "retired":
                retired.add(row["digest"])
                continue
            if row["state"] == "active":
                active[model] = _name_of(row)
            if row["grace_until_ms"]:
                earlier = _Superseded(row["digest"], row["grace_until_ms"])
                replaced[model] = (*replaced.get(model, ()), earlier)
        in_force = _InForce(
            generation=generation,
            blocks=blocked,
            active=active,
            beside=beside,
            replaced=replaced,
            retired=frozenset(retired),
        )
        again = await policies.rollout(tx)
        # If a change came during these reads, they may be of before and after it: they must not be cached.
        if again is not None and again.generation == generation:
            self._in_force = in_force
        return in_force


class StoredLookup:
    """Finds in the database what recordings name (`verifier.reappraisal.Lookup`)."""

    def __init__(self, db: Database, loader: InputLoader) -> None:
        self._db = db
        self._loader = loader

    async def bundle(self, digest: str) -> Bundle:
        """A published policy.  Raises `PolicyError`."""
        async with self._db.read() as tx:
            return await self._loader.load_bundle(tx, digest)

    async def reference(self, name: ReferenceName) -> ModelReference:
        """The reference value of this name.  Raises `PolicyError`."""
        async with self._db.read() as tx:
            return await self._loader.load_reference(tx, name)

    async def active(self, model: str) -> ModelReference | None:
        """The value in force for a model, apart from those that policies bring."""
        async with self._db.read() as tx:
            return await self._loader.load_active_reference(tx, model)

    async def recording(self, appraisal_id: str) -> Recording:
        """The whole recording of an appraisal.  Raises `StoreError` if it is no longer stored."""
        async with self._db.read() as tx:
            found = await recordings.of_appraisal(tx, appraisal_id)
        if found is None:
            raise StoreError(f"the recording of appraisal {appraisal_id} is no longer stored")
        return found
