"""The head of a request, as Envoy tells it: bounded, and each header that decides something stands once.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from router.ext_proc_config import ExtProcSection
from router.gateway.commitments import NONCE_HEADER
from router.gateway.deciding import WORKLOAD_HEADER
from router.gateway.errors import GatewayError
from router.gateway.terms import REQUIRE_HEADER
from router.model.operations import OPERATIONS, Operation

MODEL_HEADER: Final = "x-gateway-model-name"
"""In which the body-based router of the inference extension says which model a body asks for."""
DESTINATION: Final = "x-gateway-destination-endpoint"
"""Where a picker sends a request; each header that begins like it is between gateways, and none of a client's."""
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
SUBSET_KEY: Final = f"{DESTINATION}-subset"
PICKED_NAMESPACE: Final = "envoy.lb"
SCORES_KEY: Final = f"{DESTINATION}-scores"
"""Proposal 004 of the inference extension has the names, and its issue 2985 that of the scores."""
OURS: Final = "x-touchstone-"
"""Headers that only the router writes; what a client says in them, the router has read."""
_MAX_HEADERS: Final = 200
_MAX_BYTES: Final = 64 << 10
_ENCODING: Final = "content-encoding"
_SINGLE: Final = (
    ":path", ":method", _ENCODING, MODEL_HEADER, NONCE_HEADER.lower(), REQUIRE_HEADER.lower(), WORKLOAD_HEADER.lower()
)  # fmt: skip
CREDENTIALS: Final = ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key")
"""What no node may see: its operator would have the caller's key."""


class Head(Struct, frozen=True, kw_only=True):
    """What a request's headers say to the router."""

    path: str
    method: str
    authorization: tuple[str, ...]
    model: str | None
    required: str | None
    workload: str | None
    foreign: tuple[str, ...]
    """Headers to be taken away: what only a gateway may say, and what no node may see."""


class TooMuchError(Exception):
    """More headers than anybody needs."""


def read_pairs(headers: Iterable[Any]) -> list[tuple[str, bytes]]:
    """
    Names and values of a ``HeaderMap``.  Envoy puts values into ``raw_value``, and older ones into ``value``.

    Raises:
        TooMuchError: there are more than 200 headers, or more than 64 KiB of them.
    """
    found: list[tuple[str, bytes]] = []
    size = 0
    for header in headers:
        value = header.raw_value or header.value.encode()
        size += len(header.key) + len(value)
        if len(found) >= _MAX_HEADERS or size > _MAX_BYTES:
            raise TooMuchError
        found.append((header.key.lower(), value))
    return found


def read_head(pairs: Iterable[tuple[str, bytes]]) -> Head:
    """
    Read the headers of a request.

    Raises:
        GatewayError: one that decides something stands twice, or asks for what is not to be had here.
    """
    single: dict[str, str] = {}
    authorization, foreign = [], []
    for name, data in pairs:
        # As aiohttp decodes headers: a key is looked up by the bytes that were sent.
        value = data.decode(errors="surrogateescape")
        if name == "authorization":
            authorization.append(value)
        if name.startswith((DESTINATION, OURS)) or name in CREDENTIALS:
            foreign.append(name)
        if name in _SINGLE:
            if name in single:
                raise GatewayError(400, "invalid_request_error", f"{name} must stand once", param=name)
            single[name] = value
    if single.get(_ENCODING, "identity").lower() != "identity":
        raise GatewayError(415, "invalid_request_error", "a compressed body cannot be read here")
    if NONCE_HEADER.lower() in single:
        message = f"{NONCE_HEADER} cannot be honoured: behind this gateway a picker chooses the node"
        raise GatewayError(400, "invalid_request_error", message, param=NONCE_HEADER, retry=False)
    return Head(
        path=single.get(":path", ""),
        method=single.get(":method", ""),
        authorization=tuple(authorization),
        model=single.get(MODEL_HEADER),
        required=single.get(REQUIRE_HEADER.lower()),
        workload=single.get(WORKLOAD_HEADER.lower()),
        foreign=tuple(dict.fromkeys(foreign)),
    )


def spoken_for_us(pairs: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """Headers of a response that only the router writes, and that a node has written."""
    return tuple(dict.fromkeys(name for name, _ in pairs if name.startswith(OURS)))


def operation_of(head: Head) -> Operation:
    """
    The operation that a request is for.  No other path may reach a node: engines have control routes.

    Raises:
        GatewayError: there is none.
    """
    path = head.path.partition("?")[0]
    found = next((each for each in OPERATIONS.values() if each.path == path), None)
    if found is None or head.path != path:
        shown = head.path[:100].encode(errors="backslashreplace").decode()
        raise GatewayError(404, "invalid_request_error", f"no resource {head.method[:10]} {shown}")
    if head.method != "POST":
        raise GatewayError(
            405, "invalid_request_error", f"{head.method[:10]} is not a method of this resource"
        )
    return found


def check_model(head: Head, model: str, config: ExtProcSection) -> None:
    """
    Compare the model of a header with that of the body.

    Raises:
        GatewayError: they differ, so that the picker would choose for another model than the router did.
    """
    if config.model_from == "body" and head.model is not None and head.model != model:
        message = f"{MODEL_HEADER} names another model than the body"
        raise GatewayError(400, "invalid_request_error", message, param=MODEL_HEADER)
