"""
The engine that is trusted to give right answers, on this machine or nearby: it is asked as a node is, over OpenAI's API.

Which weights it has is found out where that can be: vLLM and engines with the loopback resources walk them, and
llama.cpp names its file (`checked_weights`).  Otherwise the operator's word counts, and is repeated in the output.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from attester.engines.http import EngineHttp
from attester.engines.naming import ask, introductions
from attester.errors import EngineError, EngineRefusalError
from verifier.answers.checks import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Call,
    EngineUsed,
    Operation,
    Token,
    family_of,
)
from verifier.errors import ReferenceValueError

T = TypeVar("T")
TOP: Final = 5
"""How many of the likeliest tokens are asked for at each position."""
_ANSWER_S: Final = 600.0
_FLOOR: Final = -1e4
"""Below it a log-probability says nothing; engines write −9999 for minus infinity."""


class _Top(Struct, frozen=True):
    token: str
    logprob: float


class _Content(Struct, frozen=True):
    token: str
    logprob: float
    top_logprobs: tuple[_Top, ...] = ()


class _Logprobs(Struct, frozen=True):
    content: tuple[_Content, ...] | None = None
    """As chats have it, and all of llama.cpp's answers."""
    tokens: tuple[str, ...] | None = None
    """As completions have it in OpenAI's API, with `top_logprobs`."""
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class _Function(Struct, frozen=True):
    name: str
    arguments: str = ""


class _ToolCall(Struct, frozen=True):
    function: _Function


class _Message(Struct, frozen=True):
    content: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None


class _Choice(Struct, frozen=True):
    message: _Message = _Message()
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(Struct, frozen=True):
    choices: tuple[_Choice, ...]
    usage: _Usage = _Usage()
    prompt_token_ids: tuple[int, ...] | None = None
    """vLLM's, for a chat; for a completion they are in the choice."""


class _Vector(Struct, frozen=True):
    embedding: str | list[float]
    index: int = 0


class _Vectors(Struct, frozen=True):
    data: tuple[_Vector, ...]
    usage: _Usage = _Usage()


class _Props(Struct, frozen=True):
    """llama.cpp's."""

    build_info: str
    model_path: str
    model_ftype: str = ""


class _ModelConfig(Struct, frozen=True):
    dtype: str = ""
    quantization: str | None = None


class _VllmConfig(Struct, frozen=True):
    model_config: _ModelConfig = _ModelConfig()


class _ServerInfo(Struct, frozen=True):
    """vLLM's, in its development mode."""

    vllm_config: _VllmConfig = _VllmConfig()


class _Template(Struct, frozen=True):
    prompt: str


class _Tokens(Struct, frozen=True):
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer of the engine."""

    text: str | None = None
    finish_reason: str | None = None
    calls: tuple[Call, ...] = ()
    prompt_tokens: int = 0
    prompt_ids: tuple[int, ...] | None = None
    tokens: tuple[Token, ...] | None = None
    vectors: tuple[bytes, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the operator says of an engine that does not say it itself; empty: it does."""

    name: str = ""
    version: str = ""
    dtype: str = ""


@asynccontextmanager
async def answer_engine(url: str, model: str, api_key: str | None = None) -> AsyncIterator[AnswerEngine]:
    """
    The engine at *url*.

    Raises:
        ReferenceValueError: prompts would cross a network that others can read.
    """
    parts = urlsplit(url)
    is_here = _is_loopback(parts.hostname or "")
    if parts.scheme != "https" and not is_here:
        raise ReferenceValueError(
            f"{url} is not on this machine: whoever reads the network would know the answers. Use https"
        )
    # Nobody stands between two processes of one machine: the certificate of a node's engine names nobody.
    connector = aiohttp.TCPConnector(ssl=not is_here)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with aiohttp.ClientSession(trust_env=False, connector=connector) as http:
        yield AnswerEngine(EngineHttp(http, url.rstrip("/"), headers), model)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AnswerEngine:
    """One model of an engine."""

    def __init__(self, http: EngineHttp, model: str) -> None:
        self._http = http
        self._model = model
        self._props: _Props | None = None
        self._gives_logprobs = True

    async def describe(self, named: Named, dtype: str) -> EngineUsed:
        """
        Which engine it is.

        Args:
            dtype: The precision of the reference value's weights, if neither the engine nor the operator says another.

        Raises:
            ReferenceValueError: it does not answer, or neither it nor the operator says what it is.
        """
        try:
            self._props = await ask(self._http, "/props", _Props)
            if self._props is not None:
                name, version = "llama.cpp", self._props.build_info
                dtype = self._props.model_ftype or dtype
            else:
                found = None
                for introduce in () if named.name else introductions(self._http):
                    found = await introduce() if found is None else found
                if found is None and not named.name:
                    raise ReferenceValueError(
                        f"the engine at {self._http.url} does not say what it is. Say it with --engine-name"
                    )
                name, version = (
                    (named.name, named.version) if found is None else (found.engine, found.version)
                )
                info = await ask(self._http, "/server_info?config_format=json", _ServerInfo)
                if info is not None:
                    config = info.vllm_config.model_config
                    dtype = config.quantization or config.dtype.removeprefix("torch.") or dtype
        except EngineError as error:
            raise ReferenceValueError(f"the engine: {error}") from None
        return EngineUsed(name=name, version=version, dtype=named.dtype or dtype, family=family_of(name))

    async def operation(self) -> Operation:
        """Which operation it serves.  Raises `ReferenceValueError` if none."""
        tries: tuple[tuple[Operation, dict[str, Any]], ...] = (
            (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}),
            (EMBEDDINGS, {"input": "Hello"}),
            (COMPLETIONS, {"prompt": "Hello", "max_tokens": 1}),
        )
        failed: EngineError | None = None
        for operation, body in tries:
            try:
                await self._post(_path(operation), {**body, "model": self._model}, msgspec.Raw)
            except EngineRefusalError as error:
                failed = failed or error
            except EngineError as error:
                raise ReferenceValueError(f"the engine: {error}") from None
            else:
                return operation
        raise ReferenceValueError(f"the engine serves no operation that can be minted: {failed}")

    @property
    def is_llama_cpp(self) -> bool:
        """Whether it has described itself as llama.cpp's server."""
        return self._props is not None

    def serves_file_of(self, folder: Path) -> bool:
        """Whether it is llama.cpp's server and its file is in *folder*."""
        if self._props is None:
            return False
        return Path(self._props.model_path).resolve().is_relative_to(folder.resolve())

    async def ask(self, operation: Operation, body: dict[str, Any]) -> Answered:
        """
        Ask once.

        Raises:
            ReferenceValueError: it refuses, does not answer, or answers what cannot be read.
        """
        try:
            if operation == EMBEDDINGS:
                return await self._ask_embeddings(body)
            return await self._ask_text(operation, body)
        except EngineError as error:
            raise ReferenceValueError(f"the engine: {error}") from None

    async def _ask_embeddings(self, body: dict[str, Any]) -> Answered:
        # Base64 has the numbers themselves, and is a fifth of their decimals.
        asked = {**body, "model": self._model, "encoding_format": "base64"}
        answer = await self._post(_path(EMBEDDINGS), asked, _Vectors)
        ordered = sorted(answer.data, key=lambda each: each.index)
        vectors = tuple(_vector(each.embedding) for each in ordered)
        return Answered(prompt_tokens=answer.usage.prompt_tokens, vectors=vectors)

    async def _ask_text(self, operation: Operation, body: dict[str, Any]) -> Answered:
        answer = await self._completed(operation, {**body, "model": self._model, "return_token_ids": True})
        if not answer.choices:
            raise EngineError("its answer has no choice")
        choice = answer.choices[0]
        return Answered(
            text=choice.message.content or "" if choice.text is None else choice.text,
            finish_reason=choice.finish_reason,
            calls=tuple(
                Call(name=each.function.name, arguments=each.function.arguments)
                for each in choice.message.tool_calls or ()
            ),
            prompt_tokens=answer.usage.prompt_tokens,
            prompt_ids=answer.prompt_token_ids
            or choice.prompt_token_ids
            or await self._tokenized(operation, body),
            tokens=_tokens(choice.logprobs),
        )

    async def _completed(self, operation: Operation, asked: dict[str, Any]) -> _Completion:
        """An answer with log-probabilities, or without them if the engine refuses them alone."""
        is_chat = operation == CHAT
        more = {"logprobs": True, "top_logprobs": TOP} if is_chat else {"logprobs": TOP}
        if self._gives_logprobs:
            try:
                return await self._post(_path(operation), {**asked, **more}, _Completion)
            except EngineRefusalError:
                answer = await self._post(_path(operation), asked, _Completion)
                self._gives_logprobs = False
                return answer
        return await self._post(_path(operation), asked, _Completion)

    async def _tokenized(self, operation: Operation, body: dict[str, Any]) -> tuple[int, ...] | None:
        """The ids of the rendered prompt by llama.cpp's own resources; `None` of other engines."""
        if self._props is None:
            return None
        if operation == CHAT:
            asked: dict[str, Any] = {
                name: part for name, part in body.items() if name in ("messages", "tools", "tool_choice")
            }
            text = (await self._post("/apply-template", asked, _Template)).prompt
        else:
            text = body["prompt"]
        tokens = {"content": text, "add_special": True, "parse_special": True}
        return (await self._post("/tokenize", tokens, _Tokens)).tokens

    async def _post(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        return await self._http.request("POST", path, kind, body, timeout_s=_ANSWER_S)


def _path(operation: Operation) -> str:
    return "/v1/" + operation.replace(".", "/")


def _vector(embedding: str | list[float]) -> bytes:
    try:
        if isinstance(embedding, str):
            data = base64.b64decode(embedding, validate=True)
            if not data or len(data) % 4:
                raise EngineError("a vector has a part of a number")
            return data
        return struct.pack(f"<{len(embedding)}f", *embedding)
    except (binascii.Error, struct.error, OverflowError):
        raise EngineError("a vector cannot be read") from None


def _tokens(logprobs: _Logprobs | None) -> tuple[Token, ...] | None:
    if logprobs is None:
        return None
    if logprobs.content is not None:
        return tuple(
            _token(each.token, [(top.token, top.logprob) for top in each.top_logprobs])
            for each in logprobs.content
        )
    if logprobs.tokens is None or logprobs.top_logprobs is None:
        return None
    tops = [list((top or {}).items()) for top in logprobs.top_logprobs]
    return tuple(_token(text, top) for text, top in zip(logprobs.tokens, tops, strict=False))


def _token(text: str, top: list[tuple[str, float]]) -> Token:
    # vLLM puts the token that was drawn before those that are likelier.
    ordered = sorted(top, key=lambda pair: -pair[1])
    given = tuple((piece[:512], max(value, _FLOOR)) for piece, value in ordered[:TOP])
    margin = given[0][1] - given[1][1] if len(given) > 1 else 0.0
    return Token(text=text[:512], margin=max(margin, 0.0), top=given)
