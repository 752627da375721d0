"""
Engines that answer over loopback: ``GET /touchstone/engine``, ``POST /touchstone/walk``.

The serving process itself walks the tensors it has loaded; the attester only passes the
challenge on.  A secret shared between the two keeps others on the machine from asking.
"""

from __future__ import annotations

import aiohttp
import msgspec

from attester.bounded import read_all
from attester.engines.base import Description
from attester.errors import EngineError
from attester.evidence import WalkAnswer
from attester.weights.possession import WalkChallenge

_MAX_ANSWER = 1 << 20
_DESCRIBE_S = 10.0
_WALK_S = 600.0


class _WalkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    answers: tuple[str, ...]
    device: str
    micros: int


class LoopbackEngine:
    """An engine on this machine that serves the two resources."""

    def __init__(self, http: aiohttp.ClientSession, url: str, secret: str) -> None:
        self._http = http
        self._url = url
        self._headers = {"Authorization": f"Bearer {secret}"}

    async def describe(self) -> Description:
        """As `Engine.describe`."""
        data = await self._ask("GET", "/touchstone/engine", None, _DESCRIBE_S)
        try:
            return msgspec.json.decode(data, type=Description)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(f"the engine at {self._url} describes itself wrongly: {error}") from None

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`."""
        body = msgspec.json.encode(
            {"model": model, "seed": challenge.seed, "rows": challenge.rows, "passes": challenge.passes}
        )
        data = await self._ask("POST", "/touchstone/walk", body, _WALK_S)
        try:
            walked = msgspec.json.decode(data, type=_WalkBody)
            answer = msgspec.convert(
                {
                    "answers": [bytes.fromhex(each) for each in walked.answers],
                    "source": "engine",
                    "device": walked.device,
                    "micros": walked.micros,
                },
                WalkAnswer,
            )
        except (msgspec.DecodeError, ValueError) as error:
            raise EngineError(f"the engine at {self._url} walks wrongly: {error}") from None
        if len(answer.answers) != challenge.rows:
            raise EngineError(f"the engine answers {len(answer.answers)} of {challenge.rows} rows")
        return answer

    async def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        try:
            async with self._http.request(
                method,
                self._url + path,
                data=body,
                headers={**self._headers, "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
                if response.status != 200:
                    raise EngineError(f"the engine answers {response.status} to {method} {path}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineError(
                f"the engine at {self._url} does not answer ({type(error).__name__}): is it running?"
            ) from None
        if data is None:
            raise EngineError(f"the engine's answer to {path} is larger than {_MAX_ANSWER} bytes")
        return data
