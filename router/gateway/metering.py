"""The router's own count of what each request used, and what nodes claim against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from router.gateway.attempts import Attempt
from router.gateway.counting import CountingThreads
from router.gateway.request import NodeRequest
from router.model.answers import usage_in
from router.model.clock import Clock
from router.model.dialects import count_of, counts_of
from router.model.tokens import (
    Count,
    TokenCounter,
    Tokeniser,
    estimated,
    prompt_ids,
    templates,
)
from router.model.usage import USUAL, Tolerance, Usage, UsageMeter, UsageMismatch, is_true
from router.model.workload import Workload

_TEMPLATE_TOKENS: Final = 16
"""Tokens that a chat template may add for each message."""
_LONG: Final = 8192
"""Characters: longer texts are counted in a thread."""


BY_NODE: Final = "node"
BY_ROUTER: Final = "router"
"""Whose count the usage is that a client is told."""


class Told(NamedTuple):
    """The usage that a client is told in a whole answer."""

    by: str
    usage: Usage | None
    """What is written over the node's own; `None` if that stays."""


class ReviewQueue(Protocol):
    """Takes what people must look at."""

    def report_mismatch(self, node: str, operator: str, mismatch: UsageMismatch) -> None:
        """A node claims far more than was counted."""

    def report_low_price(self, node: str, operator: str) -> None:
        """A node's price is below what the energy alone costs."""


class Metering:
    """
    Counts tokens.

    Args:
        clock: For the window over which claims are summed.
        reviews: Gets each large mismatch.
        tokenisers: By workload.  Without one, tokens are estimated by bytes and claims are not judged.
        tolerance: How far claims may be from what was counted.
    """

    def __init__(
        self,
        clock: Clock,
        reviews: ReviewQueue,
        tokenisers: Mapping[str, Tokeniser],
        tolerance: Tolerance = USUAL,
    ) -> None:
        self.tokenisers = tokenisers
        self.candidate: Mapping[str, tuple[Workload, Tokeniser | None]] = {}
        """Those of a table that is tried beside the one in force, with its workloads."""
        self.on_check_end: Callable[[Any], None] = lambda _run: None
        """Is told of each check, a `router.gateway.dispatch.Run`, once all of it is settled: it is paid."""
        self._clock = clock
        self._reviews = reviews
        self._tolerance = tolerance
        self._meter = UsageMeter(self._tolerance)
        self._threads = CountingThreads()

    def _tokeniser(self, request: NodeRequest) -> Tokeniser | None:
        workload = request.workload
        found = self.candidate.get(workload.name)
        if found is not None and found[0] is workload:
            return found[1]
        return self.tokenisers.get(workload.name)

    def counter_for(self, request: NodeRequest) -> TokenCounter:
        """A counter for one answer to a request."""
        return TokenCounter(self._tokeniser(request))

    def has_tokeniser(self, request: NodeRequest) -> bool:
        """Whether tokens are counted by the model's tokeniser, and not by bytes."""
        return self._tokeniser(request) is not None

    def judges(self, request: NodeRequest) -> bool:
        """Whether claims for this request are compared with the router's own count."""
        return self.has_tokeniser(request) and request.operation.is_metered

    async def count_prompt(self, request: NodeRequest) -> Count:
        """Tokens of a request's prompt; an estimate without a tokeniser, or if too much is to count."""
        tokeniser = self._tokeniser(request)
        counted = None
        if tokeniser is not None:
            counted = await self._count(len(request.body), partial(_count_prompt, tokeniser, request))
        return counted or Count(_estimate_prompt(request), is_exact=False)

    async def count_answer(self, request: NodeRequest, attempt: Attempt) -> Count:
        """Tokens of an answer; an estimate without a tokeniser, or if too much is to count."""
        if attempt.answer is None:
            assert attempt.stream is not None
            text = attempt.stream.text
            counted = await self._count(text.size, text.count)
            return counted or Count(text.estimate(), is_exact=False)
        tokeniser, whole = self._tokeniser(request), attempt.answer.content.text
        counted = None
        if tokeniser is not None:
            counted = await self._count(len(whole), partial(tokeniser.measure, whole))
        return counted or Count(_estimate_text(whole), is_exact=False)

    async def _count(self, size: int, count: Callable[[], Count]) -> Count | None:
        return await self._threads.run(size, count) if size > _LONG else count()

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def estimate(self, request: NodeRequest, attempt: Attempt) -> Usage:
        """The usage by bytes, without a tokeniser."""
        prompt = _estimate_prompt(request)
        if attempt.answer is not None:
            return Usage(prompt, _estimate_text(attempt.answer.content.text))
        return Usage(prompt, 0 if attempt.stream is None else attempt.stream.text.estimate())

    def charge_unfinished(
        self, request: NodeRequest, attempt: Attempt, prompt_tokens: int | None
    ) -> Usage | None:
        """
        What a caller pays if it left early or gave too little time: for its prompt, and for the tokens that had come.

        `None` if no node was given the request.
        """
        if not attempt.was_given:
            return None
        prompt = _estimate_prompt(request) if prompt_tokens is None else prompt_tokens
        return Usage(prompt, 0 if attempt.stream is None else attempt.stream.text.estimate())

    def told_whole(self, request: NodeRequest, attempt: Attempt) -> Told | None:
        """Whose usage the client is told in a whole answer; `None` if the answer tells none."""
        assert attempt.answer is not None
        content = attempt.answer.content
        if attempt.counted is not None:
            is_odd = content.is_usage_odd or content.is_usage_fraction
            is_same = attempt.counted == attempt.claimed and not is_odd
            return Told(BY_ROUTER, None if is_same else attempt.counted)
        if content.is_usage_odd:
            return Told(BY_ROUTER, self.estimate(request, attempt))
        if content.claimed is None:
            return None
        return Told(BY_NODE, content.claimed if content.is_usage_fraction else None)

    def told_streamed(
        self, request: NodeRequest, attempt: Attempt, counted: Usage
    ) -> tuple[dict[str, Any], str]:
        """
        The usage that the client is told at the end of a stream, and whose it is.

        With a tokeniser it is the router's count, and the node's otherwise.  What else the node says of it stays.
        """
        given = usage_in(None if attempt.stream is None else attempt.stream.usage)
        counts = counts_of(given)
        if self.has_tokeniser(request) or counts is None or counts.usage is None or not counts.is_whole:
            return {**given, **counted.to_wire()}, BY_ROUTER
        total = count_of(given.get("total_tokens"))
        told = counts.usage.to_wire()
        return {**given, **told, "total_tokens": total or told["total_tokens"]}, BY_NODE

    def judge_claim(self, request: NodeRequest, attempt: Attempt) -> bool:
        """
        Add a claim to the node's sums, and report a large mismatch; returns whether this claim is true.

        A claim is judged only if client and router cannot be what makes the difference.
        """
        claimed, counted = attempt.claimed, attempt.counted
        if claimed is None or counted is None or not self.is_judged(request, attempt):
            return True
        carried = attempt.carried + self.template_tokens(request)
        allowed = Usage(counted.prompt + carried, counted.completion)
        now = self._clock.monotonic()
        mismatch = self._meter.add(attempt.node, attempt.operator, request.client, claimed, allowed, now)
        if mismatch is not None:
            self._reviews.report_mismatch(attempt.node, attempt.operator, mismatch)
        return is_true(claimed, allowed, self._tolerance)

    def is_judged(self, request: NodeRequest, attempt: Attempt) -> bool:
        """Whether the router's count of an answer may be held against what the node claims for it."""
        if attempt.counted is None or not attempt.is_exact or not self.judges(request):
            return False
        # Who asks its own nodes could word claims for and against them as it likes.
        return request.operator != attempt.operator and request.is_evidence

    def template_tokens(self, request: NodeRequest) -> int:
        """Tokens that a node's chat template may add to the prompt."""
        return _TEMPLATE_TOKENS * templates(request.document)


def _count_prompt(tokeniser: Tokeniser, request: NodeRequest) -> Count:
    counted = tokeniser.measure(request.operation.prompt_text(request.document))
    return Count(counted.tokens + prompt_ids(request.document), is_exact=counted.is_exact)


def _estimate_prompt(request: NodeRequest) -> int:
    if len(request.body) > _LONG:
        # The number of bytes is enough for an estimate by bytes.
        return estimated(len(request.body))
    return _estimate_text(request.operation.prompt_text(request.document)) + prompt_ids(request.document)


def _estimate_text(text: str) -> int:
    return estimated(len(text) if text.isascii() else len(text.encode(errors="replace")))
