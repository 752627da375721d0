"""
The served endpoint as a router sees it: a connection of its own over TLS, with a client certificate of the node.

Used by `check` and before each evidence.  Nothing here is sent to the engine directly, and nothing changes anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
import structlog
import yarl

from attester import identity
from attester.authorities import why_unreached
from attester.bounded import read_all
from attester.client import VerifierClient
from attester.config import AttesterConfig, Home
from attester.cose import PrivateKey
from attester.errors import AttesterError, EngineError, VerifierError
from attester.evidence import Exposure
from attester.front.clients import own_certificate
from attester.front.exposure import ALL, GET, NOWHERE, OPTIONS, is_reached
from attester.front.operations import MODELS, methods
from attester.front.tls import OtherKeyError, client_context

SCHEME: Final = "touchstone-exposure"
"""How a verifier says in its discovery document that it knows the claim: an older one refuses what it does not know."""
_ASK_AGAIN_S: Final = 600.0
_CONNECT_S: Final = 5.0
_ALL_S: Final = 10.0
"""Seconds that all probes of a round may take."""
_MAX_ANSWER: Final = 1 << 20

_log = structlog.get_logger("attester")


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


@dataclass(frozen=True)
class Outside:
    """
    Requests to the endpoint of a home's configuration, from outside.

    Args:
        home: The attester's home.
        config: Its configuration.
    """

    home: Home
    config: AttesterConfig

    @asynccontextmanager
    async def connect(
        self, key: PrivateKey, *, as_client: bool = True
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """
        A session whose connections end unless the endpoint has the TLS key *key*.

        Args:
            key: The attested key.
            as_client: Whether the node's own client certificate is presented.
        """
        pin = hashlib.sha256(identity.spki(key)).hexdigest()
        files = own_certificate(self.home) if as_client else None
        connector = aiohttp.TCPConnector(ssl=client_context(files, pin), limit=1)
        timeout = aiohttp.ClientTimeout(total=_ALL_S, sock_connect=_CONNECT_S)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            yield http

    async def speaks_old_tls(self) -> bool:
        """Whether a handshake succeeds there with TLS 1.2 and no newer version."""
        context = client_context(None)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
                await self.status(http, "GET", NOWHERE)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return True

    async def status(self, http: aiohttp.ClientSession, method: str, path: str) -> int:
        """The status of an answer, whose body is not read.  Raises what aiohttp raises."""
        async with self._request(http, method, path) as response:
            await read_all(response.content, _MAX_ANSWER)
            return response.status

    async def read_models(self, http: aiohttp.ClientSession) -> tuple[int, frozenset[str]]:
        """The status of ``GET /v1/models``, and which models the engine behind the endpoint names."""
        async with self._request(http, "GET", f"/v1/{MODELS}") as response:
            return response.status, _ids(await read_all(response.content, _MAX_ANSWER))

    def _request(
        self, http: aiohttp.ClientSession, method: str, path: str
    ) -> aiohttp.client._RequestContextManager:
        served = yarl.URL(self.config.serve.url)
        place = self.config.front.connect
        base = served if place is None else yarl.URL(f"https://{place}")
        authority = self.config.serve.url.partition("://")[2]
        return http.request(method, base.with_path(path), headers={"Host": authority}, allow_redirects=False)

    async def exposed(self, key: PrivateKey) -> tuple[str, ...]:
        """
        The control routes that can be reached through the endpoint.

        Raises:
            EngineError: the endpoint cannot be reached, or another key answers there.
        """
        try:
            async with asyncio.timeout(_ALL_S), self.connect(key) as http:
                elsewhere = {method: await self.status(http, method, NOWHERE) for method in (OPTIONS, GET)}
                found = []
                for control in ALL:
                    status = await self.status(http, control.method, control.path)
                    if is_reached(status, elsewhere[control.method]):
                        found.append(control.path)
                return tuple(found)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineError(f"{self.config.serve.url} cannot be reached: {why(error)}") from None

    @property
    def passes_models(self) -> bool:
        """Whether the front passes ``/v1/models``, by its configuration."""
        return f"/v1/{MODELS}" in methods(self.config.engine.adapter, self.config.front.operations)


def _ids(data: bytes | None) -> frozenset[str]:
    try:
        return frozenset(model.id for model in msgspec.json.decode(data or b"", type=_Models).data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()


async def models_of(http: aiohttp.ClientSession, url: str) -> frozenset[str]:
    """Which models the engine itself names at *url*; none if it does not say."""
    try:
        async with http.get(
            f"{url}/v1/{MODELS}", timeout=aiohttp.ClientTimeout(total=_CONNECT_S)
        ) as response:
            return _ids(await read_all(response.content, _MAX_ANSWER))
    except (aiohttp.ClientError, TimeoutError):
        return frozenset()


def why(error: BaseException) -> str:
    """Why a connection to the endpoint failed, in a line."""
    causes = list(_causes(error))
    if any(isinstance(cause, OtherKeyError) for cause in causes):
        return "another key answers there than tls.key, which the evidence names"
    reasons = [
        cause.reason for cause in causes if isinstance(cause, ssl.SSLError) and hasattr(cause, "reason")
    ]
    if reasons:
        return f"TLS failed ({reasons[-1] or 'unknown reason'})"
    return "it does not answer in time" if isinstance(error, TimeoutError) else why_unreached(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


class ExposureClaim:
    """
    What evidence says of the control routes: by a look at the endpoint before each.

    Args:
        outside: The endpoint.
        client: Of the verifier, which is asked whether it knows the claim.
        key: The attested key of now.
        tick: Seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        outside: Outside,
        client: VerifierClient,
        key: Callable[[], PrivateKey],
        tick: Callable[[], float],
        look: Callable[[PrivateKey], Awaitable[tuple[str, ...]]] | None = None,
    ) -> None:
        self._look = look or outside.exposed
        self._client = client
        self._key = key
        self._tick = tick
        self._knows = False
        self._asked_at: float | None = None
        self._last: Exposure | None = None

    async def collect(self) -> Exposure | None:
        """The claim; `None` for a verifier that does not know it."""
        if not await self._is_known():
            return None
        try:
            found = Exposure(reached=True, routes=await self._look(self._key()))
        except AttesterError as error:
            # The network's failure, or the operator's who has not started the front yet: no exposure.
            found = Exposure(reached=False)
            if found != self._last:
                _log.warning("the node cannot look at its own endpoint", why=str(error))
        if found.routes and found != self._last:
            _log.error("control routes of the engine can be reached from outside", routes=list(found.routes))
        self._last = found
        return found

    async def _is_known(self) -> bool:
        if self._asked_at is not None and self._tick() - self._asked_at < _ASK_AGAIN_S:
            return self._knows
        try:
            schemes = (await self._client.discover()).get("attestation-schemes")
        except VerifierError:
            return self._knows
        self._knows = isinstance(schemes, list) and SCHEME in schemes
        self._asked_at = self._tick()
        return self._knows
