"""
What a request itself requires of its node (`router.model.requirements`), held against the result by the client too.

The router chooses by it; that it did so, its caller need not believe.  The rule is the router's own gate
(`router.choose.requirements`), asked of the one result that the receipt names.
"""

from __future__ import annotations

from typing import Final

from router.choose.gates import GateContext
from router.choose.requirements import find_unmet
from router.client.errors import Step, UnverifiedError
from router.client.exchanges import document_of
from router.model.errors import RequirementsError
from router.model.node import NodeView, signer_tag
from router.model.requirements import CallerRequirements, combine, parse_header, read_requirements
from router.model.workload import Workload
from router.receipts.payload import Receipt
from verifier import jws
from verifier.results import AttestationResult

_DAY_S: Final = 86_400


def read_wanted(body: bytes, header: str | None) -> CallerRequirements | None:
    """
    What a request requires, by ``provider.touchstone`` of its body and by its header; `None` if neither says anything.

    Raises:
        RequirementsError: it is malformed, or contradicts itself.  A router refuses such a request.
    """
    document = document_of(body)
    model, provider = document.get("model"), document.get("provider")
    given = provider.get("touchstone") if isinstance(provider, dict) else None
    if given is None and header is None:
        return None
    # The workload is the router's affair: here it must not be tighter than anything that a request may require.
    workload = Workload(
        model if isinstance(model, str) and 1 <= len(model) <= 128 else "unknown",
        name="client",
        platform_claims=("instance-identity",),
        model_claims=("file-system",),
        model_assurance="declared",
        max_age_s=_DAY_S,
    )
    read = [] if given is None else [read_requirements(given, workload)]
    if header is not None:
        read.append(read_requirements(parse_header(header), workload))
    return read[0] if len(read) == 1 else combine(read[0], read[1], workload)


def check_wanted(
    body: bytes, header: str | None, receipt: Receipt, result: AttestationResult, token: str, *, at_ms: int
) -> str | None:
    """
    Hold what a request requires against the result of the node that has answered.

    Args:
        header: ``X-Touchstone-Require``, as it was sent.
        token: The result, as it was signed.
        at_ms: When the node was chosen, by the router's clock.

    Returns:
        What was found, in words; `None` if the request requires nothing, or no node has answered.

    Raises:
        UnverifiedError: the node does not meet it, or the router should have refused the request.
    """
    if not receipt.node or not isinstance(receipt.model, str):
        return None
    try:
        wanted = read_wanted(body, header)
    except RequirementsError as error:
        raise UnverifiedError(
            Step.REQUIREMENTS, f"the router has passed over requirements that cannot be read: {error}"
        ) from None
    if wanted is None:
        return None
    view = NodeView(receipt.node.id, result=result, token_digest=signer_tag(jws.kid_of(token) or ""))
    verdict = find_unmet(view, wanted, receipt.model, GateContext(now_ms=at_ms))
    if verdict is not None:
        raise UnverifiedError(Step.REQUIREMENTS, f"the node does not meet them: {verdict.detail}")
    return "what the request itself requires is met"
