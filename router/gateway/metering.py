"""The router's own count of what each request used, and what nodes claim against it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from router.gateway.attempts import Attempt
from router.gateway.request import NodeRequest
from router.model.clock import Clock
from router.model.tokens import (
    TokenCounter,
    Tokeniser,
    counts_all,
    estimated,
    prompt_ids,
    templates,
)
from router.model.usage import Usage, UsageMeter, UsageMismatch, is_true

_TEMPLATE_TOKENS: Final = 16
"""Tokens that a chat template may add for each message."""
_LONG: Final = 8192
"""Characters: longer texts are counted in a thread."""


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
    """

    def __init__(self, clock: Clock, reviews: ReviewQueue, tokenisers: Mapping[str, Tokeniser]) -> None:
        self.tokenisers = tokenisers
        self._clock = clock
        self._reviews = reviews
        self._meter = UsageMeter()

    def counter_for(self, request: NodeRequest) -> TokenCounter:
        """A counter for one answer to a request."""
        return TokenCounter(self.tokenisers.get(request.workload.name))

    def has_tokeniser(self, request: NodeRequest) -> bool:
        """Whether tokens are counted by the model's tokeniser, and not by bytes."""
        return request.workload.name in self.tokenisers

    def judges(self, request: NodeRequest) -> bool:
        """Whether claims for this request are compared with the router's own count."""
        return self.has_tokeniser(request) and request.operation.is_metered

    async def count_prompt(self, request: NodeRequest) -> int:
        """Tokens of a request's prompt."""
        tokeniser = self.tokenisers.get(request.workload.name)
        if tokeniser is None:
            return _estimate_prompt(request)
        if len(request.body) > _LONG:
            return await asyncio.to_thread(_count_prompt, tokeniser, request)
        return _count_prompt(tokeniser, request)

    async def count_answer(self, request: NodeRequest, attempt: Attempt) -> int:
        """Tokens of an answer: by the model's tokeniser if there is one, else by bytes."""
        if attempt.answer is None:
            assert attempt.stream is not None
            text = attempt.stream.text
            return await asyncio.to_thread(text.total) if text.size > _LONG else text.total()
        tokeniser = self.tokenisers.get(request.workload.name)
        if tokeniser is None:
            return _estimate_text(attempt.answer.content.text)
        return await _count_text(tokeniser, attempt.answer.content.text)

    def estimate(self, request: NodeRequest, attempt: Attempt) -> Usage:
        """The usage by bytes, without a tokeniser."""
        prompt = _estimate_prompt(request)
        if attempt.answer is not None:
            return Usage(prompt, _estimate_text(attempt.answer.content.text))
        return Usage(prompt, 0 if attempt.stream is None else attempt.stream.text.estimate())

    def charge_unfinished(
        self, request: NodeRequest, attempt: Attempt, prompt_tokens: int | None
    ) -> Usage | None:
        """What a caller pays if it left early or gave too little time: for the tokens that had come."""
        if attempt.stream is None or not attempt.stream.events:
            return None
        prompt = estimated(len(request.body)) if prompt_tokens is None else prompt_tokens
        return Usage(prompt, attempt.stream.text.estimate())

    def judge_claim(self, request: NodeRequest, attempt: Attempt) -> bool:
        """Add a claim to the node's sums, and report a large mismatch; returns whether this claim is true."""
        claimed, counted = attempt.claimed, attempt.counted
        if claimed is None or counted is None or not self.judges(request):
            return True
        # What the router cannot count must not be held against the node.
        whole = request.is_counted_whole
        if whole is None:
            whole = counts_all(request.document)
        prompt = claimed.prompt if whole else counted.prompt
        judged = Usage(prompt, claimed.completion)
        template_tokens = _TEMPLATE_TOKENS * templates(request.document)
        allowed = Usage(counted.prompt + template_tokens, counted.completion)
        mismatch = self._meter.add(attempt.node, attempt.operator, judged, allowed, self._clock.monotonic())
        if mismatch is not None:
            self._reviews.report_mismatch(attempt.node, attempt.operator, mismatch)
        return is_true(judged, allowed)


def _count_prompt(tokeniser: Tokeniser, request: NodeRequest) -> int:
    return tokeniser.count(request.operation.prompt_text(request.document)) + prompt_ids(request.document)


async def _count_text(tokeniser: Tokeniser, text: str) -> int:
    return await asyncio.to_thread(tokeniser.count, text) if len(text) > _LONG else tokeniser.count(text)


def _estimate_prompt(request: NodeRequest) -> int:
    if len(request.body) > _LONG:
        # The number of bytes is enough for an estimate by bytes.
        return estimated(len(request.body))
    return _estimate_text(request.operation.prompt_text(request.document)) + prompt_ids(request.document)


def _estimate_text(text: str) -> int:
    return estimated(len(text) if text.isascii() else len(text.encode(errors="replace")))
