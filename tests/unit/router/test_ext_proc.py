"""External processing without sockets: heads, what was picked, where nodes are, and the order of messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ext_proc_config import ExtProcSection
from router.gateway.errors import GatewayError
from router.gateway.pinned import AddressError
from router.model.clock import Clock
from router.model.operations import OPERATIONS
from router.service.ext_proc import answers
from router.service.ext_proc.api import CLASSES, ProcessingRequest, ProcessingResponse
from router.service.ext_proc.head import (
    SUBSET_KEY,
    SUBSET_NAMESPACE,
    TooMuchError,
    check_model,
    operation_of,
    read_head,
    read_pairs,
    spoken_for_us,
)
from router.service.ext_proc.offers import Asked, EmptyOfferError, Offer
from router.service.ext_proc.picked import read_picked
from router.service.ext_proc.places import Places
from router.service.ext_proc.stream import Refusal, Stream, StreamError
from tests.unit.router.support import WORKLOAD

PATH = (":path", b"/v1/chat/completions")
POST = (":method", b"POST")
CONFIG = ExtProcSection(listen="127.0.0.1:1")


def headers(*pairs: tuple[str, bytes]) -> list[Any]:
    return [CLASSES["HeaderValue"](key=name, raw_value=value) for name, value in pairs]


# The head.


@pytest.mark.parametrize(
    "name",
    [
        "x-gateway-destination-endpoint-subset",
        "x-gateway-destination-endpoint",
        "x-gateway-destination-endpoint-served",
        "X-Gateway-Destination-Endpoint-Subset",
        "x-touchstone-decision",
        "x-touchstone-request",
        "authorization",
        "cookie",
    ],
)
def test_headers_that_only_gateways_may_say_or_no_node_may_see_are_taken_away(name: str) -> None:
    head = read_head(read_pairs(headers(PATH, POST, ("accept", b"*/*"), (name, b"Bearer x"))))
    assert head.foreign == (name.lower(),)


@pytest.mark.parametrize(
    "name",
    ["x-touchstone-require", "x-touchstone-workload", "x-gateway-model-name", ":path", "content-encoding"],
)
def test_a_header_that_decides_something_stands_once(name: str) -> None:
    with pytest.raises(GatewayError) as caught:
        read_head([PATH, POST, (name, b"identity"), (name, b"identity")])
    assert (caught.value.status, caught.value.param) == (400, name)


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(GatewayError) as caught:
        read_head([PATH, POST, ("content-encoding", b"gzip")])
    assert caught.value.status == 415


def test_a_nonce_is_refused_because_the_picker_chooses() -> None:
    with pytest.raises(GatewayError, match="cannot be honoured"):
        read_head([PATH, POST, ("x-touchstone-nonce", b"a.b")])


@pytest.mark.parametrize("count", [0, 200])
def test_headers_are_read_up_to_their_bounds(count: int) -> None:
    assert len(read_pairs(headers(*[("a", b"b")] * count))) == count


@pytest.mark.parametrize("pairs", [[("a", b"b")] * 201, [("a", b"b" * (64 << 10))]])
def test_more_headers_are_refused(pairs: list[tuple[str, bytes]]) -> None:
    with pytest.raises(TooMuchError):
        read_pairs(headers(*pairs))


def test_a_value_in_the_older_field_is_read() -> None:
    assert read_pairs([CLASSES["HeaderValue"](key="A", value="b")]) == [("a", b"b")]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_each_operation_is_known_by_its_path(operation: Any) -> None:
    assert operation_of(read_head([(":path", operation.path.encode()), POST])) is operation


@pytest.mark.parametrize(
    "path",
    [
        b"/metrics",
        b"/v1/models",
        b"/v1/chat/completions/",
        b"/v1/chat/completions?a=b",
        b"/v1//embeddings",
        b"",
        b"\xff",
    ],
)
def test_no_other_path_reaches_a_node(path: bytes) -> None:
    """Engines have control routes, and what a query means to them is not known."""
    with pytest.raises(GatewayError) as caught:
        operation_of(read_head([(":path", path), POST]))
    assert caught.value.status == 404


def test_no_other_method_reaches_a_node() -> None:
    with pytest.raises(GatewayError) as caught:
        operation_of(read_head([PATH, (":method", b"GET")]))
    assert caught.value.status == 405


def test_a_header_that_names_another_model_than_the_body_is_refused() -> None:
    head = read_head([PATH, POST, ("x-gateway-model-name", b"other")])
    check_model(head, "other", CONFIG)
    with pytest.raises(GatewayError, match="another model"):
        check_model(head, "m", CONFIG)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=30), st.binary(max_size=40)), max_size=12))
def test_any_headers_are_read_or_refused(pairs: list[tuple[str, bytes]]) -> None:
    with contextlib.suppress(GatewayError):
        operation_of(read_head(pairs))


def test_what_a_node_says_in_the_routers_name_is_found() -> None:
    assert spoken_for_us([("x-touchstone-receipt", b"a"), ("date", b"b")]) == ("x-touchstone-receipt",)


# What was picked.


def behind(
    *picked: bytes, subset: list[str] | None, decision: bytes = b"d"
) -> tuple[list[tuple[str, bytes]], Any]:
    message = ProcessingRequest()
    if subset is not None:
        entry = message.metadata_context.filter_metadata.add(key=SUBSET_NAMESPACE)
        entry.value.update({SUBSET_KEY: subset})
    pairs = [("x-gateway-destination-endpoint", each) for each in picked]
    return [*pairs, ("x-touchstone-decision", decision)], message


def test_what_is_of_the_subset_may_be_picked() -> None:
    found = read_picked(*behind(b"10.0.0.1:1, 10.0.0.2:1", subset=["10.0.0.2:1", "10.0.0.1:1", "10.0.0.3:1"]))
    assert (found.record, found.endpoints) == ("d", ("10.0.0.1:1", "10.0.0.2:1"))


@pytest.mark.parametrize(
    ("picked", "subset", "why"),
    [
        ([b"10.0.0.9:1"], ["10.0.0.1:1"], "outside"),
        ([b"10.0.0.1:1,10.0.0.9:1"], ["10.0.0.1:1"], "outside"),
        ([b"10.0.0.1:1,"], ["10.0.0.1:1"], "outside"),
        ([b"10.0.0.1:11"], ["10.0.0.1:1"], "outside"),
        ([b"10.0.0.1:1"], [], "outside"),
        ([b""], [], "outside"),
        ([b"10.0.0.1:1", b"10.0.0.9:1"], ["10.0.0.1:1"], "two headers"),
        ([], ["10.0.0.1:1"], "no endpoint"),
        ([b"10.0.0.1:1"], None, "not passed on"),
    ],
)
def test_what_is_not_of_the_subset_may_not(picked: list[bytes], subset: list[str] | None, why: str) -> None:
    with pytest.raises(GatewayError, match=why) as caught:
        read_picked(*behind(*picked, subset=subset))
    assert (caught.value.status, caught.value.code) == (503, "endpoint_not_allowed")


@pytest.mark.parametrize("named", ["10.0.0.2:1", "10.0.0.9:1", "", 5])
def test_the_header_and_the_metadata_name_the_same_endpoint(named: Any) -> None:
    """Envoy's `override_host` goes by the metadata, and other clusters by the header."""
    pairs, message = behind(b"10.0.0.1:1", subset=["10.0.0.1:1", "10.0.0.2:1"])
    entry = message.metadata_context.filter_metadata.add(key="envoy.lb")
    entry.value.update({"x-gateway-destination-endpoint": "10.0.0.1:1"})
    assert read_picked(pairs, message).endpoints == ("10.0.0.1:1",)
    entry.value.update({"x-gateway-destination-endpoint": named})
    with pytest.raises(GatewayError, match="another in the metadata"):
        read_picked(pairs, message)


def test_a_subset_that_is_no_list_holds_nothing() -> None:
    pairs, message = behind(b"10.0.0.1:1", subset=[])
    message.metadata_context.filter_metadata[0].value.update({SUBSET_KEY: "10.0.0.1:1"})
    with pytest.raises(GatewayError, match="outside"):
        read_picked(pairs, message)


# Where nodes are.


class Names:
    """A name server, and a clock that the test moves."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.now = 0.0
        self.gate = asyncio.Event()
        self.gate.set()

    async def look_up(self, host: str, _: int) -> list[str]:
        self.asked.append(host)
        await self.gate.wait()
        if host not in self.names:
            raise AddressError("there is no such name")
        return self.names[host]

    def places(self, *, allow_private: bool = True) -> Places:
        return Places(self.look_up, Clock(lambda: 0, lambda: self.now), allow_private=allow_private)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://10.0.0.1:8443", "10.0.0.1:8443"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("https://10.0.0.1:8443/", "10.0.0.1:8443"),
        ("https://[fd00::1]:8443", "[fd00::1]:8443"),
        ("https://node:8443", "10.0.0.7:8443"),
    ],
)
async def test_an_endpoint_is_address_and_port(url: str, endpoint: str) -> None:
    assert await Names(node=["10.0.0.7", "fd00::7"]).places().find([url], within_s=9) == {url: endpoint}


@pytest.mark.parametrize(
    "url", ["https://10.0.0.1:1/base", "http://10.0.0.1:1", "https://unknown:1", "https://a@10.0.0.1"]
)
async def test_what_cannot_be_an_endpoint_is_left_out(url: str) -> None:
    assert await Names().places().find([url], within_s=9) == {}


async def test_a_private_address_is_not_told_where_nodes_may_have_none() -> None:
    places = Names().places(allow_private=False)
    assert await places.find(["https://10.0.0.1:1", "https://8.8.8.8:1"], within_s=9) == {
        "https://8.8.8.8:1": "8.8.8.8:1"
    }


async def test_a_name_is_looked_up_again_after_a_while() -> None:
    names = Names(node=["10.0.0.7"])
    places = names.places()
    for now, asked in ((0.0, 1), (29.0, 1), (30.0, 2)):
        names.now = now
        await places.find(["https://node:1"], within_s=9)
        assert len(names.asked) == asked


async def test_a_slow_name_holds_up_nobody_and_is_there_for_the_next() -> None:
    names = Names(node=["10.0.0.7"])
    places = names.places()
    names.gate.clear()
    assert await places.find(["https://node:1", "https://10.0.0.1:1"], within_s=0.01) == {
        "https://10.0.0.1:1": "10.0.0.1:1"
    }
    names.gate.set()
    assert await places.find(["https://node:1"], within_s=9) == {"https://node:1": "10.0.0.7:1"}
    assert names.asked == ["node"]


# The order of messages.


class Wire:
    """Messages that come, and those that are sent.  After the last one it waits, or ends."""

    def __init__(self, *messages: bytes, ends: bool = True) -> None:
        self.coming = list(messages)
        self.ends = ends
        self.sent: list[Any] = []
        self.answered: list[tuple[str | None, str]] = []
        """For each message that was sent, the step that was read last, and the step that it is for."""
        self.last: str | None = None

    async def read(self) -> bytes | None:
        if self.coming:
            data = self.coming.pop(0)
            try:
                self.last = ProcessingRequest.FromString(data).WhichOneof("request")
            except Exception:  # noqa: BLE001
                self.last = None
            return data
        if not self.ends:
            await asyncio.Event().wait()
        return None

    async def write(self, message: bytes) -> None:
        answer = ProcessingResponse.FromString(message)
        self.sent.append(answer)
        self.answered.append((self.last, answer.WhichOneof("response")))
        self.last = None


class Decides:
    """Offers one endpoint, or nothing, or refuses."""

    def __init__(self, what: str = "offers") -> None:
        self.what = what
        self.places = 0
        self.charged: list[int] = []
        self.kept: list[str] = []

    def admit(self, head: Any) -> Any:
        if self.what == "refuses":
            raise GatewayError(401, "invalid_request_error", "no key")
        self.places += 1
        return SimpleNamespace(name="k"), operation_of(head)

    def leave(self, _: Any, tokens: int) -> None:
        self.places -= 1
        self.charged.append(tokens)

    def read_by_header(self, *_: Any) -> Asked:
        return Asked(workload=WORKLOAD, required=None, tokens=7)

    async def read_by_body(self, *_: Any) -> Asked:
        return Asked(workload=WORKLOAD, required=None, tokens=7, body=b"{}")

    async def decide(self, *_: Any) -> Offer:
        if self.what == "empty":
            raise EmptyOfferError(GatewayError(503, "service_unavailable", "nobody"), "d")
        decision: Any = None
        return Offer(record="d", decision=decision, scores={"10.0.0.1:1": 0.5}, nodes={})

    @contextmanager
    def keeping(self, made: Offer) -> Iterator[None]:
        self.kept.append(made.record)
        yield
        self.kept.append("")

    def recheck(self, *_: Any) -> None:
        return None


def request(step: str, *, head: Any = (PATH, POST), ends: bool = False, **members: Any) -> bytes:
    message = ProcessingRequest(**members)
    if step.endswith("_headers"):
        part = getattr(message, step)
        part.headers.headers.extend(headers(*head))
        part.end_of_stream = ends
    elif step.endswith("_body"):
        getattr(message, step).body = b"{}"
    getattr(message, step).SetInParent()
    return bytes(message.SerializeToString())


HEAD, BODY = request("request_headers"), request("request_body")


async def run(
    wire: Wire, deciding: Decides | None = None, *, is_check: bool = False, **config: Any
) -> Stream:
    given: Any = deciding or Decides()
    section = msgspec.structs.replace(CONFIG, message_timeout_s=0.05, **config)
    stream = Stream(wire, given, section, rest_s=0.05, checks_picked=is_check)
    await stream.run()
    return stream


async def test_the_subset_is_named_in_answer_to_the_body() -> None:
    wire, deciding = Wire(HEAD, BODY), Decides()
    assert (await run(wire, deciding)).end == "offered"
    assert [step for _, step in wire.answered] == ["request_headers", "request_body"]
    told = wire.sent[1].dynamic_metadata.fields
    assert (
        told[SUBSET_NAMESPACE].struct_value.fields[SUBSET_KEY].list_value.values[0].string_value
        == "10.0.0.1:1"
    )
    assert deciding.charged == [7]
    assert not deciding.places


async def test_by_the_header_alone_it_is_named_at_once() -> None:
    wire = Wire(HEAD)
    await run(wire, model_from="header")
    assert [step for _, step in wire.answered] == ["request_headers"]
    assert SUBSET_NAMESPACE in wire.sent[0].dynamic_metadata.fields


async def test_an_empty_subset_is_answered_with_503_and_not_told_to_the_picker() -> None:
    wire = Wire(HEAD, BODY)
    assert (await run(wire, Decides("empty"))).end == "empty"
    assert wire.sent[-1].immediate_response.status.code == 503
    assert not any(answer.HasField("dynamic_metadata") for answer in wire.sent)


async def test_a_length_goes_with_a_body_that_is_written_anew() -> None:
    """Envoy refuses a request whose length differs from that of its body."""
    wire = Wire(HEAD, BODY)
    await run(wire)
    common = wire.sent[1].request_body.response
    set_headers = {o.header.key: o.header.raw_value for o in common.header_mutation.set_headers}
    assert set_headers["content-length"] == str(len(common.body_mutation.body)).encode()


async def test_after_the_subset_a_silent_stream_ends_cleanly() -> None:
    """Nothing is lost by it, and Envoy goes on."""
    deciding = Decides()
    assert (await run(Wire(HEAD, BODY, ends=False), deciding)).end == "offered"
    assert not deciding.places


@pytest.mark.parametrize(
    "step", ["request_trailers", "response_headers", "response_body", "response_trailers"]
)
async def test_what_comes_after_the_subset_goes_on(step: str) -> None:
    wire = Wire(HEAD, BODY, request(step))
    await run(wire)
    assert wire.answered[-1] == (step, step)


async def test_the_answer_names_the_decision_whatever_the_node_says_of_it() -> None:
    wire = Wire(HEAD, BODY, request("response_headers", head=[("x-touchstone-decision", b"mine")]))
    await run(wire)
    mutation = wire.sent[-1].response_headers.response.header_mutation
    assert list(mutation.remove_headers) == ["x-touchstone-decision"]
    assert mutation.set_headers[0].header.raw_value == b"d"


REFUSED: list[tuple[str, tuple[bytes, ...], bool, Refusal]] = [
    ("nothing comes", (), False, Refusal.TOO_LATE),
    ("it hangs before the body", (HEAD,), False, Refusal.TOO_LATE),
    ("it ends before the head", (), True, Refusal.OUT_OF_ORDER),
    ("it ends before the body", (HEAD,), True, Refusal.OUT_OF_ORDER),
    ("garbage", (b"\xff\xff\xff",), True, Refusal.MALFORMED),
    ("garbage for a body", (HEAD, b"\x22\xff"), True, Refusal.MALFORMED),
    ("an empty message", (b"",), True, Refusal.MALFORMED),
    ("a body first", (BODY,), True, Refusal.OUT_OF_ORDER),
    ("trailers for a body", (HEAD, request("request_trailers")), True, Refusal.OUT_OF_ORDER),
    ("a second head", (HEAD, HEAD), True, Refusal.OUT_OF_ORDER),
    ("a head after the subset", (HEAD, BODY, HEAD), True, Refusal.OUT_OF_ORDER),
    ("a body after the subset", (HEAD, BODY, BODY), True, Refusal.OUT_OF_ORDER),
    ("garbage after the subset", (HEAD, BODY, b"\xff"), True, Refusal.MALFORMED),
    ("huge headers", (request("request_headers", head=[("a", b"b" * 70_000)]),), True, Refusal.TOO_MUCH),
    ("many headers", (request("request_headers", head=[("a", b"b")] * 300),), True, Refusal.TOO_MUCH),
    ("observability", (request("request_headers", observability_mode=True), BODY), True, Refusal.OUT_OF_ORDER),
    *(
        (f"body mode {mode}", (request("request_headers", protocol_config={"request_body_mode": mode}), BODY), True,
         Refusal.OUT_OF_ORDER)
        for mode in (0, 1, 3, 4, 5)
    ),
    (
        "bodies of responses",
        (request("request_headers", protocol_config={"request_body_mode": 2, "response_body_mode": 1}), BODY),
        True,
        Refusal.OUT_OF_ORDER,
    ),
]  # fmt: skip


@pytest.mark.parametrize("before", [(), (HEAD,)])
async def test_an_answer_that_envoy_makes_itself_passes(before: tuple[bytes, ...]) -> None:
    """To a body that is too large, say: no node gets the request, and the client must see why."""
    wire = Wire(*before, request("response_headers"))
    assert (await run(wire)).end == "answered_by_gateway"
    assert wire.answered[-1] == ("response_headers", "response_headers")


@pytest.mark.parametrize(
    ("messages", "ends", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
async def test_a_stream_that_is_not_as_it_should_be_ends_with_an_error(
    messages: tuple[bytes, ...], *, ends: bool, why: Refusal
) -> None:
    """A clean end would let the request pass undecided; and its place is free again."""
    deciding = Decides()
    with pytest.raises(StreamError) as caught:
        await run(Wire(*messages, ends=ends), deciding)
    assert caught.value.why is why
    assert not deciding.places


async def test_a_peer_that_reads_nothing_is_given_up() -> None:
    wire, deciding = Wire(HEAD, BODY), Decides()

    async def never(_: bytes) -> None:
        await asyncio.Event().wait()

    wire.write = never  # type: ignore[method-assign]
    with pytest.raises(StreamError, match="not read in time"):
        await run(wire, deciding)
    assert not deciding.places


async def test_the_mode_of_bodies_is_none_where_the_header_names_the_model() -> None:
    buffered = request("request_headers", protocol_config={"request_body_mode": 2})
    with pytest.raises(StreamError, match="NONE"):
        await run(Wire(buffered), model_from="header")


async def test_a_request_without_a_body_is_refused() -> None:
    wire = Wire(request("request_headers", ends=True))
    assert (await run(wire)).end == "refused"
    assert wire.sent[0].immediate_response.status.code == 400


async def test_who_is_refused_is_told_so_as_the_gateway_would() -> None:
    wire = Wire(HEAD)
    await run(wire, Decides("refuses"))
    immediate = wire.sent[0].immediate_response
    assert immediate.status.code == 401
    assert msgspec.json.decode(immediate.body)["error"]["message"] == "no key"
    assert {o.header.key for o in immediate.headers.set_headers} == {"content-type", "www-authenticate"}


async def test_a_stream_from_behind_the_picker_is_a_check_and_no_more() -> None:
    deciding = Decides()
    pairs, message = behind(b"10.0.0.1:1", subset=["10.0.0.1:1"])
    message.request_headers.headers.headers.extend(headers(*pairs))
    wire = Wire(message.SerializeToString())
    assert (await run(wire, deciding, is_check=True)).end == "picked"
    assert wire.answered == [("request_headers", "request_headers")]
    assert not deciding.charged


STEPS = st.sampled_from(
    [HEAD, BODY, b"", b"\xff\x01", request("request_headers", ends=True)]
    + [
        request(step)
        for step in ("request_trailers", "response_headers", "response_body", "response_trailers")
    ]
)


@given(
    st.lists(st.one_of(STEPS, st.binary(max_size=8)), max_size=6),
    st.sampled_from(["offers", "empty", "refuses"]),
    st.sampled_from(["body", "header"]),
)
def test_no_stream_ends_cleanly_before_its_request_is_decided(
    messages: list[bytes], what: str, model: str
) -> None:
    """And no message is sent that Envoy has not asked for: by one, it would let the request pass."""
    wire, deciding = Wire(*messages), Decides(what)
    try:
        asyncio.run(run(wire, deciding, model_from=model))
    except StreamError:
        pass
    else:
        assert any(
            answer.WhichOneof("response") == "immediate_response"
            or answer.HasField("dynamic_metadata")
            # Envoy has answered itself, and nothing passes.
            or (answer.WhichOneof("response") or "").startswith("response_")
            for answer in wire.sent
        )
    assert all(step in (asked, "immediate_response") for asked, step in wire.answered)
    assert None not in [asked for asked, _ in wire.answered]
    assert not deciding.places


def test_scores_are_left_out_where_they_are_not_wanted() -> None:
    told = answers.offered("request_headers", {"e": 0.5}, "d", removed=(), body=None, with_scores=False)
    assert list(told.dynamic_metadata.fields) == [SUBSET_NAMESPACE]


# Settings.


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"listen": "0.0.0.0:1"}, "not an address of this machine alone"),
        ({"listen": "10.0.0.1:1"}, "not an address of this machine alone"),
        ({"listen": "127.0.0.1:0"}, "port"),
        ({"listen": "127.0.0.1:1", "tls_certificate": "a", "tls_key": "b"}, "go together"),
        ({"listen": "127.0.0.1:1", "client_ca": "a"}, "go together"),
        ({"listen": "127.0.0.1:1", "max_streams": 0}, "max_streams"),
        ({"listen": "127.0.0.1:1", "plain": True}, "plain"),
    ],
)
def test_settings_by_which_strangers_could_ask_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert(given, ExtProcSection)


def test_beyond_loopback_all_three_files_are_enough() -> None:
    files = {"tls_certificate": "a", "tls_key": "b", "client_ca": "c"}
    assert msgspec.convert({"listen": "0.0.0.0:1", **files}, ExtProcSection).tls_key == "b"
