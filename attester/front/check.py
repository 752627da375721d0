"""The part of the self-test that looks at the node from outside, as a router does."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from pathlib import Path
from typing import Final

import aiohttp

from attester import cose, identity
from attester.config import Home
from attester.cose import PrivateKey
from attester.errors import ConfigError, EngineError
from attester.front.clients import create_client_certificate, kept_routers
from attester.front.exposure import ALL
from attester.front.outside import Outside, models_of, why
from attester.front.process import engine_url
from attester.front.tls import client_context

WARNING: Final = None
"""In the place of passed or not: it works, and the operator should know something."""
Line = tuple[bool | None, str, str]
_ENDPOINT: Final = "endpoint"
_WHO: Final = "who is served"
_CONTROLS: Final = "control routes"
_NOT_FOR_STRANGERS: Final = frozenset({400, 401, 403, 421, 495, 496})
"""How proxies refuse a client without a certificate that they know; nginx does it by 400."""


async def check_outside(
    outside: Outside, key: PrivateKey, to_engine: aiohttp.ClientSession, now: float
) -> list[Line]:
    """
    Look at the served endpoint.

    Args:
        outside: The endpoint.
        key: The attested TLS key.
        to_engine: A client for the engine itself.
        now: Seconds since 1970.
    """
    try:
        detail = await _check_endpoint(outside, key, to_engine)
    except EngineError as error:
        return [(False, _ENDPOINT, str(error))]
    lines: list[Line] = [(True, _ENDPOINT, detail), await _check_strangers(outside, now)]
    try:
        found = await outside.exposed(key)
    except EngineError as error:
        return [*lines, (False, _CONTROLS, str(error))]
    if found:
        return [*lines, (False, _CONTROLS, f"anybody who is served reaches {', '.join(found)}. {_ADVICE}")]
    return [*lines, (True, _CONTROLS, f"none of {len(ALL)} can be reached from outside")]


_ADVICE: Final = (
    "Serve by `touchstone attester front`, or let your proxy pass only the operations "
    "(touchstone attester front --print nginx)"
)


async def _check_endpoint(outside: Outside, key: PrivateKey, to_engine: aiohttp.ClientSession) -> str:
    """The endpoint has the attested key, and the engine is behind it.  Raises `EngineError`."""
    url = outside.config.serve.url
    try:
        async with outside.connect(key) as http:
            status, found = await outside.read_models(http)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        # Many servers close without a word if no version of TLS fits.
        reason = "it does not speak TLS 1.3" if await outside.speaks_old_tls() else why(error)
        raise EngineError(
            f"{url} does not serve: {reason}. Routers will not reach the node. If the front runs "
            "(touchstone attester front) and only this machine cannot reach it there, set [front] connect"
        ) from None
    if not outside.passes_models:
        return f"{url} answers with the attested key"
    if status in {401, 403}:
        raise EngineError(
            f"the engine behind {url} wants its API key (status {status}). Put it into a file that only you can "
            "read, and name that as [engine] api_key_file"
        )
    if status >= 500:
        raise EngineError(
            f"{url} answers, but the engine behind it does not (status {status}). Is it running?"
        )
    if status != 200:
        raise EngineError(f"{url} answers with the attested key, but /v1/models with status {status}")
    own = await models_of(to_engine, engine_url(outside.config))
    if own and found != own:
        raise EngineError(
            f"{url} leads to another engine than {engine_url(outside.config)}: its models differ"
        )
    return f"{url} answers with the attested key, and the engine behind it has {', '.join(sorted(found)) or 'no model'}"


async def _check_strangers(outside: Outside, now: float) -> Line:
    """Whether somebody is served whose certificate nobody knows."""
    context = await asyncio.to_thread(_unknown_client)
    try:
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as http:
            status, _ = await outside.read_models(http)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return True, _WHO, _served(outside.home, outside.config.front.routers_max_age_s, now)
    if status in _NOT_FOR_STRANGERS:
        return True, _WHO, _served(outside.home, outside.config.front.routers_max_age_s, now)
    return WARNING, _WHO, "a client that nobody knows is served: anyone can use the node. " + _ADVICE


def _unknown_client() -> ssl.SSLContext:
    """TLS of a client with a certificate that was made just now."""
    with tempfile.TemporaryDirectory() as folder:
        key_file, certificate = Path(folder, "key"), Path(folder, "crt")
        key = identity.create_key(key_file, cose.ES256)
        certificate.write_bytes(create_client_certificate(key, "stranger"))
        return client_context((certificate, key_file))


def _served(home: Home, max_age_s: int, now: float) -> str:
    try:
        routers = kept_routers(home, max_age_s=max_age_s, now=now)
    except ConfigError as error:
        return str(error)
    names = ", ".join(each.name for each in routers) or "none yet; `touchstone attester run` fetches the list"
    return f"only the routers of the verifier's list ({names}), and this node"
