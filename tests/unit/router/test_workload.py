"""Workloads: what they require is checked when they are read, not when they are needed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.config import RouterConfig
from router.workload import Workload


def read(**changes: Any) -> Workload:
    return msgspec.convert({"model": "m", **changes}, Workload)


def test_the_defaults_require_integrity() -> None:
    """A workload of which nothing is said asks for identity, configuration, files and residence."""
    workload = read()
    assert (workload.platform_claims, workload.model_claims, workload.model_assurance) == (
        ("instance-identity", "configuration"),
        ("file-system", "executables"),
        "challenged",
    )


@pytest.mark.parametrize("name", ["platform_claims", "model_claims", "operations"])
def test_an_empty_list_of_required_claims_is_an_error(name: str) -> None:
    """It would let anyone in."""
    with pytest.raises(msgspec.ValidationError):
        read(**{name: []})


@pytest.mark.parametrize("name", ["platform_claims", "model_claims"])
@pytest.mark.parametrize("claim", ["executable", "", "Executables", "executables "])
def test_an_unknown_claim_is_an_error(name: str, claim: str) -> None:
    """A slip of the pen must not become a claim that nobody checks, or that nobody meets."""
    with pytest.raises(msgspec.ValidationError, match="no trust claim"):
        read(**{name: ["executables", claim]})


@pytest.mark.parametrize("name", ["platform_assurance", "model_assurance"])
@pytest.mark.parametrize("assurance", ["", "Declared", "trusted", "hardware"])
def test_an_unknown_assurance_is_an_error(name: str, assurance: str) -> None:
    """There are four."""
    with pytest.raises(msgspec.ValidationError, match="no assurance"):
        read(**{name: assurance})


def test_an_unknown_operation_is_an_error() -> None:
    """Only what the gateway serves."""
    with pytest.raises(msgspec.ValidationError, match="no operation"):
        read(operations=["completions"])


def test_an_unknown_key_is_an_error() -> None:
    """A misspelt requirement is not silently none."""
    with pytest.raises(msgspec.ValidationError):
        read(min_memory_byte=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_age_s", 0),
        ("max_age_s", -1),
        ("max_age_s", 86_401),
        ("max_age_s", True),
        ("min_memory_bytes", -1),
        ("min_context", -1),
        ("min_walk_bytes_per_second", -1),
        ("concurrency", 0),
        ("concurrency", 100_001),
        ("model", ""),
        ("model", "m" * 129),
        ("model_claims", "executables"),
        ("features", "chat"),
    ],
)
def test_a_value_out_of_range_is_an_error(name: str, value: Any) -> None:
    """Numbers have bounds, and lists are lists."""
    with pytest.raises(msgspec.ValidationError):
        read(**{name: value})


def config(**workloads: dict[str, Any]) -> RouterConfig:
    return msgspec.convert({"verifier": {"url": "https://v.test"}, "workloads": workloads}, RouterConfig)


def test_two_workloads_for_one_model_are_an_error() -> None:
    """A request names a model, and would not know which of them is meant."""
    with pytest.raises(msgspec.ValidationError, match="two workloads are for one model"):
        config(strict={"model": "m"}, loose={"model": "m", "max_age_s": 3600})


def test_a_configuration_without_workloads_is_an_error() -> None:
    """It could serve nobody."""
    with pytest.raises(msgspec.ValidationError):
        config()


def test_a_model_finds_its_workload() -> None:
    """By its exact name."""
    found = config(a={"model": "m"}, b={"model": "M"}).workload_for("M")
    assert found is not None
    assert found.model == "M"


@pytest.mark.parametrize("name", ["a", "m ", "", "MM"])
def test_another_name_finds_no_workload(name: str) -> None:
    """Not by the workload's own name either, nor by one that is nearly right."""
    assert config(a={"model": "m"}).workload_for(name) is None


@pytest.mark.parametrize(
    "url",
    ["ftp://v.test", "https://v.test/", "https://u@v.test", "https://v.test?x", "v.test", "https://v\n"],
)
def test_a_verifier_is_a_base_url(url: str) -> None:
    """It is also the issuer, compared byte by byte, so it has one form."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"verifier": {"url": url}, "workloads": {"a": {"model": "m"}}}, RouterConfig)


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, "ab" * 32 + "\n", "secret"])
def test_a_key_digest_is_a_sha256(digest: str) -> None:
    """A key in the clear in its place is an error, not a key that never matches."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(
            {
                "verifier": {"url": "https://v.test"},
                "workloads": {"a": {"model": "m"}},
                "gateway": {"key_digests": [digest]},
            },
            RouterConfig,
        )
