"""What a client is told in a whole answer: the node's body, with what the router has to change in it."""

from __future__ import annotations

from functools import partial

from router.gateway.aside import Aside
from router.gateway.attempts import Attempt
from router.gateway.metering import Metering
from router.gateway.request import NodeRequest
from router.model.uniform import hide


async def tell_whole(
    request: NodeRequest, found: Attempt, metering: Metering, aside: Aside
) -> tuple[bytes, str | None]:
    """The body of an answer with status 200, and whose count its usage is; `None` if it tells none."""
    assert found.answer is not None
    body = found.answer.body
    if request.added.hides_logprobs:
        body = await aside.run_on(body, partial(hide, added=request.added))
    told = metering.told_whole(request, found)
    if told is None:
        return body, None
    if told.usage is not None:
        usage, write_usage = told.usage, request.operation.write_usage
        body = await aside.run_on(body, lambda body: write_usage(body, usage))
    return body, told.by
