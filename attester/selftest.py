"""The self-test: what the verifier will look at, looked at first, each with what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from attester.client import VerifierClient
from attester.collector import Collector
from attester.config import AttesterConfig, Home, ModelSection
from attester.errors import AttesterError, ConfigError
from attester.weights.folder import open_folder
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.tensors import TensorFiles

Check = tuple[bool, str, str]


class _Practice(msgspec.Struct, frozen=True):
    seed: str
    windows: int
    read: str
    rows: int
    passes: int
    walk: tuple[str, ...]


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
        found.append(await _try(f"folder of {model}", _folder(section)))
        found.append(await _try(f"practice challenge of {model}", _practice(model, client, collector)))
    return found


async def _try(what: str, check: Awaitable[str]) -> Check:
    try:
        return True, what, await check
    except AttesterError as error:
        return False, what, str(error)
    except (msgspec.ValidationError, OverflowError) as error:
        return False, what, f"the verifier's answer is malformed: {error}"


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
    offset = now() - msgspec.convert(document.get("time"), int)
    if abs(offset) > _CLOCK_S:
        raise ConfigError(f"{offset:+.0f} s from the verifier's: set it, e.g. with chrony or timesyncd")
    return f"{offset:+.1f} s from the verifier's"


async def _folder(section: ModelSection) -> str:
    opened = open_folder(Path(section.dir), section.ignore)
    tensors = TensorFiles(opened)
    return f"{len(opened.files)} files, {len(tensors)} tensors, {opened.total:,} bytes"


async def _practice(model: str, client: VerifierClient, collector: Collector) -> str:
    document = await client.reference(model)
    practice = msgspec.convert(document.get("practice"), _Practice)
    challenge = ModelChallenge(
        model,
        msgspec.convert({"seed": practice.seed, "windows": practice.windows}, ReadChallenge),
        msgspec.convert(
            {"seed": practice.seed, "rows": practice.rows, "passes": practice.passes}, WalkChallenge
        ),
    )
    read, walk = await collector.answer(challenge)
    if read is None:
        raise ConfigError("the files could not be read; the line above says why")
    if walk is None:
        raise ConfigError("the engine could not walk; the line above says why")
    if read.answer.hex() != practice.read:
        raise ConfigError("the read is wrong: the files differ from the published ones; download them again")
    if [answer.hex() for answer in walk.answers] != list(practice.walk):
        raise ConfigError(
            "the walk is wrong: the engine has other weights loaded (quantised, cast, or another model)"
        )
    return f"read right; walk right, from {walk.source} on {walk.device}, {walk.micros / 1e6:.2f} s"
