"""The router's own count of tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import ConfigError
from fixtures.minilm import published_folder
from router.model import tokens
from router.model.tokens import TokenCounter, Tokeniser, estimated, prompt_ids, prompt_text

FILE = published_folder() / "tokenizer.json"
TOKENISER = Tokeniser.load(FILE)

NAMES = [
    "messages",
    "content",
    "type",
    "text",
    "prompt",
    "input",
    "tool_calls",
    "function",
    "arguments",
    "function_call",
    "choices",
    "message",
    "delta",
    "refusal",
    "reasoning",
    "reasoning_content",
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(NAMES)), inner, max_size=5),
    ),
    max_leaves=25,
)


def bodies(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with what should stand under *names* being anything."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


def test_tokens_are_counted_without_special_ones() -> None:
    """Two words, and neither a beginning nor an end."""
    assert TOKENISER.count("Hello, world!") == 4


def test_no_text_has_no_tokens() -> None:
    """Nothing is counted for nothing."""
    assert TOKENISER.count("") == 0


def test_the_length_the_model_was_trained_with_is_no_limit() -> None:
    """Its published file would cut at 128, and fill up to as many."""
    assert [TOKENISER.count("word " * n) for n in (1, 500)] == [1, 500]


def test_a_lone_surrogate_is_estimated() -> None:
    """It has no UTF-8, and no tokeniser takes it."""
    assert TOKENISER.count("hello \ud800") == 3


@pytest.mark.parametrize("between", [" ", "\n"])
def test_long_texts_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    """Cut where words end, they have as many tokens."""
    monkeypatch.setattr(tokens, "_MAX_PIECE", 64)
    text = between.join(["attestation"] * 300)
    assert TOKENISER.count(text) == 300 * TOKENISER.count("attestation")


def test_no_piece_is_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where there is nowhere to cut."""
    monkeypatch.setattr(tokens, "_MAX_PIECE", 64)
    seen: list[str] = []
    text = "x" * 200 + " " + "y" * 100 + " " * 100
    Tokeniser(lambda piece: seen.append(piece) or 1).count(text)  # type: ignore[func-returns-value]
    assert ("".join(seen), max(map(len, seen))) == (text, 64)


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_counting_never_fails(text: str) -> None:
    """Whatever the text; and there are no more tokens than bytes."""
    assert 0 <= TOKENISER.count(text) <= len(text.encode())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With what is wrong."""
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        Tokeniser.load(tmp_path / "none.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """It is named as well."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Tokeniser.load(tmp_path)


def test_a_path_that_cannot_be_is_refused() -> None:
    """It is no crash."""
    with pytest.raises(ConfigError, match="is not a path"):
        Tokeniser.load(Path("a\0b"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Before it is parsed."""
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        Tokeniser.load(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": "New"}}'])
def test_what_is_no_tokeniser_is_refused(tmp_path: Path, data: bytes) -> None:
    """With the file's name and the parser's words."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: "):
        Tokeniser.load(path)


def test_a_tokeniser_that_fails_at_unknown_words_is_refused(tmp_path: Path) -> None:
    """When it is loaded, not when somebody's request holds one."""
    document = json.loads(FILE.read_bytes())
    document["model"]["unk_token"] = "[NOPE]"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot take any text"):
        Tokeniser.load(path)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command to run."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'touchstone-attestation\[tokens\]'"):
        Tokeniser.load(FILE)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(-1, 0), (0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000), (10**18 + 1, 10**18 // 4 + 1)],
)
def test_an_estimate_is_one_for_every_four_bytes(size: int, expected: int) -> None:
    """And one for any text at all."""
    assert estimated(size) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "a\nb"),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, "a\nb"),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:…"}}]}]}, ""),
        ({"messages": [{"content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}]}, "{}"),
        ({"messages": [{"content": None, "function_call": {"arguments": "{}"}}]}, "{}"),
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a", "b"]}, "a\nb"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"prompt": [[1, 2], [3]]}, ""),
        ({"input": "a"}, "a"),
        ({"input": ["a", "b"]}, "a\nb"),
        ({"model": "m", "user": "u"}, ""),
    ],
)
def test_the_text_of_a_request(body: dict[str, Any], text: str) -> None:
    """What its forms have of it."""
    assert prompt_text(body) == text


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "text"},
        {"messages": ["text", 1, None]},
        {"messages": [{"content": 1}]},
        {"messages": [{"content": ["a"]}]},
        {"messages": [{"content": [{"type": "text", "text": 1}]}]},
        {"messages": [{"content": [{"text": "a"}]}]},
        {"messages": [{"tool_calls": {"function": {"arguments": "a"}}}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"a": "b"}}}]}]},
        {"prompt": {"a": "b"}},
        {"input": [{"a": "b"}, None]},
    ],
)
def test_the_malformed_contributes_nothing(body: dict[str, Any]) -> None:
    """It is a node's to refuse."""
    assert prompt_text(body) == ""


def test_beside_the_malformed_the_rest_counts() -> None:
    """One part that is nothing does not hide the others."""
    assert prompt_text({"messages": [None, {"content": ["x", {"type": "text", "text": "a"}]}]}) == "a"


@settings(max_examples=100)
@given(bodies("messages", "prompt", "input"))
def test_any_request_has_a_text(body: dict[str, Any]) -> None:
    """However malformed."""
    assert isinstance(prompt_text(body), str)
    assert prompt_ids(body) >= 0


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"prompt": [1, 2, 3]}, 3),
        ({"input": [[1, 2], [3]]}, 3),
        ({"input": ["a", "b"]}, 0),
        ({"prompt": [True, 1.5, None, "a"]}, 0),
        ({"prompt": 7}, 0),
        ({}, 0),
    ],
)
def test_tokens_given_as_ids_are_counted(body: dict[str, Any], count: int) -> None:
    """They have no text, and are not for nothing."""
    assert prompt_ids(body) == count


def test_a_stream_has_the_tokens_of_its_whole() -> None:
    """Not of its parts, where words are cut in two."""
    tally = TokenCounter(TOKENISER)
    for part in ("attest", "ation is ", "", "not an ave", "rage"):
        tally.add(part)
    assert tally.total() == TOKENISER.count("attestation is not an average")


def test_a_total_may_be_asked_for_on_the_way() -> None:
    """And goes on."""
    tally = TokenCounter(TOKENISER)
    tally.add("one ")
    first = tally.total()
    tally.add("two")
    assert (first, tally.total(), tally.total()) == (1, 2, 2)


def test_without_a_tokeniser_the_whole_is_estimated() -> None:
    """By bytes of UTF-8 in all, not by a token a part."""
    tally = TokenCounter(None)
    for part in "abcdefg试":
        tally.add(part)
    assert tally.total() == estimated(10)


@pytest.mark.parametrize("tokeniser", [None, TOKENISER])
def test_an_answer_without_text_has_no_tokens(tokeniser: Tokeniser | None) -> None:
    """Nothing came, nothing is booked."""
    assert TokenCounter(tokeniser).total() == 0


def test_an_endless_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the bound is estimated."""
    monkeypatch.setattr(tokens, "_MAX_ANSWER", 10)
    tally = TokenCounter(TOKENISER)
    for _ in range(100):
        tally.add("word ")
    assert (tally.total(), tally._kept.getvalue()) == (2 + estimated(98 * 5), "word word ")
