"""
An answer that was minted, the answer that a node gave, and the verdict.  Pure.

Their bytes are the wire form between verifier and router, and the sealed form in the pool, so they are strict and
bounded.  Vectors are float32, little-endian, base64 in JSON.
"""

from __future__ import annotations

import math
import struct
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from verifier.errors import RequestError

MAX_TOKENS: Final = 1024
"""Tokens of a minted answer, and of one that is held against it."""
MAX_TEXT: Final = 65536
"""Characters of an answer."""
MAX_VECTORS: Final = 64
MAX_DIMENSIONS: Final = 16384
MAX_SEALED: Final = 4 * 1024 * 1024
"""Bytes of a minted answer as JSON."""
MAX_GIVEN: Final = MAX_SEALED
"""Bytes of a given answer as JSON."""

Operation: TypeAlias = Literal["chat.completions", "completions", "embeddings"]
"""An operation whose answers are checked: its path below ``/v1/``, with dots."""
CHAT: Final = "chat.completions"
COMPLETIONS: Final = "completions"
EMBEDDINGS: Final = "embeddings"
OPERATIONS: Final[tuple[Operation, ...]] = (CHAT, COMPLETIONS, EMBEDDINGS)
Kind: TypeAlias = Literal["agrees", "differs", "censored", "unusable"]
_Name = Annotated[str, Meta(max_length=128)]
_Piece = Annotated[str, Meta(max_length=512)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Count = Annotated[int, Meta(ge=0, le=1 << 31)]
_Logprob = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Seconds = Annotated[float, Meta(ge=0, le=1e6)]
_Top = Annotated[tuple[tuple[_Piece, _Logprob], ...], Meta(max_length=20)]
_Vector = Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_DIMENSIONS)]
_Vectors = Annotated[tuple[_Vector, ...], Meta(max_length=MAX_VECTORS)]


class Token(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One position of an answer."""

    text: _Piece
    margin: Annotated[float, Meta(ge=0, le=1e6)]
    """
    The log-probability (nat) of the first choice minus that of the second, before sampling: the same difference as of
    their logits.  0 if the engine gave fewer than two.
    """
    top: _Top = ()
    """The likeliest tokens with their log-probabilities (nat), the likeliest first."""


class Call(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of a tool in an answer."""

    name: _Name
    arguments: _Text
    """JSON, as the engine wrote it."""


class EngineUsed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine that answered while an answer was minted."""

    name: _Name
    """As nodes claim it in their evidence: `vllm`, `llama.cpp`, …"""
    version: _Name
    dtype: _Name
    """The precision in which it holds the weights: `float32`, `bfloat16`, `Q8_0`, …"""
    family: _Name
    """Engines of one family sample alike, and their numbers are near: `vllm`, `llama.cpp`, …"""


class Minted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer that was minted: what is asked, and what the true weights answer."""

    operation: Operation
    body: dict[str, Any]
    """The OpenAI request without `model`, `stream` and `stream_options`, and without what asks for log-probabilities."""
    streamed: bool = False
    """Whether requests of its shape are streamed: a router asks it so."""
    engine: EngineUsed
    made_ms: Annotated[int, Meta(ge=0)]
    text: _Text | None = None
    """`None` for embeddings."""
    finish_reason: _Name | None = None
    calls: Annotated[tuple[Call, ...], Meta(max_length=128)] = ()
    prompt_tokens: _Count = 0
    prompt_ids: Annotated[tuple[_Count, ...], Meta(max_length=32768)] | None = None
    """The token ids of the prompt as the engine rendered it, where it gives them."""
    tokens: Annotated[tuple[Token, ...], Meta(max_length=MAX_TOKENS)] | None = None
    """`None` if the engine gave no log-probabilities."""
    vectors: _Vectors | None = None
    """One for each input, for embeddings."""
    seeded: bool = False
    """Whether the answer was drawn, with a seed that `body` has."""
    stable: Annotated[int, Meta(ge=0, le=MAX_TEXT)] = 0
    """Up to where all mintings agreed: so many of `tokens`, or, without those, so many characters of `text`."""
    whole: bool = False
    """Whether all mintings agreed to the end, in the reason to finish and the calls too."""


class Given(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node answered, as the router has read it."""

    outcome: _Name
    """`completed`, or another outcome of the router (`router.model.outcomes`)."""
    text: _Text | None = None
    finish_reason: _Name | None = None
    calls: Annotated[tuple[Call, ...], Meta(max_length=128)] = ()
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    tokens: Annotated[tuple[Token, ...], Meta(max_length=MAX_TOKENS)] | None = None
    vectors: _Vectors | None = None
    family: _Name = ""
    """The engine family that the node's result declares."""
    seconds: _Seconds | None = None
    """From the request to the last byte."""
    first_token_s: _Seconds | None = None
    streamed: bool = False


class Verdict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a given answer says about the weights that gave it."""

    kind: Kind
    """
    `agrees`; `differs` from it beyond the tolerance; `censored`: it differs first where the true weights could have
    gone either way; `unusable`: nothing can be said, and nobody is to blame.
    """
    at: _Count | None = None
    """The position of the first difference."""
    margin: float | None = None
    """The minted margin there, in nat."""
    distance: float | None = None
    """Of vectors (relative L2) or of distributions."""
    matched: _Count = 0
    """How many positions agreed before that."""
    code: _Name = ""
    """A reason code, if it differs."""
    detail: Annotated[str, Meta(max_length=2000)] = ""


_T = TypeVar("_T")
_A = TypeVar("_A", Minted, Given)
_minted = msgspec.json.Decoder(Minted, strict=True)
_given = msgspec.json.Decoder(Given, strict=True)
_verdict = msgspec.json.Decoder(Verdict, strict=True)
_encoder = msgspec.json.Encoder(order="deterministic")


def encode(value: Minted | Given | Verdict) -> bytes:
    """Give the bytes of a value: JSON whose keys are in order, so that the same value has the same bytes."""
    return _encoder.encode(value)


def decode_minted(data: bytes) -> Minted:
    """
    Read a minted answer.

    Raises:
        RequestError: it is too long, malformed, or its vectors are no numbers.
    """
    return _checked(_decode(_minted, data, MAX_SEALED))


def decode_given(data: bytes) -> Given:
    """
    Read an answer that a node gave.

    Raises:
        RequestError: it is too long, malformed, or its vectors are no numbers.
    """
    return _checked(_decode(_given, data, MAX_GIVEN))


def decode_verdict(data: bytes) -> Verdict:
    """Read a verdict.  Raises `RequestError` if it is malformed."""
    return _decode(_verdict, data, MAX_TEXT)


def family_of(engine: str) -> str:
    """Give the family of an engine by the name that it claims: engines of one family answer alike."""
    return engine.lower()[:128]


def floats(vector: bytes) -> tuple[float, ...]:
    """Give the numbers of a vector.  Raises `RequestError` if one is not finite, or if a part of one is missing."""
    if len(vector) % 4:
        raise RequestError("a vector is float32: its bytes must be a multiple of four")
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    if not all(map(math.isfinite, numbers)):
        raise RequestError("a vector has a number that is not finite")
    return numbers


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes, limit: int) -> _T:
    if len(data) > limit:
        raise RequestError(f"an answer may have at most {limit} bytes")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the answer is malformed: {error}") from None


def _checked(value: _A) -> _A:
    for vector in value.vectors or ():
        floats(vector)
    return value
