"""
What traffic looks like: how often which form of request came, without a word of anybody's text.  Pure.

A router counts it (`touchstone router traffic-profile`), and minted requests are drawn from it.  One shape has all its
features together: features that are drawn apart make requests that nobody sends, and those are recognised.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from verifier.answers.checks import CHAT, COMPLETIONS, EMBEDDINGS, Operation
from verifier.errors import RequestError

MAX_SHAPES: Final = 512
"""Of one model."""
MAX_PROFILE: Final = 8 << 20
"""Bytes."""
_MAX_MODELS: Final = 1000


class Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of one form."""

    count: Annotated[int, Meta(ge=1, le=1 << 40)]
    operation: Operation
    streamed: bool = False
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """`None`: the request had none, so the engine's own default counts."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The member that had it."""
    messages: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Of the user and of the assistant."""
    system: bool = False
    tools: Annotated[int, Meta(ge=0, le=1000)] = 0
    inputs: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """Texts of a request for embeddings."""
    characters: Annotated[tuple[int, int], Meta()] = (1, 512)
    """From and below: of all the text of the prompt."""
    seed: bool = False
    """Whether the request had a seed."""

    def __post_init__(self) -> None:
        low, high = self.characters
        if not 0 <= low < high <= 1 << 32:
            raise ValueError("characters must be two numbers, the smaller first")


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shapes of each model."""

    v: Literal[1] = 1
    models: Annotated[
        dict[Annotated[str, Meta(max_length=128)], Annotated[tuple[Shape, ...], Meta(max_length=MAX_SHAPES)]],
        Meta(max_length=_MAX_MODELS),
    ] = {}


_profile = msgspec.json.Decoder(Profile, strict=True)


def encode_profile(profile: Profile) -> bytes:
    """Give a profile as JSON."""
    return msgspec.json.format(msgspec.json.encode(profile, order="deterministic"), indent=1) + b"\n"


def decode_profile(data: bytes) -> Profile:
    """
    Read a profile.

    Raises:
        RequestError: it is too long or malformed.
    """
    if len(data) > MAX_PROFILE:
        raise RequestError(f"a traffic profile may have at most {MAX_PROFILE} bytes")
    try:
        return _profile.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the traffic profile is malformed: {error}") from None


def _chat(count: int, temperature: float | None, *, streamed: bool, system: bool, characters: int) -> Shape:
    return Shape(
        count=count,
        operation=CHAT,
        streamed=streamed,
        temperature=temperature,
        max_tokens=64,
        system=system,
        characters=(characters // 4, characters),
    )


DEFAULT_CHAT: Final = (
    _chat(4, None, streamed=True, system=False, characters=512),
    _chat(3, 0.7, streamed=True, system=True, characters=1024),
    _chat(2, 0, streamed=False, system=True, characters=512),
    _chat(1, 0, streamed=False, system=False, characters=256),
)
"""Without a profile: a guess, which any look at real traffic beats."""
DEFAULT_COMPLETIONS: Final = (
    Shape(count=1, operation=COMPLETIONS, temperature=0, max_tokens=64, characters=(64, 512)),
    Shape(count=1, operation=COMPLETIONS, temperature=0.7, max_tokens=64, characters=(64, 512)),
)
DEFAULT_EMBEDDINGS: Final = (
    Shape(count=3, operation=EMBEDDINGS, messages=0, inputs=1, characters=(32, 512)),
    Shape(count=1, operation=EMBEDDINGS, messages=0, inputs=8, characters=(256, 2048)),
)
DEFAULTS: Final = {
    CHAT: DEFAULT_CHAT,
    COMPLETIONS: DEFAULT_COMPLETIONS,
    EMBEDDINGS: DEFAULT_EMBEDDINGS,
}
