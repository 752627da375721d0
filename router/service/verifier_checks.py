"""Checks of the verifier's, by its API: takes them, and reports what nodes answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester.bounded import read_all
from attester.errors import ConfigError
from router.config import RouterConfig, VerifierSection
from router.gateway.checks import Checks, CheckSourceError, NoChecksError, Offered
from router.gateway.dispatch import Dispatcher
from router.model.clock import Clock
from router.state.name import NameLease

_MAX_ANSWER: Final = 16 << 20
_TIMEOUT: Final = aiohttp.ClientTimeout(total=20, connect=5)
_NONE: Final = frozenset({404, 405, 409, 501})
"""Of an older verifier, or of one that has no check for this model."""


class _Check(Struct, frozen=True):
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")]
    operation: str
    body: dict[str, Any]
    streamed: bool = False


class _Checks(Struct, frozen=True):
    checks: Annotated[list[_Check], Meta(max_length=32)]


def make_checks(
    dispatcher: Dispatcher,
    config: RouterConfig,
    clock: Clock,
    http: aiohttp.ClientSession,
    *,
    token: Callable[[], str | None],
    name: NameLease,
) -> Checks:
    """What asks nodes with checks of the configured verifier: none without a credential for it."""
    source = VerifierChecks(http, config.verifier, token)
    return Checks(
        dispatcher,
        config.checks,
        config.gateway,
        clock,
        source if config.verifier.router_token_file is not None else None,
        name=config.name,
        routers=lambda: name.names,
    )


class VerifierChecks:
    """See `router.gateway.checks.CheckSource`."""

    def __init__(
        self, http: aiohttp.ClientSession, config: VerifierSection, token: Callable[[], str | None]
    ) -> None:
        self._http = http
        self._url = f"{config.url}/api/v1/answer-checks"
        self._token = token

    async def take(self, model: str, node: str, operation: str) -> Offered:
        """See `CheckSource`."""
        wanted = {"model": model, "node": node, "count": 1, "wants": {"operation": operation}}
        data = await self._post(self._url, wanted)
        try:
            found = msgspec.json.decode(data, type=_Checks).checks
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise CheckSourceError(f"the verifier's check cannot be read: {error}") from None
        if not found:
            raise NoChecksError("the verifier gives none")
        check = found[0]
        return Offered(check.id, check.operation, check.body, streamed=check.streamed)

    async def report(self, check: str, report: dict[str, Any]) -> None:
        """See `CheckSource`."""
        await self._post(f"{self._url}/{quote(check, safe='')}", report)

    async def report_score(self, report: dict[str, Any]) -> bool:
        """See `CheckSource`."""
        try:
            await self._post(f"{self._url}/peers", report)
        except NoChecksError:
            return False
        return True

    async def _post(self, url: str, document: Any) -> bytes:
        try:
            token = self._token()
        except ConfigError as error:
            raise CheckSourceError(str(error)) from None
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._http.post(
                url,
                data=msgspec.json.encode(document),
                headers=headers,
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CheckSourceError(type(error).__name__) from None
        if response.status in _NONE:
            raise NoChecksError(f"the verifier answers {response.status}")
        if response.status not in (200, 201) or data is None:
            raise CheckSourceError(f"the verifier answers {response.status}")
        return data
