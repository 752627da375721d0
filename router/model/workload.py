"""
What work requires of a node: model tiers, workloads, and the table that maps requests to them.

Standing is kept for each tier: good work on small models says nothing about large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Final

from msgspec import Meta, Struct

from attester import kinds
from router.model.errors import WorkloadError
from router.model.operations import OPERATIONS
from router.model.usage import Usage
from verifier.trust import CLAIM_NAMES

ASSURANCES: Final = ("declared", "challenged", "hardware-rooted", "confidential")
"""In rising order; docs/limitations.md says what each rests on."""

MODEL_CLAIMS: Final = ("file-system", "executables")
"""What is asked of a model's weights where nothing else is said: the files, and what the engine has loaded."""

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
_Text = Annotated[str, Meta(max_length=128)]
_Texts = tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...]
_Claims = Annotated[_Texts, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Amount = Annotated[int, Meta(ge=0, lt=1 << 53)]
"""As a receipt can state it."""
_Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]
Digests = Annotated[tuple[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")], ...], Meta(max_length=64)]
"""Of reference values: SHA-256, in small hexadecimal digits."""


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """In millionths of the network's unit of account for a million tokens."""

    input: _Amount = 0
    output: _Amount = 0

    def charge(self, usage: Usage) -> int:
        """What an exchange costs, exactly: in millionths of a millionth of the unit.  Only what is shown is rounded."""
        return self.input * usage.prompt + self.output * usage.completion


_FREE: Final = Price()
_NO_PRICES: Final[dict[str, Price]] = {}


class TypicalExchange(Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens of a usual exchange, by which prices are compared."""

    input: Annotated[int, Meta(ge=1, le=10_000_000)] = 1000
    output: Annotated[int, Meta(ge=1, le=10_000_000)] = 250


class SubmodRequirement(Struct, frozen=True, forbid_unknown_fields=True):
    """What a tier asks of submodules of a node's result."""

    claims: _Claims
    """Trust claims that must be affirming.  An empty list would let any node in, so it is an error."""
    assurance: str = "declared"
    """The least assurance."""

    def __post_init__(self) -> None:
        for claim in self.claims:
            if claim not in CLAIM_NAMES:
                raise ValueError(f"no trust claim {claim!r}")
        if self.assurance not in ASSURANCES:
            raise ValueError(f"no assurance {self.assurance!r}; there are {', '.join(ASSURANCES)}")


class Requirements(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    ``tiers.NAME``: what a model tier asks of nodes.

    An empty list of hardware classes, quantisations, features or regions asks nothing, and a
    floor of 0 is none.
    """

    platform_claims: _Claims = ("instance-identity", "configuration")
    model_claims: _Claims = MODEL_CLAIMS
    platform_assurance: str = "declared"
    model_assurance: str = "challenged"
    submods: dict[Annotated[str, Meta(max_length=160)], SubmodRequirement] = {}
    """
    What else is asked, by submodule.  ``gpu/0`` is that submodule; ``gpu``, the name of a kind,
    is every submodule of the kind, and there must be at least one.
    """
    max_age_s: Annotated[int, Meta(ge=1, le=86400)] = 300
    """The greatest age of a result."""

    hardware_classes: _Texts = ()
    quantisations: _Texts = ()
    features: _Texts = ()
    regions: _Texts = ()
    min_memory_bytes: _Count = 0
    min_context: _Count = 0

    min_walk_bytes_per_second: _Count = 0
    """A floor on the verified rate; a node without one does not meet it."""
    min_tokens_per_second: _Count = 0
    """A floor on the pace that routers measured in the last hour; nodes with too few tokens are not judged."""
    first_token_p90_ms: _Milliseconds = 0
    first_token_p99_ms: _Milliseconds = 0
    token_p90_ms: _Milliseconds = 0
    token_p99_ms: _Milliseconds = 0
    answer_p90_ms: _Milliseconds = 0
    """For answers that are not streamed."""
    answer_p99_ms: _Milliseconds = 0

    prices: dict[_Text, Price] = {}
    """By operator; ``"*"`` for all others.  Without an entry the work is free."""
    prices_by_hardware: dict[Annotated[str, Meta(min_length=1, max_length=128)], dict[_Text, Price]] = {}
    """By hardware class, by the verifier's word, and in it by operator; ``"*"`` for all others.  See `price_of`."""
    price_ceiling: Price | None = None
    """A hard ceiling: dearer nodes are excluded."""
    energy_floor: Price | None = None
    """What the energy alone costs: a lower price asks for an audit."""
    second_is_worth: _Count = 0
    """Millionths of the unit that one second less is worth; 0: only time counts."""
    typical: TypicalExchange = TypicalExchange()

    concurrency: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Requests that one router gives one node at a time."""
    max_operator_share: Annotated[int, Meta(ge=1, le=100)] = 100
    """Per cent of the work in flight that the nodes of one operator may have."""
    probation_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 20
    """How many decisions in a thousand try a node on probation first, so that evidence about it arises."""
    degraded_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 10
    """The same for degraded nodes, so that a recovery is seen."""

    def __post_init__(self) -> None:
        # The older pairs of settings have the form of `submods`, and are checked as such.
        SubmodRequirement(self.platform_claims, self.platform_assurance)
        SubmodRequirement(self.model_claims, self.model_assurance)
        for submod in self.submods:
            if submod not in kinds.KINDS and kinds.kind_of(submod) is None:
                raise ValueError(
                    f"no kind of submodule {submod!r}; there are {', '.join(sorted(kinds.KINDS))}"
                )
        if "*" in self.prices_by_hardware:
            raise ValueError("prices_by_hardware names classes; what holds for all of them is in prices")
        if self.probation_per_mille + self.degraded_per_mille > 1000:
            raise ValueError("probation_per_mille and degraded_per_mille together must be at most 1000")

    def price_of(self, operator: str, hardware_class: str = "") -> Price:
        """
        What an operator's work costs on hardware of a class; an empty class if nobody has vouched for one.

        The first that there is: the operator's for the class, the operator's, that of all others for the class, that
        of all others.  What was agreed with an operator comes before what holds for its hardware.
        """
        by_class = self.prices_by_hardware.get(hardware_class, _NO_PRICES)
        for prices, name in (
            (by_class, operator),
            (self.prices, operator),
            (by_class, "*"),
            (self.prices, "*"),
        ):
            price = prices.get(name)
            if price is not None:
                return price
        return _FREE

    def cost_of(self, price: Price) -> float:
        """Millionths of the unit for a usual exchange."""
        return (price.input * self.typical.input + price.output * self.typical.output) / 1e6


class CheckSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``checks`` of a workload: how its nodes are asked what a trusted engine has answered already (docs/adr/0057)."""

    enabled: bool = True
    """Whether they are, if the verifier has something to ask.  Then all requests for its nodes have one form."""
    seeds: bool = True
    """Whether requests whose answer is drawn get a seed if they have none: otherwise only answers at temperature 0 are
    held against others."""
    logprobs: bool = False
    """Whether all requests ask for log-probabilities, which are taken away from answers to clients that did not."""
    peers: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Of a thousand answers at temperature 0, how many another operator's node scores.  It sees their prompts, so that
    it is 0 unless somebody wants it (docs/adr/0060)."""


class GoesOn(StrEnum):
    """``continuing`` of a workload: whether another node goes on with a stream that broke (docs/adr/0068)."""

    NEVER = "never"
    ASKED = "asked"
    """If the caller asks for it."""
    ALWAYS = "always"
    """Unless the caller declines."""


class Workload(Requirements, frozen=True, forbid_unknown_fields=True):
    """A model with the requirements of its tier: what a request maps to."""

    model: ModelName
    name: str = ""
    tier: str = ""
    operations: Annotated[tuple[str, ...], Meta(min_length=1)] = tuple(OPERATIONS)
    tokeniser: str | None = None
    """A ``tokenizer.json``, by which the router counts tokens itself."""
    digests: Digests = ()
    """The revisions of the model that may do the work, by the digests of their reference values; any if empty."""
    checks: CheckSettings = CheckSettings()
    continuing: GoesOn = GoesOn.NEVER
    """Whether another node of the same revision and engine goes on with a stream that broke.  It needs a tokeniser."""
    affinity_per_cent: Annotated[int, Meta(ge=0, le=1000)] = 0
    """
    Whether requests of a tenant that begin alike go to one established node, and what that may cost: the seconds that are
    expected of it, in per cent of those of the node that two choices would have taken.  0: no such thing.
    """
    cache_salt: bool = True
    """Whether requests have a ``cache_salt`` for each tenant, at nodes whose engine keeps prefixes apart by it."""

    def __post_init__(self) -> None:
        Requirements.__post_init__(self)
        if len(set(self.digests)) != len(self.digests):
            raise ValueError("digests names a revision twice")
        if self.continuing is not GoesOn.NEVER and self.tokeniser is None:
            raise ValueError("continuing needs a tokeniser: what has come is taken off max_tokens by it")
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ValueError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")

    @property
    def standing_key(self) -> str:
        """The key under which standings of nodes for this work are kept."""
        return self.tier or self.model

    def required_submods(self) -> Iterator[tuple[str, Sequence[str], str]]:
        """Each submodule or kind that is required, with its trust claims and its assurance."""
        yield "platform", self.platform_claims, self.platform_assurance
        yield kinds.model_submod(self.model), self.model_claims, self.model_assurance
        for submod, required in self.submods.items():
            yield submod, required.claims, required.assurance


class Table:
    """The workloads, each with its tier's requirements."""

    def __init__(
        self, workloads: Sequence[Workload], defaults: frozenset[str] = frozenset(), digest: str = ""
    ) -> None:
        self.workloads: Mapping[str, Workload] = {workload.name: workload for workload in workloads}
        self.digest = digest
        """SHA-256 of what people have written, hex, whatever its comments and its spaces; empty if nobody has."""
        self._defaults = defaults
        self._by_model: dict[str, list[Workload]] = {}
        for workload in workloads:
            self._by_model.setdefault(workload.model, []).append(workload)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models that there is a workload for."""
        return tuple(sorted(self._by_model))

    def route(self, model: str, named: str | None = None, allowed: Sequence[str] = ()) -> Workload:
        """
        The workload that a request maps to.

        Args:
            model: What the request asks for.
            named: The workload that the request names, if it names one.
            allowed: The workloads that its API key may use; any if empty.

        Raises:
            WorkloadError: there is none, or there are several and none is the default.
        """
        found = self._by_model.get(model)
        if found is None:
            raise WorkloadError("no workload for this model", code="model_not_found")
        if len(found) == 1 and named is None and not allowed:
            return found[0]
        usable = [w for w in found if (not allowed or w.name in allowed) and named in (None, w.name)]
        if not usable:
            what = "this model" if named is None else "this model by that name"
            raise WorkloadError(f"no workload for {what} that the key may use", code="model_not_found")
        if len(usable) > 1:
            usable = [w for w in usable if w.name in self._defaults] or usable
        if len(usable) > 1:
            names = ", ".join(sorted(w.name for w in usable))
            raise WorkloadError(f"several workloads are for this model; name one: {names}", code="ambiguous")
        return usable[0]
