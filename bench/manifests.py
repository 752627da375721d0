"""
Manifests against b3sum and against the reference implementation of model signing.

Random bytes in the page cache, all sides interleaved in one run: four files beside each
other, and one huge file.  A whole reference value (digests, entropy, practice challenge) beside
the digests alone.  `b3sum` is Debian's package, named with --b3sum or on the PATH;
`model-signing` is in the development lock.

    python -m bench.manifests [--gib 4] [--rounds 7] [--b3sum PATH] [--folder DIR]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any

import numpy as np

from attester.weights.cache import DigestCache
from attester.weights.folder import open_folder
from attester.weights.hashing import hash_files
from attester.weights.manifest import measure
from bench.common import interleave, machine, row
from verifier.references.measured import measure_folder

_PIECE = 64 << 20


def write(path: Path, size: int, seed: int) -> None:
    """A file of random bytes."""
    noise = np.random.default_rng(seed)
    with open(path, "wb") as stream:
        while size:
            count = min(size, _PIECE)
            stream.write(noise.integers(0, 256, count, dtype=np.uint8).tobytes())
            size -= count


def model_signing(folder: Path, algorithm: str) -> None:
    """The reference implementation's own hashing, with its defaults."""
    from model_signing import hashing

    config: Any = hashing.Config()  # type: ignore[no-untyped-call]
    if algorithm != "default":
        config = config.use_file_serialization(hashing_algorithm=algorithm)
    config.hash(folder)


def compare(folder: Path, b3sum: str | None, rounds: int, what: str) -> None:
    """One folder, all sides in turns."""
    opened = open_folder(folder)
    size = opened.total
    works: dict[str, Callable[[], object]] = {
        "blake3": partial(measure, opened, ("blake3",)),
        "sha256": partial(measure, opened, ("sha256",)),
        "both": partial(measure, opened, ("sha256", "blake3")),
    }
    if b3sum is not None:
        command = [b3sum, "--no-names", *(str(file.path) for file in opened.files)]
        works["b3sum"] = lambda: subprocess.run(command, check=True, capture_output=True)
    if importlib.util.find_spec("model_signing") is not None:
        works["model-signing"] = partial(model_signing, folder, "default")
        works["model-signing blake3"] = partial(model_signing, folder, "blake3")
    found = interleave(rounds, works)

    def ratio(ours: str, theirs: str) -> str:
        return (
            f"{found[theirs] / found[ours]:.2f} of {theirs}" if theirs in found else f"{theirs} is not here"
        )

    def rate(name: str) -> str:
        return f"{size / found[name] / 1e9:.2f} GB/s"

    sys.stdout.write(f" {what}, {size / 2**30:.0f} GiB\n")
    for theirs in ("b3sum", "model-signing", "model-signing blake3"):
        if theirs in found:
            row(theirs, rate(theirs))
    row("manifest, blake3", rate("blake3"), ratio("blake3", "b3sum"))
    row("", "", ratio("blake3", "model-signing"))
    row("", "", ratio("blake3", "model-signing blake3"))
    row("manifest, sha256", rate("sha256"), ratio("sha256", "model-signing"))
    row("manifest, sha256 and blake3 from one read", rate("both"), ratio("both", "model-signing"))


def measured(folder: Path, rounds: int, what: str) -> None:
    """A whole reference value, beside the digests of its files alone: by the same digests, and by each."""
    opened = open_folder(folder)
    works: dict[str, Callable[[], object]] = {}
    for digests in (("sha256", "blake3"), ("sha256",), ("blake3",)):
        name = " and ".join(digests)
        works[f"hash {name}"] = partial(hash_files, opened.files, digests)
        works[f"measure {name}"] = partial(measure_folder, "bench/model", opened, algorithms=digests)
    # The kernel is compiled once for each process: that is its start.
    measure_folder("bench/model", opened)
    found = interleave(rounds, works)
    for name, seconds in found.items():
        if name.startswith("measure "):
            alone = found[name.replace("measure", "hash")]
            row(f"{name}, {what}", f"{seconds:.2f} s", f"{seconds / alone:.2f} of hashing, {alone:.2f} s")


def weights(path: Path, size: int) -> None:
    """A file of safetensors: 64 tensors of BF16, drawn as weights are."""
    noise = np.random.default_rng(1)
    count = size // 64 // 2 // 4096 * 4096
    header = {
        f"layers.{number}": {
            "dtype": "BF16",
            "shape": [count // 4096, 4096],
            "data_offsets": [number * count * 2, (number + 1) * count * 2],
        }
        for number in range(64)
    }
    text = json.dumps(header).encode()
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _ in range(64):
            values = noise.standard_normal(count, dtype=np.float32)
            stream.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def again(folder: Path, what: str) -> None:
    """The second manifest of an unchanged folder: listing it, the cache, the claim."""
    cache = DigestCache(now=lambda: time() + 60)
    measure(open_folder(folder), cache=cache).to_claim()
    times = []
    for _ in range(21):
        start = perf_counter()
        measure(open_folder(folder), cache=cache).to_claim()
        times.append(perf_counter() - start)
    row(f"second manifest, {what}", f"{median(times) * 1000:.2f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--b3sum", default=shutil.which("b3sum"))
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made, and left")
    args = parser.parse_args()
    sys.stdout.write(f"manifests in page cache; {machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        root = args.folder or Path(name)
        size = int(args.gib * 2**30)
        for folder, count in (("four", 4), ("one", 1)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = root / folder / f"{number}.bin"
                if not path.exists() or path.stat().st_size != size // count:
                    write(path, size // count, number)
        many = root / "many"
        many.mkdir(exist_ok=True)
        for number in range(4096):
            (many / f"{number:04}.json").write_bytes(b"%d" % number)
        compare(root / "four", args.b3sum, args.rounds, "four files")
        compare(root / "one", args.b3sum, args.rounds, "one file")
        model = root / "model"
        model.mkdir(exist_ok=True)
        if not (model / "model.safetensors").exists():
            weights(model / "model.safetensors", size // 2)
        measured(model, args.rounds, f"one file of {size / 2**31:.1f} GiB")
        again(root / "one", "one file")
        again(many, "4,096 files")


if __name__ == "__main__":
    main()
