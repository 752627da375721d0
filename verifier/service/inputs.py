"""
What is in force for a node: its policy, its reference values, the blocks.

Policies and reference values never change under their digests, so they are read once and
kept; which of them are in force is read with every appraisal, in one look at the newest
change.  Another process may have made it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from verifier.errors import PolicyError, StoreError
from verifier.policy.archive import read_archive
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.reappraisal import VerifierInputs
from verifier.recording import Recording, ReferenceName
from verifier.schemes.base import Blocks, ModelReference
from verifier.store import policies, recordings, references
from verifier.store.database import Database, Tx

_KEPT: Final = 64

T = TypeVar("T")


class _LRU(Generic[T]):
    """The last so many of what does not change under its name."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, name: str) -> T | None:
        if name in self._values:
            self._values.move_to_end(name)
        return self._values.get(name)

    def put(self, name: str, value: T) -> T:
        self._values[name] = value
        while len(self._values) > _KEPT:
            self._values.popitem(last=False)
        return value


@dataclass(frozen=True)
class _Superseded:
    digest: str
    until_ms: int


@dataclass(frozen=True)
class _State:
    """What changes only with the generation."""

    generation: int
    blocks: Blocks
    active: Mapping[str, ReferenceName]
    replaced: Mapping[str, tuple[_Superseded, ...]]
    """By model, values that another replaces, or for some nodes does."""
    retired: frozenset[str]


@dataclass(frozen=True)
class AppraisalInputs:
    """What of ours an appraisal of one node now would rest on."""

    rollout: Rollout
    bundle: Bundle
    given: VerifierInputs


class InputLoader:
    """Reads what is in force, and keeps what does not change."""

    def __init__(self) -> None:
        self._bundles: _LRU[Bundle] = _LRU()
        self._references: _LRU[ModelReference] = _LRU()
        self._state: _State | None = None

    async def rollout(self, tx: Tx) -> Rollout:
        """The rollout as it stands.  Raises `PolicyError` before anything was activated."""
        rollout = await policies.rollout(tx)
        if rollout is None:
            raise PolicyError("no policy is active")
        return rollout

    async def bundle(self, tx: Tx, digest: str) -> Bundle:
        """
        A published policy.

        Raises:
            PolicyError: there is none, or another version of the verifier wrote it.
        """
        known = self._bundles.get(digest)
        if known is not None:
            return known
        row = await tx.one("SELECT archive FROM policies WHERE digest = ?", digest)
        if row is None:
            raise PolicyError(f"no policy {digest[:64]!r}")
        # Unpacking and parsing: others must not wait for it.
        bundle, _ = await asyncio.to_thread(read_archive, row["archive"])
        if bundle.digest != digest:
            raise PolicyError(f"the policy {digest} is not what was published")
        return self._bundles.put(digest, bundle)

    async def grounds(self, tx: Tx, node_id: str, models: list[str], now_ms: int) -> AppraisalInputs:
        """What an appraisal of a node would rest on, for *models*."""
        rollout = await self.rollout(tx)
        bundle = await self.bundle(tx, rollout.policy_for(node_id))
        state = await self._read(tx, rollout.generation)
        found: dict[str, ModelReference] = {}
        superseded: dict[str, tuple[ModelReference, ...]] = {}
        for model in models:
            own = bundle.references.get(model)
            if own is not None and own.digest not in state.retired:
                found[model] = own
            elif own is None and model in state.active:
                found[model] = await self.reference(tx, state.active[model])
            earlier = [
                await self._by_digest(tx, replaced.digest)
                for replaced in state.replaced.get(model, ())
                if replaced.until_ms > now_ms and model in found and replaced.digest != found[model].digest
            ]
            if earlier:
                superseded[model] = tuple(earlier)
        return AppraisalInputs(rollout, bundle, VerifierInputs(found, superseded, state.blocks))

    async def digests(self, tx: Tx, node_id: str) -> dict[str, str]:
        """By model the digest of the reference value in force for a node: what its challenges are of."""
        rollout = await self.rollout(tx)
        state = await self._read(tx, rollout.generation)
        bundle = await self.bundle(tx, rollout.policy_for(node_id))
        found = {model: name.digest for model, name in state.active.items()}
        found |= {model: own.digest for model, own in bundle.references.items()}
        return {model: digest for model, digest in found.items() if digest not in state.retired}

    async def reference(self, tx: Tx, name: ReferenceName) -> ModelReference:
        """A reference value as it was named, also one that is no longer in force."""
        key = f"{name.digest} {name.source} {name.signer} {name.not_before} {name.not_after}"
        known = self._references.get(key)
        if known is not None:
            return known
        row = await references.by_digest(tx, name.digest)
        if row is None:
            raise PolicyError(f"the reference value {name.digest} is no longer kept")
        named = {
            **row, "source": name.source, "signer": name.signer, "not_before": name.not_before, "not_after": name.not_after
        }  # fmt: skip
        return self._references.put(key, references.to_reference(named))

    async def active(self, tx: Tx, model: str) -> ModelReference | None:
        """The value in force for a model, but for what a policy brings."""
        rollout = await self.rollout(tx)
        name = (await self._read(tx, rollout.generation)).active.get(model)
        return None if name is None else await self.reference(tx, name)

    async def _by_digest(self, tx: Tx, digest: str) -> ModelReference:
        known = self._references.get(digest)
        if known is not None:
            return known
        row = await references.by_digest(tx, digest)
        assert row is not None
        return self._references.put(digest, references.to_reference(row))

    async def _read(self, tx: Tx, generation: int) -> _State:
        if self._state is not None and self._state.generation == generation:
            return self._state
        blocks = await policies.blocks(tx)
        active: dict[str, ReferenceName] = {}
        replaced: dict[str, tuple[_Superseded, ...]] = {}
        retired = set()
        for row in await references.weighed(tx):
            model = row["model"]
            if row["state"] == "retired":
                retired.add(row["digest"])
                continue
            if row["state"] == "active":
                active[model] = ReferenceName(
                    row["digest"], row["source"], row["signer"], row["not_before"], row["not_after"]
                )
            if row["grace_until_ms"]:
                earlier = _Superseded(row["digest"], row["grace_until_ms"])
                replaced[model] = (*replaced.get(model, ()), earlier)
        state = _State(generation, blocks, active, replaced, frozenset(retired))
        again = await policies.rollout(tx)
        if again is not None and again.generation == generation:
            # Else something changed while we looked: use it once, and do not keep it.
            self._state = state
        return state


class StoredLookup:
    """What recordings name, from a database (`verifier.reappraisal.Lookup`)."""

    def __init__(self, db: Database, inforce: InputLoader) -> None:
        self._db = db
        self._inforce = inforce

    async def bundle(self, digest: str) -> Bundle:
        """A published policy."""
        async with self._db.read() as tx:
            return await self._inforce.bundle(tx, digest)

    async def reference(self, name: ReferenceName) -> ModelReference:
        """A reference value as it was named."""
        async with self._db.read() as tx:
            return await self._inforce.reference(tx, name)

    async def active(self, model: str) -> ModelReference | None:
        """The value in force for a model that no policy brings."""
        async with self._db.read() as tx:
            return await self._inforce.active(tx, model)

    async def recording(self, appraisal_id: str) -> Recording:
        """The whole of a recording."""
        async with self._db.read() as tx:
            found = await recordings.of_appraisal(tx, appraisal_id)
        if found is None:
            raise StoreError("a recording is no longer kept")
        return found
