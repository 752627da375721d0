"""
How a model's weights are quantised, as their files say it.

Sources: the types of the tensors in the headers; ``general.file_type`` of GGUF, whose numbers are
llama.cpp's ``LLAMA_FTYPE``; ``quantization_config`` of ``config.json`` (transformers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from attester import strictjson
from attester.errors import WeightsError
from attester.weights import gguf
from attester.weights.folder import Folder
from attester.weights.manifest import bytes_by_dtype
from attester.weights.tensors import is_gguf

NONE: Final = "none"
MIXED: Final = "mixed"
"""Of a node whose models are quantised in different ways."""
_MAX_CONFIG_BYTES: Final = 4 << 20
_PLAIN: Final[Mapping[str, frozenset[str]]] = {
    "F64": frozenset({"f64", "fp64", "float64"}),
    "F32": frozenset({"f32", "fp32", "float32"}),
    "F16": frozenset({"f16", "fp16", "float16"}),
    "BF16": frozenset({"bf16", "bfloat16"}),
}
"""Types of weights that are not quantised, and the words for them."""
_NARROW: Final[Mapping[str, str]] = {"F8": "fp8", "F6": "fp6", "F4": "fp4", "I8": "int8", "U8": "int8"}
"""Types in safetensors that hold quantised weights, by how they begin."""
_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,32}")
_BLOCKS: Final = ("Q", "IQ", "TQ", "MXFP")
"""How ggml's types of quantised blocks begin."""
_FILE_TYPES: Final[Mapping[int, str]] = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
"""Numbers and names of mixtures.  Each has tensors of a type whose first four characters are the name's."""


@dataclass(frozen=True)
class Quantisation:
    """How weights are quantised."""

    name: str
    """As the evidence says it: ``none``, ``q4_k_m``, ``awq``."""
    also: frozenset[str] = frozenset()
    """Other words that mean the same."""

    def is_called(self, word: str) -> bool:
        """Whether *word* means this."""
        return _plain(word) in {_plain(self.name), *map(_plain, self.also)}


def quantisation_of(folder: Folder) -> Quantisation | None:
    """How the weights of *folder* are quantised; `None` if its files do not say it."""
    try:
        return _read(folder)
    except WeightsError:
        # A walk refuses these files, and says why.
        return None


def conclude(
    declared: str | None, found: Mapping[str, Quantisation | None], loaded_as: str | None = None
) -> tuple[str, str | None]:
    """
    What the evidence says of a node's quantisation, and what is wrong with the declared word.

    Args:
        declared: The operator's word, if there is one.
        found: By model, what its files say.
        loaded_as: How the engine quantises while it loads, if it says so.
    """
    known = {model: each for model, each in found.items() if each is not None}
    wrong = {} if declared is None else {m: q for m, q in known.items() if not q.is_called(declared)}
    if declared is not None and not wrong:
        return declared, None
    if loaded_as is not None and declared in (None, loaded_as):
        return loaded_as, None
    names = {each.name for each in known.values()}
    said = names.pop() if len(names) == 1 else MIXED if names else NONE
    if not wrong:
        return said, None
    model, true = min(wrong.items())
    return said, (
        f"attester.toml declares {declared}, but the weights of {model} are {true.name}. "
        f"Leave quantisation out under [capabilities]: then it is read from the weights"
    )


@lru_cache(maxsize=32)
def _read(folder: Folder) -> Quantisation | None:
    # The files' stamps are part of the key: it is read again only after a change.
    configured = _configured(folder)
    if configured is not None:
        return configured
    sizes = bytes_by_dtype(folder)
    blocks = {dtype: size for dtype, size in sizes.items() if dtype.startswith(_BLOCKS)}
    if blocks:
        return _of_blocks(folder, blocks)
    largest = max(sizes, key=sizes.__getitem__, default="")
    if largest in _PLAIN:
        return Quantisation(NONE, _PLAIN[largest])
    narrow = next((word for start, word in _NARROW.items() if largest.startswith(start)), None)
    return None if narrow is None else Quantisation(narrow)


def _of_blocks(folder: Folder, blocks: Mapping[str, int]) -> Quantisation:
    most = max(blocks, key=blocks.__getitem__)
    # The label is a word, and the tensors are what is: it counts only if they bear it out.
    for file in folder.files:
        number = gguf.read_header(file).file_type if is_gguf(file) else None
        label = None if number is None else _FILE_TYPES.get(number)
        if label is not None and any(dtype.startswith(label[:4]) for dtype in blocks):
            return Quantisation(label.lower(), frozenset({most.lower()}))
    return Quantisation(most.lower())


def _configured(folder: Folder) -> Quantisation | None:
    file = next((each for each in folder.files if each.name == "config.json"), None)
    if file is None or file.size > _MAX_CONFIG_BYTES:
        return None
    try:
        config = strictjson.loads(Path(file.path).read_bytes())
    except (OSError, ValueError):
        return None
    section = config.get("quantization_config") if isinstance(config, dict) else None
    method = section.get("quant_method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(method, str) or _WORD.fullmatch(method) is None:
        return None
    widths = {f"{kind}{bits}" for kind, bits in _widths(section)}
    return Quantisation(method.lower(), frozenset(widths | {f"{method}-{width}" for width in widths}))


def _widths(section: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The kinds and bits of numbers that a ``quantization_config`` names."""
    groups = section.get("config_groups")
    parts = [section, *(groups.values() if isinstance(groups, dict) else ())]
    found = []
    for part in parts:
        weights = part.get("weights", part) if isinstance(part, dict) else None
        if not isinstance(weights, dict):
            continue
        bits = next(
            (weights[key] for key in ("bits", "num_bits", "w_bit") if type(weights.get(key)) is int), None
        )
        if bits is not None:
            found.append(("fp" if weights.get("type") == "float" else "int", bits))
    return found


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").removeprefix("ud_")
