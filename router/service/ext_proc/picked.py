"""
What a picker has picked, checked: it must be of the subset that it was given.

The protocol asks that of pickers.  Some go on with all endpoints if they find none of the subset, so nothing that they
say is believed without this.  The subset is in Envoy's own metadata, which clients cannot write.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from router.gateway.errors import DECISION_HEADER, GatewayError
from router.service.ext_proc.head import DESTINATION, PICKED_NAMESPACE, SUBSET_KEY, SUBSET_NAMESPACE

STAGE: Final = "x-touchstone-stage"
"""In the initial metadata of a stream: from which of our filters it comes."""
PICKED: Final = "picked"
"""The filter behind the picker; the other says nothing."""
ENDPOINT_NOT_ALLOWED: Final = "endpoint_not_allowed"


class Picked(Struct, frozen=True):
    """What was picked."""

    record: str
    """The id of the decision."""
    endpoints: tuple[str, ...]
    """In the order in which they are to be tried."""


def read_picked(pairs: Iterable[tuple[str, bytes]], message: Any) -> Picked:
    """
    The endpoints that a request goes to.

    Args:
        pairs: The headers as they stand behind the picker.
        message: The ``ProcessingRequest``, with the metadata that the filter passes on.

    Raises:
        GatewayError: not all of them are of its subset.
    """
    subset = subset_of(message)
    if subset is None:
        raise _refused("the subset is not passed on to the check: no filter has decided this request")
    found: dict[str, list[str]] = {DESTINATION: [], DECISION_HEADER.lower(): []}
    for name, value in pairs:
        if name in found:
            found[name].append(value.decode(errors="replace"))
    picked = found[DESTINATION]
    if len(picked) != 1:
        raise _refused("the picker has named two headers" if picked else "the picker has named no endpoint")
    named = _metadata(message, PICKED_NAMESPACE, DESTINATION)
    if named is not None and named.string_value != picked[0]:
        # By the protocol the two are the same, and it is not said which one a proxy goes by.
        raise _refused("the picker has named one endpoint in the header, and another in the metadata")
    endpoints = tuple(each.strip() for each in picked[0].split(","))
    if not subset.issuperset(endpoints):
        raise _refused("the picker has picked an endpoint outside the subset")
    return Picked("".join(found[DECISION_HEADER.lower()]), endpoints)


def subset_of(message: Any) -> frozenset[str] | None:
    """The subset in a message's metadata; `None` if it has none."""
    found = _metadata(message, SUBSET_NAMESPACE, SUBSET_KEY)
    return None if found is None else frozenset(each.string_value for each in found.list_value.values)


def _metadata(message: Any, namespace: str, key: str) -> Any:
    """A value of a message's metadata; `None` if it has none."""
    # Of a map, the last entry of a key counts.
    found = [each.value for each in message.metadata_context.filter_metadata if each.key == namespace]
    return found[-1].fields[key] if found and key in found[-1].fields else None


def _refused(why: str) -> GatewayError:
    return GatewayError(503, "service_unavailable", why, code=ENDPOINT_NOT_ALLOWED)
