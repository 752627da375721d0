"""Keys: made, listed and revoked by command, looked up with each request, and by whom a policy is put in force."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fixtures.credentials import bearer
from tests.integration.lifecycle import archive, changed
from tests.integration.maintenance import real_clock
from verifier.commands.rollout import policy as policy_commands
from verifier.commands.verifier import verifier as commands
from verifier.errors import RequestError
from verifier.policy.bundle import Bundle
from verifier.roles import GRANTED, HOME_ADMIN, Caller, Role, with_note
from verifier.store import api_keys
from verifier.store.api_keys import NewKey

STORES = ("sqlite", "postgres")


@pytest.fixture
def clock() -> Any:
    """The commands read the real one."""
    return real_clock()


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1, "two_person": True},
    }


async def run(verifier: Any, *arguments: str, group: Any = commands) -> tuple[int, str]:
    given = [*arguments, "--home", str(verifier.home.path)]
    done = await asyncio.to_thread(CliRunner().invoke, group, given)
    return done.exit_code, done.output


async def opens(verifier: Any, key: str) -> int:
    async with verifier.stranger.get(f"{verifier.url}/api/v1/results", headers=bearer(key)) as response:
        return response.status


async def test_a_key_opens_until_it_is_revoked(verifier) -> None:
    """At once, for a verifier that runs."""
    code, said = await run(verifier, "key", "create", "rp-1", "--role", "relying-party", "--days", "1")
    assert code == 0
    key = said.split()[-1]
    assert len(key) == len(api_keys.PREFIX) + 43
    assert await opens(verifier, key) == 200
    code, said = await run(verifier, "key", "revoke", "rp-1")
    assert code == 0
    assert said.endswith("Revoked rp-1.\n")
    assert await opens(verifier, key) == 401
    assert (await run(verifier, "key", "revoke", "rp-1"))[0] != 0


async def test_a_name_is_held_by_one_live_key_at_a_time(verifier) -> None:
    """And free again after that; the old key stays revoked."""
    create = ("key", "create", "kim-2", "--role", "auditor")
    old = (await run(verifier, *create))[1].split()[-1]
    code, said = await run(verifier, *create)
    assert code != 0
    assert "Revoke it first" in said
    await run(verifier, "key", "revoke", "kim-2")
    new = (await run(verifier, *create))[1].split()[-1]
    assert [await opens(verifier, key) for key in (old, new)] == [401, 200]


async def test_the_list_has_every_key_and_no_secret(verifier) -> None:
    """With who made it, and its state."""
    made = (await run(verifier, "key", "create", "acme-1", "--role", "operator", "--operator", "acme"))[1]
    await run(verifier, "key", "revoke", "acme-1")
    _, said = await run(verifier, "key", "list", "--json")
    assert made.split()[-1] not in said
    found = {entry["name"]: entry for entry in json.loads(said.splitlines()[-1])}
    assert set(found) == {"acme-1", "kim"}
    entry = found["acme-1"]
    assert (entry["roles"], entry["operator"], entry["state"]) == (["operator"], "acme", "revoked")
    assert entry["created_by"].startswith("os:")
    assert "acme-1" in (await run(verifier, "key", "list"))[1]


async def test_a_key_can_go_to_a_file_of_its_owner(verifier, tmp_path: Path) -> None:
    """A file that is there is not replaced; one that cannot be written leaves the name free."""
    file, create = tmp_path / "x.key", ("key", "create", "x", "--role", "auditor", "--out")
    _, said = await run(verifier, *create, str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert await opens(verifier, file.read_text()) == 200
    assert file.read_text() not in said
    assert (await run(verifier, *create, str(file)))[0] != 0
    await run(verifier, "key", "revoke", "x")
    assert (await run(verifier, *create, str(tmp_path / "nowhere" / "x.key")))[0] != 0
    assert (await run(verifier, *create, str(tmp_path / "y.key")))[0] == 0


async def test_the_database_has_no_secret(verifier) -> None:
    """Who reads it can call nobody."""
    key = (await run(verifier, "key", "create", "x", "--role", "auditor"))[1].split()[-1]
    rows = await verifier.rows("SELECT * FROM api_keys WHERE name = ?", "x")
    assert key not in str(rows)
    assert rows[0]["digest"] == api_keys.digest_of(key)


@pytest.mark.parametrize("role", ["king", "node"])
async def test_a_role_of_a_later_version_opens_nothing_here(verifier, role: str) -> None:
    """And the key's other roles open what they open; a node is made by its signature alone."""
    key = await verifier.key("later", Role.AUDITOR)
    await verifier.service.db.write(
        lambda tx: tx.execute("UPDATE api_keys SET roles = ? WHERE name = ?", f'["{role}"]', "later")
    )
    assert await opens(verifier, key["Authorization"].partition(" ")[2]) == 403


@pytest.mark.parametrize(
    "wrong",
    [
        ("key", "create", "Kim Lee", "--role", "auditor"),
        ("key", "create", "os:kim", "--role", "auditor"),
        ("key", "create", HOME_ADMIN, "--role", "auditor"),
        ("key", "create", "https://id.example#kim", "--role", "auditor"),
        ("key", "create", "x" * 65, "--role", "auditor"),
        ("key", "create", "x"),
        ("key", "create", "x", "--role", "node"),
        ("key", "create", "x", "--role", "operator"),
        ("key", "create", "x", "--role", "auditor", "--operator", "acme"),
        ("key", "create", "x", "--role", "auditor", "--days", "0"),
        ("key", "revoke", "nobody"),
    ],
    ids=lambda wrong: " ".join(wrong)[:40],
)
async def test_a_key_that_would_be_somebody_else_is_not_made(verifier, wrong: tuple[str, ...]) -> None:
    """Names of other credentials cannot be taken; roles fit together."""
    before = await verifier.rows("SELECT * FROM api_keys")
    code, said = await run(verifier, *wrong)
    assert code != 0
    assert "Traceback" not in said
    assert await verifier.rows("SELECT * FROM api_keys") == before


async def test_a_home_without_tokens_serves_those_who_have_keys(
    verifier_home, model_folder: Path, clock
) -> None:
    """Whoever had the token is out, and an empty bearer is nobody."""
    from tests.integration.maintenance import fill, serving

    await fill(verifier_home, clock, model_folder, reads=1, walks=1)
    for name in ("admin", "router"):
        (verifier_home.path / f"{name}.token").unlink()
    async with serving(verifier_home, clock, model_folder) as running:
        assert running.service.home_callers == {}
        key = await running.key("ada", Role.ADMINISTRATOR)
        assert await opens(running, key["Authorization"].partition(" ")[2]) == 200
        for nobody in ("", " ", "\t"):
            assert await opens(running, nobody) == 401


# Two people for a policy.


async def author_and_approver(verifier: Any) -> tuple[Bundle, dict[str, str], dict[str, str]]:
    author = await verifier.key("ada", Role.POLICY_AUTHOR, Role.POLICY_APPROVER)
    approver = await verifier.key("bob", Role.POLICY_APPROVER)
    bundle = changed(await verifier.policy(), "next")
    async with verifier.stranger.post(
        f"{verifier.url}/api/v1/policies?reason=because", data=archive(verifier, bundle), headers=author
    ) as response:
        assert response.status == 201
    return bundle, author, approver


@pytest.mark.parametrize(("step", "more"), [("promote", {}), ("canary", {"permille": 100})])
async def test_who_published_a_policy_does_not_put_it_in_force(verifier, step: str, more: Any) -> None:
    """Whatever name the body has; another credential does."""
    bundle, author, approver = await author_and_approver(verifier)
    url = f"{verifier.url}/api/v1/policies/{bundle.digest}/{step}"
    body = {"actor": "bob", "reason": "because", **more}
    async with verifier.stranger.post(url, json=body, headers=author) as response:
        assert response.status == 403
        assert "ada has published this policy" in (await response.json(content_type=None))["detail"]
    async with verifier.stranger.post(url, json=body, headers=approver) as response:
        assert response.status == 200


async def test_the_author_may_shadow_and_try_it(verifier) -> None:
    """Nothing follows from that."""
    bundle, author, _ = await author_and_approver(verifier)
    url = f"{verifier.url}/api/v1/policies/{bundle.digest}/shadow"
    async with verifier.stranger.post(url, json={"reason": "because"}, headers=author) as response:
        assert response.status == 200


@pytest.mark.parametrize(("named", "succeeds"), [(None, False), ("ada", False), ("bob", True)])
async def test_the_command_line_needs_the_other_key_too(
    verifier, named: str | None, *, succeeds: bool
) -> None:
    """A user's name proves nobody."""
    bundle, *_ = await author_and_approver(verifier)
    given = ["promote", bundle.digest, "--reason", "because", "--actor", "bob"]
    if named is not None:
        file = verifier.home.path / f"{named}.key"
        file.write_text(verifier.keys[named]["Authorization"].partition(" ")[2])
        given += ["--key-file", str(file)]
    code, said = await run(verifier, *given, group=policy_commands)
    assert (code == 0) == succeeds, said


async def test_the_homes_own_token_is_a_key_at_the_command_line(verifier) -> None:
    """Of an administrator."""
    bundle, *_ = await author_and_approver(verifier)
    file = str(verifier.home.path / "admin.token")
    given = ("promote", bundle.digest, "--reason", "because", "--key-file", file)
    assert (await run(verifier, *given, group=policy_commands))[0] == 0
    _, body = await verifier.get("/api/v1/policies/history?limit=1")
    assert body["changes"][0]["actor"] == HOME_ADMIN


# Rules without a database.


@given(st.text(max_size=80))
def test_any_name_is_a_keys_name_or_refused(name: str) -> None:
    """Nothing that another credential is called, and nothing that a line of a log could be made from."""
    try:
        NewKey(name, [Role.AUDITOR])
    except RequestError:
        return
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(":#/ ")
    assert not name.startswith("home-")


@given(st.text(max_size=200))
def test_any_text_has_a_digest(text: str) -> None:
    """Headers may hold what is no text: it is nobody's key, and no error."""
    assert len(api_keys.digest_of(text.encode(errors="replace").decode())) == 32
    assert len(api_keys.digest_of("\udcff")) == 32


@given(
    roles=st.frozensets(st.sampled_from(GRANTED)),
    operator=st.sampled_from([None, "acme", "umbrella"]),
    allowed=st.frozensets(st.sampled_from(GRANTED)),
    of=st.sampled_from([None, "", "acme", "umbrella"]),
)
def test_a_role_never_helps_where_it_does_not_open(
    roles: frozenset[Role], operator: str | None, allowed: frozenset[Role], of: str | None
) -> None:
    """Who comes in as an operator alone sees its own alone, whatever else it may do elsewhere."""
    acting = Caller("x", roles, operator=operator).acting_as(allowed)
    assert acting.roles <= allowed
    if acting.roles == {Role.OPERATOR}:
        assert acting.sees("n", of) == (bool(of) and of == operator)
    elif acting.roles:
        assert acting.sees("n", of)


@pytest.mark.parametrize(
    ("reason", "named", "kept"),
    [
        ("because", None, "because"),
        ("because", "kim", "because"),
        ("because", "  ", "because"),
        ("because", " bob ", "because (on behalf of bob)"),
        ("  ", "bob", "  "),
    ],
)
def test_a_named_person_is_a_note(reason: str, named: str | None, kept: str) -> None:
    """And never makes a reason where there is none."""
    assert with_note(reason, "kim", named) == kept
