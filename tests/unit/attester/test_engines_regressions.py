"""What once slipped through the adapters: each of these was accepted, or ended as another error."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from attester.engines.files import FileWalker
from attester.engines.host import HostedEngine, serve_in_thread
from attester.engines.http import EngineHttp
from attester.engines.llamacpp import LlamaCppEngine
from attester.engines.walker import Walker
from attester.errors import EngineError
from tests.unit.attester import test_agent as agents

torch = pytest.importorskip("torch", reason="torch is not installed")

from attester.engines.live import LiveTensors  # noqa: E402
from tests.unit.attester.test_engines_live import by_rows, noise, publish  # noqa: E402


def test_a_replica_that_differs_on_another_rank_is_seen():
    w = noise(6, 4)
    infos, _ = publish({"w": w})
    with pytest.raises(EngineError):
        [list(t.chunks()) for t in LiveTensors(infos, [{"w": w}, {"w": w + 1}])]


def test_an_adapter_on_another_rank_is_refused():
    w = noise(6, 4)
    infos, _ = publish({"w": w})
    a, b = by_rows(w, 2)
    with pytest.raises(EngineError):
        LiveTensors(infos, [{"w": a}, {"w": b, "lora": noise(3)}])


def test_a_rank_that_lacks_a_tensor_is_refused():
    w = noise(6, 4)
    infos, _ = publish({"w": w})
    with pytest.raises(EngineError):  # KeyError
        LiveTensors(infos, [{"w": w[:3]}, {}])


def test_ranks_of_other_columns_are_refused():
    w = noise(6, 4)
    infos, _ = publish({"w": w})
    with pytest.raises(EngineError):  # RuntimeError of torch.cat
        LiveTensors(infos, [{"w": w[:3]}, {"w": w[3:, :2]}])


def test_another_type_on_another_rank_is_refused():
    w = noise(6, 4)
    infos, _ = publish({"w": w})
    with pytest.raises(EngineError):  # torch.cat promotes int32 to float32, silently
        LiveTensors(infos, [{"w": w[:3]}, {"w": w[3:].view(torch.int32)}])


def test_a_norm_is_not_padded():
    infos, _ = publish({"norm.weight": noise(4)})
    with pytest.raises(EngineError):
        LiveTensors(infos, [{"norm.weight": noise(9)}])


def test_a_larger_tensor_of_the_same_storage_is_refused():
    whole = noise(10, 4)
    infos, _ = publish({"w": whole[:6]})
    with pytest.raises(EngineError):
        LiveTensors(infos, [{"w": whole[:6], "extra": whole}])


@pytest.mark.parametrize("odd", ["conj", "sparse", "none"])
def test_tensors_of_an_odd_kind_are_refused(odd):
    w = noise(6, 4)
    infos, _ = publish({"w": torch.complex(w, w) if odd == "conj" else w})
    state = {
        "conj": {"w": torch.complex(w, w).conj()},
        "sparse": {"w": w.to_sparse()},
        "none": {"w": w, "_extra_state": None},
    }[odd]
    with pytest.raises(EngineError):  # RuntimeError, RuntimeError, AttributeError
        [list(t.chunks()) for t in LiveTensors(infos, [state])]


async def test_llama_cpp_with_a_nul_in_its_path(tmp_path):
    app = web.Application()

    async def props(_):
        return web.json_response({"build_info": "b1", "model_path": "a\0b"})

    app.router.add_get("/props", props)
    async with TestServer(app) as s, aiohttp.ClientSession() as http:
        engine = EngineHttp(http, f"http://127.0.0.1:{s.port}")
        with pytest.raises(EngineError):  # ValueError: embedded null byte
            await LlamaCppEngine(engine, {"m": tmp_path}, FileWalker({}, Walker())).describe()


def test_a_port_that_is_none_is_told_of():
    with pytest.raises((OSError, OverflowError, ValueError)):  # returns a dead thread
        serve_in_thread(HostedEngine(lambda: None, {}, Walker(backend="numpy")), "s", port=99999)


async def test_a_surprise_while_making_ready_does_not_end_the_agent():
    client, collector = agents.Client([agents.session("1")]), agents.Collector()
    collector.unready = ZeroDivisionError("surprise")
    await agents.run(agents.make(client, collector))
    assert client.names("evidence") == ["1"]
