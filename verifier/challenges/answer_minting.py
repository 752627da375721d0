"""
Minting answers: a trusted engine is asked everything more than once, and what it says in two ways is left out.

There is no second implementation of an engine to check it with.  What repeated askings do not agree on, an honest node
may answer otherwise too: from there on nothing is concluded (`Minted.stable`).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from verifier.answers import checks
from verifier.answers.checks import CHAT, EMBEDDINGS, EngineUsed, Minted, Operation, Token
from verifier.answers.composing import Composed, compose, is_drawn
from verifier.answers.draws import Draws
from verifier.answers.material import Material
from verifier.answers.shapes import Shape
from verifier.challenges import sealing
from verifier.challenges.answer_engine import Answered, AnswerEngine
from verifier.challenges.pool_key import PoolKey
from verifier.errors import ReferenceValueError
from verifier.store import answer_pool, pool
from verifier.store.answer_pool import Batch, Kept
from verifier.store.database import ConflictError, Database, Tx

_ASKED: Final = 2
_ASKED_IF_DRAWN: Final = 3
"""What is drawn depends on more of the engine: how it draws, and how it draws beside other requests."""
_EARLIER_TOKENS: Final = 48
"""Of the engine's own answers earlier in a conversation."""
_SAME_VECTORS: Final = 1e-4
"""Relative L2 up to which two vectors of one engine are the same: a hundredth of the nearest band of a precision."""
_TRIES: Final = 4
"""How many requests are asked for one that is to be minted, at most; and some more."""
_SPARE_TRIES: Final = 20


@dataclass
class Tally:
    """What a run did."""

    minted: int = 0
    censored: int = 0
    """Of those, how many are of use only up to where the askings agree."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Requests that were asked and not minted, by reason."""


@dataclass(frozen=True, kw_only=True)
class AnswerMinter:
    """Mints answers of one model with one engine."""

    db: Database
    key: PoolKey
    model: str
    engine: AnswerEngine
    used: EngineUsed
    operation: Operation
    shapes: Sequence[Shape]
    material: Material
    parallel: int
    """How many requests the engine is asked at a time."""
    now_ms: Callable[[], int]

    async def mint(self, batch: Batch, count: int, progress: Callable[[int], None] | None = None) -> Tally:
        """
        Mint *count* answers into a batch; each is stored by itself, so that an interrupted run loses almost nothing.

        Raises:
            ReferenceValueError: the engine fails or contradicts itself too often, all prompts were asked, the
                reference value is no longer live, or another run mints for the model.  What was stored stays.
        """
        tally = Tally()
        async with self.db.scan() as tx:
            asked = await answer_pool.asked_prompts(tx, self.model)
        async with self.db.read() as tx:
            indexes = itertools.count(await pool.next_index(tx, self.model, answer_pool.KIND))
        requests = self._requests(indexes, asked)
        left = _TRIES * count + _SPARE_TRIES
        while tally.minted < count:
            group = list(itertools.islice(requests, min(self.parallel, count - tally.minted, left)))
            if not group:
                raise ReferenceValueError(_why_none(left, tally, self.material))
            left -= len(group)
            made = await asyncio.gather(*(self._answer(composed) for _, composed in group))
            for (index, composed), minted in zip(group, made, strict=True):
                if isinstance(minted, str):
                    tally.dropped[minted] += 1
                    continue
                await self._store(batch, index, composed, minted)
                tally.minted += 1
                tally.censored += not minted.whole
                if progress is not None:
                    progress(1)
        return tally

    def _requests(self, indexes: Iterator[int], asked: set[bytes]) -> Iterator[tuple[int, Composed]]:
        """Requests that were never asked, each with its place in the pool; it ends when there are none left."""

        def is_free(text: str) -> bool:
            return sealing.prompt_name(self.key, self.model, text) not in asked

        for index in indexes:
            draws = Draws(sealing.draws_secret(self.key, self.model, index))
            composed = compose(draws, self.shapes, self.material, is_free, self.operation)
            if composed is None:
                return
            asked.update(self._names(composed))
            yield index, composed

    def _names(self, composed: Composed) -> list[bytes]:
        return [sealing.prompt_name(self.key, self.model, text) for text in composed.texts]

    async def _answer(self, composed: Composed) -> Minted | str:
        """Ask, and ask again; gives why it is of no use if it is not."""
        body = await self._with_earlier(composed)
        drawn = composed.operation != EMBEDDINGS and is_drawn(body)
        # One after the other: an engine that computes two of them together might agree with itself for that.
        answers = [
            await self.engine.ask(composed.operation, body)
            for _ in range(_ASKED_IF_DRAWN if drawn else _ASKED)
        ]
        base = Minted(
            operation=composed.operation,
            body=body,
            streamed=composed.streamed,
            engine=self.used,
            made_ms=self.now_ms(),
            seeded=drawn,
            prompt_tokens=answers[0].prompt_tokens,
            prompt_ids=answers[0].prompt_ids,
        )
        return _of_vectors(base, answers) if composed.operation == EMBEDDINGS else _of_texts(base, answers)

    async def _with_earlier(self, composed: Composed) -> dict[str, Any]:
        """The request, with the engine's own answers to the earlier questions of its conversation."""
        if not composed.earlier:
            return composed.body
        *before, last = composed.body["messages"]
        messages = list(before)
        for question in composed.earlier:
            messages.append({"role": "user", "content": question})
            asked = {"messages": messages, "temperature": 0, "max_tokens": _EARLIER_TOKENS}
            given = await self.engine.ask(CHAT, asked)
            messages.append({"role": "assistant", "content": given.text or "…"})
        return {**composed.body, "messages": [*messages, last]}

    async def _store(self, batch: Batch, index: int, composed: Composed, minted: Minted) -> None:
        salt = secrets.token_bytes(sealing.SALT_BYTES)
        sealed = sealing.seal(self.key, self.model, index, checks.encode(minted), salt)
        kept = Kept(model=self.model, index=index, batch=batch.id, sealed=sealed, drawn=minted.seeded)

        async def add(tx: Tx) -> None:
            await answer_pool.add(tx, kept, self._names(composed))

        try:
            await self.db.write(add, of=f"minting answers {self.model}")
        except ConflictError:
            raise ReferenceValueError(
                f"another run is minting answers for {self.model}. Wait until it ends, and resume this one with --resume"
            ) from None


def _why_none(left: int, tally: Tally, material: Material) -> str:
    if left > 0:
        whose = "of the file" if material.texts or material.asked else "of the built-in generator"
        return f"every prompt {whose} was minted before ({tally.minted} in this run). Give a file with others: --prompts"
    dropped = ", ".join(f"{count} {why}" for why, count in sorted(tally.dropped.items()))
    return f"the engine gave too few answers that can be held against others ({dropped}; {tally.minted} were minted)"


def _of_vectors(base: Minted, answers: Sequence[Answered]) -> Minted | str:
    first, *others = [answer.vectors or () for answer in answers]
    expected = 1 if isinstance(base.body["input"], str) else len(base.body["input"])
    if len(first) != expected or len(first) > checks.MAX_VECTORS:
        return "without a vector for each text"
    if any(
        len(first) != len(other)
        or any(distance(a, b) > _SAME_VECTORS for a, b in zip(first, other, strict=True))
        for other in others
    ):
        return "with vectors that differ when asked again"
    return msgspec.structs.replace(base, vectors=first, whole=True)


def distance(one: bytes, other: bytes) -> float:
    """The relative L2 distance of two vectors; infinite if they cannot be compared."""
    a, b = checks.floats(one), checks.floats(other)
    size = math.sqrt(sum(x * x for x in a))
    if len(a) != len(b) or not size:
        return math.inf
    return math.dist(a, b) / size


def _of_texts(base: Minted, answers: Sequence[Answered]) -> Minted | str:
    first = answers[0]
    if not first.text and not first.calls:
        return "empty"
    if len(first.text or "") > checks.MAX_TEXT or len(first.tokens or ()) > checks.MAX_TOKENS:
        return "too long"
    if any(
        each.prompt_tokens != first.prompt_tokens or each.prompt_ids != first.prompt_ids for each in answers
    ):
        return "with another prompt when asked again"
    whole = all(
        (each.text, each.finish_reason, each.calls) == (first.text, first.finish_reason, first.calls)
        for each in answers
    )
    runs = [each.tokens for each in answers]
    tokens: tuple[Token, ...] | None = None
    if all(runs):
        known = [run for run in runs if run]
        stable = _agreed([[token.text for token in run] for run in known])
        # The least sure of the askings counts.
        tokens = tuple(
            msgspec.structs.replace(token, margin=min(run[place].margin for run in known))
            if place < stable
            else token
            for place, token in enumerate(known[0])
        )
    else:
        stable = _agreed([each.text or "" for each in answers])
    if not stable and not (whole and first.calls):
        return "that differ from their first word when asked again"
    return msgspec.structs.replace(
        base,
        text=first.text,
        finish_reason=first.finish_reason,
        calls=first.calls,
        tokens=tokens,
        stable=stable,
        whole=whole,
    )


def _agreed(runs: Sequence[Sequence[str]]) -> int:
    """How many items all of *runs* begin with."""
    count = 0
    for items in zip(*runs, strict=False):
        if any(item != items[0] for item in items):
            break
        count += 1
    return count
