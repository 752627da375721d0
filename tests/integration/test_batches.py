"""OpenAI's Batch and Files API, by the official client."""

from __future__ import annotations

from tests.integration.batching import batching, begin, client, ended, line, results
from tests.integration.gateway import CHATS


async def test_the_official_client_has_a_batch_done(tmp_path) -> None:
    async with batching(tmp_path) as fleet:
        caller = client(fleet)
        batch = await begin(caller, [line(f"id-{number}") for number in range(150)])
        assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", CHATS)
        done = await ended(caller, batch.id)
        assert done.status == "completed"
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (
            150,
            150,
            0,
        )
        found = await results(caller, done.output_file_id)
        assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(150)]
        assert done.error_file_id is None
