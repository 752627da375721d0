"""
A benchmark run on one device, with the same code on CUDA and on the CPU.

Each measure has a warm-up and repeats; its result is the median and the spread between the
quartiles.  The numbers hold for this device, this run and these conditions, and the node's
operator declares them.  A verifier compares them with the hardware class and with the speed of
walks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, Final

from attester.errors import EngineError
from attester.evidence import Benchmark, Measure
from attester.gpu import inventory
from attester.version import install_hint, installed_version
from attester.weights.kernels import has_torch

CODE: Final = "1"
"""The version of the method: numbers of different versions are not comparable."""

MILLITOKENS: Final = "mtokens/s"
_DEVICES: Final = ("cpu", "cuda")
_WARM_UP: Final = 3
_MAX_ROUNDS: Final = 1000
_MIN_REPEAT_S: Final = 0.002
"""A repeat has as many rounds as fill this time, so that clock reads and launches do not count."""


@dataclass(frozen=True)
class Size:
    """The size of the work: large enough that the device is the limit, small enough to end soon."""

    matrix: int
    copy_bytes: int
    layers: int
    batches: tuple[int, ...] = (1, 8, 32)

    @classmethod
    def of(cls, device: str) -> Size:
        """The size that suits a device type."""
        return cls(1024, 64 << 20, 1) if device == "cpu" else cls(8192, 1 << 30, 4)


@dataclass(frozen=True)
class Shape:
    """The matrices of each layer that a decoding step reads, as (rows, columns)."""

    layers: tuple[tuple[tuple[int, int], ...], ...]

    def elements(self, layers: int) -> int:
        """Elements of the first *layers* layers; the time of a step is proportional to them."""
        return sum(rows * columns for layer in self.layers[:layers] for rows, columns in layer)


_LLAMA_8B: Final = Shape((((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),) * 32)
"""The default model: qkv, output, gate-up and down of a decoder with 8 billion parameters."""


def shape_of(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Shape:
    """
    The matrices that a decoding step multiplies, from the names and shapes of a model's tensors.

    Embeddings are outside the numbered layers: a step looks them up and does not multiply them.

    Raises:
        EngineError: no tensor is a matrix of a numbered layer.
    """
    by_layer: dict[str, list[tuple[int, int]]] = {}
    for name, shape in tensors:
        number = next((part for part in name.split(".") if part.isdecimal()), None)
        if number is not None and len(shape) == 2 and min(shape) > 1:
            by_layer.setdefault(number, []).append((shape[0], shape[1]))
    if not by_layer:
        raise EngineError(
            "the model has no numbered layers with matrices, so its decoding step cannot be imitated"
        )
    return Shape(tuple(tuple(by_layer[number]) for number in sorted(by_layer, key=int)))


def run(
    device: str = "cpu",
    *,
    size: Size | None = None,
    shape: Shape | None = None,
    repeats: int = 20,
    now: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[Measure], None] | None = None,
) -> Benchmark:
    """
    Measure a device.

    Args:
        device: ``cpu``, or torch's name of an accelerator.
        size: The size of the work; `None` for the size that suits the device.
        shape: The model whose decoding steps are imitated; `None` for the default model.
        repeats: How often each measure is taken.
        now: Seconds since 1970.
        clock: Monotonic seconds.
        report: Called with each measure as soon as it is taken.

    Raises:
        EngineError: torch is not installed, or cannot use the device.
    """
    place = _open_device(device)
    import torch

    bench = _Bench(torch, place, repeats, clock)
    chosen = size or Size.of(place.type)
    found: list[Measure] = []
    conditions: dict[str, int] = {}
    for measure in _measures(bench, chosen, shape or _LLAMA_8B):
        found.append(measure)
        if place.type == "cuda":
            # Right after the measure: the run keeps the lowest clocks and the highest temperature and power.
            for name, value in inventory.conditions(place.index or 0).items():
                worst = min if "clock" in name else max
                conditions[name] = worst(conditions.get(name, value), value)
        if report is not None:
            report(measure)
    versions = {"torch": str(torch.__version__), "touchstone": installed_version()}
    if torch.version.cuda:
        versions["cuda"] = str(torch.version.cuda)
    return Benchmark(
        device=_describe(torch, place),
        at=int(now()),
        code=CODE,
        versions=versions,
        measures=tuple(found),
        conditions=conditions,
    )


def _open_device(device: str) -> Any:
    """The torch device of that name.  Raises `EngineError` if no benchmark can run on it."""
    if not has_torch():
        raise EngineError(f"a benchmark needs torch, which is not installed: {install_hint('torch')}")
    import torch

    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise EngineError(f"torch cannot use {device[:40]!r}: {str(error).splitlines()[0][:120]}") from None
    if place.type not in _DEVICES:
        raise EngineError(f"no benchmark runs on {device[:40]!r}, only on {' and '.join(_DEVICES)}")
    return place


def _describe(torch: Any, place: Any) -> str:
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    text = f"{place}: {name}" if place.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:512]


@dataclass(frozen=True)
class _Bench:
    torch: Any
    place: Any
    repeats: int
    clock: Callable[[], float]

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            self.torch.cuda.synchronize(self.place)

    def measure(self, name: str, unit: str, work: Callable[[], object], amount: float) -> Measure:
        """Measure the rate of *work* in *unit*, of which one round does *amount*, per second."""
        for _ in range(_WARM_UP):
            work()
        self.synchronize()
        start = self.clock()
        work()
        self.synchronize()
        elapsed_s = max(self.clock() - start, _MIN_REPEAT_S / _MAX_ROUNDS)
        rounds = max(1, math.ceil(_MIN_REPEAT_S / elapsed_s))
        rates = []
        for _ in range(self.repeats):
            start = self.clock()
            for _ in range(rounds):
                work()
            self.synchronize()
            rates.append(amount * rounds / max(self.clock() - start, 1e-9))
        low, middle, high = quantiles(rates, n=4) if len(rates) > 1 else rates * 3
        return Measure(
            name=name,
            unit=unit,
            median=int(middle),
            spread=max(int(high - low), 0),
            repeats=self.repeats,
            warm_up=_WARM_UP,
        )


def _measures(bench: _Bench, size: Size, shape: Shape) -> Iterator[Measure]:
    torch, place, n = bench.torch, bench.place, size.matrix
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        left = torch.randn((n, n), device=place).to(dtype)
        out = torch.empty_like(left)

        def multiply(left: Any = left, out: Any = out) -> None:
            torch.mm(left, left, out=out)

        yield bench.measure(f"matmul-{name}", "flop/s", multiply, 2.0 * n**3)
    yield _int8(bench, n)
    yield from _copies(bench, size)
    yield from _decoding(bench, size, shape)


def _int8(bench: _Bench, n: int) -> Measure:
    torch, place = bench.torch, bench.place
    whole = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=place)
    sums = torch.empty((n, n), dtype=torch.int32, device=place)
    return bench.measure("matmul-int8", "op/s", lambda: torch._int_mm(whole, whole.t(), out=sums), 2.0 * n**3)


def _copies(bench: _Bench, size: Size) -> Iterator[Measure]:
    torch, place = bench.torch, bench.place
    source = torch.empty(size.copy_bytes, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    # A copy reads and writes every byte.
    yield bench.measure("memory-copy", "bytes/s", lambda: target.copy_(source), 2.0 * size.copy_bytes)
    if place.type != "cpu":
        host = torch.empty(size.copy_bytes, dtype=torch.uint8, pin_memory=True)
        yield bench.measure(
            "host-to-device", "bytes/s", lambda: target.copy_(host, non_blocking=True), float(size.copy_bytes)
        )
        yield bench.measure(
            "device-to-host", "bytes/s", lambda: host.copy_(source, non_blocking=True), float(size.copy_bytes)
        )


def _decoding(bench: _Bench, size: Size, shape: Shape) -> Iterator[Measure]:
    """
    Tokens per second of steps that only multiply: an upper bound for an engine.

    Only the first layers are measured; the result is scaled by their share of the weights.
    """
    torch, place = bench.torch, bench.place
    matrices = [matrix for layer in shape.layers[: size.layers] for matrix in layer]
    share = shape.elements(size.layers) / shape.elements(len(shape.layers))
    weights = [torch.randn((rows, columns), device=place).to(torch.bfloat16) for rows, columns in matrices]
    for batch in size.batches:
        inputs = {
            columns: torch.randn((columns, batch), device=place).to(torch.bfloat16) for _, columns in matrices
        }

        def step(inputs: dict[int, Any] = inputs) -> None:
            for weight in weights:
                torch.mm(weight, inputs[weight.shape[1]])

        # In thousandths, because a large model on a small device makes less than one token per second.
        yield bench.measure(f"decode-{batch}", MILLITOKENS, step, 1000.0 * batch * share)


def plot(benchmark: Benchmark) -> str:
    """Draw a run as SVG: one bar for each measure, scaled within its unit."""
    import html

    rows = []
    top = dict.fromkeys({measure.unit for measure in benchmark.measures}, 1)
    for measure in benchmark.measures:
        top[measure.unit] = max(top[measure.unit], measure.median)
    for number, measure in enumerate(benchmark.measures):
        y = 70 + 34 * number
        width = 420 * measure.median / top[measure.unit]
        spread = 420 * measure.spread / top[measure.unit] / 2
        rows.append(
            f'<text x="150" y="{y + 15}" text-anchor="end">{html.escape(measure.name)}</text>'
            f'<rect x="160" y="{y}" width="{width:.1f}" height="20" rx="2" fill="#3b6ea5"/>'
            f'<line x1="{160 + width - spread:.1f}" x2="{160 + width + spread:.1f}" y1="{y + 10}" y2="{y + 10}" '
            'stroke="#d98e04" stroke-width="3"/>'
            f'<text x="{170 + width + spread:.1f}" y="{y + 15}">{html.escape(format_measure(measure))}</text>'
        )
    height = 90 + 34 * len(rows)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(benchmark.at))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(benchmark.versions.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="28" font-size="16">{html.escape(benchmark.device)}</text>'
        f'<text x="20" y="50" fill="#555">{when}; {html.escape(versions)}; bar: median, line: between quartiles</text>'
        f"{''.join(rows)}</svg>\n"
    )


def format_measure(measure: Measure) -> str:
    """A measure with an SI prefix: ``1.23 TB/s``."""
    value, unit = float(measure.median), measure.unit
    if unit == MILLITOKENS:
        value, unit = value / 1000, "tokens/s"
    for prefix in ("", "k", "M", "G", "T", "P"):
        # Rounded before the prefix is chosen: 999,700 is 1 M and not 1000 k.
        rounded = float(f"{value:.3g}")
        if rounded < 1000 or prefix == "P":
            return f"{rounded:.12g} {prefix}{unit.replace('bytes', 'B')}"
        value /= 1000
    raise AssertionError
