"""Live tensors are brought back to the bytes that were published, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.engines.live import LiveTensors
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.device import DeviceKernel
from attester.weights.kernels import row_words
from attester.weights.layout import TensorInfo
from attester.weights.safetensors import parse_header
from attester.weights.select import kernel

torch = pytest.importorskip("torch", reason="torch is not installed")

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
]
RANKS = [2, 3, 4]


def noise(*shape: int, dtype: Any = torch.float32, seed: int = 0) -> Any:
    """Bytes without a pattern as a tensor; where two bytes are swapped, it shows."""
    drawn = torch.Generator().manual_seed(seed + 1000 * math.prod(shape) + len(shape))
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=drawn).to(torch.bool)
    size = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=drawn)
    return data.view(dtype).reshape(shape)


def publish(tensors: Mapping[str, Any]) -> tuple[tuple[TensorInfo, ...], dict[str, bytes]]:
    """What a published file says of tensors, and their bytes: by the reference writer."""
    from safetensors.torch import save

    data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    infos = parse_header("f", data[8:start], len(data) - start, start)
    return infos, {info.name: data[info.offset : info.offset + info.size] for info in infos}


def walked(live: LiveTensors) -> list[tuple[str, bytes]]:
    found = []
    for tensor in live:
        chunks = list(tensor.chunks())
        assert all(chunk.ndim == 1 and chunk.dtype.name == "int8" for chunk in chunks)
        data = b"".join(chunk.tobytes() for chunk in chunks)
        assert tensor.size == len(data)
        found.append((tensor.name, data))
    return found


def comes_back(published: Mapping[str, Any], *states: Mapping[str, Any], prefix: str = "") -> None:
    """The states give the published bytes, in walking order."""
    infos, data = publish(published)
    live = LiveTensors(infos, states, prefix=prefix)
    assert len(live) == len(published)
    assert walked(live) == sorted(data.items(), key=lambda item: item[0].encode())


def refused(published: Mapping[str, Any], *states: Mapping[str, Any], why: str, prefix: str = "") -> None:
    infos, _ = publish(published)
    with pytest.raises(EngineError, match=why):
        LiveTensors(infos, states, prefix=prefix)


def by_rows(tensor: Any, ranks: int) -> list[Any]:
    return [part.clone() for part in tensor.chunk(ranks)]


def by_columns(tensor: Any, ranks: int) -> list[Any]:
    return [part.clone() for part in tensor.chunk(ranks, dim=1)]


def fused_by_rows(parts: Sequence[Any], ranks: int) -> list[Any]:
    """As tensor-parallel engines stack them: each rank its share of each part."""
    shares = [by_rows(part, ranks) for part in parts]
    return [torch.cat([share[rank] for share in shares]) for rank in range(ranks)]


def states_of(name: str, parts: Sequence[Any], more: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    return [{name: part, **(more or {})} for part in parts]


def test_what_is_loaded_as_published_comes_back():
    """Names, types and shapes as they are in the file."""
    tensors = {"a.weight": noise(6, 4), "a.bias": noise(6), "b": noise(2, 3, 5)}
    comes_back(tensors, tensors)


def test_a_real_module_comes_back():
    """Parameters, which carry gradients, and buffers, out of a module's own state dict."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
    comes_back(dict(module.state_dict()), module.state_dict())
    comes_back(dict(module.state_dict()), module.state_dict(keep_vars=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (6, 4)], ids=str)
def test_every_type_comes_back(dtype, shape):
    """Byte for byte, whatever the bytes mean, scalars too."""
    tensors = {"w": noise(*shape, dtype=dtype)}
    comes_back(tensors, tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_type_comes_back_from_shards(dtype, ranks):
    """Putting together is copying: no bit of a number that is none is lost."""
    rows, columns = noise(12, 5, dtype=dtype), noise(5, 12, dtype=dtype, seed=1)
    states = [{"r": r, "c": c} for r, c in zip(by_rows(rows, ranks), by_columns(columns, ranks), strict=True)]
    comes_back({"r": rows, "c": columns}, *states)


@pytest.mark.parametrize(
    ("fused", "parts"),
    [
        ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("qkv_proj", ("query", "key", "value")),
        ("qkv", ("query", "key", "value")),
        ("qkv", ("q_proj", "k_proj", "v_proj")),
        ("c_attn", ("q_attn", "k_attn", "v_attn")),
    ],
)
@pytest.mark.parametrize("rows", [(8, 8, 8), (8, 2, 2), (2, 4, 6)], ids=str)
def test_query_key_and_value_come_back_from_one_matrix(fused, parts, rows):
    """Of equal sizes or not, as with grouped queries; weights and biases."""
    weights = [noise(n, 5, seed=i) for i, n in enumerate(rows)]
    biases = [noise(n, seed=i) for i, n in enumerate(rows)]
    published, state = {}, {}
    for kind, tensors in (("weight", weights), ("bias", biases)):
        published |= {f"layers.0.{part}.{kind}": t for part, t in zip(parts, tensors, strict=True)}
        state[f"layers.0.{fused}.{kind}"] = torch.cat(tensors)
    comes_back(published, state)


def test_gate_and_up_come_back_from_one_matrix():
    """The gate's rows first, though walks take them by name."""
    gate, up = noise(6, 4), noise(6, 4, seed=1)
    comes_back(
        {"l.0.up_proj.weight": up, "l.0.gate_proj.weight": gate},
        {"l.0.gate_up_proj.weight": torch.cat([gate, up])},
    )


def test_layers_are_not_mixed_up():
    """Each layer's parts come from its own matrix."""
    published, state = {}, {}
    for layer in (0, 1, 10):
        parts = [noise(rows, 3, seed=layer * 3 + i) for i, rows in enumerate((4, 2, 2))]
        for name, part in zip("qkv", parts, strict=True):
            published[f"layers.{layer}.{name}_proj.weight"] = part
        state[f"layers.{layer}.qkv_proj.weight"] = torch.cat(parts)
    comes_back(published, state)


def test_a_model_published_fused_is_not_taken_apart():
    """A name that is there needs no table."""
    tensors = {"h.0.c_attn.weight": noise(12, 4), "h.0.qkv_proj.weight": noise(9, 4)}
    comes_back(tensors, tensors)


def test_parts_that_are_loaded_apart_stay_apart():
    """Engines that do not fuse are walked as they are."""
    parts = {f"l.{name}_proj.weight": noise(4, 3, seed=ord(name)) for name in "qkv"}
    comes_back(parts, parts)


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_over_ranks_come_back(ranks):
    """Matrices, biases, and what has three dimensions."""
    published = {"w": noise(24, 5), "b": noise(24), "conv": noise(12, 3, 2)}
    shards = {name: by_rows(tensor, ranks) for name, tensor in published.items()}
    comes_back(published, *({name: shard[rank] for name, shard in shards.items()} for rank in range(ranks)))


@pytest.mark.parametrize("ranks", RANKS)
def test_columns_over_ranks_come_back(ranks):
    """Row-parallel layers; their bias is whole on every rank."""
    weight, bias = noise(5, 24), noise(5)
    comes_back({"w": weight, "b": bias}, *states_of("w", by_columns(weight, ranks), {"b": bias}))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("rows", [(24, 24, 24), (48, 12, 12)], ids=str)
def test_fused_rows_over_ranks_come_back(ranks, rows):
    """Each rank has its heads' query, key and value."""
    parts = [noise(n, 5, seed=i) for i, n in enumerate(rows)]
    published = {f"l.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
    comes_back(published, *states_of("l.qkv_proj.weight", fused_by_rows(parts, ranks)))


@pytest.mark.parametrize("ranks", RANKS)
def test_gate_and_up_over_ranks_come_back(ranks):
    """Gate and up alternate over the ranks, and not within one."""
    gate, up = noise(12, 4), noise(12, 4, seed=1)
    published = {"l.gate_proj.weight": gate, "l.up_proj.weight": up}
    comes_back(published, *states_of("l.gate_up_proj.weight", fused_by_rows([gate, up], ranks)))


@pytest.mark.parametrize("ranks", RANKS)
def test_what_every_rank_has_whole_is_walked_once(ranks):
    """Norms, scalars and fused matrices that were not sharded."""
    parts = [noise(n, 3, seed=i) for i, n in enumerate((4, 2, 2))]
    published = {f"l.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
    more = {"norm.weight": noise(7), "scale": noise()}
    state = {"l.qkv_proj.weight": torch.cat(parts), **more}
    comes_back(published | more, *[state] * ranks)


@pytest.mark.parametrize("padding", [1, 3, 64])
def test_padding_of_the_vocabulary_is_left_out(padding):
    """The rows that nobody published are not walked."""
    weight = noise(29, 4)
    padded = torch.cat([weight, torch.zeros(padding, 4)])
    comes_back({"embed": weight}, {"embed": padded})


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("vocabulary", [29, 36, 25], ids=str)
def test_padding_of_a_vocabulary_over_ranks_is_left_out(ranks, vocabulary):
    """It stands at the end of the last rank's, or is the whole of it."""
    weight = noise(vocabulary, 4)
    padded = torch.cat([weight, torch.zeros(36 - vocabulary, 4)])
    comes_back({"embed": weight}, *states_of("embed", by_rows(padded, ranks)))


TIES = [
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
]


@pytest.mark.parametrize("pair", [*TIES, *(tie[::-1] for tie in TIES)], ids=lambda pair: pair[0])
def test_one_name_stands_for_both_of_a_tie(pair):
    """Published under one, loaded under the other; or both ways at once."""
    published, loaded = pair
    weight = noise(8, 3)
    comes_back({published: weight}, {loaded: weight})
    comes_back({published: weight}, {published: weight, loaded: weight})
    comes_back({published: weight, loaded: weight}, {loaded: weight})


@pytest.mark.parametrize("pair", TIES, ids=lambda pair: pair[0])
def test_a_tie_that_was_cut_is_refused(pair):
    """A head of its own, beside the embedding that was published for both."""
    weight = noise(8, 3)
    refused({pair[1]: weight}, {pair[1]: weight, pair[0]: weight.clone()}, why=f"has '{pair[0]}'")


def test_a_tie_is_padded_like_any_vocabulary():
    """Both at once, as engines do."""
    weight = noise(29, 3)
    padded = torch.cat([weight, torch.zeros(3, 3)])
    comes_back({"model.embed_tokens.weight": weight}, {"lm_head.weight": padded})


def test_names_may_have_a_prefix():
    """What an engine wraps a model in; fusions and ties are found behind it."""
    parts = [noise(n, 3, seed=i) for i, n in enumerate((4, 2, 2))]
    published = {f"l.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
    published["lm_head.weight"] = noise(9, 3)
    state = {
        "base.l.qkv_proj.weight": torch.cat(parts),
        "base.model.embed_tokens.weight": published["lm_head.weight"],
    }
    comes_back(published, state, prefix="base.")


def test_without_its_prefix_a_name_is_not_found():
    """Nothing is guessed."""
    refused({"w": noise(3)}, {"base.w": noise(3)}, why="does not have 'w'")
    refused({"w": noise(3)}, {"w": noise(3)}, why="does not have 'w'", prefix="base.")


def test_what_is_outside_the_prefix_is_refused():
    """An adapter may call itself what it likes."""
    weight = noise(3)
    refused({"w": weight}, {"base.w": weight, "lora.w": noise(3)}, why="'lora.w'", prefix="base.")


NON_CONTIGUOUS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every other column": lambda t: torch.stack([t, t + 1], dim=2).flatten(1)[:, ::2],
    "every other row": lambda t: torch.stack([t, t + 1], dim=1).flatten(0, 1)[::2],
    "within a larger one": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 4))[3:-4, 1:-2],
}


@pytest.mark.parametrize("how", NON_CONTIGUOUS)
def test_tensors_that_are_not_contiguous_come_back(how):
    """As published, in the order of the shape and not of the memory."""
    weight = torch.arange(24.0).reshape(6, 4)
    stored = NON_CONTIGUOUS[how](weight)
    assert torch.equal(stored, weight)
    assert not stored.is_contiguous()
    comes_back({"w": weight}, {"w": stored})


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_tensors_without_bytes_come_back(shape):
    """They are published, and so must be there, and hold nothing."""
    tensors = {"empty": torch.empty(shape), "w": noise(3)}
    comes_back(tensors, tensors)
    refused(tensors, {"w": tensors["w"]}, why="does not have 'empty'")


def test_an_empty_tensor_that_nobody_published_is_let_be():
    """It could not change a thing."""
    comes_back({"w": noise(3)}, {"w": noise(3), "nothing": torch.empty(0)})


NAMES = ["b", "B", "a.10", "a.2", "a_", "a-", "ä", "ﬀ", "\U0001f600", "日", "_"]


def test_the_order_is_that_of_the_names_bytes():
    """Whatever the order in the files or in the module; not that of UTF-16."""
    tensors = {name: noise(3, seed=i) for i, name in enumerate(NAMES)}
    infos, _ = publish(tensors)
    expected = [name.decode() for name in sorted(name.encode() for name in NAMES)]
    for given_infos in (infos, infos[::-1], sorted(infos, key=lambda info: info.name.encode("utf-16-be"))):
        live = LiveTensors(given_infos, [dict(reversed(tensors.items()))])
        assert [tensor.name for tensor in live] == expected


@pytest.mark.parametrize("name", ["position_ids", "inv_freq", "cos_sin_cache", "masked_bias"])
def test_buffers_that_engines_make_are_let_be(name):
    """Nobody publishes them."""
    comes_back({"w": noise(3)}, {"w": noise(3), f"layers.0.rotary.{name}": noise(9, seed=1)})


def test_a_derived_buffer_that_was_published_is_walked():
    """It is left out only where there is nothing to compare it to."""
    tensors = {"embeddings.position_ids": torch.arange(9)[None], "w": noise(3)}
    comes_back(tensors, tensors)


def test_what_is_derived_can_be_said():
    """An engine with buffers of its own names them, and then only those."""
    infos, _ = publish({"w": noise(3)})
    assert len(LiveTensors(infos, [{"w": noise(3), "l.table": noise(4)}], derived=["table"])) == 1
    with pytest.raises(EngineError, match=r"has 'l\.inv_freq'"):
        LiveTensors(infos, [{"w": noise(3), "l.inv_freq": noise(4)}], derived=["table"])


def test_a_missing_tensor_is_refused():
    """By its name."""
    refused(
        {"a": noise(3), "b": noise(3)},
        {"a": noise(3)},
        why="^the module does not have 'b', which the published",
    )


def test_parts_without_a_sibling_are_refused():
    """Where the matrix's other rows come from is not known."""
    published = {"l.q_proj.weight": noise(4, 3), "l.k_proj.weight": noise(4, 3)}
    refused(published, {"l.qkv_proj.weight": noise(12, 3)}, why=r"does not have 'l\.k_proj\.weight'")


@pytest.mark.parametrize("name", ["w.lora", "loras.weight", "position_ids.weight", "w2"])
def test_a_tensor_that_nobody_published_is_refused(name):
    """Adapters change answers; a derived name counts only at the end."""
    refused({"w": noise(3)}, {"w": noise(3), name: noise(3)}, why=rf"has '{name}'.*Is an adapter loaded\?")


@pytest.mark.parametrize(
    "name", ["w.lora_A", "lora_A.weight", "l.lora_b_stacked.0", "l.w13_lora_a_stacked.1"]
)
def test_an_adapter_is_refused_unless_it_is_zero(name):
    """It changes answers, whatever library holds it; zeros change nothing."""
    comes_back({"w": noise(3)}, {"w": noise(3), name: torch.zeros(3)})
    refused(
        {"w": noise(3)}, {"w": noise(3), name: noise(3)}, why=f"an adapter is loaded: '{name}' is not zero"
    )


def test_a_part_beside_the_fused_matrix_is_refused():
    """The published name is found first; then nobody published the matrix."""
    parts = {f"l.{name}_proj.weight": noise(4, 3, seed=ord(name)) for name in "qkv"}
    state = {**parts, "l.qkv_proj.weight": noise(12, 3)}
    refused(parts, state, why=r"has 'l\.qkv_proj\.weight'")


@pytest.mark.parametrize(
    ("published", "loaded", "said"),
    [
        (torch.bfloat16, torch.float16, "loaded as F16, published as BF16"),
        (torch.float32, torch.bfloat16, "loaded as BF16, published as F32"),
        (torch.float32, torch.int32, "loaded as I32, published as F32"),
        (torch.bfloat16, torch.int8, "loaded as I8, published as BF16"),
        (torch.bfloat16, torch.float8_e4m3fn, "loaded as F8_E4M3, published as BF16"),
        (torch.float8_e5m2, torch.float8_e4m3fn, "loaded as F8_E4M3, published as F8_E5M2"),
        (torch.uint8, torch.int8, "loaded as I8, published as U8"),
    ],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else "",
)
def test_another_type_is_refused(published, loaded, said):
    """Cast or quantised: even where the bytes are as many."""
    why = rf"^w: {said}\. Weights that are cast or quantised"
    refused({"w": noise(6, 4, dtype=published)}, {"w": noise(6, 4, dtype=loaded)}, why=why)


def test_torchs_own_quantised_tensors_are_refused():
    """By torch's name, for safetensors has none."""
    weight = torch.arange(24.0).reshape(6, 4)
    with pytest.warns(UserWarning, match="deprecated"):
        quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    refused({"w": weight}, {"w": quantised}, why=r"loaded as torch\.qint8")


def test_another_type_of_a_fused_matrix_is_refused():
    """Quantised while fusing."""
    parts = {f"l.{name}_proj.weight": noise(4, 3, seed=ord(name)) for name in "qkv"}
    fused = torch.cat(list(parts.values())).to(torch.float16)
    refused(parts, {"l.qkv_proj.weight": fused}, why=r"_proj\.weight: loaded as F16")


@pytest.mark.parametrize(
    "shape",
    [(4, 6), (24,), (5, 4), (6, 3), (6, 5), (3, 8), (6, 4, 1), (2, 3, 4), ()],
    ids=str,
)
def test_another_shape_is_refused(shape):
    """Transposed, flattened, cut short: though the bytes may be as many."""
    refused({"w": noise(6, 4)}, {"w": noise(*shape)}, why=r"^w: loaded as \(.*, published as \(6, 4\)$")


@pytest.mark.parametrize("shape", [(11, 3), (13, 3), (12, 2), (12, 4), (6, 3), (24, 3)], ids=str)
def test_a_fused_matrix_of_another_shape_is_refused(shape):
    """More rows than its parts, or fewer, or others."""
    parts = {f"l.{name}_proj.weight": noise(4, 3, seed=ord(name)) for name in "qkv"}
    refused(parts, {"l.qkv_proj.weight": noise(*shape)}, why=r"^l\.k_proj\.weight: ")


@pytest.mark.parametrize(
    "shapes",
    [[(3, 4)], [(2, 4), (2, 4)], [(6, 2)], [(6, 3), (6, 3)], [(6, 1), (6, 1), (6, 1)], [(4, 4), (1, 4)]],
    ids=str,
)
def test_ranks_that_do_not_make_the_whole_are_refused(shapes):
    """One is missing, or they overlap, or they are not alike."""
    states = [{"w": noise(*shape)} for shape in shapes]
    refused({"w": noise(6, 4)}, *states, why="^w: ")


@pytest.mark.parametrize(("rows", "ranks"), [((6, 3, 3), 4), ((5, 3, 4), 2), ((4, 2, 3), 3)], ids=str)
def test_ranks_that_do_not_divide_the_parts_are_refused(rows, ranks):
    """The matrix divides and its parts do not: whose rows are whose is not known."""
    parts = {f"l.{p}_proj.weight": noise(n, 3, seed=n) for p, n in zip("qkv", rows, strict=True)}
    shards = by_rows(torch.cat(list(parts.values())), ranks)
    assert len({shard.shape for shard in shards}) == 1
    refused(
        parts, *states_of("l.qkv_proj.weight", shards), why=rf"fused into .* rows on each of {ranks} ranks"
    )


def test_another_number_of_bytes_is_refused():
    """Whatever the published file says of it."""
    infos, _ = publish({"w": noise(6, 4)})
    with pytest.raises(EngineError, match="its size in the module differs"):
        LiveTensors([replace(infos[0], size=95)], [{"w": noise(6, 4)}])


def test_a_change_in_place_is_seen_at_the_next_walk():
    """Nothing is kept from one walk to the next, shards neither."""
    rows, columns, whole = noise(4, 3), noise(3, 4), noise(5)
    infos, before = publish({"r": rows, "c": columns, "w": whole})
    states = [
        {"r": r, "c": c, "w": whole} for r, c in zip(by_rows(rows, 2), by_columns(columns, 2), strict=True)
    ]
    live = LiveTensors(infos, states)
    assert dict(walked(live)) == before
    for number, name in ((1, "r"), (1, "c"), (0, "w")):
        states[number][name].view(torch.int32).view(-1)[0] ^= 1
        changed = {key for key, data in walked(live) if data != before[key]}
        assert changed == {name}
        states[number][name].view(torch.int32).view(-1)[0] ^= 1


def test_a_whole_tensor_is_walked_where_it_lies():
    """Without a copy: the engine's memory is not needed twice."""
    weight = noise(64, 4)
    infos, _ = publish({"w": weight})
    (chunk,) = next(iter(LiveTensors(infos, [{"w": weight}]))).chunks()
    assert chunk.ctypes.data == weight.data_ptr()


def test_the_module_is_left_as_it_was():
    """Walking reads, on the device's kernel too, and asks for no gradients."""
    layer = torch.nn.Linear(70, 64)
    state = layer.state_dict(keep_vars=True)
    infos, before = publish(state)
    live = LiveTensors(infos, [state])
    words = [row_words(bytes(32), row) for row in range(4)]
    on_device = possession.walk(live, words, 2, DeviceKernel("cpu", compiled=False))
    assert on_device == possession.walk(live, words, 2, kernel())
    assert publish(layer.state_dict())[1] == before
    assert layer.weight.requires_grad
    assert layer.weight.grad is None


KINDS = ["whole", "rows", "columns", "qkv", "gate_up", "vocabulary", "scalar"]


@st.composite
def layouts(draw) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Published tensors, and the states of as many ranks as an engine might spread them over."""
    ranks = draw(st.integers(1, 4))
    published: dict[str, Any] = {}
    states: list[dict[str, Any]] = [{} for _ in range(ranks)]

    def place(name: str, shards: Sequence[Any]) -> None:
        for state, shard in zip(states, shards, strict=True):
            state[name] = shard

    small = st.integers(1, 4)
    for number, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))):
        dtype = draw(st.sampled_from(DTYPES))
        rows, columns = draw(small) * ranks, draw(small)

        def made(*shape: int, seed: int = number, dtype: Any = dtype) -> Any:
            return noise(*shape, dtype=dtype, seed=seed)

        name = f"layers.{number}.{'embed' if kind == 'vocabulary' else 'w'}"
        match kind:
            case "scalar":
                published[name] = made()
                place(name, [published[name]] * ranks)
            case "whole":
                published[name] = made(rows, columns)
                place(name, [published[name]] * ranks)
            case "rows":
                published[name] = made(rows, columns)
                place(name, by_rows(published[name], ranks))
            case "columns":
                published[name] = made(columns, rows)
                place(name, by_columns(published[name], ranks))
            case "vocabulary":
                published[name] = made(rows - draw(st.integers(0, rows - 1)), columns)
                padding = torch.zeros_like(made(rows - published[name].shape[0], columns))
                place(name, by_rows(torch.cat([published[name], padding]), ranks))
            case "qkv" | "gate_up":
                names = ("q_proj", "k_proj", "v_proj") if kind == "qkv" else ("gate_proj", "up_proj")
                sizes = [draw(small) * ranks for _ in names]
                parts = [made(size, columns, seed=number + 7 * i) for i, size in enumerate(sizes)]
                published |= {f"{name}.{n}.weight": part for n, part in zip(names, parts, strict=True)}
                fused = torch.cat(parts)
                shards = fused_by_rows(parts, ranks) if draw(st.booleans()) else [fused] * ranks
                place(f"{name}.{kind}_proj.weight", shards)
    return published, states


@given(layouts())
def test_any_layout_comes_back(layout):
    """However tensors were stacked, cut and padded: the published bytes, in walking order."""
    published, states = layout
    comes_back(published, *states)


@given(layouts(), st.data())
def test_one_changed_bit_of_any_layout_is_seen(layout, data):
    """On whichever rank: exactly one tensor differs, or it is refused: a copy or a padding that is none."""
    published, states = layout
    infos, before = publish(published)
    live = LiveTensors(infos, states)
    name = data.draw(st.sampled_from(sorted(states[0])))
    raw = data.draw(st.sampled_from(states))[name].reshape(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, raw.numel() - 1))] ^= 1
    refused = None
    changed = []
    try:
        changed = [key for key, found in walked(live) if found != before[key]]
    except EngineError as error:
        refused = str(error)
    assert len(changed) == 1 or "copies" in str(refused) or name.endswith("embed")


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_was_published_fused_comes_back_from_shares_of_each_part(ranks):
    """As Phi-3 is published: query, key and value in one matrix, gate and up in another."""
    qkv = [noise(n, 16, seed=n) for n in (16, 8, 8)]
    gate_up = [noise(24, 16, seed=n) for n in (1, 2)]
    out = noise(16, 16, seed=9)
    published = {
        "l.qkv_proj.weight": torch.cat(qkv),
        "l.gate_up_proj.weight": torch.cat(gate_up),
        "l.o_proj.weight": out,
    }
    shards = [
        fused_by_rows(qkv, ranks), fused_by_rows(gate_up, ranks), by_columns(out, ranks)
    ]  # fmt: skip
    comes_back(published, *(dict(zip(published, each, strict=True)) for each in zip(*shards, strict=True)))


def test_what_was_published_fused_and_is_cut_otherwise_is_refused():
    """Nothing says how many rows of the matrix are the query's."""
    whole = noise(24, 4)
    refused(
        {"l.qkv_proj.weight": whole}, *states_of("l.qkv_proj.weight", by_rows(whole, 2)), why="not known how"
    )
    refused(
        {"l.query_key_value.weight": whole},
        *states_of("l.query_key_value.weight", by_rows(whole, 2)),
        why="not known how",
    )


def test_a_copy_that_changes_after_the_module_was_mapped_is_seen():
    """On the rank whose copy is not the one that is walked."""
    states = [{"norm.weight": noise(7)} for _ in range(2)]
    infos, _ = publish(states[0])
    live = LiveTensors(infos, states)
    states[1]["norm.weight"].view(torch.int32)[3] ^= 1
    with pytest.raises(EngineError, match="the copies on the ranks differ"):
        walked(live)


def test_padding_that_is_filled_after_the_module_was_mapped_is_seen():
    """Rows that nobody published may not be used for anything."""
    weight = noise(5, 4)
    state = {"embed": torch.cat([weight, torch.zeros(3, 4)])}
    infos, _ = publish({"embed": weight})
    live = LiveTensors(infos, [state])
    state["embed"][7, 3] = 1
    with pytest.raises(EngineError, match=r"loaded as \(8, 4\), published as \(5, 4\)"):
        walked(live)


def test_experts_that_are_out_of_order_in_stacks_over_ranks_are_refused():
    """Published in one tensor, so it would be put together in the wrong order."""
    name = "l.mlp.experts.gate_up_proj"
    stack = noise(4, 6, 5)
    maps = [torch.tensor([0, -1, 1, -1]), torch.tensor([-1, 0, -1, 1])]
    states = [
        {"l.mlp.experts.w13_weight": stack[rank::2].clone(), "l.mlp.experts._expert_map": where}
        for rank, where in enumerate(maps)
    ]
    refused({name: stack}, *states, why="the experts of the ranks are not in order")
    ordered = [torch.tensor([0, 1, -1, -1]), torch.tensor([-1, -1, 0, 1])]
    comes_back({name: stack}, *(
        {"l.mlp.experts.w13_weight": stack[2 * rank : 2 * rank + 2].clone(), "l.mlp.experts._expert_map": where}
        for rank, where in enumerate(ordered)
    ))  # fmt: skip


def test_two_live_tensors_that_may_be_the_published_one_are_refused():
    """Which of them the engine uses is not known."""
    state = {"l.block_sparse_moe.gate.weight": noise(3), "l.mlp.router.weight": noise(3, seed=1)}
    refused({"l.mlp.gate.weight": noise(3)}, state, why="may be one published tensor")


def test_two_published_tensors_that_may_be_one_live_tensor_are_refused():
    """Their names differ only as two spellings of one name do."""
    published = {"embed_out.weight": noise(3), "lm_head.weight": noise(3, seed=1)}
    refused(published, {"lm_head.weight": noise(3)}, why="may be one tensor of the module")
