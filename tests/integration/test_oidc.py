"""Tokens of a real issuer on a real socket: what opens, and every way in which a token must not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace
from typing import Any

import jwt
import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fixtures.credentials import bearer
from fixtures.fleet import free_port
from router.state.identity import Identity
from tests.conftest import FakeClock
from tests.integration.lifecycle import within
from verifier.access_config import AccessConfig, OidcConfig, is_secure
from verifier.errors import RequestError
from verifier.roles import Role
from verifier.service import oidc
from verifier.service.oidc import Issuer, IssuerError, read_keys

AUDIENCE = "touchstone"
ROLES = {"sec": ["reviewer", "policy-approver"], "ops": ["operator"], "all": ["auditor"], "rtr": ["router"]}
KINDS = {"RS256": "r", "ES256": "e", "EdDSA": "d"}


@cache
def private(name: str) -> Any:
    """A key by its kid: r… RSA, e… P-256, d… Ed25519, s… RSA that is too short."""
    match name[0]:
        case "r":
            return rsa.generate_private_key(65537, 2048)
        case "s":
            return rsa.generate_private_key(65537, 1024)
        case "e":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def jwk(name: str, **members: Any) -> dict[str, Any]:
    kinds = {
        "r": jwt.algorithms.RSAAlgorithm,
        "s": jwt.algorithms.RSAAlgorithm,
        "e": jwt.algorithms.ECAlgorithm,
    }
    made = kinds.get(name[0], jwt.algorithms.OKPAlgorithm).to_jwk(private(name).public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {**made, "kid": name, **members}


class LocalIssuer:
    """An issuer on loopback; tests change what it says."""

    def __init__(self) -> None:
        self.listen = ("127.0.0.1", free_port())
        self.url = f"http://127.0.0.1:{self.listen[1]}"
        self.keys: Any = {"keys": [jwk("r1"), jwk("e1"), jwk("d1")]}
        self.discovery: Any = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.asked: list[str] = []
        self.status = 200

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        body = self.keys if request.path == "/keys" else self.discovery
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=self.status, body=data, headers={"Location": f"{self.url}/keys"})


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
def verifier_settings(issuer: LocalIssuer) -> dict[str, Any]:
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
        "access": {
            "oidc": {"issuer": issuer.url, "audience": AUDIENCE, "role_claim": "groups", "roles": ROLES}
        },
    }


@pytest.fixture
async def known(verifier, issuer: LocalIssuer) -> Any:
    """A verifier that has fetched the issuer's keys."""
    verifier.clock.forward(oidc.REFRESH_S)
    await verifier.service.oidc.refresh_if_due()
    return verifier


@pytest.fixture
async def direct(issuer: LocalIssuer, clock: FakeClock) -> Any:
    """The same without a verifier around it: what it says of a token is what a request gets."""
    given = {"issuer": issuer.url, "audience": AUDIENCE, "role_claim": "groups", "roles": ROLES}
    made = Issuer(msgspec.convert(given, OidcConfig), clock.clock())
    await made.refresh_if_due()
    return SimpleNamespace(clock=clock, service=SimpleNamespace(oidc=made))


def code_of(direct: Any, token: str) -> str:
    """The code of the refusal; empty if the token is accepted."""
    try:
        direct.service.oidc.caller(token, direct.clock.ms)
    except RequestError as error:
        return error.code
    return ""


def claims(verifier: Any, issuer: LocalIssuer, **changed: Any) -> dict[str, Any]:
    now = verifier.clock.seconds
    given = {
        "iss": issuer.url, "aud": AUDIENCE, "sub": "kim@example", "iat": now, "exp": now + 300, "groups": ["sec"]
    }  # fmt: skip
    return {name: value for name, value in {**given, **changed}.items() if value is not None}


def signed(given: dict[str, Any], kid: str = "r1", *, key: str | None = None, **header: Any) -> str:
    algorithm = next(name for name, first in KINDS.items() if first == kid[0])
    return jwt.encode(given, private(key or kid), algorithm, {"kid": kid, **header})


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def get(verifier: Any, token: str, path: str = "/api/v1/incidents") -> tuple[int, str]:
    async with verifier.stranger.get(verifier.url + path, headers=bearer(token)) as response:
        body = await response.json(content_type=None)
        return response.status, body.get("detail", "")


@pytest.mark.parametrize("kid", ["r1", "e1", "d1"])
async def test_a_good_token_opens_what_its_groups_open(known, issuer: LocalIssuer, kid: str) -> None:
    """With each algorithm; and nothing else."""
    token = signed(claims(known, issuer), kid)
    assert (await get(known, token))[0] == 200
    assert (await get(known, token, "/api/v1/challenges"))[0] == 403


async def test_its_subject_is_the_actor(direct, issuer: LocalIssuer) -> None:
    """ISSUER#SUB, so that the same name at another issuer is another person."""
    caller = direct.service.oidc.caller(signed(claims(direct, issuer)), direct.clock.ms)
    assert caller.name == f"{issuer.url}#kim@example"
    assert caller.roles == {Role.REVIEWER, Role.POLICY_APPROVER}


@pytest.mark.parametrize("groups", ["sec", ["sec", "unknown", 7, None]])
async def test_groups_that_are_not_mapped_open_nothing(direct, issuer: LocalIssuer, groups: Any) -> None:
    """One text or a list; what is no text is passed over."""
    caller = direct.service.oidc.caller(signed(claims(direct, issuer, groups=groups)), direct.clock.ms)
    assert caller.roles == {Role.REVIEWER, Role.POLICY_APPROVER}


@pytest.mark.parametrize("groups", [None, [], "administrator", {"sec": 1}, 7])
async def test_who_has_no_group_is_known_and_opens_nothing(known, issuer: LocalIssuer, groups: Any) -> None:
    """403: the credential is good."""
    assert (await get(known, signed(claims(known, issuer, groups=groups))))[0] == 403


async def test_an_operator_is_limited_to_the_operator_of_its_claim(known, issuer: LocalIssuer) -> None:
    """Without one it is no operator."""
    own = await known.enrol(operator="acme")
    await known.enrol(operator="umbrella")
    token = signed(claims(known, issuer, groups=["ops"], operator="acme"))
    async with known.stranger.get(f"{known.url}/api/v1/nodes", headers=bearer(token)) as response:
        assert [node["node"] for node in (await response.json())["nodes"]] == [own.id]
    for operator in (None, "", 7, ["acme"]):
        without = signed(claims(known, issuer, groups=["ops"], operator=operator))
        assert (await get(known, without, "/api/v1/nodes"))[0] == 403


def with_none(given: dict[str, Any]) -> str:
    head = b64(json.dumps({"alg": "none", "kid": "r1"}).encode())
    return f"{head}.{b64(json.dumps(given).encode())}."


def with_hmac(given: dict[str, Any]) -> str:
    """Signed with the public key as if it were a secret (RFC 8725 §2.1)."""
    public = (
        private("r1")
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    text = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'r1'}).encode())}.{b64(json.dumps(given).encode())}"
    return f"{text}.{b64(hmac.digest(public, text.encode(), hashlib.sha256))}"


def with_own_key(given: dict[str, Any]) -> str:
    """With the key to verify it by in the header, in each way there is."""
    urls = {"jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/x", "jwk": jwk("r9")}
    return signed(given, "r1", key="r9", **urls)


FORGED: dict[str, Callable[[dict[str, Any]], str]] = {
    "alg none": with_none,
    "HMAC with the public key": with_hmac,
    "its own key in the header": with_own_key,
    "another key under the same kid": lambda given: signed(given, "r1", key="r9"),
    "a kid nobody has": lambda given: signed(given, "r9"),
    "the kid of a key of another kind": lambda given: jwt.encode(
        given, private("e1"), "ES256", {"kid": "r1"}
    ),
    "another algorithm of the same key": lambda given: jwt.encode(
        given, private("r1"), "PS256", {"kid": "r1"}
    ),
    "no kid": lambda given: jwt.encode(given, private("r1"), "RS256"),
    "an extension": lambda given: signed(given, crit=["x"], x=1),
    "without its signature": lambda given: signed(given).rpartition(".")[0] + ".",
    "cut": lambda given: signed(given)[:-4],
    "two parts": lambda given: signed(given).rpartition(".")[0],
    "no token": lambda _: "a.b.c",
    "a claim changed": lambda given: ".".join(
        [
            signed(given).split(".")[0],
            b64(json.dumps({**given, "sub": "x"}).encode()),
            signed(given).split(".")[2],
        ]
    ),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_opens_nothing(direct, issuer: LocalIssuer, name: str) -> None:
    """401, and nothing that it names is fetched."""
    asked = len(issuer.asked)
    assert code_of(direct, FORGED[name](claims(direct, issuer))) == "request.unauthorised"
    assert len(issuer.asked) == asked


WRONG: dict[str, dict[str, Any]] = {
    "another audience": {"aud": "elsewhere"},
    "no audience": {"aud": None},
    "another issuer": {"iss": "https://elsewhere.example"},
    "the issuer with a slash": {"iss": "slash"},
    "no issuer": {"iss": None},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject of control characters": {"sub": "kim\n"},
    "a subject that is too long": {"sub": "k" * 256},
    "expired": {"exp": -31},
    "never expires": {"exp": None},
    "expiry as text": {"exp": "tomorrow"},
    "expiry infinite": {"exp": float("inf")},
    "expiry true": {"exp": True},
    "issued in the future": {"iat": 32},
    "no time of issue": {"iat": None},
    "not valid yet": {"nbf": 32},
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_token_for_somebody_else_or_another_time_opens_nothing(
    direct, issuer: LocalIssuer, name: str
) -> None:
    """Signed by the issuer's own key."""
    now = direct.clock.seconds
    changed = {
        claim: value + now if isinstance(value, int) and not isinstance(value, bool) else value
        for claim, value in WRONG[name].items()
    }
    if name == "the issuer with a slash":
        changed = {"iss": f"{issuer.url}/"}
    given = claims(direct, issuer, **changed)
    text = jwt.encode({}, private("r1"), "RS256", {"kid": "r1"}).split(".")[0]
    text += f".{b64(json.dumps(given).encode())}"
    token = f"{text}.{b64(jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(text.encode(), private('r1')))}"
    assert code_of(direct, token) == "request.unauthorised"


@pytest.mark.parametrize("changed", [{"exp": -29}, {"iat": 29}, {"nbf": 29}])
async def test_clocks_may_differ_by_half_a_minute(
    direct, issuer: LocalIssuer, changed: dict[str, int]
) -> None:
    """As for nodes."""
    given = {name: direct.clock.seconds + value for name, value in changed.items()}
    assert code_of(direct, signed(claims(direct, issuer, **given))) == ""


async def test_one_of_several_audiences_is_ours(direct, issuer: LocalIssuer) -> None:
    """RFC 7519 §4.1.3."""
    assert code_of(direct, signed(claims(direct, issuer, aud=["elsewhere", AUDIENCE]))) == ""


# The issuer's keys.


async def test_an_issuer_that_is_away_locks_nobody_out_who_has_a_key(verifier, issuer: LocalIssuer) -> None:
    """Tokens get 503 with Retry-After; keys open."""
    # Those that are fetched at the start must have come, or they would come later.
    await within(2, lambda: verifier.service.oidc._keys is not None)
    issuer.status = 500
    verifier.service.oidc._keys = None
    token = signed(claims(verifier, issuer))
    async with verifier.stranger.get(f"{verifier.url}/api/v1/nodes", headers=bearer(token)) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "30")
    assert (await verifier.get("/api/v1/nodes"))[0] == 200


async def test_keys_that_are_known_outlive_an_outage_by_a_day(direct, issuer: LocalIssuer) -> None:
    """And no longer."""
    issuer.status = 500
    for waited, code in ((oidc.MAX_AGE_S - 60, ""), (120, "request.issuer-unavailable")):
        direct.clock.forward(waited)
        await direct.service.oidc.refresh_if_due()
        assert code_of(direct, signed(claims(direct, issuer))) == code


async def test_unknown_kids_cause_one_fetch_in_half_a_minute(direct, issuer: LocalIssuer) -> None:
    """However many there are; and a key that the issuer has by then opens."""
    issuer.keys["keys"].append(jwk("r2"))
    fetched = issuer.asked.count("/keys")
    service = direct.service.oidc
    for _ in range(20):
        assert code_of(direct, signed(claims(direct, issuer), "r2")) == "request.unauthorised"
        await service.refresh_if_due()
    assert issuer.asked.count("/keys") == fetched
    direct.clock.forward(oidc.RETRY_S)
    await service.refresh_if_due()
    assert issuer.asked.count("/keys") == fetched + 1
    assert code_of(direct, signed(claims(direct, issuer), "r2")) == ""


async def test_a_key_that_the_issuer_withdraws_opens_nothing(direct, issuer: LocalIssuer) -> None:
    """From the next fetch on."""
    token = signed(claims(direct, issuer))
    issuer.keys["keys"] = [jwk("e1")]
    direct.clock.forward(oidc.REFRESH_S)
    await direct.service.oidc.refresh_if_due()
    assert code_of(direct, signed(claims(direct, issuer))) == "request.unauthorised"
    assert code_of(direct, token) == "request.unauthorised"


BROKEN: dict[str, dict[str, Any]] = {
    "huge": {"keys": b'{"keys": [' + b" " * (1 << 20) + b"]}"},
    "too many": {"keys": {"keys": [{"kty": "RSA"}] * 65}},
    "deep": {"keys": b"[" * 200_000},
    "no JSON": {"keys": b"<html>"},
    "a list": {"keys": b"[]"},
    "keys are no list": {"keys": {"keys": {}}},
    "a redirect": {"status": 302},
    "discovery of another issuer": {"issuer": "http://127.0.0.1:9"},
    "keys over plain http": {"jwks_uri": "http://keys.example/keys"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
    "no place of keys": {"jwks_uri": None},
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_that_cannot_be_used_leaves_the_keys_that_are_known(
    direct, issuer: LocalIssuer, name: str
) -> None:
    """Bounded, strictly read, and tried again in half a minute."""
    change = dict(BROKEN[name])
    for member in ("issuer", "jwks_uri"):
        if member in change:
            issuer.discovery = {**issuer.discovery, member: change.pop(member)}
    for attribute, value in change.items():
        setattr(issuer, attribute, value)
    before = direct.service.oidc._keys
    direct.clock.forward(oidc.REFRESH_S)
    await direct.service.oidc.refresh_if_due()
    assert direct.service.oidc._keys is before
    assert code_of(direct, signed(claims(direct, issuer))) == ""


PASSED_OVER = {
    "a secret": {"kty": "oct", "k": "AAAA", "kid": "r1", "alg": "HS256"},
    "for encryption": jwk("r1", use="enc"),
    "for signing alone": jwk("r1", key_ops=["sign"]),
    "of another algorithm": jwk("r1", alg="RS512"),
    "too short": jwk("s1"),
    "without a kid": {**jwk("r1"), "kid": None},
    "of another curve": {**jwk("e1"), "crv": "P-384"},
    "not on its curve": {**jwk("e1"), "x": jwk("e2")["x"]},
    "no map": 7,
    "of lists": {"kty": [], "crv": {}},
    "numbers missing": {"kty": "RSA", "kid": "r1"},
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_a_key_of_another_kind_is_passed_over(name: str) -> None:
    """And those beside it are read (RFC 7517 §5)."""
    assert list(read_keys({"keys": [PASSED_OVER[name], jwk("d1")]})) == [("d1", "EdDSA")]


def test_two_keys_of_one_name_are_none() -> None:
    """Which of them signed, nobody could say."""
    assert list(read_keys({"keys": [jwk("r1"), {**jwk("r2"), "kid": "r1"}, jwk("e1")]})) == [("e1", "ES256")]


def test_a_private_key_in_a_set_is_read_as_a_public_one() -> None:
    """An issuer's mistake gives this verifier nothing to keep."""
    made = jwt.algorithms.RSAAlgorithm.to_jwk(private("r1"), as_dict=True)
    key = read_keys({"keys": [{**made, "kid": "r1", "key_ops": ["verify"]}]})["r1", "RS256"]
    assert isinstance(key.key, rsa.RSAPublicKey)


@pytest.mark.parametrize(
    ("url", "secure"),
    [
        ("https://id.example", True),
        ("http://127.0.0.1:9", True),
        ("http://[::1]:9", True),
        ("http://id.example", False),
        ("http://localhost", False),
        ("http://127.0.0.1.example", False),
        ("http://127.0.0.1@id.example", False),
        ("https://", False),
        ("ftp://127.0.0.1", False),
        ("http://[", False),
    ],
)
def test_only_https_or_loopback(url: str, *, secure: bool) -> None:
    """By its address: a name such as localhost may be resolved to another place."""
    assert is_secure(url) == secure


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "http://id.example"},
        {"roles": {"x": ["node"]}},
        {"roles": {"x": ["king"]}},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_would_open_too_much_is_refused(changed: dict[str, Any]) -> None:
    """When it is read, not when somebody comes."""
    given = {"issuer": "https://id.example", "audience": AUDIENCE, **changed}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"oidc": given}, AccessConfig)


@pytest.mark.parametrize("name", ["alg none", "HMAC with the public key", "a kid nobody has"])
async def test_over_http_a_refused_token_is_401(known, issuer: LocalIssuer, name: str) -> None:
    """As every wrong credential."""
    assert (await get(known, FORGED[name](claims(known, issuer))))[0] == 401


def test_a_set_that_is_none_is_refused() -> None:
    """As the issuer's fault."""
    with pytest.raises(IssuerError):
        read_keys({})


async def test_a_router_with_a_token_is_registered_as_long_as_the_token_lives(
    known, issuer: LocalIssuer
) -> None:
    """And no longer, because nobody can ask for it again."""
    token = signed(claims(known, issuer, groups=["rtr"], sub="router-7"))
    made = Identity.make(datetime.fromtimestamp(known.clock.seconds, UTC))
    async with known.stranger.post(
        f"{known.url}/api/v1/routers", data=made.registration(known.url, token), headers=bearer(token)
    ) as response:
        answer = await response.json()
    assert (answer["name"], answer["expires_in_s"]) == (f"{issuer.url}#router-7", 300 + oidc.SKEW_S)
    known.clock.forward(300 + oidc.SKEW_S - 1)
    assert len((await known.get("/api/v1/routers"))[1]["routers"]) == 1
    known.clock.forward(1)
    assert (await known.get("/api/v1/routers"))[1]["routers"] == []
