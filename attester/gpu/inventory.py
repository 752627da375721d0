"""
The GPUs of this machine, from NVIDIA's management library (NVML).

The node controls that library, so the claims are only declared.  A machine without a driver or
GPU is not an error, and a value that a GPU does not have is left out.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from attester.evidence import Inventory

T = TypeVar("T")


def inventory(only: Collection[str] | None = None) -> tuple[Inventory, ...]:
    """
    The GPUs in the order of the driver's index; empty without ``nvidia-ml-py``, driver or GPU.

    Args:
        only: The indexes or UUIDs of the node's GPUs, if several nodes share the machine; `None` for all.
    """
    with _nvml() as nvml:
        if nvml is None:
            return ()
        driver = _try(nvml, nvml.nvmlSystemGetDriverVersion)
        count: int = _try(nvml, nvml.nvmlDeviceGetCount) or 0
        found = (_device(nvml, index, driver) for index in range(count))
        return tuple(
            device
            for index, device in enumerate(found)
            if device is not None and (only is None or str(index) in only or device.uuid in only)
        )


def visible() -> tuple[str, ...] | None:
    """The devices that ``CUDA_VISIBLE_DEVICES`` names; `None` if it is not set, so that all are visible."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else tuple(part.strip() for part in names.split(",") if part.strip())


def conditions(index: int) -> dict[str, int]:
    """Clocks in MHz, temperature in °C and power in mW of a GPU now, as far as the driver reports them."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        handle = _try(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(index))
        if handle is None:
            return {}
        readers: dict[str, Callable[[], int]] = {
            "clock-sm-mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "clock-memory-mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature-c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power-mw": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        }
        values = {name: _try(nvml, read) for name, read in readers.items()}
        return {name: value for name, value in values.items() if isinstance(value, int) and value >= 0}


@contextmanager
def _nvml() -> Iterator[Any]:
    """The initialised library; `None` if it is not installed or has no driver."""
    if importlib.util.find_spec("pynvml") is None:
        yield None
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _device(nvml: Any, index: int, driver: str | None) -> Inventory | None:
    handle = _try(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return None
    uuid = _try(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))
    name = _try(nvml, lambda: nvml.nvmlDeviceGetName(handle))
    memory = _try(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    if not uuid or not name or memory is None:
        return None
    ecc = _try(nvml, lambda: nvml.nvmlDeviceGetEccMode(handle))
    mig = _try(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return Inventory(
        model=_line(name) or "unknown",
        uuid=_line(uuid) or "unknown",
        memory_bytes=int(memory.total),
        serial=_line(_try(nvml, lambda: nvml.nvmlDeviceGetSerial(handle))),
        pci=_line(_try(nvml, lambda: nvml.nvmlDeviceGetPciInfo(handle).busId)),
        driver=_line(driver),
        vbios=_line(_try(nvml, lambda: nvml.nvmlDeviceGetVbiosVersion(handle))),
        ecc=None if ecc is None else bool(ecc[0]),
        mig=None if mig is None else bool(mig[0]),
        confidential=_confidential(nvml),
    )


def _confidential(nvml: Any) -> str | None:
    # Older libraries do not have this function, so the lookup must happen inside `_try`.
    state = _try(nvml, lambda: nvml.nvmlSystemGetConfComputeState())  # noqa: PLW0108
    if state is None:
        return None
    if getattr(state, "devToolsMode", 0):
        return "devtools"
    return "on" if getattr(state, "ccFeature", 0) else "off"


def _try(nvml: Any, read: Callable[[], T]) -> T | None:
    """The library's answer; `None` if this GPU or driver does not have it."""
    try:
        return read()
    except (nvml.NVMLError, AttributeError, ValueError):
        return None


def _line(value: Any) -> str | None:
    """A text of the library in the form that evidence allows; `None` if it is empty."""
    if value is None:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:128] or None
