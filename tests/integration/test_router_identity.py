"""A router presents its certificate to nodes that ask for one, and a refusal is whose fault it is."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fixtures.streaming import HONEST
from router.gateway import pinned, probe
from router.model.outcomes import Blame, Failure, Outcome
from router.service.state import STATE
from router.state.identity import Identity
from tests.integration.gateway import CHAT, CHATS, STREAM, EngineNode, Fleet, Running, opened
from tests.unit.router.doubles import Certificate, until

TLS_1_3, TLS_1_2 = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path, Running()) as made:
        (tmp_path / "token").write_text("touchstone_x")
        yield made


class Telling(ssl.SSLObject):
    """
    TLS that tells the client why its handshake failed, as OpenSSL's own servers do.

    asyncio closes the socket before the alert goes out.  So it is told to wait for more, and sends what there is.
    """

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            raise ssl.SSLWantReadError from error


class GuardedNode(EngineNode):
    """
    A node that asks for the certificate of a router, as the front of a node does.  It knows no router at first.

    Each connection takes the list that is in force when it begins.
    """

    def __init__(self, name: str, certificate: Certificate, version: ssl.TLSVersion) -> None:
        super().__init__(name, certificate, HONEST)
        self.first = certificate.context
        """Connections begin with this context."""
        self.first.verify_mode = ssl.CERT_REQUIRED
        self.first.sslobject_class = Telling
        self.first.minimum_version = self.first.maximum_version = version
        self._folder = certificate.folder
        self._anchors: ssl.SSLContext | None = None
        self.seen: list[bytes | None] = []
        """What routers presented, by request."""
        self._transports: set[Any] = set()

    def serve(self, *routers: Identity) -> None:
        """Serve these routers alone from now on; open connections end."""
        self._anchors = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = self._folder / f"{self.name}.crt", self._folder / f"{self.name}.key"
        self._anchors.load_cert_chain(*files)
        for router in routers:
            self._anchors.load_verify_locations(cadata=router.certificate.der)
        for transport in self._transports:
            transport.close()

    def _greeted(self, *given: Any) -> None:
        super()._greeted()
        if self._anchors is not None:
            given[0].context = self._anchors

    @web.middleware
    async def _wait(self, request: web.Request, handler: Any) -> Any:
        transport = request.transport
        assert transport is not None
        self._transports.add(transport)
        self.seen.append(transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        return await handler(request)


async def guarded(fleet: Fleet, name: str, version: ssl.TLSVersion = TLS_1_3) -> GuardedNode:
    certificate = fleet.certificate(name)
    node = GuardedNode(name, certificate, version)
    await fleet.place(node, certificate)
    return node


async def start(fleet: Fleet, tmp_path: Path, for_s: int | None = 0) -> Identity:
    """
    Start the router; gives its identity.

    Args:
        for_s: For how long the verifier has registered it; `None`: it does not.
    """
    fleet.verifier.registers, fleet.verifier.registered_for_s = for_s is not None, for_s or 0
    await fleet.start(sections={"verifier": {"router_token_file": str(tmp_path / "token")}})
    registrar = fleet.app[STATE].registrar
    await registrar.register()
    assert registrar.is_registered is (for_s is not None)
    return registrar.identity


async def attempts(fleet: Fleet) -> list[tuple[str, str]]:
    return await fleet.attempts(CHAT, CHATS)


async def test_a_node_that_serves_this_router_alone_gets_its_requests(fleet, tmp_path) -> None:
    """Over TLS 1.3 with the router's certificate, through the gateway, whole and streamed, on one connection."""
    node = await guarded(fleet, "a")
    node.serve(await start(fleet, tmp_path))
    for body in (CHAT, STREAM, CHAT):
        heard = await fleet.ask(body)
        assert heard.status == 200
        assert heard.text
    identity = fleet.app[STATE].registrar.identity
    assert node.seen == [identity.certificate.der] * 3
    assert node.handshakes == 1


async def test_a_node_refuses_a_router_that_is_not_in_its_list(fleet, tmp_path) -> None:
    """Nothing of the request reaches the engine."""
    node = await guarded(fleet, "a")
    node.serve(Identity.make(datetime.now(UTC)))
    await start(fleet, tmp_path)
    status, answer, _ = await fleet.post(CHAT, CHATS)
    assert (status, answer["error"]["code"]) == (503, "not-admitted")
    assert node.seen == []
    assert node.engine.requests == 0


async def test_a_node_that_asks_for_no_certificate_is_served_as_before(fleet, tmp_path) -> None:
    """It does not even see one."""
    node = await fleet.engine("a", HONEST)
    await start(fleet, tmp_path, None)
    assert await attempts(fleet) == [("a", "completed")]
    assert node.engine.requests == 1


async def test_with_tls_1_2_it_is_the_same(fleet, tmp_path) -> None:
    """There the refusal comes within the handshake."""
    node = await guarded(fleet, "a", TLS_1_2)
    identity = await start(fleet, tmp_path)
    assert await attempts(fleet) == [("a", "not-admitted")]
    node.serve(identity)
    assert await attempts(fleet) == [("a", "completed")]


REFUSED = [
    (None, "hindered", Failure.NOT_REGISTERED, Blame.ROUTER),
    (0, "not-admitted", Failure.CERTIFICATE_NEW, Blame.NOBODY),
    (110, "not-admitted", Failure.CERTIFICATE_NEW, Blame.NOBODY),
    (121, "crashed", Failure.CERTIFICATE_REFUSED, Blame.NODE),
]


@pytest.mark.parametrize(("for_s", "outcome", "failure", "blame"), REFUSED)
async def test_a_refusal_is_whose_fault_it_is_and_the_next_node_is_tried(
    fleet, tmp_path, for_s: int | None, outcome: str, failure: Failure, blame: Blame
) -> None:
    """Ours while we are not registered, nobody's for two minutes after it, and then the node's."""
    await guarded(fleet, "a")
    await fleet.engine("b", HONEST)
    await start(fleet, tmp_path, for_s)
    status, _, headers = await fleet.post(CHAT, CHATS)
    assert status == 200
    first, second = await fleet.record(headers)
    assert (first["node"], first["outcome"]) == ("a", outcome)
    assert first["detail"].startswith(f"{failure}: ")
    assert (second["node"], second["outcome"]) == ("b", "completed")
    assert Outcome(outcome).blame is blame
    assert (fleet.failed("a") > 0) is (blame is Blame.NODE)


async def test_if_every_node_refuses_none_is_blamed(fleet, tmp_path) -> None:
    """Then what the verifier has told them may be the cause."""
    for name in ("a", "b"):
        await guarded(fleet, name)
    await start(fleet, tmp_path, 1000)
    status, answer, _ = await fleet.post(CHAT, CHATS)
    assert (status, answer["error"]["code"]) == (502, "crashed")
    assert fleet.failed("a") == fleet.failed("b") == 0


async def test_the_verifier_is_asked_before_a_node_is_blamed(fleet, tmp_path) -> None:
    """A person may have removed the router since; and if it does not answer, it is nobody's fault."""
    await guarded(fleet, "a")
    await start(fleet, tmp_path, 1000)
    asked = fleet.verifier.registrations
    before = len(asked)
    assert await attempts(fleet) == [("a", "crashed")]
    assert len(asked) == before
    fleet.clock.forward(6)
    assert await attempts(fleet) == [("a", "crashed")]
    assert len(asked) == before + 1
    fleet.clock.forward(6)
    fleet.verifier.bodies["routers"] = lambda: web.Response(status=503)
    assert await attempts(fleet) == [("a", "not-admitted")]
    del fleet.verifier.bodies["routers"]
    await fleet.app[STATE].registrar.register()
    fleet.clock.forward(6)
    fleet.verifier.registers = False
    assert await attempts(fleet) == [("a", "hindered")]


async def test_a_node_that_ends_the_connection_without_an_alert_is_judged_so_too(fleet, tmp_path) -> None:
    """The end of a connection may overtake the alert; a node that asks for no certificate has no such excuse."""
    node = await guarded(fleet, "a")
    plain = await fleet.engine("b", HONEST)
    await start(fleet, tmp_path)
    node.first.sslobject_class = ssl.SSLObject
    assert await attempts(fleet) == [("a", "not-admitted"), ("b", "completed")]
    assert pinned.pin_for(node.pin).asks
    assert not pinned.pin_for(plain.pin).asks


async def test_a_refusing_node_is_asked_once_for_a_request_and_rests_after_three(fleet, tmp_path) -> None:
    """For ten seconds and no longer, however often it has refused: soon it will know the router."""
    node = await guarded(fleet, "a")
    await start(fleet, tmp_path)
    for number in range(1, 7):
        assert await attempts(fleet) == [("a", "not-admitted")]
        load = fleet.statistics("a").load
        assert node.handshakes == number
        assert load.breaker_is_open(fleet.clock.ticks) is (number >= 3)
    assert not load.breaker_is_open(fleet.clock.ticks + 10)


async def test_a_router_that_a_node_forgets_is_refused_on_a_new_connection(fleet, tmp_path) -> None:
    """The kept one was ended, and that alone is no failure."""
    node = await guarded(fleet, "a")
    node.serve(await start(fleet, tmp_path))
    assert await attempts(fleet) == [("a", "completed")]
    node.serve(Identity.make(datetime.now(UTC)))
    assert await attempts(fleet) == [("a", "not-admitted")]


PROBED = [(None, Failure.NOT_REGISTERED), (0, Failure.CERTIFICATE_NEW), (500, Failure.CERTIFICATE_REFUSED)]


@pytest.mark.parametrize(("for_s", "failure"), PROBED)
async def test_a_probe_presents_the_certificate_and_says_the_same(
    fleet, tmp_path, for_s: int | None, failure: Failure
) -> None:
    """So a node that asks for certificates is seen to be there."""
    node = await guarded(fleet, "a")
    identity = await start(fleet, tmp_path, for_s)
    judge = fleet.app[STATE].registrar.judge_refusal
    async with pinned.open_session(allow_private=True, context=identity.client_context()) as http:

        async def ask() -> Failure | None:
            return await probe.ask(http, (node.url, node.pin), allow_private=True, judge_refusal=judge)

        assert await ask() is failure
        node.serve(identity)
        assert await ask() is None


async def test_the_probes_of_a_router_present_it_too(fleet, tmp_path) -> None:
    """By themselves, a few times a second here."""
    node = await guarded(fleet, "a")
    fleet.verifier.registers = True
    await fleet.start(
        sections={"verifier": {"router_token_file": str(tmp_path / "token")}}, probe_every_s=0.05
    )
    identity = fleet.app[STATE].registrar.identity
    node.serve(identity)
    await until(lambda: node.seen)
    assert node.seen[0] == identity.certificate.der
