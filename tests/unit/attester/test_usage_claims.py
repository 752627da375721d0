"""Usage claims: one form, signed by the node, bounded; and the counts that they are made from."""

from __future__ import annotations

import datetime as dt
import os
import signal
from pathlib import Path

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester import cbor, cose, usage_claims, usage_counts
from attester.claim_keeper import ClaimKeeper, claims_of
from attester.errors import UsageClaimError
from attester.front.usage import UsageFinder
from attester.usage_claims import MAX_CLAIM, UNKNOWN, make, read, sign

KEY = cose.PrivateKey.generate(cose.ED25519)
OTHER = cose.PrivateKey.generate(cose.ED25519)
CLAIM = make("node-1", "router-1", "2026-11-30", {"m": (3, 100, 50)})


def test_a_claim_comes_back_as_it_was_signed() -> None:
    signed = read(sign(CLAIM, KEY))
    signed.verify(KEY.public)
    assert signed.claim == CLAIM


def test_a_claim_of_another_key_is_refused() -> None:
    with pytest.raises(UsageClaimError) as caught:
        read(sign(CLAIM, OTHER)).verify(KEY.public)
    assert caught.value.is_forged


def test_a_claim_that_names_the_key_and_is_signed_by_another_is_refused() -> None:
    message = cose.Sign1.decode(sign(CLAIM, KEY), max_size=MAX_CLAIM)
    other = cose.Sign1.decode(sign(CLAIM, OTHER), max_size=MAX_CLAIM)
    forged = cbor.encode(cbor2.CBORTag(18, [message.protected, {}, message.payload, other.signature]))
    with pytest.raises(UsageClaimError):
        read(forged).verify(KEY.public)


@given(st.integers(0, len(sign(CLAIM, KEY)) - 1), st.integers(1, 255))
def test_no_byte_of_a_claim_can_be_altered(place: int, flip: int) -> None:
    data = bytearray(sign(CLAIM, KEY))
    data[place] ^= flip
    with pytest.raises(UsageClaimError):
        read(bytes(data)).verify(KEY.public)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises(UsageClaimError):
        read(data)


def _signed(**changes: object) -> bytes:
    members = {**msgspec.to_builtins(CLAIM), **changes}
    return cose.sign(cbor.encode(members), KEY, header={cose.TYP: usage_claims.MEDIA_TYPE})


@pytest.mark.parametrize(
    "changes",
    [
        {"day": "2026-02-30"},
        {"day": "2026-11-30\n"},
        {"domain": "touchstone/usage-claim/2"},
        {"node": ""},
        {"router": "r\n1"},
        {"more": 1},
        {"used": [{"model": "m", "exchanges": -1, "prompt": 0, "completion": 0}]},
        {"used": [{"model": "m", "exchanges": 1 << 53, "prompt": 0, "completion": 0}]},
        {"used": [{"model": "m", "exchanges": 1, "prompt": 0, "completion": 0}] * 2},
        {"used": [{"model": m, "exchanges": 1, "prompt": 0, "completion": 0} for m in ("b", "a")]},
        {"used": [{"model": f"{n:03}", "exchanges": 1, "prompt": 0, "completion": 0} for n in range(65)]},
    ],
)
def test_a_claim_in_another_form_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageClaimError):
        read(_signed(**changes))


def test_a_claim_that_is_too_large_is_not_read() -> None:
    with pytest.raises(UsageClaimError):
        read(sign(CLAIM, KEY) + b"\0" * MAX_CLAIM)


def test_models_beyond_the_bound_are_claimed_together() -> None:
    claim = make("n", "r", "2026-11-30", {f"m{n:03}": (1, 2, 3) for n in range(100)})
    assert len(claim.used) == 64
    assert claim.used[0] == usage_claims.Used(model=UNKNOWN, exchanges=37, prompt=74, completion=111)
    assert len(sign(claim, KEY)) <= MAX_CLAIM


def test_what_was_counted_is_claimed_once_its_day_is_over(tmp_path: Path) -> None:
    counter = usage_counts.UsageCounter(tmp_path / "usage")
    counter.add("2026-11-29", "router-1", "m", 10, 5)
    counter.add("2026-11-29", "router-1", "m", 1, 1)
    counter.add("2026-11-29", "router-2", "m", 7, 7)
    counter.add("2026-11-30", "router-1", "m", 9, 9)
    counter.close()
    folder = tmp_path / "usage"
    keeper = ClaimKeeper(folder, "node-1", lambda: KEY, now=lambda: _at("2026-11-30T00:02:01"))
    made = keeper.keep()
    assert len(made) == 2
    assert keeper.keep() == []
    signed = read(usage_counts.claim_of(folder, "2026-11-29", "router-1").read_bytes())
    signed.verify(KEY.public)
    assert signed.claim == make("node-1", "router-1", "2026-11-29", {"m": (2, 11, 6)})
    assert usage_counts.days_claimed(folder, "router-1") == ["2026-11-29"]


def test_a_day_is_not_claimed_before_it_is_over(tmp_path: Path) -> None:
    usage_counts.UsageCounter(tmp_path).add("2026-11-29", "router-1", "m", 10, 5)
    assert ClaimKeeper(tmp_path, "n", lambda: KEY, now=lambda: _at("2026-11-30T00:01:59")).keep() == []


def test_old_files_are_dropped(tmp_path: Path) -> None:
    usage_counts.UsageCounter(tmp_path).add("2026-01-01", "router-1", "m", 10, 5)
    ClaimKeeper(tmp_path, "n", lambda: KEY, now=lambda: _at("2026-11-30T12:00:00")).keep()
    assert usage_counts.days_counted(tmp_path) == []


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    usage_counts.UsageCounter(tmp_path).add("2026-11-30", "r", "m", 10, 5)
    path = usage_counts.log_of(tmp_path, "2026-11-30")
    path.write_bytes(path.read_bytes() + b'["r","m",1,9')
    usage_counts.UsageCounter(tmp_path).add("2026-11-30", "r", "m", 1, 1)
    assert usage_counts.read_counts(path) == {("r", "m"): (2, 11, 6)}


def test_what_was_counted_survives_a_kill(tmp_path: Path) -> None:
    """By `kill -9`, at any moment after the answer."""
    child = os.fork()
    if not child:
        counter = usage_counts.UsageCounter(tmp_path)
        for _ in range(100):
            counter.add("2026-11-30", "r", "m", 10, 5)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert usage_counts.read_counts(usage_counts.log_of(tmp_path, "2026-11-30")) == {
        ("r", "m"): (100, 1000, 500)
    }


def test_a_long_day_is_summed_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_counts, "MAX_LOG", 500)
    counter = usage_counts.UsageCounter(tmp_path)
    for _ in range(100):
        counter.add("2026-11-30", "r", "m", 10, 5)
    counter.close()
    path = usage_counts.log_of(tmp_path, "2026-11-30")
    assert usage_counts.read_counts(path) == {("r", "m"): (100, 1000, 500)}
    assert path.stat().st_size < 600


def test_the_nodes_own_looks_are_not_claimed(tmp_path: Path) -> None:
    usage_counts.UsageCounter(tmp_path).add("2026-11-30", "this node", "m", 10, 5)
    assert claims_of(tmp_path, "n", "2026-11-30") == []


ANSWERS = [
    (b'{"id":"x","usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}', (12, 34)),
    (b'data: {"usage":null}\n\ndata: {"usage": {"prompt_tokens":1,"completion_tokens":2}}\n\n', (1, 2)),
    (
        b'{"content":"say \\"usage\\":{\\"prompt_tokens\\":9}","usage":{"prompt_tokens":1,"completion_tokens":2}}',
        (1, 2),
    ),
    (
        b'data: {"message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\ndata: {"usage":{"output_tokens":40}}\n\n',
        (7, 40),
    ),
    (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"details":{"text":"}{"}}}', (3, 4)),
    (b'{"usage":{"prompt_tokens":-3,"completion_tokens":"4"}}', (0, 0)),
    (b'{"usage":"none"}', (0, 0)),
    (b"no JSON at all", (0, 0)),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_the_usage_of_an_answer_is_found_however_it_is_cut(answer: bytes, expected: tuple[int, int]) -> None:
    for size in (1, 2, 5, 17, len(answer)):
        finder = UsageFinder()
        for start in range(0, len(answer), size):
            finder.feed(answer[start : start + size])
        assert (finder.prompt, finder.completion) == expected


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'"usage"', b'"usage":{', b"}", b'"', b"\\"])))
def test_no_answer_breaks_the_finder(parts: list[bytes]) -> None:
    finder = UsageFinder()
    for part in parts:
        finder.feed(part)


def _at(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()
