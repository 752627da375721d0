"""
How far embeddings of rounded weights are from those of the published ones: what the bands of `verifier.answers.tables` rest on.

    python -m bench.vector_rates [--count 600]

all-MiniLM-L6-v2, sentences of `fixtures.chat_prompts`; relative L2 to float32, one sentence at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.answer_rates import clopper_pearson
from fixtures import chat_prompts
from fixtures.minilm import MiniLM, published_folder
from verifier.answers import tables

Floats = npt.NDArray[np.float32]
_BATCH: Final = 8


def _to_bfloat16(values: Floats) -> Floats:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    found: Floats = rounded.astype(np.uint32).view(np.float32)
    return found


def _by_rows(values: Floats) -> Floats:
    scale = np.maximum(np.abs(values).max(axis=-1, keepdims=True) / 127, 1e-12)
    found: Floats = (np.round(values / scale) * scale).astype(np.float32)
    return found


def _by_groups(values: Floats) -> Floats:
    groups = values.reshape(-1, 32)
    scale = np.maximum(np.abs(groups).max(axis=-1, keepdims=True) / 7, 1e-12)
    found: Floats = (np.round(groups / scale) * scale).astype(np.float32).reshape(values.shape)
    return found


ROUNDINGS: Final[dict[str, Callable[[Floats], Floats]]] = {
    "float16": lambda values: values.astype(np.float16).astype(np.float32),
    "bfloat16": _to_bfloat16,
    "int8": _by_rows,
    "int4": _by_groups,
}


def _distances(expected: Floats, found: Floats) -> Floats:
    off: Floats = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return off


def _embed(model: MiniLM, texts: Sequence[str], at_once: int) -> Floats:
    parts = [model.embed(texts[start : start + at_once])[0] for start in range(0, len(texts), at_once)]
    return np.concatenate(parts)


def main() -> None:
    """Print the distances of each precision beside its band."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=480)
    count = parser.parse_args().count
    texts = [str(prompt[-1]["content"]) for prompt in chat_prompts.draw(min(count, 480))]
    model = MiniLM(published_folder())
    expected = _embed(model, texts, 1)
    published: dict[str, Any] = dict(model.tensors)
    _show("float32", _distances(expected, _embed(model, texts, _BATCH)))
    for name, rounding in ROUNDINGS.items():
        for tensor, values in published.items():
            is_weight = values.ndim == 2 and values.size % 32 == 0
            model.tensors[tensor] = rounding(values) if is_weight else values
        _show(name, _distances(expected, _embed(model, texts, 1)))


def _show(precision: str, found: Floats) -> None:
    limit = tables.VECTOR_LIMITS["float32"]
    differ = int((found > limit).sum())
    low, high = clopper_pearson(differ, found.size)
    print(
        f"{precision:9} median {np.median(found):.2g}, {found.min():.2g} to {found.max():.2g};"
        f" above {limit}: {differ} of {found.size} ({low:.4f} to {high:.4f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
