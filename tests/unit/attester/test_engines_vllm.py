"""vLLM, asked over its development endpoints: a server of the same form, and our part of its worker."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from attester.engines import vllm as vllm_module
from attester.engines import vllm_worker
from attester.engines.as_loaded import AsLoaded
from attester.engines.budget import Budget
from attester.engines.module_state import state_of
from attester.engines.vllm import EXTENSION, PROTOCOL, VllmEngine
from attester.engines.vllm_worker import WalkExtension
from attester.engines.walker import Walker
from attester.errors import EngineError, WeightsError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles

torch = pytest.importorskip("torch", reason="torch is not installed")

MODEL = "org/m"
CHALLENGE = WalkChallenge("56" * 32, rows=5, passes=2)
LAYER = "model.layers.0.self_attn"


def published() -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(5)
    shapes = {
        f"{LAYER}.q_proj.weight": (64, 32),
        f"{LAYER}.k_proj.weight": (16, 32),
        f"{LAYER}.v_proj.weight": (16, 32),
        "model.embed_tokens.weight": (100, 32),
        "model.norm.weight": (32,),
    }
    return {n: torch.randn(s, generator=drawn, dtype=torch.bfloat16) for n, s in shapes.items()}


def loaded() -> Any:
    """The model as vLLM loads it: fused, its vocabulary padded, its head tied."""
    whole = published()
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.embed_tokens = torch.nn.Embedding(128, 32, dtype=torch.bfloat16)
    model.model.norm = torch.nn.RMSNorm(32, dtype=torch.bfloat16)
    layer = torch.nn.Module()
    layer.self_attn = torch.nn.Module()
    layer.self_attn.qkv_proj = torch.nn.Linear(32, 96, bias=False, dtype=torch.bfloat16)
    model.model.layers = torch.nn.ModuleList([layer])
    model.lm_head = model.model.embed_tokens
    with torch.no_grad():
        parts = [whole[f"{LAYER}.{part}_proj.weight"] for part in "qkv"]
        layer.self_attn.qkv_proj.weight.copy_(torch.cat(parts))
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:100] = whole["model.embed_tokens.weight"]
        model.model.norm.weight.copy_(whole["model.norm.weight"])
    return model


class Worker(WalkExtension):
    """What vLLM's worker has that the extension uses."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.device = torch.device("cpu")
        self.model = loaded()
        config = SimpleNamespace(
            dtype=torch.bfloat16,
            quantization=None,
            trust_remote_code=False,
            revision="main",
            max_model_len=2048,
            enforce_eager=True,
        )
        parallel = SimpleNamespace(
            world_size=size, tensor_parallel_size=size, data_parallel_size=1, prefill_context_parallel_size=1
        )
        self.vllm_config = SimpleNamespace(model_config=config, parallel_config=parallel)
        self._weight_update_active = False
        self.done: list[str] = []

    def get_model(self) -> Any:
        return self.model

    def sleep(self, level: int = 1) -> None:
        self.done.append("sleep")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.done.append("wake_up")

    def update_weights(self, update_info: object) -> str:
        self.done.append("update_weights")
        return "updated"

    def qkv(self) -> Any:
        return self.model.state_dict()[f"{LAYER}.qkv_proj.weight"]


class Server:
    """
    The endpoints, as vLLM 0.32 has them; *answers* stand for what its workers would say.

    Its executor puts each worker's answer into a queue of the worker's own, and stops reading at the first failure.
    """

    def __init__(self, *workers: object) -> None:
        self.workers = list(workers)
        self.version: object = {"version": "0.11.0"}
        self.models: object = {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 2048}],
        }
        self.info: object = {
            "vllm_config": {
                "parallel_config": {"worker_extension_cls": EXTENSION, "world_size": len(workers)}
            }
        }
        self.is_sleeping = False
        self.unread: list[deque[Any]] = [deque() for _ in workers]
        self.answers: dict[str, Any] = {}
        self.called: list[tuple[str, dict[str, Any]]] = []

    def app(self) -> web.Application:
        async def version(_: web.Request) -> web.Response:
            return web.json_response(self.version)

        async def models(_: web.Request) -> web.Response:
            return web.json_response(self.models)

        async def info(request: web.Request) -> web.Response:
            assert request.query == {"config_format": "json"}
            return web.json_response(self.info)

        async def sleeping(_: web.Request) -> web.Response:
            return web.json_response({"is_sleeping": self.is_sleeping})

        app = web.Application()
        app.router.add_get("/version", version)
        app.router.add_get("/v1/models", models)
        app.router.add_get("/server_info", info)
        app.router.add_get("/is_sleeping", sleeping)
        app.router.add_post("/collective_rpc", self._call)
        return app

    async def _call(self, request: web.Request) -> web.Response:
        body = await request.json()
        method, kwargs = body["method"], body.get("kwargs", {})
        assert "timeout" not in body
        self.called.append((method, {name: value for name, value in kwargs.items() if name != "call"}))
        if method in self.answers:
            return web.json_response(self._said(self.answers[method], kwargs))
        for worker, queue in zip(self.workers, self.unread, strict=True):
            try:
                queue.append((True, getattr(worker, method)(**kwargs)))
            except Exception as error:  # noqa: BLE001
                # As vLLM's worker loop does.
                queue.append((False, error))
        results = []
        for queue in self.unread:
            is_right, result = queue.popleft()
            if not is_right:
                raise web.HTTPInternalServerError(text=repr(result))
            results.append(result)
        # What is neither null nor a list nor an object goes out as text.
        plain = [r if r is None or isinstance(r, dict | list) else str(r) for r in results]
        return web.json_response({"results": plain})

    def _said(self, answer: Any, kwargs: dict[str, Any]) -> Any:
        """A prepared answer, with what every method of the extension adds."""
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list):
            return answer
        base = {"call": kwargs["call"], "rank": 0}
        return {"results": [base | each if isinstance(each, dict) else each for each in results]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(published(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def server(worker: Worker) -> Server:
    return Server(worker)


@asynccontextmanager
async def asking(server: Server, folder: Path, as_loaded: tuple[str, ...] = ()) -> AsyncIterator[VllmEngine]:
    async with TestServer(server.app()) as running, aiohttp.ClientSession() as http:
        yield VllmEngine(http, f"http://127.0.0.1:{running.port}", {MODEL: folder}, as_loaded=as_loaded)


@pytest.fixture
async def engine(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VllmEngine]:
    monkeypatch.setattr(vllm_module, "_POLL_INTERVAL_S", 0.001)
    async with asking(server, folder) as engine:
        yield engine


def expected(folder: Path, challenge: WalkChallenge = CHALLENGE) -> list[bytes]:
    words = [row_words(bytes.fromhex(challenge.seed), row) for row in range(challenge.rows)]
    return possession.walk(TensorFiles(open_folder(folder)), words, challenge.passes, kernel("numpy"))


async def test_vllm_is_described(engine, server):
    """By the server, by its models, and by what our extension finds in its worker."""
    server.models["data"].append({"id": "adapter", "max_model_len": 1024})
    server.models["data"].append({"id": "unknown", "max_model_len": None})
    said = await engine.describe()
    assert (said.engine, said.version, said.context_length) == ("vllm", "0.11.0", 1024)
    assert said.arguments == {
        "dtype": "torch.bfloat16",
        "quantization": None,
        "trust_remote_code": False,
        "revision": "main",
        "max_model_len": 2048,
        "enforce_eager": True,
        "workers": 1,
    }
    assert said.packages["torch"] == torch.__version__
    assert said.packages.keys() <= {"vllm", "torch", "transformers", "triton", "touchstone"}


async def test_where_sampling_defaults_come_from(engine, worker, tmp_path):
    """As vLLM 0.32's `ModelConfig` names it; a folder is told by what is in it, and an override by its digest."""
    config = worker.vllm_config.model_config
    config.generation_config, config.override_generation_config = "auto", {}
    assert (await engine.describe()).arguments["generation_config"] == "auto"
    data = b'{"temperature": 0.6}'
    (tmp_path / "generation_config.json").write_bytes(data)
    config.generation_config, config.override_generation_config = (
        str(tmp_path),
        {"top_k": 4, "temperature": 1.0},
    )
    said = (await engine.describe()).arguments
    override = b'{"temperature": 1.0, "top_k": 4}'
    assert said["generation_config"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert said["override_generation_config"] == f"sha256:{hashlib.sha256(override).hexdigest()}"
    config.generation_config = "/nowhere/\N{SNOWMAN}"
    assert (await engine.describe()).arguments["generation_config"] == "unknown"


async def test_the_live_tensors_are_walked(engine, folder):
    """Fused and padded as they are: the answers of the published files."""
    answer = await engine.walk(MODEL, CHALLENGE)
    assert (answer.source, list(answer.answers)) == ("engine", expected(folder))
    assert answer.device == kernel().name
    assert answer.micros > 0


async def test_what_is_loaded_is_walked_as_it_is(server, worker, folder):
    """Row: engines that hold other bytes than the file: no file is read, and a cast weight is no error."""
    worker.model.to(torch.float16)
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    walked = possession.walk(AsLoaded(state_of(worker.model)), words, CHALLENGE.passes, kernel("numpy"))
    async with asking(server, folder / "nothing", as_loaded=(MODEL,)) as engine:
        await engine.prepare()
        answer = await engine.walk(MODEL, CHALLENGE)
    assert (answer.source, list(answer.answers)) == ("loaded", walked)


async def test_a_freed_weight_is_told_before_a_call_comes(server, worker, folder):
    """Also where it would be walked as it is."""
    worker.model.model.norm.weight.data = torch.empty(0)
    async with asking(server, folder, as_loaded=(MODEL,)) as engine:
        with pytest.raises(EngineError, match=r"'model.norm.weight' is empty: .*oneDNN"):
            await engine.prepare()


async def test_one_walk_follows_another(engine, folder):
    """Each with its own answers."""
    for number in range(1, 4):
        challenge = WalkChallenge(f"{number:02x}" * 32, rows=3 + number, passes=number)
        assert list((await engine.walk(MODEL, challenge)).answers) == expected(folder, challenge)


async def test_one_bit_of_a_live_weight_changes_every_answer(engine, worker, folder):
    """Between two walks of the running engine."""
    before = await engine.walk(MODEL, CHALLENGE)
    worker.qkv().view(torch.int16)[70, 3] ^= 1
    after = await engine.walk(MODEL, CHALLENGE)
    assert list(before.answers) == expected(folder)
    assert not set(after.answers) & set(before.answers)


async def test_everything_is_made_ready_before_a_call(engine, worker, server, folder):
    """Then a walk looks for nothing any more, and not for the files either."""
    assert await engine.prepare() == f"vLLM at {engine._http.url}"
    methods = [method for method, _ in server.called]
    assert [m for m in methods if m != "touchstone_answer"] == [
        "touchstone_leave",
        "touchstone_join",
        "touchstone_check",
    ]
    answers = expected(folder)
    (folder / "model.safetensors").unlink()
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == answers


async def test_a_model_that_does_not_fit_is_told_of_when_making_ready(engine, worker):
    """Before a call comes."""
    worker.model.to(torch.float16)
    with pytest.raises(EngineError, match=r"cannot walk: model\.\S+: loaded as F16, published as BF16"):
        await engine.prepare()


async def test_an_unknown_model_is_refused(engine, server):
    """By name, and vLLM is not even asked."""
    with pytest.raises(WeightsError, match=r"asks about 'org/else'"):
        await engine.walk("org/else", CHALLENGE)
    assert server.called == []


ASKED: dict[str, Callable[[VllmEngine], Any]] = {
    "describe": lambda engine: engine.describe(),
    "prepare": lambda engine: engine.prepare(),
    "walk": lambda engine: engine.walk(MODEL, CHALLENGE),
}


@pytest.mark.parametrize("name", ASKED)
async def test_another_number_of_answers_than_workers_is_refused(server, folder, name):
    """Each worker answers once, or nothing is believed."""
    server.workers.append(Worker())
    server.unread.append(deque())
    async with asking(server, folder) as engine:
        with pytest.raises(EngineError, match=r"^vLLM has 1 workers, and 2 answered touchstone_"):
            await ASKED[name](engine)


@pytest.mark.parametrize("extension", ["", "theirs.Extension"])
@pytest.mark.parametrize("name", ASKED)
async def test_workers_without_the_extension_are_never_called(folder, name, extension):
    """Row: a call that fails on all workers leaves answers unread, and vLLM is off by one until it is restarted."""
    server = Server(object(), object())
    server.info["vllm_config"]["parallel_config"]["worker_extension_cls"] = extension
    async with asking(server, folder) as engine:
        with pytest.raises(
            EngineError, match=r"do not have our extension \S+ Start vLLM with --worker-extension-cls"
        ):
            await ASKED[name](engine)
    assert server.called == []


async def test_an_extension_that_inherits_from_ours_is_known_by_its_name(server, folder):
    """VLLM takes one extension only, so an operator's own has to inherit."""
    server.info["vllm_config"]["parallel_config"]["worker_extension_cls"] = "theirs.WalkExtension"
    async with asking(server, folder) as engine:
        assert (await engine.describe()).engine == "vllm"


@pytest.mark.parametrize("info", [{}, {"vllm_config": "text"}, []], ids=str)
async def test_a_server_that_does_not_say_what_its_workers_are_is_refused(server, folder, info):
    server.info = info
    async with asking(server, folder) as engine:
        with pytest.raises(EngineError, match=r"/server_info\S* is malformed"):
            await engine.prepare()
    assert server.called == []


CALLS: dict[str, dict[str, Any]] = {
    "touchstone_describe": {},
    "touchstone_leave": {},
    "touchstone_join": {"group": "g"},
    "touchstone_check": {"group": "g", "task": "t", "folder": "/nowhere"},
    "touchstone_walk": {"group": "g", "folder": "/nowhere", "seed": "00" * 32, "rows": 4, "passes": 1},
    "touchstone_answer": {"task": "t"},
}


@pytest.mark.parametrize("arguments", [{}, {"unknown": 1}, {"group": [], "folder": 7, "rows": "x"}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_no_method_of_the_extension_raises(worker, name, arguments):
    """Row: whatever it is asked, it returns its error, so vLLM reads every worker's answer."""
    said = getattr(worker, name)(call="c", **arguments)
    assert (said["call"], said["rank"]) == ("c", 0)


@pytest.mark.parametrize("broken", ["vllm_config", "device", "model"])
@pytest.mark.parametrize("name", CALLS)
def test_no_method_raises_in_a_worker_that_is_not_as_we_know_it(worker, name, broken):
    """Another release of vLLM may lack anything."""
    delattr(worker, broken)
    assert getattr(worker, name)(call="c", **CALLS[name])["call"] == "c"


def test_the_methods_are_all_of_them():
    assert {name for name in vars(WalkExtension) if name.startswith("touchstone_")} == CALLS.keys()


async def test_the_answer_of_another_call_is_noticed(folder):
    """Row: if somebody's call has failed on one worker, vLLM's answers are off by one: it must be restarted."""
    workers = [Worker(0, 2), Worker(1, 2)]
    server = Server(*workers)
    # What vLLM keeps when a call of somebody else has failed on the first worker.
    server.unread[1].append((True, {"call": "another", "rank": 1}))
    async with asking(server, folder) as engine:
        with pytest.raises(EngineError, match=r"gives the answer of another call: .* Start vLLM again$"):
            await engine.describe()


async def test_a_failure_on_one_worker_leaves_nothing_unread(folder, monkeypatch):
    """Row: the next call of vLLM's own gets its own answers."""
    workers = [Worker(0, 2), Worker(1, 2)]
    server = Server(*workers)
    monkeypatch.delattr(workers[1], "vllm_config")
    async with asking(server, folder) as engine:
        with pytest.raises(EngineError, match=r"^vLLM's worker 1 cannot walk: AttributeError"):
            await engine.describe()
    assert [list(queue) for queue in server.unread] == [[], []]


@pytest.mark.parametrize("name", ["data_parallel_size", "prefill_context_parallel_size"])
async def test_replicas_in_one_server_are_refused(engine, worker, name):
    """A call reaches only one of them, and the others serve too."""
    setattr(worker.vllm_config.parallel_config, name, 2)
    with pytest.raises(
        EngineError, match=rf"vLLM runs with {name} 2\. Run each replica as a server of its own"
    ):
        await engine.prepare()


async def test_another_release_of_the_extension_is_told_of(engine, worker, monkeypatch):
    monkeypatch.setattr(vllm_worker, "PROTOCOL", PROTOCOL + 1)
    with pytest.raises(EngineError, match=r"Install the same release in both$"):
        await engine.describe()


def test_both_sides_name_the_same_protocol():
    """The adapter does not import what needs the engine."""
    assert vllm_worker.PROTOCOL == PROTOCOL
    assert f"{WalkExtension.__module__}.{WalkExtension.__qualname__}" == EXTENSION


@pytest.mark.parametrize("name", ["prepare", "walk"])
async def test_a_sleeping_engine_is_not_walked(engine, server, name):
    """Row: sleep mode is seen: the weights may not be on the device."""
    server.is_sleeping = True
    with pytest.raises(EngineError, match=r"^vLLM sleeps or is paused, .* Wake it: POST /wake_up"):
        await ASKED[name](engine)
    assert not any(method == "touchstone_walk" for method, _ in server.called)


async def test_a_worker_that_was_put_to_sleep_says_so(engine, worker, folder):
    """Also if the server has not said it yet."""
    await engine.prepare()
    worker.sleep(level=1)
    with pytest.raises(EngineError, match=r"the engine sleeps, so its weights are not on the device"):
        await engine.walk(MODEL, CHALLENGE)
    worker.wake_up(tags=["kv_cache"])
    with pytest.raises(EngineError, match=r"the engine sleeps"):
        await engine.walk(MODEL, CHALLENGE)
    worker.wake_up(["weights"])
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == expected(folder)


async def test_weights_that_are_being_updated_are_not_walked(engine, worker, folder):
    """Row: weight updates are seen: half of the weights may be new."""
    await engine.prepare()
    worker._weight_update_active = True
    with pytest.raises(EngineError, match=r"weights are being updated: start_weight_update was called"):
        await engine.walk(MODEL, CHALLENGE)
    worker._weight_update_active = False
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == expected(folder)


@pytest.mark.parametrize(
    "change", [lambda w: w.sleep(), lambda w: w.update_weights({})], ids=["sleep", "update_weights"]
)
def test_a_walk_ends_before_weights_are_freed_or_replaced(worker, folder, monkeypatch, change):
    """On a GPU, a walk over memory that was given back would end the engine."""
    reads, go = threading.Event(), threading.Event()
    read = vllm_worker.LiveTensors.__iter__

    def slowly(self: Any) -> Any:
        for tensor in read(self):
            reads.set()
            yield tensor
            assert go.wait(10)

    monkeypatch.setattr(vllm_worker.LiveTensors, "__iter__", slowly)
    join(worker)
    started = worker.touchstone_walk(group="g", folder=str(folder), seed=CHALLENGE.seed, rows=4, passes=1)
    assert "error" not in started
    assert reads.wait(10)
    changing = threading.Thread(target=change, args=(worker,))
    changing.start()
    time.sleep(0.01)
    assert worker.done == []
    go.set()
    changing.join(10)
    assert len(worker.done) == 1
    answer = worker.touchstone_answer(task=CHALLENGE.seed)
    assert answer["error"].startswith("the walk was ended: the engine goes to sleep")


def test_what_changes_weights_returns_as_before(worker):
    """The engine's own methods are only made to wait."""
    join(worker)
    assert worker.update_weights({}) == "updated"


async def test_an_engine_that_was_started_again_is_joined_again(engine, server, folder):
    """Its new workers know nothing of us."""
    await engine.prepare()
    server.workers[:] = [Worker()]
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == expected(folder)


async def test_a_workers_error_reaches_the_operator(engine, worker):
    """The sentence of whatever in the worker cannot walk."""
    worker.model.to(torch.float16)
    with pytest.raises(
        EngineError, match=r"^vLLM's worker cannot walk: model\.\S+: loaded as F16, published as BF16"
    ):
        await engine.walk(MODEL, CHALLENGE)


async def test_an_error_of_the_device_reaches_the_operator(engine, worker, monkeypatch):
    """Out of memory, as torch has it, cut to a length."""

    def fail() -> Any:
        raise RuntimeError("out of memory " + "x" * 1000)

    monkeypatch.setattr(worker, "get_model", fail)
    with pytest.raises(EngineError, match=r"^vLLM's worker cannot walk: out of memory x{236}$"):
        await engine.walk(MODEL, CHALLENGE)


async def test_files_that_are_gone_reach_the_operator(engine, folder):
    """The worker needs their headers."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"cannot walk: .* has no files"):
        await engine.walk(MODEL, CHALLENGE)


async def test_a_walk_after_one_that_failed_is_answered(engine, worker, folder, monkeypatch):
    """What failed is not kept."""
    with monkeypatch.context() as patched:
        patched.setattr(worker, "get_model", lambda: loaded().to(torch.float16))
        with pytest.raises(EngineError):
            await engine.walk(MODEL, CHALLENGE)
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == expected(folder)


WALKED = {"answers": ["ab" * 32] * CHALLENGE.rows, "device": "cpu", "micros": 7}

GARBAGE: dict[str, object] = {
    "text": "done",
    "a list": [],
    "an empty object": {},
    "a field more": WALKED | {"rows": 5},
    "no device": {"answers": WALKED["answers"], "micros": 7},
    "a row less": WALKED | {"answers": WALKED["answers"][1:]},
    "a row more": WALKED | {"answers": [*WALKED["answers"], "ab" * 32]},
    "a short answer": WALKED | {"answers": [*WALKED["answers"][1:], "ab" * 31]},
    "not hex": WALKED | {"answers": [*WALKED["answers"][1:], "xy" * 32]},
    "time that runs back": WALKED | {"micros": -1},
    "time in words": WALKED | {"micros": "7"},
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_a_garbage_answer_is_refused(engine, server, name):
    """It would not become evidence, and the operator is told."""
    server.answers["touchstone_answer"] = {"results": [GARBAGE[name]]}
    with pytest.raises(EngineError, match=r"malformed|instead of 5"):
        await engine.walk(MODEL, CHALLENGE)


async def test_an_answer_of_the_right_form_is_taken(engine, server):
    """What the garbage differs from."""
    server.answers["touchstone_answer"] = {"results": [WALKED]}
    assert (await engine.walk(MODEL, CHALLENGE)).answers == (b"\xab" * 32,) * 5


@pytest.mark.parametrize("answer", [{}, [], {"results": None}, {"results": {"0": None}}, "text"], ids=str)
@pytest.mark.parametrize("method", ["touchstone_walk", "touchstone_answer"])
async def test_a_call_that_is_answered_with_garbage_is_refused(engine, server, method, answer):
    """Where not even the form of the endpoint is kept."""
    server.answers[method] = answer
    with pytest.raises(EngineError, match=r"/collective_rpc is malformed"):
        await engine.walk(MODEL, CHALLENGE)


async def test_a_call_that_no_worker_answers_is_refused(engine, server):
    """None is as wrong as two."""
    server.answers["touchstone_walk"] = {"results": []}
    with pytest.raises(EngineError, match=r"^vLLM has 1 workers, and 0 answered"):
        await engine.walk(MODEL, CHALLENGE)


DESCRIBED = {"protocol": PROTOCOL, "packages": {"vllm": "0.11.0"}, "arguments": {"dtype": "auto"}}

WRONG_WORDS: dict[str, Callable[[Server], object]] = {
    "no version": lambda server: setattr(server, "version", {}),
    "an empty version": lambda server: setattr(server, "version", {"version": ""}),
    "a version in two lines": lambda server: setattr(server, "version", {"version": "0\n1"}),
    "no models": lambda server: setattr(server, "models", {"object": "list"}),
    "a length in words": lambda server: setattr(
        server, "models", {"data": [{"id": "m", "max_model_len": "2k"}]}
    ),
    "a length beyond all": lambda server: setattr(
        server, "models", {"data": [{"id": "m", "max_model_len": 1 << 41}]}
    ),
    "an empty package": lambda server: server.answers.update(
        touchstone_describe={"results": [DESCRIBED | {"packages": {"vllm": ""}}]}
    ),
    "an argument in two lines": lambda server: server.answers.update(
        touchstone_describe={"results": [DESCRIBED | {"arguments": {"dtype": "a\nb"}}]}
    ),
}


@pytest.mark.parametrize("name", WRONG_WORDS)
async def test_a_description_that_is_none_is_refused(engine, server, name):
    """The operator is told that the engine is wrong."""
    server.answers["touchstone_describe"] = {"results": [DESCRIBED]}
    await engine.describe()
    WRONG_WORDS[name](server)
    with pytest.raises(EngineError, match=r"malformed"):
        await engine.describe()


async def test_a_walk_beyond_its_budget_is_ended_in_the_worker(engine, worker, clock):
    """By the cap on one walk, which is there without being told; vLLM's operator has the sentence."""
    ticking = Budget(clock=lambda: clock.forward(20) or clock.ticks)
    worker._touchstone_part().walker = Walker("cpu", ticking)
    with pytest.raises(EngineError, match=r"^vLLM's worker cannot walk: the walk exceeds its limit of 60 s$"):
        await engine.walk(MODEL, CHALLENGE)


async def test_a_worker_has_the_default_caps(engine, worker):
    """Its walker is its own, and is kept: what walks cost is counted over all of them."""
    await engine.prepare()
    walker = worker._touchstone_part().walker
    assert (walker._budget._walk_s, walker._budget._hour_s) == (60, 600)
    await engine.walk(MODEL, CHALLENGE)
    assert walker._budget.spent_s > 0


async def test_a_walk_that_never_ends_is_given_up(engine, server, monkeypatch):
    """The attester does not wait for ever, whatever the worker does."""
    monkeypatch.setattr(vllm_module, "_WALK_TIMEOUT_S", 0.02)
    await engine.prepare()
    server.answers["touchstone_answer"] = {"results": [{"ended": False}]}
    server.called.clear()
    with pytest.raises(EngineError, match=r"^vLLM's worker did not answer within"):
        await engine.walk(MODEL, CHALLENGE)
    assert server.called[0][0] == "touchstone_walk"
    assert {method for method, _ in server.called[1:]} <= {"touchstone_answer"}


def join(worker: Worker) -> None:
    """What the adapter does before the first walk."""
    assert "error" not in worker.touchstone_join(group="g")
    until(lambda: worker.touchstone_answer(task="g"))


def until(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What comes, when it comes."""
    deadline = time.monotonic() + 30
    while not (said := ask())["ended"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return said


def start(worker: Worker, folder: Path, seed: str = CHALLENGE.seed) -> dict[str, Any]:
    return worker.touchstone_walk(group="g", folder=str(folder), seed=seed, rows=5, passes=2)


def test_a_worker_serves_while_it_walks(worker, folder, monkeypatch):
    """The call returns at once, and the answer is there once; a second walk has to wait for the first."""
    go, model = threading.Event(), worker.get_model()

    def wait() -> Any:
        assert go.wait(10)
        return model

    join(worker)
    monkeypatch.setattr(worker, "get_model", wait)
    start(worker, folder)
    assert worker.touchstone_answer(task=CHALLENGE.seed)["ended"] is False
    assert start(worker, folder, "78" * 32)["error"] == "another walk is still running"
    go.set()
    answer = until(lambda: worker.touchstone_answer(task=CHALLENGE.seed))
    assert answer["answers"] == [each.hex() for each in expected(folder)]


def test_an_answer_is_given_for_its_seed_only(worker, folder):
    """Who asks for another has to wait; what nobody fetched is not kept."""
    join(worker)
    start(worker, folder)
    answer = until(lambda: worker.touchstone_answer(task=CHALLENGE.seed))
    start(worker, folder, "78" * 32)
    other = until(lambda: worker.touchstone_answer(task="78" * 32))
    assert worker.touchstone_answer(task=CHALLENGE.seed)["ended"] is False
    assert not set(answer["answers"]) & set(other["answers"])


def test_a_worker_that_has_not_joined_says_so(worker, folder):
    """It begins nothing that the others would wait for."""
    assert start(worker, folder)["unjoined"] is True


def test_the_extension_brings_no_name_that_a_worker_has():
    """VLLM refuses an extension that would hide something of its worker's."""
    brought = {name for name in vars(WalkExtension) if not name.startswith("__")}
    assert all(name.removeprefix("_").startswith("touchstone_") for name in brought)


def test_workers_do_not_share_what_they_have(worker, folder):
    """Answers, walkers and tensors are each worker's own."""
    other = Worker()
    join(worker)
    assert not any("touchstone" in name for name in vars(other))


async def test_a_parameter_that_was_replaced_is_walked(engine, worker, folder):
    await engine.prepare()
    layer = worker.model.model.layers[0].self_attn.qkv_proj
    layer.weight = torch.nn.Parameter(torch.zeros(96, 32, dtype=torch.bfloat16))
    assert not set((await engine.walk(MODEL, CHALLENGE)).answers) & set(expected(folder))


async def test_data_that_was_replaced_is_walked(engine, worker, folder):
    await engine.prepare()
    worker.model.model.norm.weight.data = torch.zeros(32, dtype=torch.bfloat16)
    assert not set((await engine.walk(MODEL, CHALLENGE)).answers) & set(expected(folder))


async def test_an_adapter_added_later_is_refused(engine, worker):
    await engine.prepare()
    worker.model.lora = torch.nn.Linear(3, 3)
    with pytest.raises(EngineError):
        await engine.walk(MODEL, CHALLENGE)


async def test_a_worker_that_describes_itself_wrongly_is_refused(engine, server):
    server.answers["touchstone_describe"] = {"results": [[1]]}
    with pytest.raises(EngineError):  # msgspec.ValidationError
        await engine.describe()


async def test_any_error_of_the_worker_reaches_the_operator(engine, worker, monkeypatch):
    monkeypatch.setattr(vllm_module, "_WALK_TIMEOUT_S", 1)
    monkeypatch.setattr(
        worker, "get_model", lambda: None
    )  # AttributeError: the thread dies, polled for 600 s
    with pytest.raises(EngineError, match="worker cannot walk"):
        await engine.walk(MODEL, CHALLENGE)


async def test_a_worker_that_still_walks_is_waited_for_before_any_joins(folder, monkeypatch):
    """Joining makes the workers wait for each other, and none may wait in vain: they serve in the same loop."""
    monkeypatch.setattr(vllm_module, "_POLL_INTERVAL_S", 0.001)
    go, worker = threading.Event(), Worker()
    join(worker)
    monkeypatch.setattr(worker, "get_model", lambda: go.wait(10) and worker.model)
    start(worker, folder)
    server = Server(worker)
    async with asking(server, folder) as engine:
        preparing = asyncio.create_task(engine.prepare())
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert {method for method, _ in server.called} == {"touchstone_leave"}
        go.set()
        await preparing


def test_a_walk_whose_result_is_there_holds_up_no_other(worker, folder):
    """Its thread may need a moment more, and the other workers have begun."""
    join(worker)
    part = worker._touchstone_part()
    part.task, part.ended = threading.Thread(target=time.sleep, args=(0.05,)), {"before": {}}
    part.task.start()
    assert "error" not in start(worker, folder)
    assert until(lambda: worker.touchstone_answer(task=CHALLENGE.seed))["answers"]
