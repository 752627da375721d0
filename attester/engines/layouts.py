"""
Where a live module has what was published: one table of rules, and the search by it.

Libraries rename, fuse, stack and turn the tensors that they load.  Both sides' names are rewritten
to one spelling, so a rule works for whatever library gives a tensor the other name.  The rules are
those that recordings of real libraries need (``fixtures/layouts``); a layout that no rule names is
refused, never guessed.  Shapes and names decide; bytes are not read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from attester.errors import EngineError
from attester.weights.layout import TensorInfo


@dataclass(frozen=True)
class Rename:
    """Another spelling of a name."""

    pattern: str
    spelling: str
    why: str


RENAMES: Final = (
    Rename(r"\.base_layer(?=\.)", "", "vLLM and PEFT wrap each layer that may have an adapter"),
    Rename(r"\.experts\.routed_experts\.", ".experts.", "vLLM 0.32 runs experts in a module of its own"),
    Rename(r"\.experts\.w13_(weight|bias)$", r".experts.w13.\1", "vLLM: gate and up of all experts"),
    Rename(r"\.experts\.w2_(weight|bias)$", r".experts.w2.\1", "vLLM: down of all experts"),
    Rename(
        r"\.experts\.gate_up_proj$",
        ".experts.w13.weight",
        "transformers 5, gpt-oss: gate and up of all experts",
    ),
    Rename(r"\.experts\.gate_up_proj_bias$", ".experts.w13.bias", "the same"),
    Rename(r"\.experts\.down_proj$", ".experts.w2.weight", "transformers 5, gpt-oss: down of all experts"),
    Rename(r"\.experts\.down_proj_bias$", ".experts.w2.bias", "the same"),
    Rename(
        r"\.block_sparse_moe\.", ".mlp.", "transformers 5 has one name for all mixtures: Mixtral, Phi-MoE"
    ),
    Rename(r"\.mlp\.router\.", ".mlp.gate.", "transformers 5 calls the gate of Phi-MoE a router"),
    Rename(r"^gpt_neox\.", "model.", "vLLM's GPT-NeoX"),
    Rename(r"^embed_out\.", "lm_head.", "transformers 5 renames the head of GPT-NeoX"),
    Rename(r"^model\.embedding\.", "model.embed_tokens.", "vLLM's gpt-oss"),
    Rename(r"(\.layers\.\d+)\.attn\.", r"\1.self_attn.", "vLLM's gpt-oss"),
    Rename(r"\bLayerNorm\.gamma$", "LayerNorm.weight", "checkpoints of BERT from before 2020"),
    Rename(r"\bLayerNorm\.beta$", "LayerNorm.bias", "checkpoints of BERT from before 2020"),
    Rename(
        r"^language_model\.lm_head\.", "lm_head.", "models with images: transformers 5 moved the head out"
    ),
    Rename(
        r"^language_model\.model\.", "model.language_model.", "models with images: transformers 5, and vLLM"
    ),
    Rename(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", "models with images: transformers 5"),
)
"""Applied to published and to live names, in this order."""

_RENAMES: Final = tuple((re.compile(rule.pattern), rule.spelling) for rule in RENAMES)


@dataclass(frozen=True)
class Fusion:
    """Published parameters that an engine stacks by rows into one parameter."""

    fused: str
    parts: tuple[str, ...]


FUSIONS: Final = (
    Fusion("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    Fusion("gate_up_proj", ("gate_proj", "up_proj")),
    Fusion("qkv_proj", ("query", "key", "value")),
    Fusion("qkv", ("query", "key", "value")),
    Fusion("qkv", ("q_proj", "k_proj", "v_proj")),
    Fusion("c_attn", ("q_attn", "k_attn", "v_attn")),
    Fusion("fused_qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
)
"""Segments of names: the rows of ``layers.0.self_attn.q_proj.weight`` are in ``….qkv_proj.weight``."""

EXPERTS: Final = (
    Fusion("w13", ("w1", "w3")),
    Fusion("w13", ("gate_proj", "up_proj")),
    Fusion("w2", ("w2",)),
    Fusion("w2", ("down_proj",)),
)
"""The same of one expert; the fused parameters of all experts are stacked: ``experts.w13[expert]``."""

TIES: Final = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("lm_head.weight", "transformer.word_embeddings.weight"),
    ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
)
"""Tied parameters, which share storage: a module may have both under either name."""

TURNS: Final = (
    (r"(.*\.experts)\.(?:w13|w2)\.weight", (r"\1.w13.weight", r"\1.w2.weight")),
    (
        r"(.*\.h\.\d+)\.(?:attn|mlp)\.c_(?:attn|proj|fc)\.weight",
        (r"\1.attn.c_attn.weight", r"\1.mlp.c_fc.weight"),
    ),
)
"""
Matrices that some libraries turn: rows become columns.

vLLM does so with experts that were published in one tensor (gpt-oss), and with the layers of GPT-2.
A square does not show it.  So each row names tensors that are turned if it is, one of which is no square.
"""

_EXPERT: Final = re.compile(
    r"(?P<base>.*\.experts)\.(?P<expert>\d{1,6})\.(?P<part>\w+)\.(?P<kind>weight|bias)"
)
_STACK: Final = re.compile(r".*\.experts\.(?:w13|w2)\.(?:weight|bias)")
_TURNS: Final = tuple((re.compile(pattern), siblings) for pattern, siblings in TURNS)

_FUSED: Final = frozenset({fusion.fused for fusion in FUSIONS} | {"query_key_value"})
"""What may be published fused: ranks that share it have rows of each part."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Where a published tensor is: the live tensor, and which part of it."""

    name: str
    start: int = 0
    rows: int | None = None
    """Rows of the whole fused tensor as published, of which the part begins at `start`; `None` if not fused."""
    shared: int = 0
    """Rows at its end that several ranks may have in copies: keys and values of fewer heads than there are ranks."""
    expert: int | None = None
    """Which expert of a live stack; `None` if it is no stack of published experts."""
    experts: int | None = None
    """How many experts were published, where the first axis of the live tensor is theirs."""
    turned: bool = False
    """Whether the last two axes are exchanged."""
    sections: tuple[int, ...] = ()
    """Rows of the parts that were published as one matrix: each rank has its share of each part."""
    whole: bool = False
    """Whether ranks may share only whole experts of it, because how they would cut it is not known."""


def spelled(name: str) -> str:
    """The one spelling of a name."""
    for pattern, spelling in _RENAMES:
        name = pattern.sub(spelling, name)
    return name


@lru_cache(maxsize=16)
def find_all(
    published: tuple[TensorInfo, ...], live: tuple[tuple[str, tuple[int, ...]], ...], prefix: str
) -> tuple[Place, ...]:
    """
    Where each published tensor is; see `Layout`.  Remembered, because the names are the same at each walk.

    Raises:
        EngineError: as `Layout`, and `Layout.find`.
    """
    layout = Layout(published, dict(live), prefix)
    return tuple(layout.find(info) for info in published)


class Layout:
    """
    The search for published tensors in a module.

    Args:
        published: The tensors of the published files.
        live: The shape of each live tensor, on the first rank.
        prefix: The prefix that the module's names have before the published names.
    """

    def __init__(self, published: Sequence[TensorInfo], live: Shapes, prefix: str = "") -> None:
        self._infos: dict[str, TensorInfo] = {}
        for info in published:
            other = self._infos.setdefault(spelled(info.name), info)
            if other is not info:
                raise EngineError(
                    f"{other.name[:120]!r} and {info.name[:120]!r} may be one tensor of the module"
                )
        self._live: dict[str, list[str]] = {}
        for name in live:
            if name.startswith(prefix):
                self._live.setdefault(spelled(name[len(prefix) :]), []).append(name)
        self._shapes = live
        self._prefix = prefix
        self._counts: dict[tuple[str, str, str], int] = {}
        for name in self._infos:
            if match := _EXPERT.fullmatch(name):
                key = match["base"], match["part"], match["kind"]
                self._counts[key] = self._counts.get(key, 0) + 1

    def find(self, info: TensorInfo) -> Place:
        """
        Where a published tensor is.

        Raises:
            EngineError: no rule finds it, or two tensors of the module could be it.
        """
        name = spelled(info.name)
        exact = self._prefix + info.name
        if exact in self._shapes:
            return self._as_it_is(info, name, exact)
        place = self._same(info, name) or self._expert(name) or self._fused(name) or self._tied(name)
        if place is None:
            raise EngineError(f"the module does not have {info.name[:120]!r}, which the published files have")
        return place

    def _one(self, name: str) -> str | None:
        """The live tensor with a spelling."""
        found = self._live.get(name, [])
        if len(found) > 1:
            raise EngineError(f"{found[0][:120]!r} and {found[1][:120]!r} may be one published tensor")
        return found[0] if found else None

    def _same(self, info: TensorInfo, name: str) -> Place | None:
        found = self._one(name)
        return None if found is None else self._as_it_is(info, name, found)

    def _as_it_is(self, info: TensorInfo, name: str, found: str) -> Place:
        """A tensor that the module has for itself: turned, perhaps, and not to be cut in a way that is not known."""
        turned = False
        for pattern, siblings in _TURNS:
            if match := pattern.fullmatch(name):
                seen = [self._is_turned(match.expand(each)) for each in siblings]
                turned = next((each for each in seen if each is not None), False)
        experts = info.shape[0] if info.shape and _STACK.fullmatch(name) else None
        sections = self._sections(info, name)
        fused = not sections and any(each in _FUSED for each in name.split("."))
        whole = turned or experts is not None or fused
        return Place(found, experts=experts, turned=turned, sections=sections, whole=whole)

    def _sections(self, info: TensorInfo, name: str) -> tuple[int, ...]:
        """The rows of query, key and value, or of gate and up, in what was published as one matrix (Phi-3)."""
        rows = info.shape[0] if info.shape else 0
        if ".gate_up_proj." in name and rows % 2 == 0:
            return rows // 2, rows // 2
        if ".qkv_proj." in name:
            # What attention puts out has as many columns as the query has rows.
            out = self._infos.get(f"{name.rpartition('.qkv_proj.')[0]}.o_proj.weight")
            query = out.shape[1] if out is not None and len(out.shape) == 2 else rows
            if 0 < query < rows and (rows - query) % 2 == 0:
                return query, (rows - query) // 2, (rows - query) // 2
        return ()

    def _is_turned(self, name: str) -> bool | None:
        """Whether the last two axes are exchanged; `None` if the shapes do not say."""
        info, found = self._infos.get(name), self._one(name)
        if info is None or found is None or len(info.shape) < 2 or info.shape[-1] == info.shape[-2]:
            return None
        return self._shapes[found][-2:] == (info.shape[-1], info.shape[-2])

    def _expert(self, name: str) -> Place | None:
        """One expert, in a live tensor that has them all."""
        match = _EXPERT.fullmatch(name)
        if match is None:
            return None
        base, part, kind = match["base"], match["part"], match["kind"]
        for fusion in EXPERTS:
            found = self._one(f"{base}.{fusion.fused}.{kind}") if part in fusion.parts else None
            siblings = [self._infos.get(f"{base}.{match['expert']}.{each}.{kind}") for each in fusion.parts]
            rows = [sibling.shape[0] for sibling in siblings if sibling is not None and sibling.shape]
            if found is None or len(rows) != len(fusion.parts):
                continue
            place = Place(found, expert=int(match["expert"]), experts=self._counts[base, part, kind])
            if len(rows) == 1:
                return place
            return Place(
                found,
                sum(rows[: fusion.parts.index(part)]),
                sum(rows),
                expert=place.expert,
                experts=place.experts,
            )
        return None

    def _fused(self, name: str) -> Place | None:
        segments = name.split(".")
        for fusion in FUSIONS:
            for number, segment in enumerate(segments):
                if segment not in fusion.parts:
                    continue
                before, after = segments[:number], segments[number + 1 :]
                found = self._one(".".join([*before, fusion.fused, *after]))
                if found is None:
                    continue
                siblings = [self._infos.get(".".join([*before, part, *after])) for part in fusion.parts]
                rows = [sibling.shape[0] for sibling in siblings if sibling is not None and sibling.shape]
                if len(rows) == len(fusion.parts):
                    shared = sum(rows[1:]) if len(rows) == 3 else 0
                    return Place(found, sum(rows[: fusion.parts.index(segment)]), sum(rows), shared=shared)
        return None

    def _tied(self, name: str) -> Place | None:
        for one, other in TIES:
            for published, tied in ((one, other), (other, one)):
                found = self._one(tied) if name == published else None
                if found is not None:
                    return Place(found)
        return None
