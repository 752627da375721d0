"""
What a node says of another node's answer, and when that is more than true weights explain.  Pure.

A score is one node's word about another's text: either of the two may be the one whose weights are others.  And an engine
reads the text into tokens anew; where the answer was made of other tokens, a score of true weights is high too.  So one
score says nothing: they are counted, for both nodes, by the sequential test of other checks (`verifier.answers.sequence`).

**Measured** (SmolLM2-135M, 240 chat prompts, greedy, at most 48 tokens; scored by vLLM 0.32 on a CPU in bfloat16).
So many answers had a mean gap above 0.05 nat:

    vLLM, bfloat16, one request at a time       13 of 240   (upper 95 % limit 0.085)
    vLLM, bfloat16, four at a time               3 of 160
    llama.cpp, bfloat16 and float32             12 of 240 each
    llama.cpp, Q8_0                             14 of 240   not told from true weights
    llama.cpp, Q4_0                            235 of 240
    another model, with one layer less         235 of 240

All of those of true weights that were above it had other tokens: half of them were in French, which the model hardly
speaks.  Traffic of such texts has more of them.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

MAX_TOKENS: Final = 1 << 16
_Gap = Annotated[float, Meta(ge=0, le=1e6)]
_Id = Annotated[str, Meta(min_length=1, max_length=64)]
_Jti = Annotated[str, Meta(min_length=1, max_length=128)]


class PeerReport(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a router brings: numbers alone, no word of prompt or answer."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """Drawn by the router.  The same report may be sent again."""
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    node: _Id
    """The node that answered."""
    result: _Jti
    """The `jti` of the result by which the router chose it."""
    by: _Id
    """The node that scored the answer."""
    by_result: _Jti
    at_ms: Annotated[int, Meta(ge=0, le=1 << 48)]
    """When that was asked, by the router's clock."""
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    mean_nll: _Gap
    """The mean cross-entropy, nat a token."""
    mean_gap: _Gap
    """How far a token is behind the first choice, on average, nat."""
    largest_gap: _Gap
    disagreements: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    """Positions at which the token is not the first choice."""

    def __post_init__(self) -> None:
        if self.node == self.by:
            raise ValueError("a node does not score itself")
        if self.disagreements > self.tokens or self.mean_gap > self.largest_gap * (1 + 1e-9):
            raise ValueError("the numbers of a score contradict each other")
        if (self.disagreements == 0) != (self.largest_gap == 0):
            raise ValueError("a gap is where the token is not the first choice")


def is_above(report: PeerReport, limit: float) -> bool:
    """Whether a score is above what true weights usually give."""
    return report.mean_gap > limit
