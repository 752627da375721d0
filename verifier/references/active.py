"""
How many bytes of a model's weights one token reads, at least: the other side of the bound on speed (`verifier.answers.speed`).

Only what every token surely reads is counted: the layers of the text model, with the share of experts that a token is sent
to, and the output.  Embeddings are looked up, and drafting heads, images and sound may not be used at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from attester.weights.folder import Folder, open_model_file
from attester.weights.tensors import TensorFiles
from verifier.errors import ReferenceValueError

_MAX_CONFIG: Final = 1 << 20
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks)\.(\d+)\.")
_OTHER: Final = re.compile(r"vision|visual|image|audio|speech|encoder|mtp|draft|eagle|medusa", re.IGNORECASE)
_OUTPUT: Final = ("lm_head.weight", "output.weight")
_EMBEDDING: Final = ("embed_tokens.weight", "wte.weight", "token_embd.weight", "word_embeddings.weight")
_EXPERT: Final = re.compile(r"\.experts\.|_exps\.")
_ALL_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")


def measure_active(folder: Folder) -> int:
    """
    Give the bytes of weights that one token reads, at least.

    Raises:
        ReferenceValueError: The folder does not say how many experts a token is sent to, or has no layers.
        WeightsError: The files cannot be read.
    """
    tensors = [(tensor.name, tensor.size) for tensor in TensorFiles(folder)]
    return active_bytes(tensors, _config(folder))


def active_bytes(tensors: Iterable[tuple[str, int]], config: dict[str, Any]) -> int:
    """The same, of names and sizes of tensors and the ``config.json``; raises `ReferenceValueError`."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    layers = text.get("num_hidden_layers") if text else None
    shared = experts = output = embedding = 0
    for name, size in tensors:
        if _OTHER.search(name):
            continue
        layer = _LAYER.search(name)
        if layer is not None:
            if isinstance(layers, int) and int(layer[1]) >= layers:
                continue
            if _EXPERT.search(name):
                experts += size
            else:
                shared += size
        elif name.endswith(_OUTPUT):
            output += size
        elif name.endswith(_EMBEDDING):
            embedding += size
    if shared == 0:
        raise ReferenceValueError("the files have no layers of a text model under names that are known")
    # Without an output of its own, a model multiplies by its embeddings.
    return shared + (output or embedding) + int(experts * _share(text or {}, experts))


def _share(text: dict[str, Any], experts: int) -> float:
    if experts == 0:
        return 0.0
    used = text.get("num_experts_per_tok", text.get("num_experts_per_token"))
    every = next((text[name] for name in _ALL_EXPERTS if name in text), None)
    if not isinstance(used, int) or not isinstance(every, int) or not 0 < used <= every:
        raise ReferenceValueError("config.json does not say to how many of how many experts a token is sent")
    return used / every


def _config(folder: Folder) -> dict[str, Any]:
    file = next((each for each in folder.files if each.name == "config.json"), None)
    if file is None:
        return {}
    if file.size > _MAX_CONFIG:
        raise ReferenceValueError(f"config.json has more than {_MAX_CONFIG} bytes")
    with open_model_file(file) as opened:
        data = b"".join(bytes(part) for part in opened.slices())
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReferenceValueError(f"config.json is malformed: {error}") from None
    return found
