"""What the router's own resources need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from router.config import RouterConfig
from router.gateway.jobs.service import Jobs
from router.model.clock import Clock
from router.state.change_steps import ChangeSteps
from router.state.changes import Changes
from router.state.claims import ClaimDesk
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.persistence import Persistence
from router.state.receipting import Receipting
from router.state.records import Records
from router.state.registration import Registrar
from router.state.stalls import StallWatch
from router.state.stored_keys import StoredKeys
from verifier.service.oidc import Issuer
from verifier.store.database import Database


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that runs."""

    config: RouterConfig
    folder: Path
    clock: Clock
    fleet: Fleet
    feed: Feed
    holds: Holds
    changes: Changes
    """Of the table of workloads."""
    change_steps: ChangeSteps
    persistence: Persistence
    records: Records
    stored_keys: StoredKeys
    issuer: Issuer | None
    """Of tokens that are credentials beside the keys."""
    registrar: Registrar
    receipts: Receipting | None
    """`None`: answers have no receipts."""
    db: Database
    """The store, which routers may share."""
    claims: ClaimDesk
    jobs: Jobs | None
    """`None`: nothing is kept, so there are no batches."""
    to_verifier: aiohttp.ClientSession
    stalls: StallWatch


STATE: web.AppKey[State] = web.AppKey("state", State)
