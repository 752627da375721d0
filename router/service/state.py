"""What the router's own resources need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from router.config import RouterConfig
from router.gateway.keys import Key
from router.gateway.openai import GATEWAY, may_review
from router.model.clock import Clock
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.persistence import Persistence
from router.state.records import Records
from verifier.errors import RequestError


@dataclass(frozen=True)
class State:
    """All that runs."""

    config: RouterConfig
    folder: Path
    clock: Clock
    fleet: Fleet
    feed: Feed
    holds: Holds
    keeper: Persistence
    records: Records
    to_verifier: aiohttp.ClientSession


STATE: web.AppKey[State] = web.AppKey("state", State)


def require_key(request: web.Request) -> Key:
    """
    The caller's API key, where one is needed.

    Raises:
        RequestError: it has none.
    """
    key = request.app[GATEWAY].keyring.find(request.headers.get("Authorization"))
    if key is None:
        raise RequestError("a valid API key is needed", code="request.unauthorised")
    return key


def require_reviewer(request: web.Request) -> Key:
    """
    The caller's API key, with which incidents may be decided.

    Raises:
        RequestError: it has none, or one for work alone; without keys nobody has.
    """
    key = require_key(request)
    if not may_review(key):
        raise RequestError("this needs the API key of a reviewer", code="request.forbidden")
    return key
