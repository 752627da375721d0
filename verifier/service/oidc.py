"""
Tokens of an OpenID Connect issuer as credentials (RFC 7519, RFC 8725, OpenID Connect Discovery 1.0).

The issuer's keys are fetched beside the requests, never in one: an issuer that is slow or away delays nobody, and
keys of the database go on opening.  Nothing that a token says itself is followed (``jku``, ``x5u``, ``jwk``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from attester.bounded import read_all
from verifier.access_config import OidcConfig, is_secure
from verifier.errors import RequestError
from verifier.roles import Caller, Role
from verifier.service.clock import Clock

SKEW_S: Final = 30
REFRESH_S: Final = 600.0
"""How often the keys are fetched."""
RETRY_S: Final = 30.0
"""How long after a failure, or at most for a key that is not known, they are fetched again."""
MAX_AGE_S: Final = 86400.0
"""How long the keys are used of an issuer that does not answer any more."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)
_MAX_DOCUMENT: Final = 256 * 1024
_MAX_KEYS: Final = 64
_MAX_NAME: Final = 255
_RSA_BITS: Final = range(2048, 8193)
_REQUIRED: Final = ("exp", "iat", "iss", "aud", "sub")
_KINDS: Final = {
    ("RSA", None): ("RS256", ("kty", "n", "e")),
    ("EC", "P-256"): ("ES256", ("kty", "crv", "x", "y")),
    ("OKP", "Ed25519"): ("EdDSA", ("kty", "crv", "x")),
}
"""The one algorithm of a kind of key, and the members that are read of it."""
_SAME_ALGORITHM: Final = {"Ed25519": "EdDSA"}

_log = structlog.get_logger("verifier")


class IssuerError(Exception):
    """The issuer does not answer, or its answer cannot be used."""


@dataclass(frozen=True)
class _Keys:
    by_name: Mapping[tuple[str, str], jwt.PyJWK]
    """By kid and algorithm: a token cannot use a key with another algorithm than its own."""
    fetched: float


class Issuer:
    """
    One issuer: its keys, and the callers of its tokens.

    Args:
        clock: Its monotonic time says when keys are fetched again.
    """

    def __init__(self, config: OidcConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._keys: _Keys | None = None
        self._tried: float | None = None
        self._is_wanted = False

    def caller(self, token: str, now_ms: int) -> Caller:
        """
        Give the caller of a token.

        Raises:
            RequestError: The token is not one of the issuer for this verifier, or is not valid now; or the
                issuer's keys are not known.
        """
        claims = self._verify(token, now_ms / 1000)
        config = self._config
        roles = {role for value in _values(claims, config.role_claim) for role in config.roles.get(value, ())}
        operator = claims.get(config.operator_claim)
        if not isinstance(operator, str) or not 0 < len(operator) <= _MAX_NAME:
            operator = None
            roles.discard(Role.OPERATOR)
        return Caller(
            f"{config.issuer}#{claims['sub']}",
            frozenset(roles),
            operator=operator,
            until_ms=int((claims["exp"] + SKEW_S) * 1000),
        )

    def _verify(self, token: str, now: float) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=self._config.audience,
                issuer=self._config.issuer,
                # The times are compared below, by the clock of the service.
                options={
                    "require": list(_REQUIRED), "verify_exp": False, "verify_iat": False, "verify_nbf": False
                },
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _refusal(str(error) or type(error).__name__) from None
        expires, issued, begins = (_time(claims, name) for name in ("exp", "iat", "nbf"))
        if expires is None or expires + SKEW_S <= now:
            raise _refusal("it has expired")
        if issued is None or issued - SKEW_S > now or (begins is not None and begins - SKEW_S > now):
            raise _refusal("it is from the future")
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= _MAX_NAME:
            raise _refusal("it has no usable sub")
        return claims

    def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._config.algorithms:
            raise _refusal("its algorithm is not in the list")
        if not isinstance(kid, str) or "crit" in header:
            raise _refusal("its header has no kid, or an extension that is not known")
        keys = self._keys
        if keys is None or self._clock.monotonic() - keys.fetched > MAX_AGE_S:
            raise RequestError(
                "the keys of the token's issuer are not known now",
                code="request.issuer-unavailable",
                retry_after=int(RETRY_S),
            )
        found = keys.by_name.get((kid, str(algorithm)))
        if found is None:
            self._is_wanted = True
            raise _refusal("the issuer has no such key, or only just has it: then try again in half a minute")
        return found

    async def refresh_if_due(self) -> None:
        """Fetch the keys if it is time to: now and then, soon after a failure, and for a key that is not known."""
        now = self._clock.monotonic()
        if self._tried is not None:
            failed = self._keys is None or self._keys.fetched < self._tried
            if now - self._tried < (RETRY_S if failed or self._is_wanted else REFRESH_S):
                return
        self._tried, self._is_wanted = now, False
        try:
            self._keys = _Keys(await self._fetch(), now)
        except (IssuerError, aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error)[:300] or type(error).__name__
            _log.error("the keys of the issuer cannot be fetched", issuer=self._config.issuer, why=why)

    async def _fetch(self) -> Mapping[tuple[str, str], jwt.PyJWK]:
        issuer = self._config.issuer
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as http:
            discovery = await _get(http, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if discovery.get("issuer") != issuer:
                raise IssuerError("its discovery document names another issuer")
            url = discovery.get("jwks_uri")
            if not isinstance(url, str) or not is_secure(url):
                raise IssuerError("its jwks_uri is not an https URL")
            return read_keys(await _get(http, url))


async def _get(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise IssuerError(f"{response.status} for {url}")
        data = await read_all(response.content, _MAX_DOCUMENT)
    if data is None:
        raise IssuerError(f"{url} is larger than {_MAX_DOCUMENT} bytes")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IssuerError(f"{url} cannot be read: {error}") from None


def read_keys(document: Mapping[str, Any]) -> Mapping[tuple[str, str], jwt.PyJWK]:
    """
    Read the keys of a JWK set that may sign tokens, by kid and algorithm.

    Keys of other kinds, uses and algorithms are passed over (RFC 7517 §5), and so are two that have the same name.

    Raises:
        IssuerError: It is no JWK set, or has too many keys.
    """
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
        raise IssuerError(f"its JWKS is no list of at most {_MAX_KEYS} keys")
    found: dict[tuple[str, str], jwt.PyJWK] = {}
    twice = set()
    for jwk in listed:
        read = _read_key(jwk)
        if read is None:
            continue
        name, key = read
        if name in found:
            twice.add(name)
        found[name] = key
    return {name: key for name, key in found.items() if name not in twice}


def _read_key(jwk: object) -> tuple[tuple[str, str], jwt.PyJWK] | None:
    if not isinstance(jwk, dict):
        return None
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if not isinstance(kind, str) or not (curve is None or isinstance(curve, str)):
        return None
    algorithm, members = _KINDS.get((kind, curve), (None, ()))
    kid, named = jwk.get("kid"), jwk.get("alg", algorithm)
    uses = jwk.get("key_ops", ["verify"])
    if algorithm is None or not isinstance(kid, str) or not isinstance(named, str):
        return None
    if _SAME_ALGORITHM.get(named, named) != algorithm or jwk.get("use", "sig") != "sig":
        return None
    if not isinstance(uses, list) or "verify" not in uses:
        return None
    try:
        # Of its members those alone that a public key has.
        key = jwt.PyJWK({name: jwk.get(name) for name in members}, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size not in _RSA_BITS:
        return None
    return (kid, algorithm), key


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """The values of a claim, by its name or by a path with dots: a text, or a list of texts."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    listed = found if isinstance(found, list) else [found]
    return [value for value in listed if isinstance(value, str)]


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1 << 53:
        raise _refusal(f"its {name} is not a time")
    return value if math.isfinite(value) else None


def _refusal(why: str) -> RequestError:
    return RequestError(f"the token is not accepted: {why[:200]}", code="request.unauthorised")
