"""
The router's own count of tokens: what a node says of its work is not what it is paid by.

It counts text.  What an engine's chat template puts around the text, and the definitions of tools,
are not counted; nor are images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attester.errors import ConfigError
from attester.version import install_hint

_MAX_FILE: Final = 64 << 20
_MAX_PIECE: Final = 1 << 20
_MAX_ANSWER: Final = 4 << 20
_BYTES_PER_TOKEN: Final = 4
# Letters, a script and a sign that few vocabularies have: what a tokeniser cannot do shows at once.
_PROBE: Final = "Touchstone ꙮ 試金石 \U0001fa84"


class Tokeniser:
    """A model's tokeniser, as its ``tokenizer.json`` describes it."""

    def __init__(self, encode: Callable[[str], int]) -> None:
        self._encode = encode

    @classmethod
    def load(cls, path: Path) -> Tokeniser:
        """
        Read a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

        Raises:
            ConfigError: the package or the file is missing, the file is larger than 64 MiB, or it
                describes no tokeniser that can take any text.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                f"{path} is read with the package tokenizers: {install_hint('tokens')}"
            ) from None
        try:
            tokenizer = Tokenizer.from_buffer(_read(path))
        except ValueError as error:
            raise ConfigError(f"{path}: {str(error)[:200]}") from None
        # Published files cut and pad to the length that a model was trained with.
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(text: str) -> int:
            # This one of its functions keeps no offsets, and lets other threads run meanwhile.
            return len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

        try:
            encode(_PROBE)
        except Exception as error:  # noqa: BLE001  # the package raises nothing narrower
            raise ConfigError(f"{path} cannot take any text: {str(error)[:200]}") from None
        return cls(encode)

    def count(self, text: str) -> int:
        """
        Tokens of *text*, special ones not added.

        A text of more than 1 Mi characters is counted in pieces, cut before whitespace where there
        is any; a cut may change the count by a token.  It takes some tenths of a µs a character,
        without holding the GIL: long texts are for a thread.
        """
        try:
            return sum(map(self._encode, _pieces(text)))
        except Exception:  # noqa: BLE001  # the package raises nothing narrower
            # A lone surrogate, or what the vocabulary has no token for.
            return estimated(_utf8_length(text))


class TokenCounter:
    """
    The tokens of one answer, counted once, at its end.

    Without a tokeniser, and for what comes after the first 4 MiB, they are estimated.
    """

    __slots__ = ("_kept", "_kept_bytes", "_other_bytes", "_tokeniser", "_total")

    def __init__(self, tokeniser: Tokeniser | None) -> None:
        self._tokeniser = tokeniser
        # A list of the parts would be some fifty times as large where each is a letter or two.
        self._kept = io.StringIO()
        self._kept_bytes = 0
        self._other_bytes = 0
        self._total: int | None = None

    def add(self, text: str) -> None:
        """The next part of the answer's text."""
        size = _utf8_length(text)
        if self._tokeniser is not None and self._kept_bytes + size <= _MAX_ANSWER:
            self._kept.write(text)
            self._kept_bytes += size
        else:
            self._other_bytes += size
        self._total = None

    @property
    def size(self) -> int:
        """Bytes of UTF-8 that are to be counted by the tokeniser."""
        return self._kept_bytes

    def estimate(self) -> int:
        """As `total`, without the tokeniser."""
        return estimated(self._kept_bytes + self._other_bytes)

    def total(self) -> int:
        """Tokens of all that was added."""
        if self._total is None:
            counted = 0 if self._tokeniser is None else self._tokeniser.count(self._kept.getvalue())
            self._total = counted + estimated(self._other_bytes)
        return self._total


def estimated(text_bytes: int) -> int:
    """Tokens of so many bytes of UTF-8, without a tokeniser: one for every four that were begun."""
    return max(0, -(-text_bytes // _BYTES_PER_TOKEN))


def prompt_text(body: Mapping[str, Any]) -> str:
    """
    The text of a request: its messages with the arguments of their tool calls, prompt and input.

    A line each.  What is malformed, or given as token ids, contributes nothing.
    """
    parts: list[str] = []
    for message in _list(body.get("messages")):
        if isinstance(message, dict):
            parts += _content(message.get("content"))
            parts += _arguments(message)
    for name in ("prompt", "input"):
        value = body.get(name)
        parts += [text for text in _list(value) or [value] if isinstance(text, str)]
    return "\n".join(parts)


_NO_TEXT: Final = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "input",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "stop",
        "seed",
        "user",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "echo",
        "best_of",
        "encoding_format",
        "dimensions",
    }
)
"""What of a request adds no text to a prompt beside `prompt_text`."""


def counts_all(body: Mapping[str, Any]) -> bool:
    """Whether `prompt_text` has all of a request that an engine counts: nothing but known, plain texts."""
    if not body.keys() <= _NO_TEXT:
        return False
    for message in _list(body.get("messages")):
        if not isinstance(message, dict) or not message.keys() <= {"role", "content"}:
            return False
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in _list(message.get("content"))):
            return False
    return True


def templates(body: Mapping[str, Any]) -> int:
    """How many texts of a request a chat template may put something around."""
    return max(len(_list(body.get("messages"))), 1)


def prompt_ids(body: Mapping[str, Any]) -> int:
    """How many tokens a request gives as ids, which `prompt_text` has no text for."""
    count = 0
    for name in ("prompt", "input"):
        items = _list(body.get(name))
        for ids in (items, *(item for item in items if isinstance(item, list))):
            count += list(map(type, ids)).count(int)
    return count


def _content(value: Any) -> Iterator[str]:
    """The texts of a string, or of parts of content."""
    if isinstance(value, str):
        yield value
        return
    for part in _list(value):
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part["text"]


def _arguments(message: dict[str, Any]) -> Iterator[str]:
    """The arguments of a message's calls, in the older form too."""
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
        # Before the whitespace: many vocabularies have words with the space before them.
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        cut = cut if cut > 0 else end
        yield text[start:cut]
        start = cut
    yield text[start:]


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except ValueError:
        raise ConfigError(f"{str(path)!r} is not a path") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than {_MAX_FILE >> 20} MiB")
    return data
