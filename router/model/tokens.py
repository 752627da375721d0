"""
The router's own count of tokens: callers are charged by it, and not by what nodes claim.

It counts text.  It does not count what an engine's chat template puts around the text, the
definitions of tools, or images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from attester.errors import ConfigError
from attester.version import install_hint

MAX_TOKENISER: Final = 64 << 20
"""Bytes of a ``tokenizer.json``."""
_MAX_PIECE: Final = 1 << 20
_MAX_ANSWER: Final = 4 << 20
_BYTES_PER_TOKEN: Final = 4
# Letters, a script and a sign that few vocabularies have show at once what a tokeniser cannot do.
_PROBE: Final = "Touchstone ꙮ 試金石 \U0001fa84"


class Count(Struct, frozen=True, gc=False):
    """How many tokens a text has."""

    tokens: int
    is_exact: bool
    """Whether the model's tokeniser has counted all of it."""


class Tokeniser:
    """A model's tokeniser, as its ``tokenizer.json`` describes it."""

    def __init__(self, encode: Callable[[str], int]) -> None:
        self._encode = encode

    @classmethod
    def parse(cls, data: bytes) -> Tokeniser:
        """
        Read the contents of a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

        Raises:
            ConfigError: the package is missing, *data* is larger than 64 MiB, or it describes no
                tokeniser that can take any text.  The message continues the file's name.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(f"is read with the package tokenizers: {install_hint('tokens')}") from None
        if len(data) > MAX_TOKENISER:
            raise ConfigError(f"is larger than {MAX_TOKENISER >> 20} MiB")
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except ValueError as error:
            raise ConfigError(f"is not a tokeniser: {str(error)[:200]}") from None
        # Published files truncate and pad to the length that a model was trained with.
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(text: str) -> int:
            # Of the package's functions this one keeps no offsets, and lets other threads run.
            return len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

        try:
            encode(_PROBE)
        except Exception as error:  # noqa: BLE001  # the package raises nothing narrower
            raise ConfigError(f"cannot take any text: {str(error)[:200]}") from None
        return cls(encode)

    def count(self, text: str) -> int:
        """
        Tokens of *text*, without special tokens.

        A text of more than 1 Mi characters is counted in pieces, cut before whitespace if there
        is any; a cut may change the count by a token.  Counting takes some tenths of a µs for
        each character and does not hold the GIL: long texts should be counted in a thread.
        """
        return self.measure(text).tokens

    def measure(self, text: str) -> Count:
        """`count`, and whether it is exact."""
        try:
            return Count(sum(map(self._encode, _pieces(text))), is_exact=len(text) <= _MAX_PIECE)
        except Exception:  # noqa: BLE001  # the package raises nothing narrower
            # The text has a lone surrogate, or something that the vocabulary has no token for.
            return Count(estimated(_utf8_length(text)), is_exact=False)


class TokenCounter:
    """
    Counts the tokens of one answer, once, at its end.

    Without a tokeniser, and after the first 4 MiB, the count is an estimate.
    """

    __slots__ = ("_counted", "_kept", "_kept_bytes", "_other_bytes", "_tokeniser")

    def __init__(self, tokeniser: Tokeniser | None) -> None:
        self._tokeniser = tokeniser
        # If each part is a letter or two, a list of them would be some fifty times as large.
        self._kept = None if tokeniser is None else io.StringIO()
        self._kept_bytes = 0
        self._other_bytes = 0
        self._counted: Count | None = None

    def add(self, text: str) -> None:
        """Add the next part of the answer's text."""
        size = len(text) if text.isascii() else _utf8_length(text)
        if self._kept is not None and self._kept_bytes + size <= _MAX_ANSWER:
            self._kept.write(text)
            self._kept_bytes += size
        else:
            self._other_bytes += size
        self._counted = None

    @property
    def size(self) -> int:
        """Bytes of UTF-8 that the tokeniser will count."""
        return self._kept_bytes

    def estimate(self) -> int:
        """`total` without the tokeniser."""
        return estimated(self._kept_bytes + self._other_bytes)

    def total(self) -> int:
        """Tokens of all that was added."""
        return self.count().tokens

    def count(self) -> Count:
        """`total`, and whether it is exact."""
        if self._counted is None:
            known = Count(0, is_exact=False)
            if self._tokeniser is not None and self._kept is not None:
                known = self._tokeniser.measure(self._kept.getvalue())
            tokens = known.tokens + estimated(self._other_bytes)
            self._counted = Count(tokens, is_exact=known.is_exact and not self._other_bytes)
        return self._counted


def estimated(text_bytes: int) -> int:
    """Tokens of so many bytes of UTF-8 without a tokeniser: one for every four bytes, rounded up."""
    return max(0, -(-text_bytes // _BYTES_PER_TOKEN))


def prompt_text(body: Mapping[str, Any]) -> str:
    """
    The text of a request: its messages with the arguments of their tool calls, prompt and input.

    One line each.  Malformed parts, and token ids, contribute nothing.
    """
    parts: list[str] = []
    for message in _list(body.get("messages")):
        if isinstance(message, dict):
            content = message.get("content")
            if isinstance(content, str):
                parts.append(content)
            else:
                parts += _content(content)
            if "tool_calls" in message or "function_call" in message:
                parts += _arguments(message)
    for name in ("prompt", "input"):
        if name in body:
            value = body[name]
            parts += [text for text in _list(value) or [value] if isinstance(text, str)]
    return "\n".join(parts)


def templates(body: Mapping[str, Any]) -> int:
    """How many texts of a request a chat template may add tokens to."""
    return max(len(_list(body.get("messages"))), 1)


def prompt_ids(body: Mapping[str, Any]) -> int:
    """How many tokens a request gives as ids: `prompt_text` has no text for them."""
    count = 0
    for name in ("prompt", "input"):
        if name not in body:
            continue
        items = _list(body[name])
        for ids in (items, *(item for item in items if isinstance(item, list))):
            count += list(map(type, ids)).count(int)
    return count


def _content(value: Any) -> Iterator[str]:
    """The texts of a message's content that is a list of parts."""
    for part in _list(value):
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part["text"]


def _arguments(message: dict[str, Any]) -> Iterator[str]:
    """The arguments of a message's tool calls, also in the older form."""
    calls = [call.get("function") for call in _list(message.get("tool_calls")) if isinstance(call, dict)]
    for function in (*calls, message.get("function_call")):
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield function["arguments"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _MAX_PIECE:
        end = start + _MAX_PIECE
        # Cut before the whitespace: many vocabularies have words together with the space before them.
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        cut = cut if cut > 0 else end
        yield text[start:cut]
        start = cut
    yield text[start:]
