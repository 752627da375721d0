"""The messages of external processing have the names, numbers and types of Envoy's own API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fixtures
from router.service.ext_proc import api

RECORDED: dict[str, Any] = json.loads(
    (Path(fixtures.__file__).parent / "ext_proc" / "fields.json").read_text()
)


@pytest.mark.parametrize("message", api.FIELDS)
def test_each_field_is_one_of_the_api(message: str) -> None:
    """As gRPC's package ``xds-protos`` has it."""
    recorded = {name: tuple(field) for name, field in RECORDED["messages"][message].items()}
    assert api.FIELDS[message].items() <= recorded.items()


def test_numbers_of_enums_are_those_of_the_api() -> None:
    assert {mode.name: mode.value for mode in api.BodySendMode} == RECORDED["BodySendMode"]
    assert RECORDED["HeaderAppendAction"]["OVERWRITE_IF_EXISTS_OR_ADD"] == api.OVERWRITE_IF_EXISTS_OR_ADD
    statuses = RECORDED["ServingStatus"]
    assert (statuses["SERVING"], statuses["NOT_SERVING"]) == (api.SERVING, api.NOT_SERVING)


def test_the_service_is_that_of_the_api() -> None:
    assert RECORDED["service"] == api.SERVICE


def test_what_the_api_has_beside_is_passed_over() -> None:
    """A field that is not read here: ``attributes``, number 9."""
    request = api.ProcessingRequest(observability_mode=True)
    data = request.SerializeToString() + bytes([9 << 3 | 2, 2, 0x0A, 0])
    assert api.ProcessingRequest.FromString(data).observability_mode
