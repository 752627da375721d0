"""
Which engine answers at a URL, by what it says of itself over HTTP.

Each `Introduction` asks for what one engine alone answers.  The probe is bounded: a few requests,
each with a limit on time and size.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.errors import EngineError, EngineRefusalError, EngineSilentError
from attester.version import installed_version

Introduction = Callable[[], Awaitable[Description | None]]
"""Asks the engine whether it is a certain one; `None` if it is another.  Raises `EngineError`."""
T = TypeVar("T")

PROBE_TIMEOUT_S: Final = 5.0


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Server(msgspec.Struct, frozen=True):
    """The metadata of a server in the Open Inference Protocol (KServe's V2)."""

    name: str
    version: str


class _Model(msgspec.Struct, frozen=True):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


async def ask(http: EngineHttp, path: str, answer: type[T]) -> T | None:
    """
    What the engine answers at *path*; `None` if that is no such answer: then it is another engine.

    Raises:
        EngineError: nothing answers, or the engine wants an API key.
    """
    try:
        return await http.request("GET", path, answer, timeout_s=PROBE_TIMEOUT_S)
    except EngineSilentError:
        raise
    except EngineRefusalError as error:
        if error.status in (401, 403):
            raise EngineError(
                f"{error}. It wants an API key: name its file as api_key_file under [engine]"
            ) from None
        return None
    except EngineError:
        return None


def introductions(http: EngineHttp) -> tuple[Introduction, ...]:
    """Of the engines that have no adapter which describes them so."""
    return (lambda: _vllm(http), lambda: _ollama(http), lambda: _open_inference(http))


async def introduce(
    http: EngineHttp, known: Sequence[Introduction], declared: tuple[str, str] | None = None
) -> Description:
    """
    Describe the engine by its own word, or by the operator's where it does not say what it is.

    Raises:
        EngineError: nothing answers; or the engine does not say what it is and nobody else does; or
            it says something else than what is declared.
    """
    for each in known:
        found = await each()
        if found is None:
            continue
        if declared is not None and declared != (found.engine, found.version):
            raise EngineError(
                f"the engine at {http.url} says that it is {found.engine} {found.version}, and attester.toml "
                f"says {' '.join(declared)}. Leave name and version out under [engine]"
            )
        return found
    if declared is None:
        raise EngineError(
            f"the engine at {http.url} does not say what it is: it has no /props, /version, /api/version or /v2 "
            "that names it. Say it under [engine]: name and version"
        )
    # Something must answer there, also if it says nothing of itself.
    models = await ask(http, "/v1/models", _Models)
    return describe(*declared, context_length=_context_of(models))


def describe(
    engine: str, version: str, *, context_length: int = 0, features: tuple[str, ...] = ()
) -> Description:
    """
    A description with no more than this.

    Raises:
        EngineError: the engine's words cannot be put into evidence.
    """
    try:
        return msgspec.convert(
            {
                "engine": engine,
                "version": version,
                "arguments": {},
                "packages": {"touchstone": installed_version()},
                "python": platform.python_version(),
                "context_length": context_length,
                "features": features,
            },
            Description,
        )
    except msgspec.ValidationError as error:
        raise EngineError(f"what the engine says of itself is malformed: {error}") from None


async def _vllm(http: EngineHttp) -> Description | None:
    version = await ask(http, "/version", _Version)
    models = None if version is None else await ask(http, "/v1/models", _Models)
    if version is None or models is None or not any(model.owned_by == "vllm" for model in models.data):
        return None
    return describe(
        "vllm", version.version, context_length=_context_of(models), features=("chat", "completions")
    )


async def _ollama(http: EngineHttp) -> Description | None:
    version = await ask(http, "/api/version", _Version)
    return None if version is None else describe("ollama", version.version, features=("chat", "completions"))


async def _open_inference(http: EngineHttp) -> Description | None:
    server = await ask(http, "/v2", _Server)
    return None if server is None else describe(server.name, server.version)


def _context_of(models: _Models | None) -> int:
    lengths = [model.max_model_len for model in models.data if model.max_model_len] if models else []
    return min(lengths, default=0)
