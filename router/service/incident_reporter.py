"""Reports holds to the verifier by its API."""

from __future__ import annotations

from typing import Annotated, Final

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester.bounded import read_all
from router.config import VerifierSection
from router.model.errors import HoldError
from router.store.holds import Hold

_MAX_ANSWER: Final = 64 << 10
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)


class _Reported(Struct, frozen=True):
    id: Annotated[str, Meta(min_length=1, max_length=128)]
    state: str


class VerifierIncidentReporter:
    """See `router.state.holds.IncidentReporter`."""

    def __init__(self, http: aiohttp.ClientSession, config: VerifierSection, token: str) -> None:
        self._http = http
        self._url = f"{config.url}/api/v1/incidents"
        self._token = token

    async def __call__(self, hold: Hold) -> tuple[str, str]:
        """See `IncidentReporter`."""
        body = {
            "node": hold.node,
            "kind": hold.kind,
            "detail": hold.detail,
            "evidence": hold.evidence,
            "report": hold.id,
        }
        try:
            async with self._http.post(
                self._url,
                data=msgspec.json.encode(body),
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
                if response.status != 201 or data is None:
                    raise HoldError(f"the verifier answers {response.status}")
                reported = msgspec.json.decode(data, type=_Reported)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeError) as error:
            raise HoldError(type(error).__name__) from None
        return reported.id, reported.state
