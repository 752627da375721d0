"""
Which revision of each model the node holds: noticed, logged, said to the verifier, in this order.

A folder that has changed is claimed once all of this is so:

1. nothing in it changes any more, and no file is partial;
2. its files are those of a revision that the verifier takes now;
3. the engine walks that revision too, where its adapter walks what the engine has loaded.

Until then evidence is made of what the node has claimed before, from the place where that lies.  If that is gone, or
the engine has another revision by now, the node has nothing to show for a while.  Then it keeps no call channel, so
that the verifier waits for it, and it answers no challenge: a wrong answer would be a lie that nobody meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import structlog

from attester.config import BY_FILE, AttesterConfig
from attester.errors import AttesterError, EngineError, EngineSilentError, VerifierError, WeightsError
from attester.evidence import Manifest, WalkAnswer
from attester.places import Places
from attester.revisions import Recognised, Revision, describe, describe_state, recognise, shorten
from attester.weights.folder import Folder
from attester.weights.possession import WalkChallenge
from attester.weights.roles import without_partial

_SPARE: Final = 10
"""An engine is asked again after so many times what its walk took: nine tenths of its time are for its work."""

_CONNECT_S: Final = 2.0
_ASK_AGAIN_S: Final = 300.0

Between = Callable[[], AbstractAsyncContextManager[None]]
Ready = tuple[Folder, Revision]

_log = structlog.get_logger("attester")


class Files(Protocol):
    """The models' folders."""

    places: Places

    async def list_files(self, model: str, root: Path) -> Folder:
        """The files of a model as they lie at *root*.  Raises `WeightsError`."""

    async def manifest_of(self, folder: Folder) -> Manifest:
        """The files and digests of a folder as it was listed.  Raises `WeightsError`."""


class Walks(Protocol):
    """The engine."""

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """Answer a walk.  Raises `EngineError`, `WeightsError`."""


class Claims(Protocol):
    """The verifier."""

    async def revisions(self, model: str) -> tuple[Revision, ...] | None:
        """The revisions that it takes now; `None` if it does not tell.  Raises `VerifierError`."""

    async def say_revisions(self, node: str, held: Mapping[str, str]) -> None:
        """Say which revisions the node has.  Raises `VerifierError`."""


class NotReadyError(AttesterError):
    """There is nothing that the node could show truthfully now."""


@dataclass
class _Model:
    """One model, as far as it is known."""

    claimed: Revision | None = None
    """What the node has claimed; `None` if nothing, or the verifier does not tell revisions."""
    before: str | None = None
    """The digest that was claimed before, perhaps by an attester that ran here earlier."""
    folder: Folder | None = None
    """The files of what is claimed."""
    waits: str = ""
    """Why the configured folder is not claimed yet; empty if it is."""
    blocks: str = ""
    """Why nothing can be shown meanwhile; empty if something can."""
    seen: Folder | None = None
    """The files that the configured folder has instead."""
    seen_since: float = 0.0
    recognised: Recognised | None = None
    """What those are."""
    asked_again_at: float = 0.0
    """When the engine is asked next what it has."""

    verifier_asked_again_at: float = 0.0
    """When the verifier is asked next, if it took nothing of this folder."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever claimed, nor shown."""
        return self.before is None and self.folder is None


class Holding:
    """
    Watches the folders of a node's models, and claims what they hold.

    Args:
        before: By model, the digest that was claimed last.
        save: Keeps what is claimed.
        now: Seconds since 1970.
        monotonic: Seconds by a clock that nobody sets.
    """

    def __init__(
        self,
        config: AttesterConfig,
        node: str,
        files: Files,
        engine: Walks,
        verifier: Claims,
        *,
        before: Mapping[str, str] | None = None,
        save: Callable[[Mapping[str, str]], None] = lambda _: None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._section = config.manifest
        self._node = node
        self._files = files
        self._engine = engine
        self._verifier = verifier
        self._save = save
        self._now = now
        self._monotonic = monotonic
        before = before or {}
        self._models = {model: _Model(before=before.get(model)) for model in config.models}
        self._is_silent = False
        self._by_file = config.engine.adapter in BY_FILE

    @property
    def look_s(self) -> float:
        """How often to look."""
        return self._section.look_s

    @property
    def is_blocked(self) -> bool:
        """Whether there is nothing to show of some model for now."""
        return self._is_silent or any(each.blocks for each in self._models.values())

    async def look(self, between: Between = contextlib.nullcontext) -> bool:
        """
        Look at the folders, and claim what is new in them; gives whether something else is claimed than before.

        Args:
            between: A context in which no session is answered: one session must not see two revisions.

        Raises:
            VerifierError: the verifier could not be asked, or refuses the claim.
        """
        changed = False
        if self._is_silent:
            self._is_silent = not await _listens(self._config.engine.url)
        try:
            for model, state in self._models.items():
                if (ready := await self._look_at(model, state)) is not None:
                    async with between():
                        changed |= await self._claim(model, state, *ready)
        finally:
            for model, state in self._models.items():
                await self._judge(model, state)
        return changed

    async def check_engine(self) -> None:
        """Make sure that the engine listens, before a call is answered by half.  Raises `NotReadyError`."""
        if any(state.claimed is not None for state in self._models.values()) and not await _listens(
            self._config.engine.url
        ):
            self._is_silent = True
            raise NotReadyError("the engine does not answer")

    async def check(self, models: Iterable[str], *, walks: bool) -> None:
        """
        Make sure that what is claimed of *models* can be shown as it is now.

        Args:
            walks: Whether the engine is to show it.

        Raises:
            NotReadyError: it cannot.
        """
        for model in models:
            state = self._models.get(model)
            if state is None or state.claimed is None:
                continue
            if not await self._is_whole(model, state):
                raise NotReadyError(f"the files of {model} are not those any more that the node has claimed")
            # The path leads elsewhere by now, or did a moment ago: the engine may have been started anew.
            if walks and await self._has_moved(model, state):
                await self._check_engine(model, state.claimed)

    async def _check_engine(self, model: str, claimed: Revision) -> None:
        try:
            is_same = await self._walks(model, claimed)
        except EngineError as error:
            raise NotReadyError(str(error)) from None
        if not is_same:
            raise NotReadyError(
                f"the engine does not walk {shorten(claimed.digest)} of {model} any more, which the node has claimed"
            )

    async def _look_at(self, model: str, state: _Model) -> Ready | None:
        """What the configured folder of a model holds, if it is new and can be claimed."""
        try:
            folder = await self._files.list_files(model, self._files.places.configured[model])
        except WeightsError as error:
            self._wait(model, state, f"its files cannot be listed: {error}")
            return None
        may_wait = state.claimed is not None or self._monotonic() < state.verifier_asked_again_at
        if folder == state.folder and may_wait:
            state.seen, state.waits = None, ""
            return None
        if folder != state.seen:
            state.seen, state.seen_since, state.recognised = folder, self._monotonic(), None
            state.asked_again_at = 0.0
        if (why := self._unsettled(state, folder)) is not None:
            self._wait(model, state, why)
            return None
        if state.recognised is None:
            revisions = await self._ask(model)
            if revisions is None:
                # An earlier verifier: it sees what there is, as it always did.
                state.verifier_asked_again_at = self._monotonic() + _ASK_AGAIN_S
                self._files.places.pin(model, folder.root)
                state.folder, state.claimed, state.waits = folder, None, ""
                return None
            try:
                state.recognised = recognise(await self._files.manifest_of(folder), revisions)
            except WeightsError as error:
                self._wait(model, state, f"its files cannot be read: {error}")
                return None
        return await self._decide(model, state, folder, state.recognised)

    async def _ask(self, model: str) -> tuple[Revision, ...] | None:
        try:
            return await self._verifier.revisions(model)
        except VerifierError as error:
            if error.is_temporary or error.status is None:
                raise
            _log.warning("the verifier does not tell the revisions of a model", model=model, why=str(error))
            return None

    def _unsettled(self, state: _Model, folder: Folder) -> str | None:
        """Why a folder may still change; `None` if it does not look like it."""
        partial = next((file.name for file in folder.files if without_partial(file.name) is not None), None)
        if partial is not None:
            return f"{partial[:200]} is a part of a file that is still being copied"
        if state.is_new or not self._section.settle_s:
            return None
        # The time of the last change, which no copy keeps, or two looks with nothing between them.
        changed_s = max(file.stamp[3] for file in folder.files) / 1e9
        age_s = max(self._now() - changed_s, self._monotonic() - state.seen_since)
        if age_s < self._section.settle_s:
            return f"its files changed within the last {self._section.settle_s:g} s, and may still be copied"
        return None

    async def _decide(
        self, model: str, state: _Model, folder: Folder, recognised: Recognised
    ) -> Ready | None:
        revision = recognised.revision
        if revision is None:
            if state.is_new:
                # Nothing is known of this node: the verifier says what it thinks of it.
                _log.warning("a model's folder is no revision", model=model, folder=describe(recognised))
                state.folder, state.recognised, state.waits = folder, None, ""
                state.verifier_asked_again_at = self._monotonic() + _ASK_AGAIN_S
            else:
                # The verifier may take it later.
                state.recognised = None
                self._wait(model, state, f"the folder is {describe(recognised)}")
            return None
        if not state.is_new and (why := await self._other_engine(model, state, revision)) is not None:
            self._wait(model, state, why)
            return None
        return folder, revision

    async def _other_engine(self, model: str, state: _Model, revision: Revision) -> str | None:
        """Why a revision cannot be claimed for the engine's sake; `None` if it can."""
        if self._monotonic() < state.asked_again_at:
            return state.waits
        began = self._monotonic()
        try:
            is_same = await self._walks(model, revision)
        except EngineSilentError:
            return f"the folder is {shorten(revision.digest)}, and the engine does not answer yet"
        except EngineError as error:
            return f"the folder is {shorten(revision.digest)}, and the engine cannot walk yet: {error}"
        finally:
            took_s = self._monotonic() - began
            state.asked_again_at = began + took_s + _SPARE * took_s
        if is_same:
            return None
        return (
            f"the folder is {shorten(revision.digest)}, and the engine still walks something else. "
            "Start the engine again"
        )

    async def _walks(self, model: str, revision: Revision) -> bool:
        """Whether the engine walks *revision*, as far as that can be told.  Raises `EngineError`."""
        practice = revision.practice
        if self._by_file or practice is None or not practice.walk:
            return True
        challenge = WalkChallenge(practice.seed, practice.rows, practice.passes, revision.gates or None)
        try:
            answer = await self._engine.walk(model, challenge)
        except WeightsError as error:
            raise EngineError(str(error)) from None
        return [each.hex() for each in answer.answers] == list(practice.walk)

    async def _claim(self, model: str, state: _Model, folder: Folder, revision: Revision) -> bool:
        old = state.claimed.digest if state.claimed is not None else state.before
        if old == revision.digest:
            _log.info(
                "the node holds the revision that it has claimed", model=model, revision=revision.digest,
                verifier=describe_state(revision),
            )  # fmt: skip
        else:
            _log.info(
                "the node is going to claim a revision", model=model, old=old or "none", new=revision.digest,
                verifier=describe_state(revision), folder=str(folder.root),
            )  # fmt: skip
        try:
            await self._verifier.say_revisions(self._node, {model: revision.digest})
        except VerifierError:
            # What the verifier takes may have changed since it was asked.
            state.recognised = None
            raise
        # From here on, what the verifier asks is about this one.
        is_new = state.is_new
        self._files.places.pin(model, folder.root)
        state.claimed, state.before, state.folder = revision, revision.digest, folder
        state.seen, state.recognised, state.waits, state.blocks = None, None, "", ""
        claimed = {name: each.before for name, each in self._models.items() if each.before is not None}
        self._save(claimed)
        return old != revision.digest and not is_new

    def _wait(self, model: str, state: _Model, why: str) -> None:
        if why != state.waits:
            _log.warning(
                "a model's folder is not claimed yet; it will be looked at again", model=model, why=why
            )
        state.waits = why

    async def _judge(self, model: str, state: _Model) -> None:
        """Find out whether anything can be shown of a model for now."""
        why = ""
        if state.waits and state.before is not None:
            why = await self._what_blocks(model, state)
        if why and not state.blocks:
            _log.error("nothing can be shown of a model for now; no call is answered", model=model, why=why)
        elif state.blocks and not why:
            _log.info("the model can be shown again", model=model)
        state.blocks = why

    async def _what_blocks(self, model: str, state: _Model) -> str:
        if state.claimed is None or not await self._is_whole(model, state):
            return state.waits
        if state.recognised is None or state.recognised.revision is None:
            return ""
        # The engine does not walk what the folder is by now.  Perhaps it walks what is claimed.
        try:
            is_same = await self._walks(model, state.claimed)
        except EngineError as error:
            return str(error)
        return "" if is_same else state.waits

    async def _is_whole(self, model: str, state: _Model) -> bool:
        """Whether what was claimed lies where it was claimed, unchanged."""
        if state.folder is None:
            return False
        try:
            return await self._files.list_files(model, state.folder.root) == state.folder
        except WeightsError:
            return False

    async def _has_moved(self, model: str, state: _Model) -> bool:
        """Whether the configured folder is another one than what was claimed."""
        try:
            return await self._files.list_files(model, self._files.places.configured[model]) != state.folder
        except WeightsError:
            return True


async def _listens(url: str) -> bool:
    """Whether anything listens at the address of *url*."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
