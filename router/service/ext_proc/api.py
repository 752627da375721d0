"""
The messages of Envoy's external processing API, as far as they are used.

Sources: ``envoy/service/ext_proc/v3/external_processor.proto`` and what it imports, ``grpc/health/v1/health.proto``.
Names, numbers and types of fields are theirs, so that what goes over the wire is the same; fields that are missing
here are skipped, as any older reader of the API skips them.  `fixtures/ext_proc/fields.json` has the API's own.
The names of the messages are in a pool of their own: another package may bring all of Envoy's API along.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD: Final = "Process"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

FIELDS: Final[Mapping[str, Mapping[str, tuple[int, str]]]] = {
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "HeaderMap": {"headers": (1, "*HeaderValue")},
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, "enum")},
    "HeaderMutation": {"set_headers": (1, "*HeaderValueOption"), "remove_headers": (2, "*string")},
    "FilterMetadataEntry": {"key": (1, "string"), "value": (2, "Struct")},
    "Metadata": {"filter_metadata": (1, "*FilterMetadataEntry")},
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "ProtocolConfiguration": {"request_body_mode": (1, "enum"), "response_body_mode": (2, "enum")},
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
        "metadata_context": (8, "Metadata"),
        "observability_mode": (10, "bool"),
        "protocol_config": (11, "ProtocolConfiguration"),
    },
    "BodyMutation": {"body": (1, "bytes")},
    "CommonResponse": {"header_mutation": (2, "HeaderMutation"), "body_mutation": (3, "BodyMutation")},
    "HeadersResponse": {"response": (1, "CommonResponse")},
    "BodyResponse": {"response": (1, "CommonResponse")},
    "TrailersResponse": {"header_mutation": (1, "HeaderMutation")},
    "HttpStatus": {"code": (1, "enum")},
    "ImmediateResponse": {
        "status": (1, "HttpStatus"),
        "headers": (2, "HeaderMutation"),
        "body": (3, "bytes"),
        "details": (5, "string"),
    },
    "ProcessingResponse": {
        "request_headers": (1, "HeadersResponse"),
        "response_headers": (2, "HeadersResponse"),
        "request_body": (3, "BodyResponse"),
        "response_body": (4, "BodyResponse"),
        "request_trailers": (5, "TrailersResponse"),
        "response_trailers": (6, "TrailersResponse"),
        "immediate_response": (7, "ImmediateResponse"),
        "dynamic_metadata": (8, "Struct"),
    },
    "HealthCheckRequest": {"service": (1, "string")},
    "HealthCheckResponse": {"status": (1, "enum")},
}
"""By message, each field's number and type; ``*`` marks a repeated one.  An enum is its number, as on the wire."""

ONEOFS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "ProcessingRequest": (
        "request",
        frozenset(
            {
                "request_headers", "response_headers", "request_body", "response_body",
                "request_trailers", "response_trailers",
            }
        ),
    ),
    "ProcessingResponse": (
        "response",
        frozenset(
            {
                "request_headers", "response_headers", "request_body", "response_body",
                "request_trailers", "response_trailers", "immediate_response",
            }
        ),
    ),
    "BodyMutation": ("mutation", frozenset({"body"})),
}  # fmt: skip


class BodySendMode(IntEnum):
    """``ProcessingMode.BodySendMode``: how the filter sends bodies."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


OVERWRITE_IF_EXISTS_OR_ADD: Final = 2
"""``HeaderValueOption.HeaderAppendAction``: one header of the name is left, ours."""
SERVING, NOT_SERVING = 1, 2
"""``HealthCheckResponse.ServingStatus``."""

_PACKAGE: Final = "touchstone.ext_proc"
_OWN: Final = descriptor_pb2.FieldDescriptorProto
_PLAIN: Final = {
    "string": _OWN.TYPE_STRING,
    "bytes": _OWN.TYPE_BYTES,
    "bool": _OWN.TYPE_BOOL,
    "enum": _OWN.TYPE_INT32,
}


def make_classes(messages: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Any]:
    """The classes of messages that are given as in `FIELDS`, by name."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="touchstone/ext_proc.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name],
    )
    for message, fields in messages.items():
        added = file.message_type.add(name=message)
        oneof, members = ONEOFS.get(message, ("", frozenset()))
        if oneof:
            added.oneof_decl.add(name=oneof)
        for name, (number, kind) in fields.items():
            bare = kind.removeprefix("*")
            field = added.field.add(
                name=name,
                number=number,
                label=_OWN.LABEL_OPTIONAL if bare == kind else _OWN.LABEL_REPEATED,
                type=_PLAIN.get(bare, _OWN.TYPE_MESSAGE),
            )
            if bare == "Struct":
                field.type_name = ".google.protobuf.Struct"
            elif bare not in _PLAIN:
                field.type_name = f".{_PACKAGE}.{bare}"
            if name in members:
                field.oneof_index = 0
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in messages
    }


CLASSES: Final = make_classes(FIELDS)
"""The message classes, by name."""
ProcessingRequest: Final = CLASSES["ProcessingRequest"]
ProcessingResponse: Final = CLASSES["ProcessingResponse"]
HealthCheckRequest: Final = CLASSES["HealthCheckRequest"]
HealthCheckResponse: Final = CLASSES["HealthCheckResponse"]
