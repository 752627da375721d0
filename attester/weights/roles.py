"""
Which files of a model change its answers: the one table (``docs/which-files.md``).

A gate is a file that an engine loads, or could load in place of one that was measured.  The other files are for
people, for other frameworks, or for training.  Junk is left there by tools and is no part of any model.
What no row names is a gate: an unknown file is never taken for harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import Final

from msgspec import Struct

TABLE: Final = 1
"""The version of this table.  Reads are minted over the gates of one version: raise it with every change of a row."""


class Role(StrEnum):
    """What a file is to a model.  The rest of the project is told gates from the others, and never sees junk."""

    GATE = "gate"
    OTHER = "other"
    JUNK = "junk"


class Row(Struct, frozen=True):
    """A row of the table: names that are alike, and why they are no gates."""

    role: Role
    names: tuple[str, ...]
    """A name in any folder, with ``*`` for any characters; with ``/`` at its end a folder at any depth, and at both
    ends a folder at the top."""
    why: str
    beside: bool = False
    """Only beside weights that engines load: in the same folder, or for a folder at the top there.  Otherwise they
    are the model."""


ROWS: Final = (
    Row(
        Role.JUNK,
        ("__pycache__/", ".huggingface/", ".locks/", ".no_exist/", ".ipynb_checkpoints/", "._____temp/", ".idea/",
         ".vscode/"),
        "Folders of Python, of download tools and of editors.  At the top also .git, .github and .cache.",
    ),
    Row(
        Role.OTHER,
        (".git/", ".github/", ".cache/", ".gitattributes", ".gitignore", ".gitmodules"),
        "Version control and download tools below the top; at the top they are junk.",
    ),
    Row(
        Role.OTHER,
        ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt",
         "rng_state*.pth", "trainer_state.json"),
        "What training left: engines pass over these names.",
    ),
    Row(
        Role.OTHER,
        ("/original/", "/onnx/", "/openvino/", "/coreml/"),
        "The same model in other formats, in folders of their own.",
        beside=True,
    ),
    Row(
        Role.OTHER,
        ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite"),
        "The same model for TensorFlow, Flax, Rust and ONNX.",
        beside=True,
    ),
    Row(
        Role.GATE,
        ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.json", "*.jinja", "*.model", "*.py",
         "*.so", "*.yaml", "*.yml"),
        "What engines find by the end of its name, however it begins.",
    ),
    Row(
        Role.JUNK,
        (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".msc", ".mv", ".mdl", ".nfs*",
         "*.lock", "*.swp"),
        "Files of file systems, of download tools and of editors.",
    ),
    Row(
        Role.OTHER,
        ("README", "README.*", "LICENSE*", "LICENCE*", "NOTICE", "NOTICE.*", "COPYING*", "AUTHORS*", "CITATION*",
         "CHANGELOG*", "*.md", "*.rst", "*.pdf", "*.html", "events.out.tfevents.*",
         "*~"),
        "For people: model cards, licences, papers, the course of training.",
    ),
    Row(
        Role.OTHER,
        ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.bmp", "*.ico", "*.mp4", "*.webm", "*.mov", "*.mp3",
         "*.wav", "*.flac"),
        "Images, sounds and films of a model card.",
    ),
)  # fmt: skip
"""The rows in their order; the first that names a file counts."""

GATES: Final = (
    ("*.safetensors, *.gguf, *.bin, *.pt, *.pth, *.ckpt, *.npz", "weights, of whatever format"),
    ("*.safetensors.index.json, *.bin.index.json", "which shards an engine loads"),
    ("adapter_config.json, adapter_model.*", "an adapter: engines load it over the weights"),
    ("tokenizer*, vocab*, merges.txt, *.model, tekken.json, special_tokens_map.json, added_tokens.json", "the tokeniser"),
    ("chat_template.jinja, chat_template.json, additional_chat_templates/*, template, system, messages", "the chat template"),
    ("config.json, params.json, generation_config.json, hf_quant_config.json, quantize_config.json", "the configuration"),
    ("preprocessor_config.json, processor_config.json, video_preprocessor_config.json, mmproj*.gguf", "images and sounds"),
    ("*.py", "code of the model's own, which engines run with trust_remote_code"),
    ("modules.json, config_sentence_transformers.json, 1_Pooling/config.json", "embeddings: pooling and prompts"),
    ("everything else", "what no row names may be loaded by an engine that nobody has looked at"),
)  # fmt: skip
"""The gates by name, for people."""

WEIGHT_SUFFIXES: Final = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".npz",
    ".h5",
    ".msgpack",
    ".onnx",
)
_LOADED_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
"""Of weights that the engines load that are served by."""
PARTIAL_SUFFIXES: Final = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp")
"""Names of downloads that have not ended."""


class Roles:
    """
    The roles of files beside a model's own.

    Args:
        names: The names of the model's files: those of the reference value where there is one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        all_names = tuple(names)
        loaded = [name for name in all_names if name.endswith(_LOADED_SUFFIXES) and _alone(name) is Role.GATE]
        self._beside = frozenset(name.rpartition("/")[0] for name in loaded)
        self._gates = frozenset(name for name in all_names if self._by_table(name) is Role.GATE)
        # A model of nothing but such files is these files.
        self._all_count = not self._gates
        if self._all_count:
            self._gates = frozenset(name for name in all_names if self._by_table(name) is not Role.JUNK)

    @property
    def gates(self) -> frozenset[str]:
        """Those of the model's own files that change its answers."""
        return self._gates

    def of(self, name: str) -> Role:
        """The role of a file, which need not be the model's own."""
        return Role.GATE if name in self._gates else self._by_table(name)

    def _by_table(self, name: str) -> Role:
        for row, pattern in _ALL:
            if not pattern.search(name):
                continue
            if not row.beside or self._is_beside(row, name):
                return row.role
        return Role.GATE

    def _is_beside(self, row: Row, name: str) -> bool:
        at_top = row.names[0].startswith("/")
        return ("" if at_top else name.rpartition("/")[0]) in self._beside


@lru_cache(maxsize=256)
def roles_of(names: frozenset[str]) -> Roles:
    """`Roles`, remembered: the names of a reference value are the same in every appraisal."""
    return Roles(names)


@lru_cache(maxsize=8192)
def is_junk(name: str) -> bool:
    """Whether a path is junk: so no part of any model."""
    return _alone(name) is Role.JUNK


def without_partial(name: str) -> str | None:
    """The name of what is being downloaded into *name*; `None` if that is no name of a download."""
    for suffix in PARTIAL_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _compiled(names: Iterable[str]) -> re.Pattern[str]:
    parts = []
    for name in names:
        text = re.escape(name.strip("/")).replace(r"\*", "[^/]*")
        if name.startswith("/"):
            parts.append(f"^{text}/")
        elif name.endswith("/"):
            parts.append(f"(?:^|/){text}(?:/|$)")
        else:
            parts.append(rf"(?:^|/){text}\Z")
    return re.compile("|".join(parts), re.IGNORECASE)


_ALL: Final = tuple((row, _compiled(row.names)) for row in ROWS)
_ALONE: Final = tuple((row.role, pattern) for row, pattern in _ALL if not row.beside)


def _alone(name: str) -> Role:
    """The role of a name whatever lies beside it: a `training_args.bin` is no weights."""
    return next((role for role, pattern in _ALONE if pattern.search(name)), Role.GATE)
