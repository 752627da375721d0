"""A stand-in for a verifier: it signs a result for each node, and says every few seconds that it is there."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from bench.gateway_peers.answers import MODEL
from verifier import trust
from verifier.result_keys import ResultKey
from verifier.results import Appraisal, AttestationResult, VerifierClaims, VerifierId, encode_jwt

LIFE_S: Final = 3600
_HEARTBEAT_S: Final = 2.0


def _submod(vector: Mapping[str, int], assurance: str, claims: Mapping[str, Any]) -> Appraisal:
    return Appraisal(
        ear_status=trust.worst(vector),
        ear_trustworthiness_vector=dict(vector),
        ear_appraisal_policy_ids=("bench",),
        ear_verifier_claims=VerifierClaims(assurance=assurance, bound="true", measured={}),
        ear_attester_claims=dict(claims),
    )


def result(issuer: str, node: str, url: str, pin: str) -> AttestationResult:
    """An honest node's result."""
    claims = {"endpoint": {"url": url, "spki_sha256": pin}, "capabilities": {}}
    submods = {
        "platform": _submod({"instance-identity": 2, "configuration": 2}, "declared", claims),
        f"model/{MODEL}": _submod({"file-system": 2, "executables": -2}, "challenged", {}),
    }
    now = int(time.time())
    return AttestationResult(
        iss=issuer,
        iat=now,
        exp=now + LIFE_S,
        jti=secrets.token_hex(16),
        ueid=f"ueid-{node}",
        cnf={},
        ear_verifier_id=VerifierId("bench", "0"),
        ear_status=trust.worst_tier([each.ear_status for each in submods.values()]),
        submods=submods,
        status={"uri": f"{issuer}/status"},
    )


class StandIn:
    """Serves results of nodes that may be trusted."""

    def __init__(self) -> None:
        self._key = ResultKey(ec.generate_private_key(ec.SECP256R1()))
        self._tokens: dict[str, str] = {}

    def trust(self, issuer: str, node: str, url: str, pin: str) -> None:
        """One more node."""
        self._tokens[node] = encode_jwt(result(issuer, node, url, pin), self._key)

    def app(self) -> web.Application:
        """What a router asks of a verifier."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/.well-known/jwks.json", self._keys),
                web.get("/api/v1/results", self._results),
                web.get("/api/v1/incidents", self._incidents),
                web.get("/api/v1/events", self._events),
            ]
        )
        return app

    async def _keys(self, _: web.Request) -> web.Response:
        return _json({"keys": [self._key.verifying.jwk()]})

    async def _results(self, _: web.Request) -> web.Response:
        entries = [{"node": node, "token": token} for node, token in self._tokens.items()]
        return _json({"results": entries, "seq": 0, "next": None})

    async def _incidents(self, _: web.Request) -> web.Response:
        return _json({"incidents": [], "next": None})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"event: heartbeat\ndata: {}\n\n")
            await asyncio.sleep(_HEARTBEAT_S)


def _json(document: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
