"""Tokens of an issuer at a router: what opens, for whom, and within which limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router.service.state import STATE
from tests.integration.gateway import Fleet, by, key, opened
from tests.integration.test_oidc import AUDIENCE, LocalIssuer, signed
from tests.unit.router.support import MODEL

ROLES = {"users": ["relying-party"], "sec": ["reviewer"], "all": ["auditor"], "authors": ["policy-author"]}


@pytest.fixture
async def issuer() -> AsyncIterator[LocalIssuer]:
    made = LocalIssuer()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, *made.listen).start()
    yield made
    await runner.cleanup()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def start(fleet: Fleet, issuer: LocalIssuer, **limits: int) -> None:
    """A router that knows the issuer's keys."""
    await fleet.node("a")
    oidc = {"issuer": issuer.url, "audience": AUDIENCE, "role_claim": "groups", "roles": ROLES}
    await fleet.start(sections={"keys": [key("ada")], "access": {"oidc": oidc, "limits": limits}})
    made = fleet.app[STATE].issuer
    assert made is not None
    fleet.clock.forward(30)
    await made.refresh_if_due()


def token(fleet: Fleet, issuer: LocalIssuer, group: str, sub: str = "kim", **changed: Any) -> dict[str, str]:
    """The header of a person with a token."""
    now = fleet.clock.seconds
    given = {"iss": issuer.url, "aud": AUDIENCE, "sub": sub, "iat": now, "exp": now + 300, "groups": [group]}
    return {"Authorization": f"Bearer {signed({**given, **changed})}"}


async def test_a_token_opens_what_its_role_opens(fleet: Fleet, issuer: LocalIssuer) -> None:
    """And nothing else; keys go on opening."""
    await start(fleet, issuer)
    user, auditor = token(fleet, issuer, "users"), token(fleet, issuer, "all")
    assert (await fleet.post(**user))[0] == 200
    assert [(await fleet.get("/metrics", **who))[0] for who in (user,)] == [403]
    assert (await fleet.get("/api/v1/status", **auditor))[0] == 200
    assert (await fleet.post(**auditor))[0] == 403
    assert (await fleet.post(**by("ada")))[0] == 200


async def test_a_decision_is_seen_by_its_person(fleet: Fleet, issuer: LocalIssuer) -> None:
    """Whose name is the issuer's and the token's subject."""
    await start(fleet, issuer)
    _, made, headers = await fleet.post(
        {"model": MODEL}, "/api/v1/decisions", **token(fleet, issuer, "users")
    )
    assert (made["caller"], made["endpoints"]) == (f"{issuer.url}#kim", None)
    seen = [
        (await fleet.get(headers["Location"], **token(fleet, issuer, "users", sub=sub)))[0]
        for sub in ("kim", "sam")
    ]
    assert seen == [200, 404]


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "expired": ({"exp": 1_700_000_000}, 401),
    "for another": ({"aud": "somebody else"}, 401),
    "of another issuer": ({"iss": "https://elsewhere.test"}, 401),
    "of nobody": ({"sub": ""}, 401),
    "without a role": ({"groups": []}, 403),
    "with a role that is none here": ({"groups": ["authors"]}, 403),
    "with a role that nobody mapped": ({"groups": ["relying-party", "administrator"]}, 403),
}


@pytest.mark.parametrize(("changed", "code"), WRONG.values(), ids=WRONG)
async def test_another_token_opens_nothing(
    fleet: Fleet, issuer: LocalIssuer, changed: dict[str, Any], code: int
) -> None:
    """Neither work nor anything else; who has no role is no relying party."""
    await start(fleet, issuer)
    headers = token(fleet, issuer, "users", **changed)
    assert (await fleet.post(**headers))[0] == code
    for path in ("/v1/models", "/api/v1/status", "/api/v1/usage"):
        assert (await fleet.get(path, **headers))[0] == code, path


async def test_each_person_has_limits(fleet: Fleet, issuer: LocalIssuer) -> None:
    """Whatever tokens they come with; one's are not another's."""
    await start(fleet, issuer, requests_per_minute=6)
    assert (await fleet.post(**token(fleet, issuer, "users")))[0] == 200
    fleet.clock.forward(1)
    assert (await fleet.post(**token(fleet, issuer, "users")))[0] == 429
    assert (await fleet.post(**token(fleet, issuer, "users", sub="sam")))[0] == 200


async def test_without_keys_an_issuer_is_enough_to_start(fleet: Fleet, issuer: LocalIssuer) -> None:
    """Somebody can send work."""
    oidc = {"issuer": issuer.url, "audience": AUDIENCE}
    await fleet.start(sections={"keys": [], "access": {"oidc": oidc}})
    assert (await fleet.get("/health"))[0] == 200
