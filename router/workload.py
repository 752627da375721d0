"""What a workload requires of a node: claims, assurance, age, capability, floors."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from verifier.trust import CLAIM_NAMES

ASSURANCES: Final = ("declared", "challenged", "hardware-rooted", "confidential")
"""In rising order; what each rests on is in docs/limitations.md."""


OPERATIONS: Final = ("embeddings", "chat/completions")


class Workload(Struct, frozen=True, forbid_unknown_fields=True):
    """
    ``[workloads.NAME]`` of the router's configuration.

    An empty list of required claims would let anyone in, so it is an error.
    """

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    operations: Annotated[tuple[str, ...], Meta(min_length=1)] = ("embeddings", "chat/completions")
    platform_claims: Annotated[tuple[str, ...], Meta(min_length=1)] = ("instance-identity", "configuration")
    model_claims: Annotated[tuple[str, ...], Meta(min_length=1)] = ("file-system", "executables")
    platform_assurance: str = "declared"
    model_assurance: str = "challenged"
    max_age_s: Annotated[int, Meta(ge=1, le=86400)] = 300
    hardware_classes: tuple[str, ...] = ()
    """Any, where empty."""
    quantisations: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    min_memory_bytes: Annotated[int, Meta(ge=0)] = 0
    min_context: Annotated[int, Meta(ge=0)] = 0
    min_walk_bytes_per_second: Annotated[int, Meta(ge=0)] = 0
    """A floor on the verified rate; a node without one does not meet it."""
    concurrency: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Requests that one node is given at a time."""

    def __post_init__(self) -> None:
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ValueError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")
        for claim in (*self.platform_claims, *self.model_claims):
            if claim not in CLAIM_NAMES:
                raise ValueError(f"no trust claim {claim!r}")
        for assurance in (self.platform_assurance, self.model_assurance):
            if assurance not in ASSURANCES:
                raise ValueError(f"no assurance {assurance!r}; there are {', '.join(ASSURANCES)}")
