"""The self-test: what the verifier will look at, looked at first, each with what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from attester.client import VerifierClient
from attester.collector import Collector
from attester.config import AttesterConfig, Home
from attester.errors import AttesterError, ConfigError
from attester.weights.manifest import open_folder
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.tensors import TensorFiles

Check = tuple[bool, str, str]
_CLOCK_S = 10


async def run_checks(
    home: Home,
    config: AttesterConfig,
    client: VerifierClient,
    collector: Collector,
    now: Callable[[], float],
) -> list[Check]:
    """Run every check, also after one has failed: (good, what, detail) each."""
    found = [
        await _try("node key", _key(home)),
        await _try("enrolment", _enrolled(home)),
        await _try("engine", _engine(collector)),
        await _try("verifier", _verifier(client, config)),
        await _try("clock", _clock(client, now)),
    ]
    for model, section in config.models.items():
        found.append(await _try(f"folder of {model}", _folder(Path(section.dir))))
        found.append(await _try(f"practice challenge of {model}", _practice(model, client, collector)))
    return found


async def _try(what: str, check: Awaitable[str]) -> Check:
    try:
        return True, what, await check
    except AttesterError as error:
        return False, what, str(error)


async def _key(home: Home) -> str:
    return f"kid {home.node_key().public.kid.hex()[:16]}…, TLS key there" if home.tls_key() else ""


async def _enrolled(home: Home) -> str:
    enrolment = home.enrolment()
    return f"node {enrolment.node} of {enrolment.operator}"


async def _engine(collector: Collector) -> str:
    description = await collector.describe()
    return f"{description.engine} {description.version}, arguments {description.arguments or 'none'}"


async def _verifier(client: VerifierClient, config: AttesterConfig) -> str:
    document = await client.discover()
    issuer = document.get("issuer")
    if issuer != config.verifier.url:
        raise ConfigError(
            f"it calls itself {issuer}, and the configuration {config.verifier.url}: use its own name"
        )
    return f"{issuer}, {document.get('version')}"


async def _clock(client: VerifierClient, now: Callable[[], float]) -> str:
    document = await client.discover()
    offset = now() - float(document.get("time", 0))
    if abs(offset) > _CLOCK_S:
        raise ConfigError(f"{offset:+.0f} s from the verifier's: set it, e.g. with chrony or timesyncd")
    return f"{offset:+.1f} s from the verifier's"


async def _folder(folder: Path) -> str:
    opened = open_folder(folder)
    tensors = TensorFiles(opened)
    return f"{len(opened.files)} files, {len(tensors)} tensors, {opened.total:,} bytes"


async def _practice(model: str, client: VerifierClient, collector: Collector) -> str:
    document = await client.reference(model)
    practice = document.get("practice")
    if not isinstance(practice, dict):
        raise ConfigError("the verifier has no practice challenge for it")
    challenge = ModelChallenge(
        model,
        ReadChallenge(practice["seed"], practice["windows"]),
        WalkChallenge(practice["seed"], practice["rows"], practice["passes"]),
    )
    read, walk = await collector.answer(challenge)
    if read is None or read.answer.hex() != practice["read"]:
        raise ConfigError("the read is wrong: the files differ from the published ones; download them again")
    if walk is None or [answer.hex() for answer in walk.answers] != practice["walk"]:
        raise ConfigError(
            "the walk is wrong: the engine has other weights loaded (quantised, cast, or another model)"
        )
    return f"read right; walk right, from {walk.source} on {walk.device}, {walk.micros / 1e6:.2f} s"
