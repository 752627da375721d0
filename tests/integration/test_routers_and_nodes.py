"""A real verifier, a real front with the list that its attester fetches, and the connections of a real router."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attester import identity
from attester.front import process
from attester.front.keeper import AT_ONCE_S, EVERY_S, RouterKeeper
from fixtures.fronted import RecordingEngine, engine_server, make_home
from router.gateway import pinned, probe
from router.state.identity import Identity
from tests.conftest import FakeClock, RunningVerifier
from tests.integration.maintenance import real_clock
from tests.integration.test_routers import register, secret
from verifier.store import api_keys


@pytest.fixture
def clock() -> FakeClock:
    """The time of now: TLS asks the machine's clock whether a certificate has begun."""
    return real_clock()


async def test_a_node_serves_a_router_from_its_registration_to_the_end_of_its_key(
    verifier: RunningVerifier, tmp_path: Path
) -> None:
    """Registered, listed, served; revoked, unlisted, refused. Nothing is started again meanwhile."""
    node = await verifier.enrol()
    router, tick = Identity.make(datetime.now(UTC)), [0.0]
    token = await secret(verifier)
    async with engine_server(RecordingEngine()) as url:
        home = make_home(tmp_path, url)
        keeper = RouterKeeper(verifier.client(node), home, 86400, tick=lambda: tick[0])
        async with process.serving(home, home.config()) as (front, port):
            pin = hashlib.sha256(identity.spki(home.tls_key())).hexdigest()
            endpoint = (f"https://127.0.0.1:{port}", pin)

            async def pass_minute() -> None:
                tick[0] += EVERY_S + AT_ONCE_S
                await keeper.step()
                front.look()

            context = router.client_context()
            async with pinned.open_session(allow_private=True, context=context) as http:
                await pass_minute()
                refused = str(await probe.ask(http, endpoint, allow_private=True))
                assert refused == "certificate-refused"
                status, _ = await register(verifier, router, token)
                assert status == 200
                await pass_minute()
                assert await probe.ask(http, endpoint, allow_private=True) is None
                now_ms = verifier.clock.ms
                await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "router-1", now_ms))
                await pass_minute()
                refused = str(await probe.ask(http, endpoint, allow_private=True))
                assert refused == "certificate-refused"
