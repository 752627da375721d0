"""
The walk against the bare integer products that it needs, interleaved in one run.

Bare products are the library's own call on whole blocks with all its threads, and the same
call in the tiles and threads of the walk; the walk is held against the faster of the two.

    python -m bench.walk [--mib 512] [--rows 32] [--rounds 7] [--device cuda:0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from attester.weights import cpu, possession
from attester.weights.cpu import CpuKernel
from attester.weights.folder import Bytes
from attester.weights.kernels import Int32, K, Kernel, Words, has_torch, row_words
from attester.weights.select import kernel
from attester.weights.tensors import Tensor
from bench.common import interleave, machine, row


def products(tensors: list[Tensor], inputs: Bytes, multiply_with: cpu.Products) -> None:
    """Only W · X for every block of every tensor: no folding, no state."""
    out = np.empty((K, inputs.shape[1]), np.int32)
    multiply = multiply_with(inputs)
    for tensor in tensors:
        blocks = tensor.data.reshape(-1, K)
        for start in range(0, blocks.shape[0], K):
            block = blocks[start : start + K]
            multiply(block, out[: block.shape[0]])


def nothing(total: Words, products: Int32, factor: Words) -> None:
    """A fold that does not fold."""


def on_cpu(tensors: list[Tensor], inputs: Bytes, words: list[tuple[int, int, int, int]], rounds: int) -> None:
    """All kernels of the CPU."""
    threads = cpu.threads()
    works: dict[str, Callable[[], object]] = {}
    for name in ("torch", "numpy") if has_torch() else ("numpy",):
        multiply_with = cpu.torch_products if name == "torch" else cpu.numpy_products
        works[f"{name} bare"] = partial(products, tensors, inputs, multiply_with)
        bare = CpuKernel(multiply_with, nothing, name, threads if name == "torch" else 1)
        works[f"{name} tiled"] = partial(possession.walk, tensors, words, 1, bare)
        for fused in (True, False):
            ready = kernel("torch" if name == "torch" else "numpy", fused=fused)
            works[f"{name} {fused}"] = partial(possession.walk, tensors, words, 1, ready)
    found = interleave(rounds, works)
    size = sum(tensor.size for tensor in tensors)
    for name in ("torch", "numpy") if has_torch() else ("numpy",):
        best = min(found[f"{name} bare"], found[f"{name} tiled"])
        row(f"{name}: bare products", f"{size / best / 1e9:.2f} GB/s")
        for fused, what in ((True, "fold compiled from C"), (False, "fold without a compiler")):
            taken = found[f"{name} {fused}"]
            row(
                f"{name}: walk, {what}",
                f"{size / taken / 1e9:.2f} GB/s",
                f"{best / taken:.2f} of its bare products",
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
