"""The fixture engine is a real one: its embeddings are those of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fixtures.minilm import MiniLM

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures" / "vectors" / "minilm.json").read_text())


def test_embeddings_agree_with_sentence_transformers(minilm: Path) -> None:
    """To 1e-4, on sentences recorded once; the file says how."""
    vectors, tokens = MiniLM(minilm).embed(RECORDED["sentences"])
    assert np.abs(vectors - np.array(RECORDED["embeddings"])).max() < 1e-4
    assert tokens == 317
