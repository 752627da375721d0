"""What the router's own resources need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from router.config import ApiKey, RouterConfig
from router.gateway.openai import GATEWAY, may_review
from router.model.clock import Clock
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.persistence import Persistence
from router.state.records import Records
from router.state.stalls import StallWatch
from verifier.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that runs."""

    config: RouterConfig
    folder: Path
    clock: Clock
    fleet: Fleet
    feed: Feed
    holds: Holds
    persistence: Persistence
    records: Records
    to_verifier: aiohttp.ClientSession
    stalls: StallWatch


STATE: web.AppKey[State] = web.AppKey("state", State)


def require_key(request: web.Request) -> ApiKey:
    """
    The caller's API key, if keys are configured.

    Raises:
        RequestError: the caller has no valid key.
    """
    key = request.app[GATEWAY].keyring.find(request.headers.get("Authorization"))
    if key is None:
        raise RequestError("a valid API key is needed", code="request.unauthorised")
    return key


def require_reviewer(request: web.Request) -> ApiKey:
    """
    The caller's API key, which must be a reviewer's.

    Raises:
        RequestError: it is not a reviewer's; if no keys are configured, no caller is a reviewer.
    """
    key = require_key(request)
    if not may_review(key):
        raise RequestError("this needs the API key of a reviewer", code="request.forbidden")
    return key
