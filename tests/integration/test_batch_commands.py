"""`touchstone router batches …` against a router that runs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from router.commands.batches import batches
from tests.integration.batching import OWNER, batching, begin, client, ended, line
from tests.integration.gateway import PROMPT, Fleet, Running


async def run(fleet: Fleet, *arguments: str, name: str = OWNER) -> tuple[int, str]:
    given = [*arguments, "--url", fleet.url, "--key", f"sk-{name}"]
    done: Any = await asyncio.to_thread(CliRunner().invoke, batches, given)
    return done.exit_code, done.output


async def test_how_batches_go_is_shown(tmp_path) -> None:
    async with batching(tmp_path, clock=Running()) as fleet:
        caller = client(fleet)
        assert (await run(fleet, "list"))[1].endswith("No batch is open. Those that have ended: --all\n")
        batch = (await ended(caller, (await begin(caller, [line("a"), line("b")])).id)).id
        code, said = await run(fleet, "list", "--all", name="auditor")
        # The router of the test logs to the same place.
        assert code == 0
        assert said.endswith(f"{batch}  {OWNER}  completed    [####################] 2 of 2 lines\n")
        code, said = await run(fleet, "show", batch)
        assert json.loads(said)["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
        assert PROMPT not in said
        code, said = await run(fleet, "watch", batch)
        assert (code, said) == (0, "completed    [####################] 2 of 2 lines\n")
        code, said = await run(fleet, "list", "--json", "--all")
        assert [each["id"] for each in json.loads(said)["batches"]] == [batch]
        code, said = await run(fleet, "cancel", batch)
        assert code == 1
        assert "has ended already" in said
        code, said = await run(fleet, "show", batch, name="other")
        assert code == 1


async def test_a_batch_that_failed_is_watched_to_its_end(tmp_path) -> None:
    """What is wrong is printed, and the exit status says that it is not completed."""
    async with batching(tmp_path, clock=Running(), nodes=0) as fleet:
        caller = client(fleet)
        batch = (await begin(caller, [line("a"), b"{"])).id
        code, said = await run(fleet, "watch", batch, "--every", "0.1")
        assert code == 1
        assert "line 2: the line is no JSON object" in said
        assert said.endswith(f"{batch} is failed\n")


async def test_a_batch_is_cancelled(tmp_path) -> None:
    async with batching(tmp_path, clock=Running(), nodes=0) as fleet:
        batch = (await begin(client(fleet), [line("a")])).id
        status, said = await run(fleet, "cancel", batch, name="kim")
        # The router logs to the same place.
        assert (status, said.splitlines()[-1]) == (0, f"{batch} is cancelling.")
        assert (await ended(client(fleet), batch)).status == "cancelled"


@pytest.mark.parametrize("name", ["other"])
async def test_the_batch_of_another_key_is_not_cancelled(tmp_path, name: str) -> None:
    async with batching(tmp_path, nodes=0) as fleet:
        batch = (await begin(client(fleet), [line("a")])).id
        assert (await run(fleet, "cancel", batch, name=name))[0] == 1
