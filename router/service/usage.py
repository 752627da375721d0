"""What API keys have used of their limits: for their holders, and for auditors."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from router.config import ApiKey
from router.gateway.keys import Keyring
from router.gateway.openai import GATEWAY, KEY
from verifier.roles import Role
from verifier.service.access import caller_of
from verifier.service.http import json_response

_SEE_ALL: Final = frozenset({Role.AUDITOR, Role.ADMINISTRATOR})


async def show(request: web.Request) -> web.Response:
    """What the caller's key has used; auditors see all keys."""
    keyring = request.app[GATEWAY].keyring
    sees_all = not caller_of(request).roles.isdisjoint(_SEE_ALL)
    keys = keyring.keys() if sees_all else [request[KEY]]
    return json_response({"keys": [_wire(keyring, key) for key in keys]})


def _wire(keyring: Keyring, key: ApiKey) -> dict[str, Any]:
    in_flight, tokens = keyring.used(key)
    return {
        "name": key.name,
        "roles": key.roles,
        "in_flight": in_flight,
        "tokens_of_day": tokens,
        "limits": {
            "requests_per_minute": key.requests_per_minute,
            "concurrency": key.concurrency,
            "tokens_per_minute": key.tokens_per_minute,
            "tokens_per_day": key.tokens_per_day,
        },
    }
