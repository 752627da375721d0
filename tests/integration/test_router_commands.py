"""`touchstone verifier router`: who is listed, and a key that a person removes for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.maintenance import real_clock
from tests.integration.test_api_keys import run
from tests.integration.test_routers import entry, listed, made, register, secret
from verifier.commands.rollout import policy as policy_commands
from verifier.roles import Role

STORES = ("sqlite", "postgres")


@pytest.fixture
def clock() -> Any:
    """The commands read the real one."""
    return real_clock()


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}, "policy": {"workers": 1}}


async def remove(verifier: Any, key: str, *more: str) -> tuple[int, str]:
    return await run(verifier, "router", "remove", key, "--reason", "its disk was lost", *more)


async def test_the_list_has_each_router_with_its_state(verifier) -> None:
    """Also those that are listed no more."""
    one, two = made(verifier), made(verifier)
    await register(verifier, one, await secret(verifier, "router-1"))
    await register(verifier, two, await secret(verifier, "router-2"))
    await run(verifier, "key", "revoke", "router-2")
    code, said = await run(verifier, "router", "list")
    assert code == 0
    assert one.certificate.spki_sha256.hex()[:16] in said
    code, said = await run(verifier, "router", "list", "--json")
    found = [(each["name"], each["state"]) for each in json.loads(said.splitlines()[-1])]
    assert found == [("router-1", "listed"), ("router-2", "ended")]


async def test_one_by_the_token_of_the_home_is_listed(verifier) -> None:
    """The command knows the home's tokens as the service does."""
    await register(verifier, made(verifier), verifier.service.router_token)
    _, said = await run(verifier, "router", "list", "--json")
    assert json.loads(said.splitlines()[-1])[0]["state"] == "listed"


async def test_a_removed_key_is_gone_at_once_and_does_not_come_back(verifier) -> None:
    """Its credential may register another one."""
    router, token = made(verifier), await secret(verifier)
    await register(verifier, router, token)
    code, said = await remove(verifier, router.certificate.spki_sha256.hex()[:12])
    assert (code, "Removed a key of router-1." in said) == (0, True)
    assert await listed(verifier) == []
    assert await register(verifier, router, token) == (403, "registration.removed")
    other = made(verifier)
    assert (await register(verifier, other, token))[0] == 200
    assert await listed(verifier) == [entry("router-1", other)]
    assert (await remove(verifier, router.certificate.spki_sha256.hex()))[0] != 0


async def test_who_removed_it_and_why_is_in_the_history(verifier) -> None:
    """By the name of the key, if one is given."""
    router = made(verifier)
    await register(verifier, router, await secret(verifier))
    file = Path(verifier.home.path) / "kim.key"
    file.write_text(await secret(verifier, "ada", role=Role.ADMINISTRATOR))
    spki = router.certificate.spki_sha256.hex()
    assert (await remove(verifier, spki, "--key-file", str(file)))[0] == 0
    _, found = await verifier.get("/api/v1/policies/history")
    row = next(each for each in found["changes"] if each["action"] == "remove-router")
    assert (row["actor"], row["reason"], row["subject"]) == ("ada", "its disk was lost", spki)
    code, said = await run(verifier, "history", group=policy_commands)
    assert (code, "remove-router" in said) == (0, True)


@pytest.mark.parametrize("key", ["", "abc", "x" * 12, "0" * 12])
async def test_a_key_that_is_not_there_removes_nothing(verifier, key: str) -> None:
    """Nor one that could be any."""
    router = made(verifier)
    await register(verifier, router, await secret(verifier))
    assert (await remove(verifier, key))[0] != 0
    assert await listed(verifier) == [entry("router-1", router)]
