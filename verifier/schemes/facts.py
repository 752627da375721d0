"""
What schemes tell policies: the facts of each kind of submodule, field by field.

These types are the contract with policies.  ``docs/policy-input.md`` and
``docs/policy-input.schema.json`` are generated from them, and schemes can say nothing else.
What differs every time (nonces, exact times) has no place here, so that nodes that are alike
give equal inputs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from attester.evidence import Capabilities, Runtime


class Facts:
    """
    The base of all facts.

    A subclass is a `msgspec.Struct` with ``tag_field="kind"``.  `verifier.schemes.registry` names
    it for its kind, and facts are read back by that table.
    """

    __slots__ = ()


class PlatformFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="platform"):
    """`platform`: who the node is, where it serves, what runs there."""

    malformed: Annotated[bool, Meta(description="Its claims do not have their form.")]
    node_state: Annotated[
        Literal["active", "probation", "retired"],
        Meta(
            description="As enrolled; a node in quarantine is said to be so whatever the policy makes of it."
        ),
    ]
    endpoint: Annotated[
        Literal["missing", "proven", "unproven"],
        Meta(description="Whether the TLS key of the endpoint signed for this node and session."),
    ]
    class_matches: Annotated[bool, Meta(description="The hardware class is the one it was enrolled with.")]
    class_doubted: Annotated[bool, Meta(description="Walks contradict the hardware class, or exceed it.")]
    runtime: Annotated[
        Runtime | None,
        Meta(description="The running configuration by the node's word; null if not reported."),
    ]
    capabilities: Annotated[
        Capabilities | None, Meta(description="What it can take on by the node's word; null if not reported.")
    ]


ManifestFact = Literal[
    "equal",
    "aged",
    "extra",
    "differs",
    "superseded",
    "incomparable",
    "missing",
    "malformed",
    "unknown",
    "expired",
]
ReadFact = Literal["right", "wrong", "missing", "malformed", "differs", "unasked", "superseded"]
WalkFact = Literal[
    "called", "announced", "from-file", "late", "shared", "stale", "untimed", "missed", "unredeemed", "wrong",
    "superseded", "none",
]  # fmt: skip


class ModelFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """`model/NAME`: the weights, by manifest, `read` and `walk`."""

    manifest: Annotated[
        ManifestFact,
        Meta(
            description="The files against the reference value: equal; aged (equal, by digests from an old "
            "cache); extra (files beyond it); differs; superseded (equal to one that another has replaced, "
            "within its grace period); incomparable (no digest algorithm in common); missing; malformed; "
            "unknown (no reference value); expired (its validity is over, or has not begun)."
        ),
    ]
    read: Annotated[
        ReadFact,
        Meta(
            description="The answer to `read`, and for a call whether it is the one given ahead (else: differs); "
            "superseded: not held against a node whose files a replaced reference value has."
        ),
    ]
    walk: Annotated[
        WalkFact,
        Meta(
            description="What its walks amount to now: called (at a secret moment, by the engine, in time, young "
            "enough) is the best; none: never asked for nor offered."
        ),
    ]


class GpuFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="gpu"):
    """`gpu/N`: one device, by the node's word, held against its class."""

    malformed: Annotated[bool, Meta(description="Its claims do not have their form.")]
    named: Annotated[bool, Meta(description="The driver named the device.")]
    benchmark: Annotated[
        Literal["plausible", "implausible", "boast", "missing"],
        Meta(
            description="Its benchmark: implausible is more than the class has, boast far above what walks verified."
        ),
    ]
    memory_fits: Annotated[bool, Meta(description="It names the amount of memory that its class has.")]


class UnknownFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="unknown"):
    """A submodule of a kind that this verifier has no scheme for."""


class NodeFacts(Struct, frozen=True, kw_only=True):
    """`node`: what the verifier itself knows of the node."""

    operator: Annotated[str, Meta(description="Whose node it is, by the enrolment token.")]
    state: Annotated[Literal["active", "probation", "retired"], Meta(description="As enrolled.")]


class ReferenceFacts(Struct, frozen=True, kw_only=True):
    """`references`: by model, the reference value in force."""

    digest: Annotated[str, Meta(description="The reference value's identity, SHA-256, hex.")]
    source: Annotated[
        Literal["measured", "oms", "corim", "yaml", "bundle"], Meta(description="Where it is from.")
    ]
    signer: Annotated[str | None, Meta(description="Who signed it; null if nobody did.")]
    expires: Annotated[
        str | None, Meta(description="The day its validity ends, YYYY-MM-DD in UTC; null if never.")
    ]


class PolicyInput(Struct, frozen=True, kw_only=True):
    """What a policy is given: `input`."""

    checked: Annotated[dict[str, Facts], Meta(description="By submodule, what is true of it.")]
    references: Annotated[
        dict[str, ReferenceFacts], Meta(description="By model; a model without one is not in it.")
    ]
    node: NodeFacts
    date: Annotated[
        str, Meta(description="The day of the appraisal, YYYY-MM-DD in UTC; there is no other clock.")
    ]
