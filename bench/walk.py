"""
The walk against the bare integer products that it needs, interleaved in one run.

The floor is the fastest way that we know of to make the bare products on this machine: each library's own
call on whole tensors and on blocks with all its threads, and the same call in threads of ours, each of which
takes tiles of its own, for every size of tile that fits.  All ways are tried first; the fastest of each
library run in turns with the walk, and the walk is held against the fastest of them.  Of each, the best round
counts: what else runs on the machine only ever adds time.

    python -m bench.walk [--mib 512] [--rows 32] [--rounds 7] [--device cuda:0]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

import numpy as np

from attester.weights import cpu, possession
from attester.weights.cpu import CpuKernel
from attester.weights.folder import Bytes
from attester.weights.kernels import Int32, K, Kernel, Words, has_torch, row_words
from attester.weights.select import kernel
from attester.weights.tensors import Tensor
from bench.common import interleave, machine, row

_TILES = (64, 128, 256, 512, 1024, 2048, 4096)
_KEPT = 3
"""Ways of a library that run in turns with the walk: the fastest ones, which noise may have put in any order."""


def products(tensors: list[Tensor], inputs: Bytes, multiply_with: cpu.Products, rows: int) -> None:
    """Only W · X for *rows* rows at a time of every tensor: no folding, no state, the library's own threads."""
    out = np.empty((rows, inputs.shape[1]), np.int32)
    multiply = multiply_with(inputs)
    for tensor in tensors:
        blocks = tensor.data.reshape(-1, K)
        for start in range(0, blocks.shape[0], rows):
            block = blocks[start : start + rows]
            multiply(block, out[: block.shape[0]])


def in_threads(
    tensors: list[Tensor], inputs: Bytes, multiply_with: cpu.Products, tile: int, pool: ThreadPoolExecutor
) -> None:
    """The same in threads of ours, each with a part of every tensor, *tile* rows at a time."""
    count = cpu.threads()
    multiply = multiply_with(inputs)

    def work(thread: int) -> None:
        out = np.empty((tile, inputs.shape[1]), np.int32)
        for tensor in tensors:
            part = np.array_split(tensor.data.reshape(-1, K), count)[thread]
            for start in range(0, part.shape[0], tile):
                block = part[start : start + tile]
                multiply(block, out[: block.shape[0]])

    list(pool.map(work, range(count)))


def nothing(total: Words, products: Int32, factor: Words) -> None:
    """A fold that does not fold."""


def ways(name: str, tensors: list[Tensor], inputs: Bytes) -> dict[str, Callable[[], object]]:
    """Every way of a library to make the bare products, by what it is called in the output."""
    multiply_with = cpu.torch_products if name == "torch" else cpu.numpy_products
    whole = tensors[0].size // K
    found: dict[str, Callable[[], object]] = {
        f"its own threads, {rows} rows": partial(products, tensors, inputs, multiply_with, rows)
        for rows in ((K, whole) if name == "torch" else (K,))
    }
    pool = ThreadPoolExecutor(cpu.threads(), initializer=_one_thread if name == "torch" else None)
    # numpy's BLAS has threads of its own, which only one environment variable at its start can take away.
    for tile in _TILES if name == "torch" else ():
        found[f"our threads, {tile} rows"] = partial(in_threads, tensors, inputs, multiply_with, tile, pool)
    return found


def fastest(rounds: int, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the best round of each work, run in turns."""
    best = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            start = perf_counter()
            work()
            best[name] = min(best[name], perf_counter() - start)
    return best


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def on_cpu(tensors: list[Tensor], inputs: Bytes, words: list[tuple[int, int, int, int]], rounds: int) -> None:
    """All kernels of the CPU."""
    threads = cpu.threads()
    works: dict[str, Callable[[], object]] = {}
    bare: dict[str, list[str]] = {}
    for name in ("torch", "numpy") if has_torch() else ("numpy",):
        multiply_with = cpu.torch_products if name == "torch" else cpu.numpy_products
        tried = ways(name, tensors, inputs)
        walked = CpuKernel(multiply_with, nothing, name, threads if name == "torch" else 1)
        tried["the walk without its fold"] = partial(possession.walk, tensors, words, 1, walked)
        times = fastest(3, tried)
        bare[name] = sorted(tried, key=times.__getitem__)[:_KEPT]
        works |= {f"{name} {way}": tried[way] for way in bare[name]}
        for fused in (True, False):
            ready = kernel("torch" if name == "torch" else "numpy", fused=fused)
            works[f"{name} {fused}"] = partial(possession.walk, tensors, words, 1, ready)
    found = fastest(rounds, works)
    size = sum(tensor.size for tensor in tensors)
    for name in ("torch", "numpy") if has_torch() else ("numpy",):
        way = min(bare[name], key=lambda way: found[f"{name} {way}"])
        best = found[f"{name} {way}"]
        row(f"{name}: fastest bare products", f"{size / best / 1e9:.2f} GB/s", way)
        for fused, what in ((True, "fold compiled from C"), (False, "fold without a compiler")):
            taken = found[f"{name} {fused}"]
            row(
                f"{name}: walk, {what}",
                f"{size / taken / 1e9:.2f} GB/s",
                f"{best / taken:.2f} of the floor",
            )


def on_device(device: str, gib: float, rows: int, rounds: int) -> None:
    """One accelerator: against the copy bandwidth and the bare product measured in the same run."""
    import torch

    from fixtures.device import DeviceTensor

    count = max(int(gib * 8), 1)
    block = torch.randint(-128, 128, (128 << 20,), dtype=torch.int8, device=device)
    # Distinct memory, so that no cache helps.
    tensors = [DeviceTensor(f"t{i:04}", block.roll(i)) for i in range(count)]
    words = [row_words(bytes(32), r) for r in range(rows)]
    ready: Kernel = kernel(device=device)
    other = torch.empty_like(block)
    left = torch.randint(-64, 64, (K, rows), dtype=torch.int8, device=device).t().contiguous().t()
    out = torch.empty((block.numel() // K, rows), dtype=torch.int32, device=device)

    def copies() -> None:
        for tensor in tensors:
            other.copy_(tensor.data)
        torch.cuda.synchronize()

    def bare() -> None:
        for tensor in tensors:
            torch._int_mm(tensor.data.view(-1, K), left, out=out)
        torch.cuda.synchronize()

    walk = partial(possession.walk, tensors, words, 1, ready)
    walk()
    found = interleave(rounds, {"copy": copies, "bare": bare, "walk": walk})
    size = sum(tensor.size for tensor in tensors)
    bandwidth = 2 * size / found["copy"]
    row(f"{device}: copy bandwidth (read and write)", f"{bandwidth / 1e9:.0f} GB/s")
    row(f"{device}: bare products, {rows} rows", f"{2 * rows * size / found['bare'] / 1e12:.1f} Tops")
    rate = size / found["walk"]
    row(
        f"{device}: walk, {rows} rows",
        f"{rate / 1e9:.0f} GB/s",
        f"{rate / bandwidth:.2f} of the copy bandwidth",
    )
    row(
        f"{device}: walk, int8 rate",
        f"{2 * rows * rate / 1e12:.1f} Tops",
        f"{found['bare'] / found['walk']:.2f} of the bare product",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu, or torch's name of a GPU")
    parser.add_argument("--gib", type=float, default=32, help="weights on the GPU")
    args = parser.parse_args()
    if args.device != "cpu":
        sys.stdout.write(f"walk, {args.rows} rows over {args.gib} GiB on {args.device}; {machine()}\n")
        on_device(args.device, args.gib, args.rows, args.rounds)
        return
    noise = np.random.default_rng(1)
    count = max(args.mib // 32, 1)
    tensors = [Tensor(f"t{i:03}", noise.integers(-128, 128, 32 << 20, dtype=np.int8)) for i in range(count)]
    inputs = (noise.integers(-64, 64, (K, args.rows), dtype=np.int8) * 2 + 1).astype(np.int8)
    words = [row_words(bytes(32), r) for r in range(args.rows)]
    size = sum(tensor.size for tensor in tensors)
    sys.stdout.write(f"walk, {args.rows} rows over {size / 1e9:.2f} GB in memory; {machine()}\n")
    on_cpu(tensors, inputs, words, args.rounds)


if __name__ == "__main__":
    main()
