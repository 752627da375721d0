"""
The `gpu/N` submodules: the driver's description of each device, and its benchmark run.

The node declares all of it (`declared`).  It is compared with the hardware class of the policy and
with what walks have verified.  It can never make a claim affirming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from attester.evidence import Benchmark, Inventory
from verifier.schemes import blocking, rates
from verifier.schemes.context import Context, HardwareClass, Submods
from verifier.schemes.facts import GpuFacts
from verifier.schemes.findings import CheckedSubmod, Finding, plain

COPY: Final = "memory-copy"
_CEILINGS: Final[Mapping[str, str]] = {
    COPY: "bandwidth",
    "matmul-int8": "int8_ops",
    "matmul-bf16": "bf16_flops",
    "host-to-device": "host_link",
}
"""By measure of the benchmark, the number of the hardware table that bounds it."""
_MEMORY_SHARE: Final = (800, 1050)
"""Least and most memory that a driver may report, in thousandths of the class's: it reserves some for itself."""


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
        findings += _check_inventory(inventory, hardware)
        findings += _check_benchmark(benchmark, hardware, context)
    claims: dict[str, Any] = {}
    if inventory is not None:
        claims["inventory"] = plain(inventory)
    if benchmark is not None:
        # Enough for a relying party to find the run.  The measures are in the evidence.
        claims["benchmark"] = {"at": benchmark.at, "code": benchmark.code}
    codes = {finding.code for finding in findings}
    return CheckedSubmod(
        facts=GpuFacts(
            malformed=malformed,
            named=inventory is not None,
            benchmark="missing" if benchmark is None else _benchmark_fact(codes),
            memory_fits="gpu.inventory.memory" not in codes,
        ),
        findings=tuple(findings),
        attester_claims=claims,
        devices=(inventory.uuid,) if inventory is not None else (),
        blocked={"hardware": f"device {inventory.uuid}"}
        if inventory is not None and blocking.find_device(context.blocks.devices, inventory.uuid) is not None
        else {},
    )


def _benchmark_fact(codes: set[str]) -> Literal["plausible", "implausible", "boast"]:
    if "gpu.benchmark.implausible" in codes:
        return "implausible"
    return "boast" if "gpu.benchmark.boast" in codes else "plausible"


def _check_inventory(inventory: Inventory | None, hardware: HardwareClass | None) -> list[Finding]:
    if inventory is None:
        return [Finding("gpu.inventory.missing", "there is no inventory claim")]
    if hardware is None or hardware.memory_bytes is None:
        return []
    low, high = (hardware.memory_bytes * share // 1000 for share in _MEMORY_SHARE)
    if low <= inventory.memory_bytes <= high:
        return []
    return [
        Finding(
            "gpu.inventory.memory",
            f"the device has {inventory.memory_bytes} bytes of memory",
            expected=f"{low} to {high}",
            actual=str(inventory.memory_bytes),
        )
    ]


def _check_benchmark(
    benchmark: Benchmark | None, hardware: HardwareClass | None, context: Context
) -> list[Finding]:
    if benchmark is None:
        return [Finding("gpu.benchmark.missing", "there is no benchmark claim")]
    found: list[Finding] = []
    excess = context.thresholds.excess_permille
    for measure in benchmark.measures:
        # If host memory is as near as the device's own, the table has lower bounds and not upper ones.
        ceiling = None
        if hardware is not None and hardware.host_link is not None and measure.name in _CEILINGS:
            ceiling = getattr(hardware, _CEILINGS[measure.name])
        if ceiling is not None and measure.median * 1000 > ceiling * excess:
            detail = f"{measure.name} is {measure.median} {measure.unit}; the class has {ceiling}"
            found.append(Finding("gpu.benchmark.implausible", detail))
        verified = rates.verified_bytes_per_second(context) if measure.name == COPY else None
        if verified and measure.median * 1000 > verified * context.thresholds.boast_permille:
            detail = f"{measure.name} is {measure.median} {measure.unit}; walks verified {verified}"
            found.append(Finding("gpu.benchmark.boast", detail))
    return found
