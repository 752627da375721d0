"""OpenAI's Batch and Files API, by the official client.  One router for all; each test has a key of its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from router.receipts import payload
from router.service.state import STATE
from tests.integration.batching import (
    batching,
    begin,
    client,
    ended,
    eventually,
    files_of,
    jsonl,
    keys_named,
    line,
    results,
)
from tests.integration.gateway import CHATS, PROMPT, TEXTS, VECTORS, Fleet, Running, by
from tests.unit.router.support import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = count()
LIMITS = {
    "max_file_bytes": 200_000,
    "max_lines": 300,
    "max_line_bytes": 20_000,
    "max_stored_bytes": 500_000,
    "max_open": 2,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("batches")
    keys = keys_named(*(f"k{number}" for number in range(80)))
    async with batching(folder, clock=Running(), keys=keys, batches=LIMITS) as fleet:
        yield fleet


@pytest.fixture
def name() -> str:
    return f"k{next(_numbers)}"


@pytest.fixture
def caller(fleet: Fleet, name: str) -> openai.AsyncOpenAI:
    return client(fleet, name)


async def test_the_official_client_has_a_batch_done(caller) -> None:
    """Answers stand in the order of the lines."""
    batch = await begin(caller, [line(f"id-{number}") for number in range(150)])
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", CHATS)
    done = await ended(caller, batch.id)
    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 150, 150, 0)
    found = await results(caller, done.output_file_id)
    assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(150)]
    assert {each["response"]["status_code"] for each in found} == {200}
    assert all(each["response"]["body"]["choices"][0]["message"]["content"] for each in found)
    assert done.error_file_id is None
    assert done.model == MODEL
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at < done.expires_at
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (TEXTS, {"model": MODEL, "prompt": PROMPT}),
        (VECTORS, {"model": MODEL, "input": "some text"}),
    ],
)
async def test_other_endpoints(caller, endpoint: str, body: Any) -> None:
    lines = [{"custom_id": "a", "method": "POST", "url": endpoint, "body": body}]
    done = await ended(caller, (await begin(caller, lines, endpoint)).id)
    (found,) = await results(caller, done.output_file_id)
    assert found["response"]["status_code"] == 200
    assert found["response"]["body"]["model"] == MODEL


async def test_a_file_comes_back_as_it_was(caller) -> None:
    data = jsonl([line("a"), line("b")]) + b"\r\n"
    file = await caller.files.create(file=("my file.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == (
        "file",
        len(data),
        "my file.jsonl",
        "batch",
    )
    assert (await caller.files.content(file.id)).content == data
    assert (await caller.files.retrieve(file.id)).id == file.id


async def test_a_file_of_many_parts_comes_back_as_it_was(fleet, caller) -> None:
    """Of parts of 256 KiB, where it may be larger."""
    data = jsonl([line(str(number), user="x" * 9000) for number in range(20)])
    assert (
        await caller.files.content((await caller.files.create(file=data, purpose="batch")).id)
    ).content == data


async def test_files_are_listed_in_pages(caller) -> None:
    made = [(await caller.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="batch")).id for n in range(3)]
    assert [file.id async for file in caller.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in caller.files.list(limit=1, order="asc")] == made
    assert [file.id async for file in caller.files.list(purpose="fine-tune")] == []


async def test_batches_are_listed_in_pages(caller) -> None:
    made = [(await ended(caller, (await begin(caller, [line("a")])).id)).id for _ in range(3)]
    assert [batch.id async for batch in caller.batches.list(limit=2)] == made[::-1]


async def test_what_was_said_of_a_batch_is_kept(caller) -> None:
    file = await caller.files.create(file=jsonl([line("a")]), purpose="batch")
    batch = await caller.batches.create(
        input_file_id=file.id, endpoint=CHATS, completion_window="24h", metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    done = await ended(caller, batch.id)
    assert done.metadata == {"job": "nightly"}
    output = await caller.files.retrieve(done.output_file_id)
    assert output.expires_at - output.created_at == 3600
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert len((await caller.files.content(output.id)).content) == output.bytes


async def test_a_batch_that_is_asked_for_twice_with_one_key_is_one(caller) -> None:
    """A client that did not hear the answer sends it again."""
    file = await caller.files.create(file=jsonl([line("a")]), purpose="batch")
    made = [
        await caller.batches.create(
            input_file_id=file.id,
            endpoint=CHATS,
            completion_window="24h",
            extra_headers={"Idempotency-Key": "once"},
        )
        for _ in range(2)
    ]
    assert made[0].id == made[1].id


# What is refused before anything is done.


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b'{"custom_id": "x", "method"', "invalid_json_line"),
        (b'{"custom_id": "\xff"}', "invalid_json_line"),
        (b"", "invalid_json_line"),
        (json.dumps(line("id-0")).encode(), "duplicate_custom_id"),
        (json.dumps({**line("x"), "method": "GET"}).encode(), "invalid_method"),
        (json.dumps(line("x", TEXTS)).encode(), "invalid_url"),
        (json.dumps(line("x", model="no/such")).encode(), "model_not_found"),
        (json.dumps(line("x", stream=True)).encode(), "invalid_request"),
        (json.dumps(line("x", max_tokens=-1)).encode(), "invalid_request"),
        (json.dumps({**line("x"), "more": 1}).encode(), "unknown_parameter"),
        (b'{"custom_id":"x","method":"POST","url":"' + CHATS.encode() + b'","body":{"model":"' + MODEL.encode()
         + b'","deep":' + b"[" * 70 + b"]" * 70 + b"}}", "invalid_request"),
    ],
)  # fmt: skip
async def test_a_bad_line_fails_the_batch_before_it_begins(
    fleet, name, caller, bad: bytes, code: str
) -> None:
    """It is named, no line is done, and nothing is charged."""
    batch = await begin(caller, [line("id-0"), bad, line("id-2")])
    done = await ended(caller, batch.id)
    assert (done.status, done.failed_at is not None) == ("failed", True)
    assert [(each.line, each.code) for each in done.errors.data] == [(2, code)]
    assert (done.request_counts.total, done.output_file_id, done.error_file_id) == (0, None, None)
    assert await rows(fleet, "SELECT count(*) AS n FROM job_ranges WHERE job = ?", batch.id) == [{"n": 0}]
    assert await rows(fleet, "SELECT count(*) AS n FROM budgets WHERE name = ?", name) == [{"n": 0}]


async def rows(fleet: Fleet, sql: str, *parameters: Any) -> Any:
    async with fleet.app[STATE].jobs.db.read() as tx:
        return await tx.all(sql, *parameters)


async def test_each_bad_line_is_named_up_to_a_hundred(caller) -> None:
    done = await ended(caller, (await begin(caller, [b"{"] * 250)).id)
    assert [each.line for each in done.errors.data] == list(range(1, 101))


async def test_blank_lines_at_the_end_are_no_lines(caller) -> None:
    done = await ended(caller, (await begin(caller, jsonl([line("a")]) + b"\n \r\n\n")).id)
    assert (done.status, done.request_counts.total) == ("completed", 1)


async def test_lines_may_end_as_windows_ends_them(caller) -> None:
    data = jsonl([line("a"), line("b")]).replace(b"\n", b"\r\n")
    assert (await ended(caller, (await begin(caller, data)).id)).request_counts.completed == 2


async def test_a_file_of_blank_lines_has_no_lines(caller) -> None:
    done = await ended(caller, (await begin(caller, b"\n\n")).id)
    assert [(each.code, each.line) for each in done.errors.data] == [("empty_file", None)]


async def upload_refused(fleet: Fleet, name: str, data: bytes, **given: Any) -> openai.APIStatusError:
    """And that it leaves no trace."""
    with pytest.raises(openai.APIStatusError) as caught:
        await client(fleet, name).files.create(file=data, purpose="batch", **given)
    assert await rows(fleet, "SELECT id FROM files WHERE owner = ?", name) == []
    return caught.value


async def test_an_empty_file_is_refused(fleet, name) -> None:
    error = await upload_refused(fleet, name, b"")
    assert (error.status_code, error.code) == (400, "empty_file")


async def test_a_line_that_is_too_long_is_refused_at_the_upload(fleet, name) -> None:
    error = await upload_refused(fleet, name, b"{}\n" + b"x" * 20_001)
    assert (error.status_code, error.code) == (413, "line_too_long")
    assert "line 2" in str(error)


async def test_too_many_lines_are_refused_at_the_upload(fleet, name) -> None:
    error = await upload_refused(fleet, name, b"{}\n" * 301)
    assert (error.status_code, error.code) == (413, "too_many_lines")


async def test_a_file_that_is_too_large_is_refused_unread(fleet, name) -> None:
    error = await upload_refused(fleet, name, (b"x" * 10_000 + b"\n") * 40)
    assert (error.status_code, error.code) == (413, "file_too_large")


async def test_a_file_that_does_not_say_how_large_it_is_is_refused_while_it_comes(fleet, name) -> None:
    """It is read up to the bound, and not further."""
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while sent < 50_000_000:
            sent += 10_001
            yield b"x" * 10_000 + b"\n"

    headers = {**by(name), "Content-Type": "multipart/form-data; boundary=b"}
    try:
        async with fleet.http.post(fleet.url + "/v1/files", data=body(), headers=headers) as response:
            assert response.status == 413
    except ConnectionError:
        # The router does not wait for the rest.
        pass
    assert sent < 10_000_000
    assert await rows(fleet, "SELECT id FROM files WHERE owner = ?", name) == []


async def test_bytes_are_counted_where_nobody_says_how_many_come(fleet, name) -> None:
    """Without a length, and with few lines."""

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(11):
            yield b"x" * 19_900 + b"\n"

    headers = {**by(name), "Content-Type": "multipart/form-data; boundary=b"}
    async with fleet.http.post(fleet.url + "/v1/files", data=body(), headers=headers) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "file_too_large")


async def test_what_a_key_has_stored_is_bounded(fleet, name, caller) -> None:
    data = b"x" * 9999 + b"\n"
    for _ in range(2):
        await caller.files.create(file=data * 19, purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        await caller.files.create(file=data * 19, purpose="batch")
    assert caught.value.code == "storage_limit_exceeded"
    assert len(await files_of(caller)) == 2


@pytest.mark.parametrize("purpose", ["fine-tune", ""])
async def test_other_purposes_are_refused(caller, purpose: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
        await caller.files.create(file=b"{}", purpose=purpose)


@pytest.mark.parametrize("seconds", [1, 3599, 2_592_001])
async def test_a_time_to_keep_a_file_is_bounded(caller, seconds: int) -> None:
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        await caller.files.create(
            file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
        )


# fmt: off
RAW = {
    "no boundary": ("multipart/form-data", b"x"),
    "another type": ("application/json", b"{}"),
    "cut off": ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx'),
    "no parts": ("multipart/form-data; boundary=b", b"--b--\r\n"),
    "nonsense": ("multipart/form-data; boundary=b", b"nonsense"),
    "file twice": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n' * 2 + b"--b--\r\n",
    ),
    "a long field": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n",
    ),
    "many parts": (
        "multipart/form-data; boundary=b",
        b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % n for n in range(20)) + b"--b--\r\n",
    ),
    "encoded": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64\r\n\r\ne30=\r\n--b--',
    ),
    "a part in a part": (
        "multipart/form-data; boundary=b",
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
async def test_a_malformed_upload_is_refused(fleet, name, case: str) -> None:
    kind, body = RAW[case]
    headers = {**by(name), "Content-Type": kind}
    async with fleet.http.post(fleet.url + "/v1/files", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"]
    assert await rows(fleet, "SELECT id FROM files WHERE owner = ?", name) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"completion_window": "169h"}, "completion_window"),
        ({"completion_window": "24H"}, "completion_window"),
        ({"completion_window": "24"}, "completion_window"),
        ({"metadata": {"a" * 65: "b"}}, None),
        ({"metadata": {"a": "b" * 513}}, None),
        ({"metadata": {str(n): "" for n in range(17)}}, None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 10}}, None),
        ({"unknown": 1}, None),
        ({"input_file_id": 7}, None),
    ],
)
async def test_a_batch_without_the_form_is_refused(fleet, name, change: Any, param: str | None) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHATS, "completion_window": "24h", **change}
    status, answer, _ = await fleet.post(body, "/v1/batches", **by(name))
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize("window", ["24h", "48h", "7d"])
async def test_windows(caller, window: str) -> None:
    batch = await begin(caller, [line("a")], window=window)
    hours = int(window[:-1]) * (24 if window[-1] == "d" else 1)
    assert batch.expires_at - batch.created_at == hours * 3600
    await ended(caller, batch.id)


async def test_a_batch_of_no_file_is_refused(caller) -> None:
    with pytest.raises(openai.NotFoundError):
        await caller.batches.create(input_file_id="file-1", endpoint=CHATS, completion_window="24h")


async def test_results_are_no_input(caller) -> None:
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    with pytest.raises(openai.NotFoundError):
        await caller.batches.create(
            input_file_id=done.output_file_id, endpoint=CHATS, completion_window="24h"
        )


# Whose it is.


@pytest.mark.parametrize("who", ["stranger", "another", "auditor", "kim"])
async def test_files_are_their_owners_alone(fleet, name, caller, who: str) -> None:
    """Not even auditors and administrators read what users have written."""
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    headers = {} if who == "stranger" else by("k79" if who == "another" else who)
    for file in (done.input_file_id, done.output_file_id):
        for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
            async with fleet.http.get(fleet.url + path, headers=headers) as response:
                assert response.status == (401 if who == "stranger" else 404)
        async with fleet.http.delete(f"{fleet.url}/v1/files/{file}", headers=headers) as response:
            assert response.status == {"stranger": 401, "auditor": 403}.get(who, 404)
    async with fleet.http.get(f"{fleet.url}/v1/batches/{done.id}", headers=headers) as response:
        assert response.status == (401 if who == "stranger" else 404)
    assert len((await caller.files.content(done.output_file_id)).content) > 100


async def test_people_who_look_after_a_router_see_how_batches_go(fleet, name, caller) -> None:
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    for who, sees in (("auditor", True), ("kim", True), (name, True), ("k79", False)):
        status, shown = await fleet.get(f"/api/v1/batches/{done.id}", **by(who))
        assert status == (200 if sees else 404)
        _, listed = await fleet.get("/api/v1/batches", **by(who))
        assert (done.id in [each["id"] for each in listed["batches"]]) is sees
        if sees:
            assert (shown["owner"], shown["status"]) == (name, "completed")
            assert PROMPT not in json.dumps(shown)


async def test_an_auditor_cancels_nothing(fleet, caller) -> None:
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    async with fleet.http.post(
        f"{fleet.url}/api/v1/batches/{done.id}/cancel", headers=by("auditor")
    ) as response:
        assert response.status == 403


async def test_another_key_uses_no_file(fleet, caller) -> None:
    file = await caller.files.create(file=jsonl([line("a")]), purpose="batch")
    with pytest.raises(openai.NotFoundError):
        await client(fleet, "k79").batches.create(
            input_file_id=file.id, endpoint=CHATS, completion_window="24h"
        )


# Ends.


async def test_a_deleted_file_is_gone(fleet, caller) -> None:
    """What was in it too."""
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    for file in (done.input_file_id, done.output_file_id):
        assert (await caller.files.delete(file)).deleted
        with pytest.raises(openai.NotFoundError):
            await caller.files.content(file)
    left = "SELECT 1 AS n FROM job_lines WHERE job = ? UNION ALL SELECT 1 FROM file_parts WHERE file = ?"
    await eventually(lambda: rows(fleet, left, done.id, done.input_file_id), lambda found: not found)
    assert await files_of(caller) == []
    assert (await caller.batches.retrieve(done.id)).status == "completed"


async def test_an_ended_batch_cannot_be_cancelled(caller) -> None:
    done = await ended(caller, (await begin(caller, [line("a")])).id)
    with pytest.raises(openai.ConflictError) as caught:
        await caller.batches.cancel(done.id)
    assert caught.value.code == "batch_ended"


async def test_each_answer_has_a_receipt_of_its_line(fleet, name, caller) -> None:
    """Its digests are of what stands in the files, and together they have the batch's usage."""
    lines = [line(f"id-{number}") for number in range(70)]
    done = await ended(caller, (await begin(caller, lines)).id)
    data = (await caller.files.content(done.output_file_id)).content
    total = 0
    for number, (each, raw) in enumerate(
        zip(await results(caller, done.output_file_id), data.split(b"\n"), strict=False)
    ):
        told = await receipt(fleet, name, each["response"]["request_id"])
        assert told["batch"] == {"id": done.id, "line": number + 1}
        body = raw[raw.index(b'"body":') + 7 : raw.rindex(b'},"error"')]
        assert told["response"]["sha256"] == hashlib.sha256(body).hexdigest()
        sent = json.dumps(lines[number]["body"]).encode()
        assert told["request"] == {
            "method": "POST", "path": CHATS, "salted": False, "sha256": hashlib.sha256(sent).hexdigest()
        }  # fmt: skip
        assert told["outcome"] == "completed"
        total += told["usage"]["prompt"] + told["usage"]["completion"]
    assert total == done.usage.total_tokens
    spent = await rows(fleet, "SELECT router, tokens FROM budgets WHERE name = ?", name)
    assert [each["router"] for each in spent] == [" lines"]


async def receipt(fleet: Fleet, name: str, receipt_id: str) -> Any:
    async with fleet.http.get(f"{fleet.url}/api/v1/receipts/{receipt_id}", headers=by(name)) as response:
        assert response.status == 200
        token = await response.text()
    middle = token.split(".")[1]
    data = base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))
    payload.decode(data)
    return json.loads(data)
