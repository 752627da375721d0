"""The self-test: it checks what the verifier will check, and says what to do about each failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import aiohttp
import msgspec

from attester.client import VerifierClient
from attester.collector import Collector
from attester.config import BY_FILE, AttesterConfig, Home, ModelSection
from attester.errors import AttesterError, ConfigError, NoTensorsError
from attester.front.check import check_outside
from attester.front.outside import Outside
from attester.revisions import Practice, Recognised, RevisionFile, describe, shorten
from attester.weights.complete import check_complete
from attester.weights.folder import open_folder
from attester.weights.hashing import hash_file
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.roles import Role, Roles
from attester.weights.tensors import TensorFiles

Check = tuple[bool | None, str, str]


class _File(RevisionFile, frozen=True, kw_only=True):
    """A file as a document has it."""

    name: str


_MAX_CLOCK_OFFSET_S = 10
LOADED_EARNS = "file-system 2 and executables -2 under the default policy: both are affirming"
BY_FILE_EARNS = (
    "file-system 2 (affirming) and executables -33 (warning) under the default policy, because files are walked, "
    "not what the engine has loaded. Routers send it work only where the workload asks for no more "
    "than model_claims: [file-system] (touchstone router init --model-claims file-system)"
)
"""What a node can earn that walks files."""


async def run_checks(
    home: Home,
    config: AttesterConfig,
    client: VerifierClient,
    collector: Collector,
    now: Callable[[], float],
) -> list[Check]:
    """Run every check, even after a failure.  A `Check` is (passed, or `None` for a warning; what was checked; detail)."""
    by_file = config.engine.adapter in BY_FILE
    found = [
        await _run_check("node key", _check_keys(home)),
        await _run_check("enrolment", _check_enrolment(home)),
        await _run_check("engine", _check_engine(collector)),
        *await _check_outside(home, config, now),
        await _run_check("verifier", _check_verifier(client, config)),
        await _run_check("clock", _check_clock(client, now)),
        await _run_check("quantisation", collector.check_quantisation()),
    ]
    for model, section in config.models.items():
        found.append(await _run_check(f"folder of {model}", _check_folder(section)))
        recognised, said = await _check_revision(home, model, client, collector)
        found += said
        found.append(
            await _run_check(
                f"practice challenge of {model}",
                _check_practice(home, model, section, client, collector, recognised),
            )
        )
        earns = BY_FILE_EARNS if by_file else LOADED_EARNS
        found.append((None if by_file else True, f"what {model} can earn", earns))
    return found


async def _run_check(what: str, check: Awaitable[str]) -> Check:
    try:
        return True, what, await check
    except AttesterError as error:
        return False, what, str(error)
    except (msgspec.ValidationError, OverflowError) as error:
        return False, what, f"the verifier's answer is malformed: {error}"


async def _check_keys(home: Home) -> str:
    kid = home.node_key().public.kid
    home.tls_key()
    return f"kid {kid.hex()[:16]}…, TLS key present"


async def _check_enrolment(home: Home) -> str:
    enrolment = home.enrolment()
    return f"node {enrolment.node} of {enrolment.operator}"


async def _check_engine(collector: Collector) -> str:
    description = await collector.describe()
    return f"{description.engine} {description.version}, arguments {description.arguments or 'none'}"


async def _check_outside(home: Home, config: AttesterConfig, now: Callable[[], float]) -> list[Check]:
    """The endpoint, as routers see it."""
    try:
        key, credential = home.tls_key(), home.engine_key(config)
    except AttesterError as error:
        return [(False, "endpoint", str(error))]
    headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
    async with aiohttp.ClientSession(trust_env=False, headers=headers) as to_engine:
        return await check_outside(Outside(home, config), key, to_engine, now())


async def _check_verifier(client: VerifierClient, config: AttesterConfig) -> str:
    document = await client.discover()
    issuer = document.get("issuer")
    if issuer != config.verifier.url:
        raise ConfigError(
            f"the verifier calls itself {issuer}, but the configuration has {config.verifier.url}. "
            "Set the verifier's own name in attester.toml"
        )
    return f"{issuer}, {document.get('version')}"


async def _check_clock(client: VerifierClient, now: Callable[[], float]) -> str:
    document = await client.discover()
    offset = now() - msgspec.convert(document.get("time"), int)
    if abs(offset) > _MAX_CLOCK_OFFSET_S:
        raise ConfigError(f"{offset:+.0f} s from the verifier's clock. Set it, e.g. with chrony or timesyncd")
    return f"{offset:+.1f} s from the verifier's clock"


async def _check_folder(section: ModelSection) -> str:
    opened = open_folder(Path(section.dir), section.left_out)
    check_complete(opened)
    try:
        tensors = f"{len(TensorFiles(opened))} tensors"
    except NoTensorsError:
        tensors = "no tensors that can be walked"
    return f"{len(opened.files)} files, {tensors}, {opened.total:,} bytes"


def _differing_others(files: Mapping[str, RevisionFile], section: ModelSection) -> set[str]:
    """The files that change no answers (`attester.weights.roles`) and are missing, or not as published."""
    roles = Roles(files)
    own = {
        file.name: file for file in open_folder(Path(section.dir), section.left_out, everything=True).files
    }
    found = set()
    for name, file in files.items():
        if roles.of(name) is Role.GATE:
            continue
        published = {"sha256": file.sha256, "blake3": file.blake3}
        algorithms = [algorithm for algorithm, digest in published.items() if digest is not None]
        mine = hash_file(own[name], algorithms) if name in own else {}
        if any(
            algorithm not in mine or mine[algorithm].hex() != published[algorithm] for algorithm in algorithms
        ):
            found.add(name)
    return found


async def _check_revision(
    home: Home, model: str, client: VerifierClient, collector: Collector
) -> tuple[Recognised | None, list[Check]]:
    """Which revision the configured folder is, and what a running attester will claim."""
    what = f"revision of {model}"
    if not home.is_enrolled:
        return None, []
    try:
        revisions = await client.revisions(model)
        if revisions is None:
            # An earlier verifier, or one without a reference value: the practice challenge says so.
            return None, []
        recognised = await collector.recognise(model, revisions)
    except AttesterError as error:
        return None, [(False, what, str(error))]
    said = f"the folder is {describe(recognised)}"
    claimed, new = home.revisions().get(model), recognised.revision
    if new is None:
        return recognised, [(False, what, said)]
    if claimed is not None and claimed != new.digest:
        said += (
            f". The node has claimed {shorten(claimed)}, and claims this one as soon as the engine walks it"
        )
    return recognised, [(True, what, said)]


async def _find_practice(
    model: str, client: VerifierClient, recognised: Recognised | None
) -> tuple[Practice | None, Mapping[str, RevisionFile]]:
    """The practice challenge of the revision that the folder is, or is nearest to; and its files."""
    known = None if recognised is None else recognised.revision or recognised.nearest
    if known is not None and known.practice is not None:
        return known.practice, known.files
    document = await client.reference(model)
    files = msgspec.convert(document.get("files", ()), tuple[_File, ...])
    return msgspec.convert(document.get("practice"), Practice | None), {file.name: file for file in files}


async def _check_practice(
    home: Home,
    model: str,
    section: ModelSection,
    client: VerifierClient,
    collector: Collector,
    recognised: Recognised | None,
) -> str:
    if not home.is_enrolled:
        raise ConfigError(
            "this cannot be checked yet: the verifier gives reference values to enrolled nodes alone. "
            "Enrol the node, and check again"
        )
    practice, files = await _find_practice(model, client, recognised)
    if practice is None:
        return "there is none for this model: its reference value has no tensors"
    challenge = ModelChallenge(
        model,
        msgspec.convert({"seed": practice.seed, "windows": practice.windows}, ReadChallenge),
        msgspec.convert(
            {"seed": practice.seed, "rows": practice.rows, "passes": practice.passes}, WalkChallenge
        ),
    )
    others = await asyncio.to_thread(_differing_others, files, section)
    # The practice read is over all files; without those that change no answers there is no right answer to it.
    names = tuple(name for name in files if name not in others)
    read, walk = await collector.answer(challenge.about(names))
    if read is None:
        raise ConfigError("the files could not be read. The log line above says why")
    if walk is None:
        raise ConfigError("the engine could not walk. The log line above says why")
    if not others and read.answer.hex() != practice.read:
        raise ConfigError(
            "the answer to the read is wrong: the files differ from the published ones. Download them again"
        )
    if [answer.hex() for answer in walk.answers] != list(practice.walk):
        raise ConfigError(
            "the answer to the walk is wrong: the engine has loaded other weights (quantised, cast, or another model)"
        )
    said = f"not read, because {', '.join(sorted(others)[:3])} differ" if others else "read correct"
    return f"{said}; walk correct, from {walk.source} on {walk.device}, {walk.micros / 1e6:.2f} s"
