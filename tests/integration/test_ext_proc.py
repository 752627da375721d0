"""What another gateway is told over gRPC: trusted nodes alone, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import yaml
from click.testing import CliRunner
from grpc import aio

from attester.errors import ConfigError
from attester.settings import to_toml
from fixtures.fleet import free_port
from router.choose.explaining import explanation
from router.config import RouterConfig
from router.model.workload import Table
from router.service.ext_proc import api
from tests.integration.gateway import CHAT, GATEWAY, STATE, TABLE, Fleet, by, key, opened
from tests.integration.processing import Filter, filtering, head, place, whole
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from touchstone import main

OK = grpc.StatusCode.OK
OWN = (("grpc.use_local_subchannel_pool", 1),)
"""Channels share connections otherwise."""
FORGED = {
    "x_gateway_destination_endpoint_subset": "6.6.6.6:1",
    "x_gateway_destination_endpoint": "6.6.6.6:1",
    "x_touchstone_decision": "mine",
    "authorization": "Bearer sk-of-somebody",
}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def listen_of(fleet: Fleet) -> str:
    section = fleet.app[STATE].config.ext_proc
    assert section is not None
    return section.listen


def in_flight(fleet: Fleet) -> int:
    return fleet.app[GATEWAY].in_flight


# Who is offered.


async def test_all_trusted_nodes_are_offered_with_scores_and_the_record_has_them(fleet: Fleet) -> None:
    nodes = [await fleet.node(name) for name in ("a", "b", "c", "d", "e")]
    async with filtering(fleet) as envoy:
        told = await envoy.ask()
        _, record = await fleet.get(f"/api/v1/decisions/{told.added['x-touchstone-decision']}")
    assert sorted(told.subset) == sorted(place(node) for node in nodes)
    assert set(told.scores) == set(told.subset)
    assert all(0 < score < 1 for score in told.scores.values())
    assert sorted(record["offered"]) == ["a", "b", "c", "d", "e"]
    assert explanation(record)[-1].startswith("  offered to the picker of another gateway, 5: ")


async def test_a_node_that_loses_its_trust_is_offered_no_more(fleet: Fleet) -> None:
    a, b = await fleet.node("a"), await fleet.node("b")
    async with filtering(fleet) as envoy:
        assert sorted((await envoy.ask()).subset) == sorted([place(a), place(b)])
        fleet.router.begin_hold("b", "h")
        assert (await envoy.ask()).subset == [place(a)]


async def test_what_a_client_says_of_endpoints_is_taken_away(fleet: Fleet) -> None:
    """And its key, which no node may see."""
    node = await fleet.node("a")
    async with filtering(fleet) as envoy:
        call = envoy.call()
        first, second = await call.send(head(**FORGED)), await call.send(whole())
    for told in (first, second):
        assert sorted(told.removed) == sorted(name.replace("_", "-") for name in FORGED)
    assert second.subset == [place(node)]
    assert second.added["x-touchstone-decision"] != "mine"


async def test_nobody_is_a_503_with_the_reasons_and_a_record(fleet: Fleet) -> None:
    await fleet.node("a")
    async with filtering(fleet) as envoy:
        fleet.router.begin_hold("a", "h")
        told = await envoy.ask()
        status, record = await fleet.get(f"/api/v1/decisions/{told.added['x-touchstone-decision']}")
    assert (told.status, told.subset) == (503, [])
    assert "1 incident." in told.error["message"]
    assert told.added["retry-after"]
    assert (status, "offered" in record) == (200, False)


async def test_while_the_verifier_is_silent_nobody_is_offered_and_health_says_so(fleet: Fleet) -> None:
    await fleet.node("a")
    async with filtering(fleet) as envoy:
        assert await envoy.health("readiness") == api.SERVING
        fleet.router._verifier_heard_at = fleet.app[STATE].clock.monotonic() - 61
        told = await envoy.ask()
        assert told.status == 503
        assert "incident.feed-silent" in told.error["message"]
        assert await envoy.health(api.SERVICE) == api.NOT_SERVING
        assert await envoy.health("liveness") == api.SERVING


async def test_health_of_what_is_not_there(fleet: Fleet) -> None:
    async with filtering(fleet) as envoy:
        with pytest.raises(aio.AioRpcError) as caught:
            await envoy.health("other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_the_caller_requires_narrows_the_subset(fleet: Fleet) -> None:
    """By the header, and by the body, which the node does not see."""
    await fleet.node("a")
    node = await fleet.node("b")
    by_body = {**CHAT, "provider": {"touchstone": {"nodes": ["b"]}}}
    async with filtering(fleet) as envoy:
        by_header = await envoy.ask(x_touchstone_require='{"nodes": ["b"]}')
        told = await envoy.ask(by_body)
        unmet = await envoy.ask(x_touchstone_require='{"nodes": ["c"]}')
    assert by_header.subset == told.subset == [place(node)]
    assert "x-touchstone-require" in by_header.removed
    passed = json.loads(told.answer.request_body.response.body_mutation.body)
    assert "provider" not in passed
    assert (unmet.status, unmet.error["code"]) == (412, "requirements.unmet")


async def test_a_body_with_a_member_twice_is_refused_or_written_once(fleet: Fleet) -> None:
    """So that a node reads the model that the router has read."""
    await fleet.node("a")
    twice = b'{"model": "other", "messages": [], "model": "' + MODEL.encode() + b'"}'
    async with filtering(fleet) as envoy:
        told = await envoy.ask(twice)
    passed = told.answer.request_body.response.body_mutation.body
    assert json.loads(passed)["model"] == MODEL
    assert passed.count(b'"model"') == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({**CHAT, "model": "unknown"}, 404),
        ({**CHAT, "stream": 1}, 400),
        (b"", 400),
    ],
)
async def test_a_body_that_the_gateway_would_refuse_is_refused(fleet: Fleet, body: Any, status: int) -> None:
    await fleet.node("a")
    async with filtering(fleet) as envoy:
        assert (await envoy.ask(body)).status == status
        assert not in_flight(fleet)


async def test_what_the_gateway_itself_allows_is_a_bound_of_the_subset(fleet: Fleet) -> None:
    """A subset that another filter has written is narrowed, and never widened."""
    a, _ = await fleet.node("a"), await fleet.node("b")
    async with filtering(fleet) as envoy:
        for allowed, offered in (([place(a), "6.6.6.6:1"], [place(a)]), ([], []), (["6.6.6.6:1"], [])):
            first = head()
            entry = first.metadata_context.filter_metadata.add(key="envoy.lb.subset_hint")
            entry.value.update({"x-gateway-destination-endpoint-subset": allowed})
            call = envoy.call()
            await call.send(first)
            told = await call.send(whole())
            assert await call.end() is OK
            assert (told.subset, told.status) == (offered, 0 if offered else 503)


async def test_by_the_header_alone_no_body_is_needed(fleet: Fleet) -> None:
    node = await fleet.node("a")
    async with filtering(fleet, {"open": True, "model_from": "header"}) as envoy:
        call = envoy.call()
        told = await call.send(head(mode=0, x_gateway_model_name=MODEL))
        assert await call.end() is OK
        assert told.subset == [place(node)]
        missing = await envoy.call().send(head(mode=0))
        assert (missing.status, missing.error["param"]) == (400, "x-gateway-model-name")


async def test_a_name_that_leads_nowhere_is_offered_to_nobody(fleet: Fleet) -> None:
    certificate = fleet.certificate("a")
    fleet.verifier.trust("a", endpoint={"url": "https://nowhere.invalid:1", "spki_sha256": certificate.pin})
    async with filtering(fleet, {"open": True, "message_timeout_s": 2}) as envoy:
        told = await envoy.ask()
    assert (told.status, told.error["code"]) == (503, "address.unknown")


async def test_another_table_is_followed(fleet: Fleet) -> None:
    node = await fleet.node("a")
    async with filtering(fleet) as envoy:
        assert (await envoy.ask()).subset == [place(node)]
        fleet.router.use_table(Table([]))
        assert (await envoy.ask()).status == 404


# Who asks.


async def test_a_key_is_needed_unless_the_gateway_in_front_knows_its_callers(fleet: Fleet) -> None:
    node = await fleet.node("a")
    keys = {"keys": [key("one"), key("operators", roles=["operator"], operator="o")]}
    async with filtering(fleet, {}, sections=keys) as envoy:
        told = await envoy.ask()
        assert (told.status, told.error["code"], told.added["www-authenticate"]) == (
            401, "invalid_api_key", "Bearer",
        )  # fmt: skip
        assert (await envoy.ask(**by("unknown"))).status == 401
        assert (await envoy.ask(**by("operators"))).status == 403
        found = await envoy.ask(**by("one"))
    assert found.subset == [place(node)]
    assert "authorization" in found.removed


async def test_limits_of_a_key_hold(fleet: Fleet) -> None:
    """Of tokens, what a request may cost at most is counted: what it does cost is not seen."""
    await fleet.node("a")
    keys = {"keys": [key("often", requests_per_minute=6), key("much", tokens_per_day=150)]}
    body = {**CHAT, "max_tokens": 90}
    async with filtering(fleet, {}, sections=keys) as envoy:
        assert [(await envoy.ask(**by("often"))).status for _ in range(2)] == [0, 429]
        assert [(await envoy.ask(body, **by("much"))).status for _ in range(3)] == [0, 0, 429]


async def test_a_place_is_held_until_the_stream_ends(fleet: Fleet) -> None:
    await fleet.node("a")
    async with filtering(fleet, {}, sections={"keys": [key("one", concurrency=1)]}) as envoy:
        call = envoy.call()
        await call.send(head(**by("one")))
        await call.send(whole())
        assert (await envoy.ask(**by("one"))).error["code"] == "concurrency"
        assert await call.end() is OK
        assert not (await envoy.ask(**by("one"))).status


# Streams that are not as they should be.


async def refused(envoy: Filter, *messages: Any) -> grpc.StatusCode:
    """How a stream ends on which these are sent."""
    call = envoy.call()
    with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
        for message in messages:
            await call.write(message)
        while await call.call.read() is not aio.EOF:
            pass
    code: grpc.StatusCode = await call.call.code()
    return code


async def test_a_stream_that_hangs_ends_with_an_error_and_frees_its_place(fleet: Fleet) -> None:
    await fleet.node("a")
    async with filtering(fleet, {"open": True, "message_timeout_s": 0.1}) as envoy:
        assert await refused(envoy) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await refused(envoy, head()) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not in_flight(fleet)


async def test_garbage_ends_with_an_error(fleet: Fleet) -> None:
    async with filtering(fleet) as envoy:
        assert await refused(envoy, b"\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
        assert await refused(envoy, whole()) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_client_that_ends_too_early_gets_an_error(fleet: Fleet) -> None:
    async with filtering(fleet) as envoy:
        call = envoy.call()
        await call.send(head())
        assert await call.end() is grpc.StatusCode.FAILED_PRECONDITION
        await until(lambda: not in_flight(fleet))


async def test_a_stream_that_is_cancelled_frees_its_place(fleet: Fleet) -> None:
    async with filtering(fleet) as envoy:
        call = envoy.call()
        await call.send(head())
        assert in_flight(fleet) == 1
        call.call.cancel()
        await until(lambda: not in_flight(fleet))


async def test_a_body_that_is_too_large_is_refused(fleet: Fleet) -> None:
    """Up to what a message may have, by an answer; beyond it, gRPC does not read it."""
    await fleet.node("a")
    async with filtering(fleet, {"open": True, "max_body": 2000}) as envoy:
        assert (await envoy.ask({**CHAT, "user": "x" * 3000})).status == 413
        code = await refused(envoy, head(), whole({**CHAT, "user": "x" * 400_000}))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: not in_flight(fleet))


async def test_more_streams_than_are_allowed_are_refused(fleet: Fleet) -> None:
    await fleet.node("a")
    async with filtering(fleet, {"open": True, "max_streams": 2}) as envoy:
        calls = [envoy.call() for _ in range(2)]
        for call in calls:
            await call.send(head())
        assert await refused(envoy, head()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            assert (await call.send(whole())).subset
            assert await call.end() is OK
        assert (await envoy.ask()).subset


async def test_streams_that_hang_once_they_are_decided_make_room(fleet: Fleet) -> None:
    """The oldest of them ends cleanly; one that is not decided yet stays."""
    await fleet.node("a")
    async with filtering(fleet, {"open": True, "max_streams": 10}) as envoy:
        undecided = envoy.call()
        await undecided.send(head())
        hanging = []
        for _ in range(15):
            # One after the other: a call begins when it is made.
            hanging.append(call := envoy.call())
            await call.send(head())
            assert (await call.send(whole())).subset
        assert await hanging[0].call.read() is aio.EOF
        assert await hanging[0].call.code() is OK
        assert (await undecided.send(whole())).subset


async def test_a_failure_of_the_router_refuses_the_request(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with filtering(fleet) as envoy:
        monkeypatch.setattr(fleet.app[GATEWAY].dispatcher, "decide", None)
        assert await refused(envoy, head(), whole()) is grpc.StatusCode.INTERNAL
        assert not in_flight(fleet)


async def test_at_the_end_of_the_router_no_stream_ends_cleanly_undecided(fleet: Fleet) -> None:
    """A request that is under way is decided; one that comes to nothing gets an error."""
    await fleet.node("a")
    async with filtering(fleet, {"open": True, "message_timeout_s": 0.5}) as envoy:
        decides, hangs = envoy.call(), envoy.call()
        await decides.send(head())
        await hangs.send(head())
        stopping = asyncio.create_task(fleet.stop())
        assert (await decides.send(whole())).subset
        assert await decides.end() is OK
        with contextlib.suppress(aio.AioRpcError):
            await hangs.call.read()
        assert await hangs.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await stopping


async def test_at_the_end_of_the_router_answers_that_are_under_way_go_on(fleet: Fleet) -> None:
    """A clean end lets Envoy go on without us."""
    await fleet.node("a")
    async with filtering(fleet) as envoy:
        call = envoy.call()
        await call.send(head())
        assert (await call.send(whole())).subset
        await fleet.stop()
        assert await call.call.read() is aio.EOF
        assert await call.call.code() is OK


# What was picked.


async def checked(envoy: Filter, told: Any, *picked: str, subset: list[str] | None = None) -> Any:
    message = head(x_touchstone_decision=told.added["x-touchstone-decision"])
    for each in picked:
        message.request_headers.headers.headers.add(
            key="x-gateway-destination-endpoint", raw_value=each.encode()
        )
    entry = message.metadata_context.filter_metadata.add(key="envoy.lb.subset_hint")
    entry.value.update({"x-gateway-destination-endpoint-subset": told.subset if subset is None else subset})
    call = envoy.call(x_touchstone_stage="picked")
    found = await call.send(message)
    assert await call.end() is OK
    return found


async def test_what_was_picked_is_checked(fleet: Fleet) -> None:
    node = await fleet.node("a")
    async with filtering(fleet) as envoy:
        told = await envoy.ask()
        assert not (await checked(envoy, told, place(node))).status
        outside = await checked(envoy, told, "6.6.6.6:1")
        assert (outside.status, outside.error["code"]) == (503, "endpoint_not_allowed")


async def test_a_node_that_lost_its_trust_while_the_picker_waited_is_not_reached(fleet: Fleet) -> None:
    node = await fleet.node("a")
    async with filtering(fleet) as envoy:
        call = envoy.call()
        await call.send(head())
        told = await call.send(whole())
        assert not (await checked(envoy, told, place(node))).status
        fleet.router.begin_hold("a", "h")
        late = await checked(envoy, told, place(node))
        assert (late.status, late.error["message"]) == (503, "the node may no longer do the work")
        # Metadata of Envoy that says more than this router has offered is not believed either.
        assert (await checked(envoy, told, "6.6.6.6:1", subset=["6.6.6.6:1"])).status == 503
        assert await call.end() is OK


# TLS, and how it starts.


class Files:
    """A certificate in files, as gRPC reads them."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        folder = fleet.certificate(name).folder
        self.certificate, self.key = folder / f"{name}.crt", folder / f"{name}.key"

    def channel(self, listen: str, root: bytes) -> Any:
        pair = {"private_key": self.key.read_bytes(), "certificate_chain": self.certificate.read_bytes()}
        return aio.secure_channel(listen, grpc.ssl_channel_credentials(root, **pair), options=OWN)


async def test_with_tls_only_who_has_a_certificate_of_the_authority_may_ask(fleet: Fleet) -> None:
    node = await fleet.node("a")
    ours, stranger = Files(fleet, "gateway"), Files(fleet, "stranger")
    files = {
        "tls_certificate": str(ours.certificate),
        "tls_key": str(ours.key),
        "client_ca": str(ours.certificate),
    }
    async with filtering(fleet, {"open": True, **files}):
        listen, root = listen_of(fleet), ours.certificate.read_bytes()
        async with ours.channel(listen, root) as channel:
            assert (await Filter(channel).ask()).subset == [place(node)]
        for refusing in (
            stranger.channel(listen, root),
            aio.secure_channel(listen, grpc.ssl_channel_credentials(root), options=OWN),
            aio.insecure_channel(listen, options=OWN),
        ):
            async with refusing as channel:
                assert await refused(Filter(channel), head()) is grpc.StatusCode.UNAVAILABLE


async def test_tls_files_that_change_are_read_for_the_next_connection(fleet: Fleet) -> None:
    """And files that cannot be used change nothing."""
    await fleet.node("a")
    ours, next_ = Files(fleet, "gateway"), Files(fleet, "next")
    files = {
        "tls_certificate": str(ours.certificate),
        "tls_key": str(ours.key),
        "client_ca": str(ours.certificate),
    }
    async with filtering(fleet, {"open": True, **files}):
        listen, root = listen_of(fleet), ours.certificate.read_bytes()
        key = ours.key.read_bytes()
        ours.key.write_bytes(b"nothing")
        ours_before = Files.__new__(Files)
        ours_before.certificate, ours_before.key = ours.certificate, ours.key.with_name("before.key")
        ours_before.key.write_bytes(key)
        async with ours_before.channel(listen, root) as channel:
            assert (await Filter(channel).ask()).subset
        ours.certificate.write_bytes(next_.certificate.read_bytes())
        ours.key.write_bytes(next_.key.read_bytes())
        async with next_.channel(listen, next_.certificate.read_bytes()) as channel:
            assert (await Filter(channel).ask()).subset


async def test_an_address_that_is_taken_ends_the_start(fleet: Fleet) -> None:
    port = free_port()
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with server:
        with pytest.raises(ConfigError, match="is it taken"):
            await fleet.start(sections={"ext_proc": {"listen": f"127.0.0.1:{port}"}})


def test_a_router_without_it_imports_neither_grpc_nor_protobuf() -> None:
    code = "import sys, router.service.app, router.commands.router; sys.exit('grpc' in sys.modules or 'google' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The commands.


def written(tmp_path: Path, section: dict[str, str] | None = {}) -> Path:  # noqa: B006
    """A configuration of a router; `None`: without the section."""
    (tmp_path / "router.token").write_text("the-routers-key")
    (tmp_path / "workloads.yaml").write_text(json.dumps(TABLE))
    config = {
        "verifier": {"url": "http://127.0.0.1:9", "router_token_file": "router.token"},
        "ext_proc": None if section is None else {"listen": "127.0.0.1:8451", **section},
    }
    path = tmp_path / "router.toml"
    path.write_text(to_toml(msgspec.convert(config, RouterConfig)))
    return path


def said(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["router", *arguments])
    return result.exit_code, result.output


def test_what_is_printed_is_a_configuration(tmp_path: Path) -> None:
    path = written(tmp_path)
    code, text = said("ext-proc", "--config", str(path), "--picker", "[::1]:9002")
    filters = yaml.safe_load(text)["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    found = filters["typed_config"]["http_filters"]
    assert code == 0
    assert [each["name"] for each in found] == [
        "touchstone.offer", "picker", "touchstone.check", "envoy.filters.http.router",
    ]  # fmt: skip
    assert not any(each["typed_config"].get("failure_mode_allow") for each in found)


@pytest.mark.parametrize(
    ("section", "options", "why"),
    [
        (None, (), "has no section [ext_proc]"),
        ({}, ("--key", "k"), "go together"),
        ({"tls_certificate": "c", "tls_key": "k", "client_ca": "a"}, (), "asks for a certificate"),
    ],
)
def test_what_cannot_be_printed(
    tmp_path: Path, section: dict[str, str] | None, options: tuple[str, ...], why: str
) -> None:
    path = written(tmp_path, section)
    code, text = said("ext-proc", "--config", str(path), "--picker", "127.0.0.1:1", *options)
    assert (code, why in text) == (1, True), text


def test_a_check_reads_the_files_of_the_section(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert said("check", "--config", str(path), "--config-only")[0] == 0
    path = written(tmp_path, {"tls_certificate": "c", "tls_key": "k", "client_ca": "a"})
    code, text = said("check", "--config", str(path), "--config-only")
    assert (code, "cannot be used for TLS" in text) == (1, True)
