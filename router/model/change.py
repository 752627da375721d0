"""
A change of the table of workloads: a candidate decides beside the table in force, then for a share of the traffic.  Pure.

    Bounds      from when on the candidate is worse, and how often a change that is not may be stopped
    Arm         which table a request goes by
    is_shared   which arm a unit of traffic is in, the same for good while the share grows
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

By = Literal["key", "user", "conversation"]
_PerMille = Annotated[int, Meta(ge=1, le=1000)]
_Ratio = Annotated[int, Meta(ge=110, le=10_000)]
_Percent = Annotated[int, Meta(ge=1, le=10_000)]
_SHOWN: Final = 1024
_MAX_UNIT: Final = 64 << 10
_MOST_MESSAGES: Final = 256


class Arm(StrEnum):
    """The table that a request goes by while there are two."""

    ACTIVE = "active"
    CANDIDATE = "candidate"


class Stage(StrEnum):
    """Where a change is.  The first two are live."""

    SHADOW = "shadow"
    """The candidate decides beside the table in force, and nothing follows from it."""
    SHARE = "share"
    """It decides for a share of the traffic."""
    PROMOTED = "promoted"
    """It is in force."""
    ABORTED = "aborted"
    """A person has ended it, or has taken the promotion back."""
    STOPPED = "stopped"
    """It was worse, and the router has ended it."""


LIVE: Final = frozenset({Stage.SHADOW, Stage.SHARE})


class Bounds(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    ``[changes.bounds]``: from when on a candidate is worse.

    Each is a statement about rates that a sequential test tries to refute; a refuted one stops the change.
    """

    alpha_per_mille: _PerMille = 10
    """How many of a thousand changes that keep to all bounds may be stopped."""
    failures_ratio_percent: _Ratio = 200
    """Requests fail at most so often as with the table in force, in per cent of its rate."""
    failures_per_mille: _PerMille = 50
    """And at most so many of a thousand requests fail that the table in force then completes."""
    retries_ratio_percent: _Ratio = 200
    """Requests need a second node at most so often, in per cent of the rate of the table in force."""
    least_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 5
    """A rate that is seen to be at most so much above that of the table in force stops nothing, whatever its ratio is."""
    p99_percent: _Percent = 25
    """The 99th percentile of the time to the first text, or of a whole answer, is at most so much longer."""
    pace_percent: _Percent = 25
    """The same of the time for each token of a stream after the first."""
    cost_percent: _Percent = 20
    """A request costs at most so much more, on average over requests."""


class ChangesSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[changes]``: how candidates for the table of workloads are tried (docs/changing-the-routing.md)."""

    by: By = "key"
    """What stays on one arm, unless the proposal says so: all of an API key, of its ``user``, or a conversation."""
    shadow_per_second: Annotated[int, Meta(ge=1, le=10_000)] = 100
    """Requests that the candidate decides on beside the table in force, at most."""
    bounds: Bounds = Bounds()


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a change was proposed with."""

    by: By = "key"
    bounds: Bounds = Bounds()
    model: str = ""
    """Of a comparison of two revisions: their model."""
    revision_from: str = ""
    revision_to: str = ""


def unit_of(by: By, caller: str, document: Mapping[str, Any]) -> bytes:
    """
    What stays on one arm: the caller, or a part of the caller's traffic.

    A conversation is known by how it begins, up to the first word of its user.
    """
    unit = hashlib.sha256(caller.encode())
    if by == "user":
        user = document.get("user")
        unit.update(b"\0" + user.encode(errors="surrogatepass")[:_SHOWN] if isinstance(user, str) else b"")
    elif by == "conversation":
        unit.update(b"\0" + _beginning(document))
    return unit.digest()


def _beginning(document: Mapping[str, Any]) -> bytes:
    messages = document.get("messages", document.get("input"))
    if isinstance(messages, list) and messages and isinstance(messages[0], dict):
        first = []
        for message in messages[:_MOST_MESSAGES]:
            first.append(message)
            if isinstance(message, dict) and message.get("role") == "user":
                break
        return _head(first, _MAX_UNIT)
    # Of a prompt the beginning: each turn of a conversation adds to its end.
    return _head(document.get("prompt", document.get("input", document.get("query"))), _SHOWN)


def _head(value: Any, size: int) -> bytes:
    """The first bytes of what a value says, without a look at the rest of it: it may have megabytes."""
    found, left = bytearray(), [value]
    while left and len(found) < size:
        each = left.pop()
        if isinstance(each, dict):
            left += [
                part for item in reversed(list(each.items())[:_MOST_MESSAGES]) for part in reversed(item)
            ]
        elif isinstance(each, list):
            left += reversed(each[:_MOST_MESSAGES])
        else:
            text = each[:size] if isinstance(each, str) else str(each)[:_SHOWN]
            found += text.encode(errors="surrogatepass") + b"\0"
    return bytes(found[:size])


def is_shared(secret: bytes, unit: bytes, percent: int) -> bool:
    """Whether a unit is in the share of the candidate.  Who does not know the secret cannot choose."""
    number = int.from_bytes(hmac.digest(secret, unit, "sha256")[:8], "big")
    return number * 100 < percent << 64
