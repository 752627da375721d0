"""Who may call what at a router: every route with every role, and with credentials that are missing or wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from fixtures.sockets import exchange
from router.config import ROLES, ApiKey
from router.gateway.openai import GATEWAY
from router.service.access import routes
from router.service.access_page import filled, table
from router.service.state import STATE
from router.store import keys as stored
from tests.integration.gateway import CHAT, CHATS, Fleet, by, key, opened
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from verifier.roles import Role
from verifier.service.access import TABLE, Anyone, Route

ROUTES = routes()
REFUSED = (401, 403)
PAGE = Path(__file__).parents[2] / "docs" / "routing.md"
KEYS = [
    *(key(role, roles=[role], operator="acme" if role is Role.OPERATOR else None) for role in ROLES),
    key("revoked", roles=["administrator"]),
]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def start(fleet: Fleet, *more: dict[str, Any], **gateway: Any) -> None:
    """A closed router with a key of each role."""
    await fleet.start(sections={"keys": [*KEYS, *more]}, **gateway)


def path_of(route: Route) -> str:
    """A path of the route; its ids are of nothing that exists."""
    return route.path.replace("{model:.+}", MODEL).replace("{id}", "x")


def asked(route: Route) -> list[str]:
    return ["GET", "HEAD"] if route.method == "GET" else [route.method]


def expected(role: Role | None) -> dict[tuple[str, str], bool]:
    """Whether each method of each route opens to a role, or to nobody known."""
    return {
        (method, route.path): isinstance(route.allowed, Anyone) or role in route.allowed
        for route in ROUTES
        for method in asked(route)
    }


async def status(fleet: Fleet, method: str, path: str, headers: Any = None) -> int:
    async with fleet.http.request(
        method, fleet.url + path, headers=headers, allow_redirects=False
    ) as response:
        return response.status


async def statuses(fleet: Fleet, headers: Any) -> dict[Any, int]:
    """What each method of each route answers."""
    return {
        (method, route.path): await status(fleet, method, path_of(route), headers)
        for route in ROUTES
        for method in asked(route)
    }


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_opens_what_the_table_says_and_nothing_else(fleet: Fleet, role: Role) -> None:
    """403 to everything else; whatever the handler then says of ids that do not exist is its own affair."""
    await start(fleet)
    found = await statuses(fleet, by(role))
    assert {place: code not in REFUSED for place, code in found.items()} == expected(role)
    assert 401 not in found.values()


WRONG: dict[str, Any] = {
    "none": {},
    "wrong": by("nobody"),
    "revoked": by("revoked"),
    "no secret": {"Authorization": "Bearer"},
    "no scheme": {"Authorization": "sk-administrator"},
    "another scheme": {"Authorization": "Basic sk-administrator"},
    "the digest": {"Authorization": f"Bearer {KEYS[-2]['sha256']}"},
    "twice": [("Authorization", "Bearer sk-administrator")] * 2,
    "the good one second": [("Authorization", "Bearer x"), ("Authorization", "Bearer sk-administrator")],
    "beside it": {"X-Api-Key": "sk-administrator", "Proxy-Authorization": "Bearer sk-administrator"},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_without_a_good_key_only_health_and_public_keys_open(fleet: Fleet, headers: Any) -> None:
    """401 to everything else."""
    await start(fleet)
    app = fleet.app
    await app[STATE].persistence._db.write(
        lambda tx: stored.revoke(tx, "revoked", 1, configured(fleet, "revoked"))
    )
    await app[STATE].stored_keys.sync()
    found = await statuses(fleet, headers)
    assert {place: code not in REFUSED for place, code in found.items()} == expected(None)
    public = {"/health", "/ready", "/.well-known/touchstone-receipts.json"}
    assert {path for (_, path), code in found.items() if code not in REFUSED} == public
    assert 403 not in found.values()


def configured(fleet: Fleet, name: str) -> Any:
    return next(each for each in fleet.app[STATE].config.keys if each.name == name)


@pytest.mark.parametrize("size", [600, 7_000, 100_000])
async def test_a_long_header_opens_nothing(fleet: Fleet, size: int) -> None:
    """Whichever part of the router reads it first."""
    await start(fleet)
    head = f"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {'k' * size}\r\n\r\n"
    try:
        answer = await exchange(fleet.url, head.encode())
    except ConnectionError:
        # It is closed while there is more to come.
        return
    assert int(answer.split(b" ", 2)[1]) in (400, 401, 431)


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/status"])
async def test_a_refusal_says_what_is_needed(fleet: Fleet, path: str) -> None:
    """RFC 9110 §11.6.1."""
    await start(fleet)
    async with fleet.http.get(fleet.url + path) as response:
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_every_route_is_in_the_table(fleet_app: web.Application) -> None:
    """No route came into the application another way."""
    mounted = {
        (route.method, route.resource.canonical) for route in fleet_app.router.routes() if route.resource
    }
    plain = {(method, route.path.replace(":.+", "")) for route in ROUTES for method in asked(route)}
    assert mounted == plain
    assert set(fleet_app[TABLE]) == set(fleet_app.router.routes())


@pytest.fixture
async def fleet_app(fleet: Fleet) -> web.Application:
    await start(fleet)
    return fleet.app


def test_administrators_may_do_everything_and_auditors_read_it() -> None:
    """And auditors change nothing."""
    for route in ROUTES:
        if not isinstance(route.allowed, Anyone):
            assert Role.ADMINISTRATOR in route.allowed
            assert (Role.AUDITOR in route.allowed) == (route.method == "GET")
            assert route.allowed <= set(ROLES)


def test_the_page_is_written_from_the_table() -> None:
    """By `python -m router.service.access_page docs/routing.md`."""
    assert PAGE.read_text() == filled(PAGE.read_text())
    assert table() in PAGE.read_text()


TRICKS = [
    "//api/v1/status",
    "/api//v1/status",
    "/api/v1/status/",
    "/api/v1/%73tatus",
    "/api%2fv1/status",
    "/api/v1/./status",
    "/health/../api/v1/status",
    "/v1/../api/v1/status",
    "/v1/models/../../api/v1/status",
    "/v1/models/..%2f..%2fapi/v1/status",
    "/api/v1/decisions/..%2fstatus",
    "/api/v1/status;a=b",
    "/api/v1/status%00",
    "/API/V1/STATUS",
    "/api/v1/status?x=/health",
    "/health#/api/v1/status",
    "http://elsewhere/api/v1/status",
    "/%761/models",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
async def test_no_other_writing_of_a_request_reaches_a_handler(fleet: Fleet, method: str) -> None:
    """Neither of the path nor of the method."""
    await start(fleet)
    for target in TRICKS:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await exchange(fleet.url, head.encode())
        assert b"snapshot" not in answer, target
        assert b"owned_by" not in answer, target
        code = int(answer.split(b" ", 2)[1])
        assert code in (400, 401, 404, 405) or target.startswith("/health#"), (target, code)


# What each sees of what others have.


async def decided(fleet: Fleet, name: str) -> str:
    answer, document, _ = await fleet.post({"model": MODEL}, "/api/v1/decisions", **by(name))
    assert answer == 201
    return str(document["id"])


async def test_a_decision_is_seen_by_its_own_key_and_by_auditors(fleet: Fleet) -> None:
    """Others hear what they hear of one that does not exist, in memory and in the store."""
    await fleet.node("a")
    await start(fleet, key("ada"), key("bob"))
    which = await decided(fleet, "ada")

    async def seen(name: str, decision: str = which) -> tuple[int, Any]:
        return await fleet.get(f"/api/v1/decisions/{decision}", **by(name))

    assert [(await seen(name))[0] for name in ("ada", "auditor", "administrator")] == [200] * 3
    assert await seen("bob") == await seen("bob", "0" * 32)
    assert (await seen("bob"))[0] == 404


async def test_a_stored_decision_is_seen_by_its_own_key_and_by_auditors(fleet: Fleet, tmp_path: Path) -> None:
    """Another router made it, or it was long ago."""
    await fleet.node("a")
    sections = {"keys": [*KEYS, key("ada"), key("bob")], "store": {"path": str(tmp_path / "router.db")}}
    await fleet.start(sections=sections)
    which = await decided(fleet, "ada")
    await fleet.stop()
    await fleet.start(sections=sections)
    found = {
        name: (await fleet.get(f"/api/v1/decisions/{which}", **by(name)))[0]
        for name in ("ada", "bob", "auditor")
    }
    assert found == {"ada": 200, "bob": 404, "auditor": 200}


async def test_an_operator_sees_the_standing_of_its_own_nodes(fleet: Fleet) -> None:
    """404 for all others', as if there were none."""
    fleet.verifier.trust("ours", operator="acme")
    fleet.verifier.trust("theirs", operator="umbrella")
    await start(fleet, key("both", roles=["operator", "relying-party"], operator="umbrella"))

    async def seen(node: str, name: str = "operator") -> tuple[int, Any]:
        return await fleet.get(f"/api/v1/nodes/{node}/standing", **by(name))

    assert [(await seen(node))[0] for node in ("ours", "theirs", "none")] == [200, 404, 404]
    assert await seen("theirs") == await seen("none")
    assert [(await seen(node, "both"))[0] for node in ("ours", "theirs")] == [404, 200]
    assert [(await seen(node, "auditor"))[0] for node in ("ours", "theirs")] == [200, 200]


async def test_an_operator_is_told_what_its_place_is_worth_and_nothing_of_others(fleet: Fleet) -> None:
    """The share of all decisions, as the formula has it; of other operators there are counts alone."""
    fleet.verifier.trust("ours", operator="acme")
    fleet.verifier.trust("theirs", operator="umbrella")
    await start(fleet)
    fleet.establish("ours", "theirs")
    _, standing = await fleet.get("/api/v1/nodes/ours/standing", **by("operator"))
    worth = standing["workloads"]["tiny"]["worth"]
    assert (worth["now"]["share"], worth["now"]["lane"]) == (0.5, "established")
    assert {each["what"] for each in worth["improvements"]} >= {"latency", "concurrency"}
    assert "theirs" not in json.dumps(standing)
    assert "umbrella" not in json.dumps(standing)


async def test_a_key_sees_its_own_usage(fleet: Fleet) -> None:
    """And auditors that of all."""
    await fleet.node("a")
    await start(fleet, key("ada", tokens_per_day=100))
    await fleet.post(**by("ada"))
    _, own = await fleet.get("/api/v1/usage", **by("ada"))
    (mine,) = own["keys"]
    assert (mine["name"], mine["in_flight"], mine["tokens_of_day"] > 0) == ("ada", 0, True)
    assert mine["limits"]["tokens_per_day"] == 100
    _, page = await fleet.get("/api/v1/usage", **by("auditor"))
    assert {each["name"] for each in page["keys"]} == {each["name"] for each in [*KEYS, key("ada")]}
    assert mine in page["keys"]


# Decisions cost what work costs.


async def test_decisions_count_against_the_rate(fleet: Fleet) -> None:
    """As work does, and together with it; 429 with the seconds to wait."""
    await fleet.node("a")
    await start(fleet, key("ada", requests_per_minute=12), key("bob"))
    await fleet.post(**by("ada"))
    await decided(fleet, "ada")
    async with fleet.http.post(
        f"{fleet.url}/api/v1/decisions", json={"model": MODEL}, headers=by("ada")
    ) as response:
        found = response.status, 1 <= int(response.headers["Retry-After"]) <= 60
    assert found == (429, True)
    assert (await fleet.post(**by("ada")))[0] == 429
    await decided(fleet, "bob")


async def test_a_decision_has_a_place_while_it_is_made(fleet: Fleet) -> None:
    """A body that does not come keeps one of the key's own places, and it is free again afterwards."""
    await fleet.node("a")
    await start(fleet, key("ada", concurrency=1))
    gateway = fleet.app[GATEWAY]

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await until(lambda: gateway.in_flight == 1)
        refused, _, _ = await fleet.post({"model": MODEL}, "/api/v1/decisions", **by("ada"))
        yield f'"{MODEL}", "workload": {"null" if refused == 429 else "7"}}}'.encode()

    async with fleet.http.post(f"{fleet.url}/api/v1/decisions", data=slowly(), headers=by("ada")) as response:
        assert response.status == 201
    assert gateway.in_flight == 0
    await decided(fleet, "ada")


async def test_a_spent_budget_buys_no_decision(fleet: Fleet) -> None:
    """Who may not work is not told where."""
    await fleet.node("a")
    await start(fleet, key("ada", tokens_per_day=1))
    await fleet.post(**by("ada"))
    assert (await fleet.post({"model": MODEL}, "/api/v1/decisions", **by("ada")))[0] == 429


# Keys that come and go.


async def test_a_stored_key_opens_and_is_revoked(fleet: Fleet) -> None:
    """While the router runs; its role is what it was made with."""
    await start(fleet)
    db, sync = fleet.app[STATE].persistence._db, fleet.app[STATE].stored_keys.sync
    new = key_of("eve", roles=(Role.AUDITOR,))
    await db.write(lambda tx: stored.add(tx, new, 1))
    assert await status(fleet, "GET", "/metrics", by("eve")) == 401
    await sync()
    assert await status(fleet, "GET", "/metrics", by("eve")) == 200
    await db.write(lambda tx: stored.revoke(tx, "eve", 2))
    await sync()
    assert await status(fleet, "GET", "/metrics", by("eve")) == 401


async def test_a_stored_key_expires(fleet: Fleet) -> None:
    """Without anybody doing anything."""
    await start(fleet)
    db, sync = fleet.app[STATE].persistence._db, fleet.app[STATE].stored_keys.sync
    await db.write(
        lambda tx: stored.add(tx, key_of("eve", roles=(Role.AUDITOR,)), 1, expires_ms=fleet.clock.ms + 60_000)
    )
    await sync()
    assert await status(fleet, "GET", "/metrics", by("eve")) == 200
    fleet.clock.forward(60)
    await sync()
    assert await status(fleet, "GET", "/metrics", by("eve")) == 401


def key_of(name: str, **given: Any) -> ApiKey:
    return msgspec.convert(key(name, **given), ApiKey)


# Health.


async def test_a_router_is_ready_when_somebody_may_work(fleet: Fleet) -> None:
    """Not before, and it does not say why."""
    fleet.verifier.trust("a", platform_assurance="none")
    await start(fleet)
    assert [await fleet.get(path) for path in ("/health", "/ready")] == [
        (200, {"status": "ok"}),
        (503, {"status": "unavailable"}),
    ]
    await fleet.stop()
    await fleet.node("a")
    await start(fleet)
    assert await fleet.get("/ready") == (200, {"status": "ok"})


async def test_a_router_that_does_not_hear_the_verifier_is_not_ready(fleet: Fleet) -> None:
    """Since a revocation may have been missed."""
    await fleet.node("a")
    await start(fleet)
    fleet.clock.forward(3600)
    assert (await status(fleet, "GET", "/health"), await status(fleet, "GET", "/ready")) == (200, 503)


# An open gateway.


async def test_at_an_open_gateway_only_work_is_open(fleet: Fleet) -> None:
    """What strangers decide is the strangers'; everything else needs a key."""
    await fleet.node("a")
    await fleet.start(sections={"keys": KEYS}, open=True)
    opens = {path for (_, path), code in (await statuses(fleet, {})).items() if code not in REFUSED}
    assert opens == {
        route.path
        for route in ROUTES
        if isinstance(route.allowed, Anyone) or Role.RELYING_PARTY in route.allowed
    }
    assert (await fleet.get("/api/v1/status", **by("operator")))[1]["anyone_may_send_work"] is True
    assert (await fleet.get(f"/api/v1/decisions/{await decided(fleet, 'administrator')}"))[0] == 404


async def test_a_closed_gateway_says_that_it_is(fleet: Fleet) -> None:
    """In its status."""
    await start(fleet)
    _, found = await fleet.get("/api/v1/status", **by("operator"))
    assert found["anyone_may_send_work"] is False


async def test_a_refusal_of_work_has_the_form_of_openais_errors(fleet: Fleet) -> None:
    """Below /v1; elsewhere it is a problem document."""
    await start(fleet)
    answer, document, _ = await fleet.post(CHAT, CHATS, **by("auditor"))
    assert (answer, document["error"]["code"]) == (403, "insufficient_permissions")
    answer, document = await fleet.get("/metrics", **by("reviewer"))
    assert (answer, document["type"].rpartition("#")[2]) == (403, "request.forbidden")


async def test_a_flood_drops_its_own_records_from_the_store(fleet: Fleet, tmp_path: Path) -> None:
    """When it is thinned to what is kept, and from memory too."""
    await fleet.node("a")
    store = {"path": str(tmp_path / "router.db"), "flush_s": 600, "keep_decisions": 8}
    await fleet.start(sections={"keys": [key("ada"), key("flood")], "store": store})
    few = [await decided(fleet, "ada") for _ in range(3)]
    many = [await decided(fleet, "flood") for _ in range(20)]
    fleet.clock.forward(601)
    await fleet.app[STATE].persistence.flush()
    find = fleet.app[STATE].persistence.find
    assert [await find(each) is not None for each in few] == [True] * 3
    assert [await find(each) is not None for each in many].count(True) <= 5


async def test_old_records_are_dropped(fleet: Fleet, tmp_path: Path) -> None:
    """Whosever they are."""
    await fleet.node("a")
    store = {"path": str(tmp_path / "router.db"), "flush_s": 600, "keep_days": 1}
    await fleet.start(sections={"keys": [key("ada")], "store": store})
    which = await decided(fleet, "ada")
    persistence = fleet.app[STATE].persistence
    await persistence.flush()
    assert await persistence.find(which) is not None
    fleet.clock.forward(86_402)
    await persistence.flush()
    assert await persistence.find(which) is None
