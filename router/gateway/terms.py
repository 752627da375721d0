"""What a request says of how its node is to be chosen: requirements of its own, and a nonce for the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from aiohttp import web

from router.choose.choice import Choice
from router.gateway.commitments import NONCE_HEADER, Commitments
from router.gateway.errors import GatewayError
from router.model.errors import ChoiceError, RequirementsError
from router.model.requirements import CallerRequirements, combine, parse_header, read_requirements
from router.model.workload import Workload
from router.state.fleet import Fleet
from router.state.narrowed import NarrowedPool
from router.state.narrowings import TooManyRequirementsError

REQUIRE_HEADER: Final = "X-Touchstone-Require"
"""What the caller requires of the node, as ``provider.touchstone`` of the body has it: JSON."""
_PROVIDER, MEMBER = "provider", "touchstone"
MEMBERS: Final = frozenset({_PROVIDER, MEMBER})
"""Members of a body that may hold requirements, in the one spelling in which they are read."""
_T = TypeVar("_T")
_USED: Final = frozenset({"choice.commitment.used", "choice.nonce.repeated"})


class Terms:
    """
    Finds the nodes and the seed that go by what requests say.

    Args:
        fleet: The nodes.
        commitments: What the router has committed to.
    """

    def __init__(self, fleet: Fleet, commitments: Commitments) -> None:
        self._fleet = fleet
        self.commitments = commitments

    async def narrow(
        self, workload: Workload, required: CallerRequirements | None, caller: str
    ) -> NarrowedPool | None:
        """
        The nodes that meet what a caller requires; `None` if it requires nothing of its own.

        Raises:
            GatewayError: the caller has asked for too many different requirements.
        """
        if required is None:
            return None
        try:
            return await self._fleet.narrowings.prepare(workload, required, caller)
        except TooManyRequirementsError as error:
            raise GatewayError(
                429, "rate_limit_error", str(error), code=error.code, retry_after=error.retry_after
            ) from None

    def choose(self, request: web.Request, caller: str) -> tuple[Choice, int] | None:
        """
        The seed that follows from a caller's nonce, and where it comes from; `None` if the request has no nonce.

        Raises:
            GatewayError: the nonce, or the commitment that it names, cannot be used.
        """
        header = one_header(request, NONCE_HEADER)
        if header is None:
            return None
        try:
            return self.commitments.take(header, caller)
        except ChoiceError as error:
            status = 409 if error.code in _USED else 400
            # To send the same again cannot help.
            raise GatewayError(
                status, "invalid_request_error", str(error), code=error.code, param=NONCE_HEADER, retry=False
            ) from None


def one_header(request: web.Request, name: str) -> str | None:
    """
    A header that may stand once; `None` if it is missing.

    Raises:
        GatewayError: it stands several times.
    """
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise GatewayError(400, "invalid_request_error", f"{name} must stand once", param=name)
    return values[0] if values else None


def require(workload: Workload, body: Any, header: str | None) -> CallerRequirements | None:
    """
    What a caller requires by the body and by the header of its request, together; `None` if neither says anything.

    Args:
        workload: What it may only tighten.
        body: The member for it, as decoded; `None` if it is missing.
        header: The header's text; `None` if there is none.

    Raises:
        GatewayError: it is malformed, or contradicts the workload or itself.
    """

    def read() -> CallerRequirements | None:
        by_body = None if body is None else read_requirements(body, workload)
        by_header = None if header is None else read_requirements(parse_header(header), workload)
        if by_body is None or by_header is None:
            return by_body or by_header
        return combine(by_body, by_header, workload)

    return _refusing(read)


def take_requirements(document: dict[str, Any]) -> Any:
    """
    Take the caller's requirements out of a body, so that no node sees them; `None` if there are none.

    Raises:
        GatewayError: they stand where they would be passed over, or are null.
    """

    def take() -> Any:
        if MEMBER in document:
            # There it would be passed over, and the caller would rely on it.
            raise RequirementsError("", f"it stands in {_PROVIDER!r}, not beside it")
        provider = document.get(_PROVIDER)
        if not isinstance(provider, dict):
            return None
        if any(name != MEMBER and name.casefold() == MEMBER for name in provider):
            raise RequirementsError("", "it must be written in lower case")
        if MEMBER not in provider:
            return None
        wanted = provider.pop(MEMBER)
        if not provider:
            del document[_PROVIDER]
        if wanted is None:
            raise RequirementsError("", "requirements must be an object")
        return wanted

    return _refusing(take)


def _refusing(read: Callable[[], _T]) -> _T:
    """What *read* gives; its errors as the gateway tells them."""
    try:
        return read()
    except RequirementsError as error:
        raise GatewayError(
            400, "invalid_request_error", str(error), code=error.code, param=error.member
        ) from None
