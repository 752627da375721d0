"""Lines of jobs: split, read strictly, put together to ranges, and written."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import job_lines
from router.model.errors import JobLineError
from router.model.job_lines import (
    Line,
    LineSplitter,
    RangeMaker,
    in_one_line,
    read_line,
    result_line,
    unasked_line,
)

CHATS = "/v1/chat/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": CHATS, "body": {"model": "m"}}


def refused(data: bytes, number: int = 1) -> JobLineError:
    with pytest.raises(JobLineError) as caught:
        read_line(Line(number, 0, data), CHATS)
    return caught.value


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def other(**members: object) -> bytes:
    return json.dumps({**GOOD, **members}).encode()


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "invalid_json_line", "blank"),
        (b" \t\r", "invalid_json_line", "blank"),
        (b'{"custom_id": "a"', "invalid_json_line", "no JSON object"),
        (b"[1]", "invalid_json_line", "no JSON object"),
        (b"null", "invalid_json_line", "no JSON object"),
        (other() + b" {}", "invalid_json_line", "no JSON object"),
        (b"\xef\xbb\xbf" + other(), "invalid_json_line", "byte order mark"),
        (b'{"custom_id": "\xff"}', "invalid_json_line", "byte 16 of the line is not UTF-8"),
        (b'{"custom_id": "\xed\xa0\x80"}', "invalid_json_line", "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json_line", "no JSON object"),
        (without("custom_id"), "missing_required_parameter", "custom_id is missing"),
        (without("method"), "missing_required_parameter", "method is missing"),
        (without("url"), "missing_required_parameter", "url is missing"),
        (without("body"), "missing_required_parameter", "body is missing"),
        (other(extra=1), "unknown_parameter", "'extra' is not a member"),
        (other(custom_id=1), "invalid_json_line", "custom_id"),
        (other(custom_id=""), "invalid_custom_id", "1 to 512"),
        (other(custom_id="x" * 513), "invalid_custom_id", "1 to 512"),
        (other(custom_id="a\u2028b"), "invalid_custom_id", "can be printed"),
        (other(method="GET"), "invalid_method", "POST"),
        (other(method="post"), "invalid_method", "POST"),
        (other(url="/v1/completions"), "invalid_url", "'/v1/completions'"),
        (other(url="https://elsewhere/v1/chat/completions"), "invalid_url", "the endpoint of the batch"),
        (other(body=[]), "invalid_body", "object"),
        (other(body=None), "invalid_body", "object"),
        (other(body="{}"), "invalid_body", "object"),
    ],
)  # fmt: skip
def test_a_line_without_the_form_is_refused(data: bytes, code: str, said: str) -> None:
    error = refused(data)
    assert (error.code, error.line) == (code, 1)
    assert said in str(error)
    assert str(error).startswith("line 1: ")


def test_a_byte_order_mark_is_named_at_the_beginning_alone() -> None:
    assert "byte order mark" not in str(refused(b"\xef\xbb\xbf" + other(), number=2))


def test_a_carriage_return_before_the_line_feed_is_space() -> None:
    assert read_line(Line(1, 0, other() + b"\r"), CHATS).custom_id == "a"


def test_the_body_is_kept_as_it_stands() -> None:
    data = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"b" : 1.0, "a":"\\u00e9"}}'
    assert bytes(read_line(Line(1, 0, data), CHATS).body) == b'{"b" : 1.0, "a":"\\u00e9"}'


def test_what_is_said_of_a_line_can_be_shown() -> None:
    assert "\x1b" not in str(refused(other(url="\x1b[31m")))


def test_a_line_that_is_too_long_is_refused_before_it_is_there() -> None:
    splitter = LineSplitter(1000, 10)
    assert splitter.feed(b"a\n" + b"b" * 900) == [Line(1, 0, b"a")]
    with pytest.raises(JobLineError, match="line 2: the line has more than 1000 bytes") as caught:
        splitter.feed(b"b" * 101)
    assert caught.value.code == "line_too_long"


def test_a_line_of_the_greatest_length_is_taken() -> None:
    splitter = LineSplitter(3, 10)
    assert [line.data for line in [*splitter.feed(b"abc\nab"), *splitter.end()]] == [b"abc", b"ab"]


@pytest.mark.parametrize("data", [b"a\nb\nc\n", b"a\nb\nc", b"a\nb\n\n"])
def test_too_many_lines_are_refused(data: bytes) -> None:
    splitter = LineSplitter(10, 2)
    with pytest.raises(JobLineError, match="more than 2 lines") as caught:
        splitter.feed(data)
    assert (caught.value.code, caught.value.line) == ("too_many_lines", 3)


def test_as_many_lines_as_may_be_are_taken() -> None:
    splitter = LineSplitter(10, 2)
    assert len([*splitter.feed(b"a\nb\n"), *splitter.end()]) == 2


@given(st.lists(st.binary(max_size=8)), st.binary(max_size=8))
def test_a_file_is_split_alike_however_it_comes(chunks: list[bytes], last: bytes) -> None:
    """And each line's place is where it stands."""
    data = b"".join([*chunks, last])
    splitter = LineSplitter(1 << 20, 1 << 20)
    found = [line for chunk in [*chunks, last] for line in splitter.feed(chunk)] + splitter.end()
    assert [line.data for line in found] == (
        data.split(b"\n")[:-1] if data.endswith(b"\n") else data.split(b"\n")
    )[: len(found)]
    assert b"\n".join(line.data for line in found) == data.removesuffix(b"\n")
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert all(data[line.start : line.start + len(line.data)] == line.data for line in found)


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=300))
def test_ranges_have_each_line_once(sizes: list[int]) -> None:
    maker, start = RangeMaker(), 0
    for number, size in enumerate(sizes, 1):
        maker.add(Line(number, start, memoryview(b"x" * 400_000)[:size]))  # type: ignore[arg-type] # only its length
        start += size + 1
    found = maker.end()
    assert [each.number for each in found] == list(range(len(found)))
    assert [n for each in found for n in range(each.first_line, each.first_line + each.lines)] == list(
        range(1, len(sizes) + 1)
    )
    for each in found:
        inside = sizes[each.first_line - 1 : each.first_line - 1 + each.lines]
        assert each.size == sum(inside) + len(inside) - 1
        assert each.lines <= job_lines.RANGE_LINES
        assert each.size <= job_lines.RANGE_BYTES or each.lines == 1


@given(st.text())
def test_a_result_is_one_line_for_every_reader(text: str) -> None:
    """Also for Python's `str.splitlines`, which many programs use."""
    body = json.dumps({"text": text}, ensure_ascii=False, indent=1).encode(errors="replace")
    line = result_line("r", "a", 200, "q", in_one_line(body))
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["response"]["body"] == json.loads(body)


def test_a_result_has_the_bytes_that_its_receipt_is_of() -> None:
    body = in_one_line(b'{"a":\n "\xc2\x85"}')
    assert body in result_line("r", "a", 200, "q", body)


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert json.loads(in_one_line(b'{"a":"\xff"}'))["a"] == "\ufffd"


def test_the_forms_of_results() -> None:
    """As OpenAI's output and error files have them."""
    assert msgspec.json.decode(result_line("r", "a", 200, "q", b"{}")) == {
        "id": "r", "custom_id": "a", "response": {"status_code": 200, "request_id": "q", "body": {}}, "error": None,
    }  # fmt: skip
    assert msgspec.json.decode(unasked_line("r", "a", "batch_expired", "late")) == {
        "id": "r", "custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "late"},
    }  # fmt: skip
