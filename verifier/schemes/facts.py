"""
What schemes tell policies: the facts about each kind of submodule, field by field.

These types are the contract with policies.  ``docs/policy-input.md`` and
``docs/policy-input.schema.json`` are generated from them, and schemes can say nothing else.
What differs each time (nonces, exact times) must not be in them, so that nodes that are alike
give equal inputs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from attester.evidence import Capabilities, Runtime


class Facts:
    """
    The base of all facts.

    A subclass is a `msgspec.Struct` with ``tag_field="kind"``.  `verifier.schemes.registry` lists it
    under its kind, and stored facts are read by that table.
    """

    __slots__ = ()


class PlatformFacts(
    Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="platform", omit_defaults=True
):
    """`platform`: which node it is, where it serves, and what runs there."""

    malformed: Annotated[bool, Meta(description="Its claims do not have the form of the claims table.")]
    node_state: Annotated[
        Literal["active", "probation", "retired"],
        Meta(
            description="The node's state in the verifier's records. It does not tell whether the node is in "
            "quarantine: the result says that in any case."
        ),
    ]
    endpoint: Annotated[
        Literal["missing", "proven", "unproven"],
        Meta(description="Proven: the TLS key of the endpoint signed for this node and session."),
    ]
    class_matches: Annotated[
        bool, Meta(description="The declared hardware class is the one that the node was enrolled with.")
    ]
    class_doubted: Annotated[
        bool, Meta(description="Walks were far slower than the hardware class, or faster than it allows.")
    ]
    runtime: Annotated[
        Runtime | None,
        Meta(description="The running configuration, as the node declares it; null if it does not."),
    ]
    capabilities: Annotated[
        Capabilities | None,
        Meta(description="The node's capabilities, as the node declares them; null if it does not."),
    ]
    exposure: Annotated[
        Literal["unreached", "closed", "open"] | None,
        Meta(
            description="Whether control routes of the engine can be reached through the endpoint, as the node saw it "
            "itself. Unreached: it could not look. Absent: older attesters do not look."
        ),
    ] = None
    # Left out where it is absent, so that the input of an appraisal from before is what it was.


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
    "called", "announced", "from-file", "late", "shared", "stale", "untimed", "unanswered", "missed", "unredeemed", "wrong",
    "superseded", "none",
]  # fmt: skip
PoolFact = Literal["no", "kept", "lost"]


class ModelFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="model", omit_defaults=True):
    """`model/NAME`: the weights, by manifest, `read` and `walk`."""

    manifest: Annotated[
        ManifestFact,
        Meta(
            description="The files compared with the reference value: equal; aged (equal, but the digests come "
            "from an old cache); extra (there are files that are not in it); differs; superseded (equal to a "
            "replaced value, within its grace period); incomparable (no digest algorithm in common); missing; "
            "malformed; unknown (there is no reference value); expired (the reference value is not valid now)."
        ),
    ]
    read: Annotated[
        ReadFact,
        Meta(
            description="The answer to `read`; differs: it is not the answer that the node gave to the call; "
            "unasked: this session asked for none, or for one of another revision of the model; superseded: an earlier "
            "version gave it for a wrong answer by a node with the files of a replaced reference value."
        ),
    ]
    walk: Annotated[
        WalkFact,
        Meta(
            description="What the node's walks show now. The best is called: the engine answered a call at a "
            "secret moment, in time and not long ago. Superseded: the same of a replaced reference value, within its "
            "grace period. Unanswered: the last call with a walk was not answered; missed: nor were several before it, "
            "or too large a share of them. None: no walk was ever asked for."
        ),
    ]
    read_exhausted: Annotated[
        PoolFact,
        Meta(
            description="Whether a read was due and the verifier's pool had none. Kept: the last right one counts on; "
            "lost: none counts on, which is not the node's fault."
        ),
    ] = "no"
    walk_exhausted: Annotated[
        PoolFact,
        Meta(
            description="The same of a walk. Kept: walk says what the last right one counts for, however old it is "
            "within the verifier's grace."
        ),
    ] = "no"


class GpuFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="gpu"):
    """`gpu/N`: one device as the node declares it, compared with its hardware class."""

    malformed: Annotated[bool, Meta(description="Its claims do not have the form of the claims table.")]
    named: Annotated[
        bool, Meta(description="The evidence has an inventory: the driver's description of the device.")
    ]
    benchmark: Annotated[
        Literal["plausible", "implausible", "boast", "missing"],
        Meta(
            description="Its benchmark. Implausible: a rate is more than the hardware class allows; boast: a rate is "
            "far above what walks have verified."
        ),
    ]
    memory_fits: Annotated[
        bool, Meta(description="The declared amount of memory is that of its hardware class.")
    ]


class UnknownFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="unknown"):
    """A submodule of a kind for which this verifier has no scheme."""


class NodeFacts(Struct, frozen=True, kw_only=True):
    """`node`: what the verifier's own records say of the node."""

    operator: Annotated[str, Meta(description="The operator of the node, from the enrolment token.")]
    state: Annotated[Literal["active", "probation", "retired"], Meta(description="The node's state.")]


Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", examples=["2026-11-30", "9999-12-31"])]


class ReferenceFacts(Struct, frozen=True, kw_only=True):
    """`references`: by model, the reference value in force."""

    digest: Annotated[
        str,
        Meta(
            description="The digest of the reference value: SHA-256, hex.",
            pattern=r"^[0-9a-f]{64}\Z",
            examples=["0123456789abcdef" * 4],
        ),
    ]
    source: Annotated[
        Literal["measured", "oms", "corim", "yaml", "bundle"],
        Meta(description="Where the reference value comes from."),
    ]
    signer: Annotated[str | None, Meta(description="The signer; null if it is not signed.")]
    expires: Annotated[
        Day | None,
        Meta(description="The day on which its validity ends, YYYY-MM-DD in UTC; null if it does not end."),
    ]


class PolicyInput(Struct, frozen=True, kw_only=True):
    """What a policy gets: `input`."""

    checked: Annotated[dict[str, Facts], Meta(description="By submodule, the facts about it.")]
    references: Annotated[
        dict[str, ReferenceFacts],
        Meta(description="By model; a model without a valid reference value is not in it."),
    ]
    node: NodeFacts
    date: Annotated[
        Day, Meta(description="The day of the appraisal, YYYY-MM-DD in UTC. A policy has no other clock.")
    ]
