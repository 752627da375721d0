"""What an engine has loaded is walked as it is: whatever differs from the trusted engine's is another answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.config import AttesterConfig
from attester.engines.as_loaded import AsLoaded
from attester.engines.host import HostedEngine
from attester.engines.live import LiveTensors
from attester.engines.loopback import LoopbackEngine
from attester.engines.module_state import state_of
from attester.engines.walker import Walker
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from tests.unit.attester.test_engines_host import DESCRIPTION, MODEL, SECRET
from tests.unit.attester.test_engines_live import noise, publish
from tests.unit.router.doubles import serving

torch = pytest.importorskip("torch", reason="torch is not installed")

CHALLENGE = WalkChallenge("34" * 32, rows=4, passes=1)


class Packed(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported by a call
    """A layer as a loader leaves it: the weight in fp8, its scale, and what is computed from the configuration."""

    def __init__(self) -> None:
        super().__init__()
        weight = noise(6, 5, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", torch.tensor([0.5, 0.25]))
        self.register_buffer("inv_freq", torch.ones(4))


def answers(state: Any) -> list[bytes]:
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    return possession.walk(AsLoaded(state), words, CHALLENGE.passes, kernel("numpy"))


def state() -> dict[str, Any]:
    return dict(state_of(Packed()))


TRUSTED = answers(state())


def test_another_process_with_the_same_build_walks_alike() -> None:
    """Also if its tensors lie in memory in another order."""
    found = state()
    found["weight"] = found["weight"].t().contiguous().t()
    assert not found["weight"].is_contiguous()
    assert answers(dict(reversed(found.items()))) == TRUSTED


@pytest.mark.parametrize("name", ["weight", "weight_scale"])
def test_one_bit(name: str) -> None:
    """Of a weight, or of a scale that no published file has."""
    found = state()
    found[name] = found[name].clone()
    found[name].view(torch.uint8).view(-1)[3] ^= 1
    assert answers(found) != TRUSTED


def test_a_renamed_tensor() -> None:
    """Its bytes and its place in the order are the same."""
    found = state()
    found["weighs"] = found.pop("weight")
    assert max(found) != "weighs"
    assert answers(found) != TRUSTED


def test_two_tensors_with_each_others_names() -> None:
    """Of one type and shape: only the order of their bytes differs."""
    first = {"a": noise(3, seed=1), "b": noise(3, seed=2)}
    assert answers(first) != answers({"a": first["b"], "b": first["a"]})


def test_a_reshaped_tensor() -> None:
    """The same bytes multiply otherwise."""
    found = state()
    found["weight"] = found["weight"].reshape(5, 6)
    assert answers(found) != TRUSTED


def test_a_tensor_of_another_type() -> None:
    """The same bytes are other numbers."""
    found = state()
    found["weight"] = found["weight"].view(torch.float8_e5m2)
    assert answers(found) != TRUSTED


def test_a_missing_tensor() -> None:
    found = state()
    del found["weight_scale"]
    assert answers(found) != TRUSTED


def test_an_extra_tensor() -> None:
    """Such as an adapter, also one whose bytes are zero."""
    assert answers(state() | {"lora_a_stacked.0": torch.zeros(2)}) != TRUSTED


def test_an_empty_tensor_that_is_not_there() -> None:
    """It has no bytes, and is listed."""
    assert answers(state() | {"qzeros": torch.empty(0)}) != TRUSTED


def test_a_tensor_that_moved_to_another_rank() -> None:
    """Two ranks have the same bytes in the same order."""
    first, second = {"a": noise(3), "b": noise(4)}, {"c": noise(5)}
    moved = [{"a": first["a"]}, {"b": first["b"], **second}]
    assert answers([first, second]) != answers(moved)


def test_where_experts_are() -> None:
    """VLLM's map of them is no weight, and says which one computes."""
    found = {"experts.w13_weight": noise(2, 3)}
    there, elsewhere = ({"experts._expert_map": torch.tensor(each)} for each in ([0, 1], [1, 0]))
    assert answers(found | there) != answers(found | elsewhere)


def test_what_follows_from_the_configuration_is_left_out() -> None:
    """Its size follows the longest length, which a node may choose."""
    assert answers(state() | {"inv_freq": torch.ones(8)}) == TRUSTED


def test_a_freed_weight_is_refused_with_the_cause() -> None:
    """What oneDNN packs on a CPU is in no tensor."""
    with pytest.raises(
        EngineError, match=r"'weight' is empty: the engine has packed this weight .* \(oneDNN\)"
    ):
        AsLoaded(state() | {"weight": torch.empty(0)})


def test_a_model_without_zero_points_is_not_freed() -> None:
    """Marlin and AWQ's kernels leave them empty."""
    assert answers(state() | {"qzeros": torch.empty(0, dtype=torch.int32), "g_idx": torch.empty(0)})


def test_what_is_no_plain_tensor_is_refused() -> None:
    with pytest.raises(EngineError, match="'weight' is not a plain tensor"):
        AsLoaded(state() | {"weight": torch.eye(3).to_sparse()})


def test_a_module_without_bytes_is_refused() -> None:
    """A walk over the listing alone would show nothing."""
    with pytest.raises(EngineError, match="no tensor with any bytes"):
        AsLoaded({"qzeros": torch.empty(0)})


names = st.text(max_size=6)
shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
listings: st.SearchStrategy[Mapping[str, tuple[int, ...]]] = st.dictionaries(
    names, shapes, min_size=1, max_size=4
)


@given(listings, listings)
def test_two_listings_are_alike_only_if_they_are_equal(
    first: Mapping[str, tuple[int, ...]], second: Mapping[str, tuple[int, ...]]
) -> None:
    """Whatever is in a name, no other names and shapes have the same listing."""

    def listed(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
        walked = list(AsLoaded({name: torch.zeros(shape) for name, shape in shapes.items()}))
        return b"".join(chunk.tobytes() for chunk in walked[0].chunks())

    assert (listed(first) == listed(second)) == (dict(first) == dict(second))


# Both ends.


async def over_loopback(tensors: Any, as_loaded: set[str]) -> Any:
    hosted = HostedEngine(lambda: DESCRIPTION, {MODEL: tensors}, Walker(backend="numpy"))
    async with serving(hosted.app(SECRET)) as url, aiohttp.ClientSession() as http:
        return await LoopbackEngine(http, url, SECRET, as_loaded).walk(MODEL, CHALLENGE)


async def test_a_hosted_engine_says_that_it_walks_as_loaded() -> None:
    """The evidence has it from the engine's own process."""
    found = await over_loopback(lambda: AsLoaded(state()), {MODEL})
    assert found.source == "loaded"
    assert list(found.answers) == TRUSTED


async def test_an_engine_that_walks_as_loaded_and_a_home_that_does_not() -> None:
    """The operator learns it before a verifier does."""
    with pytest.raises(
        EngineError, match=r"walks org/m as loaded, and .* walk in attester.toml is published"
    ):
        await over_loopback(lambda: AsLoaded(state()), set())


async def test_a_home_that_walks_as_loaded_and_an_engine_that_does_not() -> None:
    loaded = {"a": noise(3)}
    infos, _ = publish(loaded)
    with pytest.raises(
        EngineError, match=r"walks org/m as published, and .* walk in attester.toml is as-loaded"
    ):
        await over_loopback(lambda: LiveTensors(infos, [loaded]), {MODEL})


@pytest.mark.parametrize("adapter", ["files", "llama.cpp"])
def test_an_adapter_that_walks_files_cannot_walk_as_loaded(adapter: str) -> None:
    given = {
        "verifier": {"url": "https://v.example"},
        "models": {MODEL: {"dir": "/m", "walk": "as-loaded"}},
        "serve": {"url": "https://n.example"},
        "engine": {"adapter": adapter},
    }
    with pytest.raises(msgspec.ValidationError, match="walks files, so no model can have walk = as-loaded"):
        msgspec.convert(given, AttesterConfig)
