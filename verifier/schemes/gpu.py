"""
The `gpu/N` submodules: what the driver names and what a benchmark run says.

All of it is the node's signed word (`declared`).  It is held against the hardware class of
the policy and against what walks have verified; it can never affirm anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from attester.evidence import Benchmark, Inventory
from verifier.schemes import rates
from verifier.schemes.base import CheckedSubmod, Context, Finding, HardwareClass, Submods, plain
from verifier.schemes.facts import GpuFacts

COPY: Final = "memory-copy"
_CEILINGS: Final[Mapping[str, str]] = {
    COPY: "bandwidth",
    "matmul-int8": "int8_ops",
    "matmul-bf16": "bf16_flops",
    "host-to-device": "host_link",
}
"""Measures that a row of the hardware table bounds, and by which of its numbers."""
_MEMORY_SHARE: Final = (800, 1050)
"""Thousandths of the class's memory that a driver may name: it keeps some for itself."""


def check(name: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of one device."""
    findings: list[Finding] = []
    if error := submods.errors.get(name):
        findings.append(Finding("evidence.claims.malformed", str(error)))
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    inventory: Inventory | None = submods.claim(name, "inventory")
    benchmark: Benchmark | None = submods.claim(name, "benchmark")
    malformed = name in submods.errors
    if not malformed:
        findings += _inventory(inventory, hardware)
        findings += _benchmark(benchmark, hardware, context)
    claims: dict[str, Any] = {}
    if inventory is not None:
        claims["inventory"] = plain(inventory)
    if benchmark is not None:
        # What a relying party may look for; all of it is in the evidence.
        claims["benchmark"] = {"at": benchmark.at, "code": benchmark.code}
    codes = {finding.code for finding in findings}
    return CheckedSubmod(
        facts=GpuFacts(
            malformed=malformed,
            named=inventory is not None,
            benchmark="missing" if benchmark is None else _verdict(codes),
            memory_fits="gpu.inventory.memory" not in codes,
        ),
        findings=tuple(findings),
        attester_claims=claims,
        devices=(inventory.uuid,) if inventory is not None else (),
        blocked={"hardware": f"device {inventory.uuid}"}
        if inventory is not None and inventory.uuid in context.blocks.devices
        else {},
    )


def _verdict(codes: set[str]) -> Literal["plausible", "implausible", "boast"]:
    if "gpu.benchmark.implausible" in codes:
        return "implausible"
    return "boast" if "gpu.benchmark.boast" in codes else "plausible"


def _inventory(inventory: Inventory | None, hardware: HardwareClass | None) -> list[Finding]:
    if inventory is None:
        return [Finding("gpu.inventory.missing", "no inventory claim")]
    if hardware is None or hardware.memory_bytes is None:
        return []
    low, high = (hardware.memory_bytes * share // 1000 for share in _MEMORY_SHARE)
    if low <= inventory.memory_bytes <= high:
        return []
    return [
        Finding(
            "gpu.inventory.memory",
            f"{inventory.memory_bytes} bytes",
            expected=f"{low} to {high}",
            actual=str(inventory.memory_bytes),
        )
    ]


def _benchmark(
    benchmark: Benchmark | None, hardware: HardwareClass | None, context: Context
) -> list[Finding]:
    if benchmark is None:
        return [Finding("gpu.benchmark.missing", "no benchmark claim")]
    found: list[Finding] = []
    excess = context.thresholds.excess_permille
    for measure in benchmark.measures:
        # Where host memory is as near as the device's, the table holds floors and no ceilings.
        ceiling = None
        if hardware is not None and hardware.host_link is not None and measure.name in _CEILINGS:
            ceiling = getattr(hardware, _CEILINGS[measure.name])
        if ceiling is not None and measure.median * 1000 > ceiling * excess:
            detail = f"{measure.name} of {measure.median} {measure.unit}, and the class has {ceiling}"
            found.append(Finding("gpu.benchmark.implausible", detail))
        verified = rates.verified_bytes_per_second(context) if measure.name == COPY else None
        if verified and measure.median * 1000 > verified * context.thresholds.boast_permille:
            detail = f"{measure.name} of {measure.median} {measure.unit}, and walks verified {verified}"
            found.append(Finding("gpu.benchmark.boast", detail))
    return found
