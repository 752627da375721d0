"""
What walks verified of a node's speed, compared with its hardware class.

Only right answers to calls count, each timed by the verifier's clock, for the reference value in
force.  The fastest of several walks counts: a busy device is slow sometimes, but no device is ever
faster than its hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from verifier.schemes.context import Channel, Context, HardwareClass, ModelReference, WalkRecord
from verifier.schemes.findings import Finding

_MIN_WALKS: Final = 5
"""Timed walks, before the class can be doubted."""
MIN_BYTES: Final = 1 << 30
"""Smaller weights may be read from a cache, or so fast that the network decides the time."""


def needed_ms(reference: ModelReference, rows: int, passes: int, hardware: HardwareClass) -> int:
    """The least time in which a device of the class can walk: to read, or with many rows to multiply."""
    walked_bytes = reference.tensor_bytes * passes
    reading_ms = 1000 * walked_bytes // hardware.bandwidth
    multiplying_ms = 0 if hardware.int8_ops is None else 2000 * rows * walked_bytes // hardware.int8_ops
    return max(reading_ms, multiplying_ms)


def timed_walks(context: Context) -> Iterator[tuple[ModelReference, WalkRecord]]:
    """Earlier right walks that are not wide, and that were timed alone."""
    for model, history in context.history.items():
        in_force = context.references.get(model)
        # A device stays the same when its node takes another revision.
        known = {each.digest: each for each in (in_force, *context.known(model)) if each is not None}
        for record in history:
            reference = known.get(record.reference)
            counts = (
                record.verdict == "right" and record.channel == Channel.CALLED and record.source == "engine"
            )
            if counts and record.ms and not record.wide and reference is not None:
                yield reference, record


def verified_bytes_per_second(context: Context) -> int | None:
    """
    The second best rate at which large weights were walked; `None` if there are fewer than two.

    The best one may be wrong, if a clock was set or the verifier restarted meanwhile.
    """
    found = [
        reference.information_bytes * record.passes * 1000 // (record.ms or 1)
        for reference, record in timed_walks(context)
        if reference.tensor_bytes >= MIN_BYTES
    ]
    return sorted(found)[-2] if len(found) > 1 else None


def check_class(context: Context) -> Finding | None:
    """A finding if walks contradict the node's hardware class."""
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    if hardware is None:
        return None
    return _too_slow(context, hardware) or _too_fast(context, hardware)


def _too_slow(context: Context, hardware: HardwareClass) -> Finding | None:
    least = context.thresholds.contradicted_permille
    are_fast_enough = []
    for reference, record in timed_walks(context):
        needed = needed_ms(reference, record.rows, record.passes, hardware)
        are_fast_enough.append((record.ms or 0) <= hardware.allowance_ms + needed * 1000 // least)
    if len(are_fast_enough) < _MIN_WALKS or any(are_fast_enough):
        return None
    return Finding(
        "capabilities.class.contradicted",
        f"each of {len(are_fast_enough)} walks had less than {least / 10:.0f} % of the speed of"
        f" {context.node.hardware_class}",
    )


def _too_fast(context: Context, hardware: HardwareClass) -> Finding | None:
    rate = verified_bytes_per_second(context)
    # If host memory is as near as the device's own, the table's bandwidth is a lower bound, not an upper one.
    if rate is None or hardware.host_link is None:
        return None
    if rate * 1000 <= hardware.bandwidth * context.thresholds.excess_permille:
        return None
    return Finding(
        "capabilities.class.exceeded",
        f"a walk had {rate} bytes/s; {context.node.hardware_class} has {hardware.bandwidth}",
    )
