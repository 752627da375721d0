"""
Engines that answer over loopback: ``GET /touchstone/engine``, ``POST /touchstone/walk``.

The serving process itself walks the tensors it has loaded (`engines.host`); the attester
only passes the challenge on.  The two share a secret, so that no other process on the machine
can request walks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import aiohttp
import msgspec

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.errors import EngineError
from attester.evidence import WalkAnswer
from attester.weights.possession import WalkChallenge

_DESCRIBE_TIMEOUT_S = 10.0
_WALK_TIMEOUT_S = 600.0


class WalkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine's answer to a walk."""

    answers: tuple[str, ...]
    device: str
    micros: int
    source: Literal["engine", "loaded"] = "engine"


class LoopbackEngine:
    """
    The adapter of an engine on this machine that serves the two resources.

    Args:
        as_loaded: The models that the engine is to walk as it has loaded them.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, secret: str, as_loaded: Collection[str] = ()
    ) -> None:
        self._http = EngineHttp(http, url, {"Authorization": f"Bearer {secret}"})
        self._as_loaded = as_loaded

    async def describe(self) -> Description:
        """As `Engine.describe`."""
        return await self._http.request(
            "GET", "/touchstone/engine", Description, timeout_s=_DESCRIBE_TIMEOUT_S
        )

    async def prepare(self) -> str:
        """As `Engine.prepare`; the kernel is in the engine's own process."""
        return f"the engine at {self._http.url}"

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`."""
        body = {"model": model, "seed": challenge.seed, "rows": challenge.rows, "passes": challenge.passes}
        reply = await self._http.request(
            "POST", "/touchstone/walk", WalkBody, body, timeout_s=_WALK_TIMEOUT_S
        )
        if (reply.source == "loaded") != (model in self._as_loaded):
            walks, configured = (
                ("as loaded", "published") if reply.source == "loaded" else ("as published", "as-loaded")
            )
            raise EngineError(
                f'the engine walks {model} {walks}, and [models."{model}"] walk in attester.toml is {configured}'
            )
        return to_answer(reply, challenge)


def to_answer(reply: WalkBody, challenge: WalkChallenge) -> WalkAnswer:
    """
    Convert an engine's answer to the claim for evidence.

    Raises:
        EngineError: the answer is malformed, or does not have one answer for each row.
    """
    try:
        answer = msgspec.convert(
            {
                "answers": [bytes.fromhex(each) for each in reply.answers],
                "source": reply.source,
                "device": reply.device,
                "micros": reply.micros,
            },
            WalkAnswer,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise EngineError(f"the engine's answer to the walk is malformed: {error}") from None
    if len(answer.answers) != challenge.rows:
        raise EngineError(f"the engine answers {len(answer.answers)} rows instead of {challenge.rows}")
    return answer
