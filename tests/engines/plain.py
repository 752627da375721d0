"""
Our extension for a vLLM on a CPU whose linear layers keep their plain weights.

On a CPU, vLLM packs each linear layer with oneDNN and frees the plain weight, so nothing is left that could be
compared with the published file.  Here the layers compute with the plain weight itself, as they do on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers import utils

from attester.engines import vllm_worker


def _keep(layer: Any, **_: object) -> None:
    layer.cpu_linear = torch.nn.functional.linear


# This module is imported before the model is loaded.
utils.dispatch_cpu_unquantized_gemm = _keep


class WalkExtension(vllm_worker.WalkExtension):
    """An extension that inherits from ours keeps its name: the adapter knows it by that."""
