"""What a completed attempt says of its node: how fast it was, for how much work.  Pure."""

from __future__ import annotations

from router.gateway.attempts import Attempt
from router.gateway.request import NodeRequest
from router.model.allowance import LEAST_ANSWER, LEAST_PROMPT
from router.model.outcomes import Execution, Outcome
from router.model.usage import Usage
from router.model.workload import Workload


def measure(request: NodeRequest, attempt: Attempt, counted: Usage, *, is_clean: bool) -> Execution:
    """
    The execution that a completed attempt is to its node's standing.

    Args:
        request: What the node was sent.
        attempt: How it ended.
        counted: What the caller pays for it.
        is_clean: Whether the node kept to the protocol and to what was counted.
    """
    stream = attempt.stream
    first_token_s = None if stream is None else stream.first_token_s
    # What other nodes have made of the answer was this one's to read.
    read = counted.prompt + attempt.carried
    token_s = whole_token_s = prompt_token_s = None
    # A pace is of tokens that are all shown: with others a client could make a node look slow.
    if first_token_s is not None and counted.completion > 1 and request.is_evidence:
        token_s = max(attempt.seconds - first_token_s, 0.0) / (counted.completion - 1)
    if first_token_s is None and counted.completion >= LEAST_ANSWER and request.is_evidence:
        whole_token_s = attempt.seconds / counted.completion
    if first_token_s is not None and read >= LEAST_PROMPT and request.is_evidence:
        prompt_token_s = first_token_s / read
    share = size_share(
        request.workload, Usage(read, counted.completion), is_streamed=first_token_s is not None
    )
    return Execution(
        Outcome.COMPLETED,
        attempt.seconds,
        whole_token_s=whole_token_s,
        prompt_token_s=prompt_token_s,
        size_share=share,
        is_clean=is_clean,
        # An operator that pays its own nodes for work proves nothing by it.
        earns_credit=earns_credit(request, attempt),
        first_token_s=first_token_s,
        token_s=token_s,
        calls_are_valid=None if attempt.kept is None else attempt.kept.calls_are_valid,
    )


def earns_credit(request: NodeRequest, attempt: Attempt) -> bool:
    """Whether a good end counts for the node: not if its own operator sent the work."""
    return not request.operator or request.operator != attempt.operator


def size_share(workload: Workload, counted: Usage, *, is_streamed: bool) -> float:
    """
    The tier's typical exchange as a share of this one.

    How long the first text takes goes by the prompt; how long a whole answer takes, by the answer too.
    """
    typical = workload.typical
    share = min(1.0, typical.input / max(counted.prompt, 1))
    return share if is_streamed else min(share, typical.output / max(counted.completion, 1))
