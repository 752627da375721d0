"""
Answers that come faster than a device can read the weights.  Pure.

For each step of a stream an engine reads the weights that are active for a token once, and accepts as many drafted tokens as
it guessed right.  So a stream has at most ``accepted · bandwidth / active bytes`` tokens a second.  The bandwidth is that of
the hardware class's data sheet.  What walks have shown is no upper bound: a walk computes more than it reads.
"""

from __future__ import annotations

from typing import Final

from verifier.answers.checks import Given, Minted, Verdict
from verifier.schemes.context import Thresholds

SPEED: Final = "answers.speed.impossible"
LEAST_TOKENS: Final = 16
"""Over fewer tokens the time says little."""
PERSISTENT: Final = 5
"""So many answers that are too fast are for a person to look at."""


def fastest(thresholds: Thresholds, hardware_class: str, model: str) -> float | None:
    """
    Give the most tokens a second of one stream; `None` if it is not known.

    It is not if nobody has measured the model's active bytes (`verifier.references.active`), or if the table's bandwidth
    is a floor: where host memory is as near as the device's own.
    """
    hardware = thresholds.classes.get(hardware_class)
    active = thresholds.answers.active_bytes.get(model)
    if hardware is None or hardware.host_link is None or active is None:
        return None
    bandwidth = hardware.bandwidth * thresholds.excess_permille / 1000
    return thresholds.answers.accepted_tokens * bandwidth / active


def too_fast(minted: Minted, given: Given, verdict: Verdict, limit: float | None) -> str | None:
    """
    Say how an answer is faster than *limit* tokens a second; `None` if it is not, or nothing can be said.

    Tokens that agree with the minted ones are counted, whatever the node claims, over the whole time from the request to
    the last byte: a proxy that holds bytes back makes an answer slower, never faster.
    """
    if limit is None or given.outcome != "completed" or not given.seconds:
        return None
    # Without the minted tokens, characters are counted.
    if minted.tokens is None or verdict.matched < LEAST_TOKENS:
        return None
    rate = verdict.matched / given.seconds
    if rate <= limit:
        return None
    return f"{rate:.0f} tokens a second, and its device can read the weights {limit:.0f} times"
