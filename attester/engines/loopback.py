"""
Engines that answer over loopback: ``GET /touchstone/engine``, ``POST /touchstone/walk``.

The serving process itself walks the tensors it has loaded (`engines.host`); the attester
only passes the challenge on.  A secret shared between the two keeps others on the machine
from asking.
"""

from __future__ import annotations

import aiohttp
import msgspec

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.errors import EngineError
from attester.evidence import WalkAnswer
from attester.weights.possession import WalkChallenge

_DESCRIBE_S = 10.0
_WALK_S = 600.0


class WalkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine answers to a walk."""

    answers: tuple[str, ...]
    device: str
    micros: int


class LoopbackEngine:
    """An engine on this machine that serves the two resources."""

    def __init__(self, http: aiohttp.ClientSession, url: str, secret: str) -> None:
        self._http = EngineHttp(http, url, {"Authorization": f"Bearer {secret}"})

    async def describe(self) -> Description:
        """As `Engine.describe`."""
        return await self._http.ask("GET", "/touchstone/engine", Description, timeout_s=_DESCRIBE_S)

    async def prepare(self) -> str:
        """As `Engine.prepare`; the engine's own process has its kernel."""
        return f"the engine at {self._http.url}"

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`."""
        body = {"model": model, "seed": challenge.seed, "rows": challenge.rows, "passes": challenge.passes}
        walked = await self._http.ask("POST", "/touchstone/walk", WalkBody, body, timeout_s=_WALK_S)
        return to_answer(walked, challenge)


def to_answer(walked: WalkBody, challenge: WalkChallenge) -> WalkAnswer:
    """
    An engine's answer as evidence carries it.

    Raises:
        EngineError: it does not have its form.
    """
    try:
        answer = msgspec.convert(
            {
                "answers": [bytes.fromhex(each) for each in walked.answers],
                "source": "engine",
                "device": walked.device,
                "micros": walked.micros,
            },
            WalkAnswer,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise EngineError(f"the engine walks wrongly: {error}") from None
    if len(answer.answers) != challenge.rows:
        raise EngineError(f"the engine answers {len(answer.answers)} of {challenge.rows} rows")
    return answer
