"""
What walks verified of a node's speed, against its hardware class.

Only right answers to calls count, each timed by the verifier's clock, for the reference
value in force.  The fastest of several speaks: a busy device is slow now and then, and no
device is ever faster than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from verifier.schemes.base import Context, Finding, HardwareClass, ModelReference, WalkRecord

_AT_LEAST: Final = 5
"""So many timed walks before the class is doubted."""
LARGE: Final = 1 << 30
"""Weights of so many bytes are read from memory, not from a cache, and not within the network's noise."""


def needed_ms(reference: ModelReference, rows: int, passes: int, hardware: HardwareClass) -> int:
    """What a walk takes a device of the class at its best: reading, or with many rows multiplying."""
    moved = reference.tensor_bytes * passes
    reading = 1000 * moved // hardware.bandwidth
    multiplying = 0 if hardware.int8_ops is None else 2000 * rows * moved // hardware.int8_ops
    return max(reading, multiplying)


def timed(context: Context) -> Iterator[tuple[ModelReference, WalkRecord]]:
    """Earlier narrow walks with a time of their own."""
    for model, history in context.history.items():
        reference = context.references.get(model)
        if reference is None:
            continue
        for record in history:
            right = record.verdict == "right" and record.channel == "call" and record.source == "engine"
            if right and record.ms and not record.wide and record.reference == reference.digest:
                yield reference, record


def verified_bytes_per_second(context: Context) -> int | None:
    """
    The second best rate at which large weights were walked; `None` before there were two.

    The second: one time may be wrong, after a clock was set or a verifier restarted.
    """
    rates = [
        reference.information_bytes * record.passes * 1000 // (record.ms or 1)
        for reference, record in timed(context)
        if reference.tensor_bytes >= LARGE
    ]
    return sorted(rates)[-2] if len(rates) > 1 else None


def class_finding(context: Context) -> Finding | None:
    """A finding where walks contradict the node's hardware class."""
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    if hardware is None:
        return None
    return _too_slow(context, hardware) or _too_fast(context, hardware)


def _too_slow(context: Context, hardware: HardwareClass) -> Finding | None:
    slack = context.thresholds.contradicted_permille
    shares = []
    for reference, record in timed(context):
        needed = needed_ms(reference, record.rows, record.passes, hardware)
        shares.append((record.ms or 0) <= hardware.allowance_ms + needed * 1000 // slack)
    if len(shares) < _AT_LEAST or any(shares):
        return None
    return Finding(
        "capabilities.class.contradicted",
        f"each of {len(shares)} walks ran at less than {slack / 10:.0f} % of {context.node.hardware_class}",
    )


def _too_fast(context: Context, hardware: HardwareClass) -> Finding | None:
    rate = verified_bytes_per_second(context)
    # Where host memory is as near as the device's, the table's bandwidth is a floor and no ceiling.
    if rate is None or hardware.host_link is None:
        return None
    if rate * 1000 <= hardware.bandwidth * context.thresholds.excess_permille:
        return None
    return Finding(
        "capabilities.class.exceeded",
        f"a walk moved {rate} bytes/s, and {context.node.hardware_class} has {hardware.bandwidth}",
    )
