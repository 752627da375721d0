"""
Dialling nodes without the router in between, for keys that may dispatch.

The router decides and names endpoints; the verifier, asked by the caller itself, gives each node's result.  Nothing
is sent before the key that answers is the one in that result.  The router sees no answer, so there is no receipt.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester.authorities import open_session, why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.client import checking
from router.client.checking import Endpoint, endpoint_of
from router.client.errors import RefusedError, Step, TrustError, UnreachableError, UnverifiedError
from router.client.trust import Trust, load_trust
from router.gateway import pinned
from router.state.identity import Identity, now
from verifier import results
from verifier.errors import ResultError
from verifier.results import MAX_RESULT, AttestationResult

MAX_ANSWER: Final = 64 << 20
_MAX_DECISION: Final = 1 << 20
_SKEW_S: Final = 60
_TIMEOUT: Final = aiohttp.ClientTimeout(total=660, connect=10)
_NodeId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~-]{1,128}\Z")]


class _Ranked(Struct, frozen=True):
    node: _NodeId


class _Decision(Struct, frozen=True):
    id: Annotated[str, Meta(max_length=64)]
    ranked: Annotated[tuple[_Ranked, ...], Meta(max_length=64)] = ()
    endpoints: dict[_NodeId, Endpoint] | None = None


@dataclass(frozen=True)
class Dialled:
    """An answer of a node."""

    node: str
    decision: str
    status: int
    body: bytes
    result: AttestationResult
    """What the verifier says of the node; it was live when the request was sent."""
    steps: dict[Step, str]


class Dialler:
    """
    Sends work to nodes itself.  It is used within ``async with``.

    Args:
        trust: A trust file; its ``require`` is asked of each node.
        key: An API key of the router that may dispatch.
        verifier_key: A key of the verifier, of the role relying-party.
        ca_file: Whose certificates are believed of router and verifier, PEM.
        identity_file: A key and certificate that are registered as a router's, for nodes that let in no one else.
        allow_private: Whether nodes may have private addresses.

    Raises:
        TrustError: a file cannot be used.
    """

    def __init__(
        self,
        *,
        trust: Trust | str | Path,
        key: str,
        verifier_key: str,
        ca_file: Path | None = None,
        identity_file: Path | None = None,
        allow_private: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trust = trust if isinstance(trust, Trust) else load_trust(Path(trust))
        self._key, self._verifier_key = key, verifier_key
        self._ca_file, self._allow_private, self._clock = ca_file, allow_private, clock
        self._context: ssl.SSLContext | None = None
        if identity_file is not None:
            try:
                self._context = Identity.load(identity_file, now()).client_context()
            except ConfigError as error:
                raise TrustError(str(error)) from None
        self._services: aiohttp.ClientSession | None = None
        self._nodes: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            self._services = open_session(self._ca_file)
        except ConfigError as error:
            raise TrustError(str(error)) from None
        self._nodes = pinned.open_session(allow_private=self._allow_private, context=self._context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._services is not None
        assert self._nodes is not None
        await asyncio.gather(self._services.close(), self._nodes.close())

    async def ask(self, model: str, path: str, body: bytes) -> Dialled:
        """
        Have one of the nodes that the router ranks do the work, the first that verifies and answers.

        Raises:
            RefusedError: the router ranks no node, or its key may not dispatch.
            UnreachableError: no node could be reached.
            UnverifiedError: of none of the nodes a result verifies, or another key answered.
        """
        decision = await self._decide(model)
        if decision.endpoints is None:
            raise RefusedError("the key may not dispatch: the decision has no endpoints", status=403)
        if not decision.ranked:
            raise RefusedError("no node may do this work", status=503)
        failed: UnreachableError | UnverifiedError | None = None
        for ranked in decision.ranked:
            try:
                return await self._dial(decision, ranked.node, model, path, body)
            except (UnreachableError, UnverifiedError) as error:
                failed = failed or error
        assert failed is not None
        raise failed

    async def _decide(self, model: str) -> _Decision:
        body = msgspec.json.encode({"model": model, "explain": False})
        url = f"{self.trust.router_url}/api/v1/decisions"
        status, data = await self._fetch("POST", url, self._key, _MAX_DECISION, body=body)
        if status != 201:
            raise RefusedError(f"the router makes no decision: it answers {status}", status=status)
        try:
            return msgspec.json.decode(data, type=_Decision)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise UnreachableError("the router's decision is malformed") from None

    async def _dial(self, decision: _Decision, node: str, model: str, path: str, body: bytes) -> Dialled:
        result = await self._result(node)
        endpoint, steps = self._check(result, model), {Step.RESULT: f"node {node}, by {result.iss}"}
        required = self.trust.require
        steps[Step.MODEL] = f"{model}, {checking.check_affirmed(result, model, required).ear_status}"
        steps[Step.AGE] = checking.check_ages(result, model, required, at_ms=int(self._clock() * 1000))
        # The result has the node's ueid and not its name: that both mean one node, its endpoint says.
        if (decision.endpoints or {}).get(node) != endpoint:
            raise UnverifiedError(Step.RESULT, f"the router names another endpoint of {node} than its result")
        status, answer = await self._send(endpoint, path, body)
        return Dialled(node, decision.id, status=status, body=answer, result=result, steps=steps)

    def _check(self, result: AttestationResult, model: str) -> Endpoint:
        endpoint = endpoint_of(result)
        if endpoint is None:
            raise UnverifiedError(Step.RESULT, f"the result of {result.ueid} for {model} names no endpoint")
        return endpoint

    async def _result(self, node: str) -> AttestationResult:
        """The node's result, as the verifier gives it now."""
        url = f"{self.trust.verifier.issuer.rstrip('/')}/api/v1/nodes/{node}/result"
        status, data = await self._fetch("GET", url, self._verifier_key, MAX_RESULT)
        if status != 200:
            raise UnverifiedError(Step.RESULT, f"the verifier gives no result of {node}: it answers {status}")
        try:
            return results.decode_jwt(
                data.decode("ascii", "replace"),
                self.trust.result_keys,
                issuer=self.trust.verifier.issuer,
                now=int(self._clock()),
                leeway=_SKEW_S,
            )
        except ResultError as error:
            raise UnverifiedError(Step.RESULT, str(error)) from None

    async def _send(self, endpoint: Endpoint, path: str, body: bytes) -> tuple[int, bytes]:
        assert self._nodes is not None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            url = pinned.check_url(endpoint.url.rstrip("/") + path, allow_private=self._allow_private)
            async with self._nodes.post(
                url,
                data=body,
                headers=headers,
                ssl=pinned.pin_for(endpoint.spki_sha256),
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                data = await read_all(response.content, MAX_ANSWER)
        except pinned.PinError as error:
            raise UnverifiedError(Step.RESULT, str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the node does not answer: {why_unreached(error)}") from None
        if data is None:
            raise UnreachableError(f"the answer has more than {MAX_ANSWER} bytes")
        return response.status, data

    async def _fetch(
        self, method: str, url: str, key: str, limit: int, body: bytes | None = None
    ) -> tuple[int, bytes]:
        assert self._services is not None
        headers = {"Authorization": f"Bearer {key}", "Accept": "application/eat+jwt, application/json"}
        try:
            async with self._services.request(
                method, url, data=body, headers=headers, allow_redirects=False, timeout=_TIMEOUT
            ) as response:
                data = await read_all(response.content, limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{url} does not answer: {why_unreached(error)}") from None
        if data is None:
            raise UnreachableError(f"{url} answers with more than {limit} bytes")
        return response.status, data
