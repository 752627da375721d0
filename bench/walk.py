"""
The walk against the bare integer products that it needs, interleaved in one run.

    python -m bench.walk [--mib 512] [--rows 32] [--rounds 5]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from attester.weights import possession
from attester.weights.kernels import K, Kernel, numpy_kernel, torch_kernel
from attester.weights.tensors import Bytes, Tensor
from bench.common import interleave, machine, row


def products(tensors: list[Tensor], inputs: Bytes, kernel: Kernel) -> None:
    """Only W · X for every block of every tensor: no folding, no state."""
    out = np.empty((K, inputs.shape[1]), np.int32)
    multiply = kernel(inputs)
    for tensor in tensors:
        blocks = tensor.data.reshape(-1, K)
        for start in range(0, blocks.shape[0], K):
            block = blocks[start : start + K]
            multiply(block, out[: block.shape[0]])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    noise = np.random.default_rng(1)
    count = max(args.mib // 32, 1)
    tensors = [Tensor(f"t{i:03}", noise.integers(-128, 128, 32 << 20, dtype=np.int8)) for i in range(count)]
    inputs = (noise.integers(-64, 64, (K, args.rows), dtype=np.int8) * 2 + 1).astype(np.int8)
    words = [possession.row_words(bytes(32), r) for r in range(args.rows)]
    kernels: dict[str, Kernel] = {"numpy": numpy_kernel}
    if importlib.util.find_spec("torch") is not None:
        kernels = {"torch": torch_kernel, **kernels}
    works: dict[str, Callable[[], object]] = {}
    for name, kernel in kernels.items():
        works[f"{name} walk"] = partial(possession.walk, tensors, words, 1, kernel)
        works[f"{name} products"] = partial(products, tensors, inputs, kernel)
    found = interleave(args.rounds, works)
    size = sum(tensor.data.size for tensor in tensors)
    sys.stdout.write(f"walk, {args.rows} rows over {size / 1e9:.2f} GB in memory; {machine()}\n")
    for name in kernels:
        walk, bare = found[f"{name} walk"], found[f"{name} products"]
        row(f"{name}: walk", f"{size / walk / 1e9:.2f} GB/s")
        row(f"{name}: its bare integer products", f"{size / bare / 1e9:.2f} GB/s")
        row(f"{name}: ratio", f"{bare / walk:.2f}", "1.00 would be free folding")


if __name__ == "__main__":
    main()
