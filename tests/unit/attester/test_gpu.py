"""What a node says of its devices: quiet without a driver, bounded with one, and runs that can be repeated."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from attester.config import Home
from attester.errors import EngineError
from attester.evidence import Benchmark, Inventory, Measure
from attester.gpu import benchmark
from attester.gpu.benchmark import CODE, MILLITOKENS, Shape, Size, format_measure, plot, run, shape_of
from attester.gpu.inventory import conditions, inventory
from attester.kinds import read_submod, write_submod
from fixtures.simulator import MODEL
from tests.integration.test_cli import touchstone
from touchstone import main

TINY = Size(matrix=32, copy_bytes=4096, layers=1, batches=(1, 3))
SHAPE = Shape((((16, 8), (8, 16)),) * 4)


class NVMLError(Exception):
    """What the library raises, also for what a card does not have."""


def refuse(*_: object) -> Any:
    raise NVMLError


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """A library in place of NVIDIA's, for a machine of so many equal cards."""

    def install(count: int = 1, **calls: Any) -> types.ModuleType:
        fake = types.ModuleType("pynvml")
        fake.__spec__ = importlib.machinery.ModuleSpec("pynvml", None)
        known: dict[str, Any] = {
            "NVMLError": NVMLError,
            "NVML_CLOCK_SM": 1,
            "NVML_CLOCK_MEM": 2,
            "NVML_TEMPERATURE_GPU": 0,
            "running": 0,
            "nvmlDeviceGetCount": lambda: count,
            "nvmlSystemGetDriverVersion": lambda: "570.1",
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetName": lambda _: "X1",
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=1 << 36),
            "nvmlDeviceGetEccMode": lambda _: [1, 0],
            "nvmlDeviceGetMigMode": lambda _: [0, 1],
            "nvmlDeviceGetSerial": lambda _: "165",
            "nvmlDeviceGetPciInfo": lambda _: SimpleNamespace(busId="00000000:65:00.0"),
            "nvmlDeviceGetVbiosVersion": lambda _: "96.00",
            "nvmlSystemGetConfComputeState": lambda: SimpleNamespace(ccFeature=1, devToolsMode=0),
            "nvmlDeviceGetClockInfo": lambda _, which: 1000 * which,
            "nvmlDeviceGetTemperature": lambda _, which: 41,
            "nvmlDeviceGetPowerUsage": lambda _: 70_000,
            **calls,
        }
        for name, value in known.items():
            setattr(fake, name, value)

        def start() -> None:
            fake.running += 1  # type: ignore[attr-defined]

        def stop() -> None:
            fake.running -= 1  # type: ignore[attr-defined]

        fake.nvmlInit = calls.get("nvmlInit", start)  # type: ignore[attr-defined]
        fake.nvmlShutdown = stop  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


WHOLE = Inventory(
    model="X1",
    uuid="GPU-0",
    memory_bytes=1 << 36,
    serial="165",
    pci="00000000:65:00.0",
    driver="570.1",
    vbios="96.00",
    ecc=True,
    mig=False,
    confidential="on",
)


def test_without_a_driver_there_is_nothing_and_no_noise(driver, capfd: pytest.CaptureFixture[str]) -> None:
    """No card is no error."""
    driver(nvmlInit=refuse)
    assert (inventory(), conditions(0)) == ((), {})
    assert capfd.readouterr() == ("", "")


def test_without_the_library_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra that a node may do without."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (inventory(), conditions(0)) == ((), {})


def test_the_library_itself_is_quiet_where_there_is_no_card(capfd: pytest.CaptureFixture[str]) -> None:
    """The real one, on whatever machine this is; where there are cards, each has its own name."""
    found = inventory()
    assert len({device.uuid for device in found}) == len(found)
    assert (conditions(0) != {}) == bool(found)
    assert capfd.readouterr() == ("", "")


def test_a_card_is_named_in_full(driver) -> None:
    """Each value where the driver has it, and the library is closed again."""
    fake = driver()
    assert inventory() == (WHOLE,)
    assert fake.running == 0


def test_several_cards_are_in_the_drivers_order(driver) -> None:
    """Their place is N of gpu/N."""
    driver(4)
    assert [device.uuid for device in inventory()] == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]


OPTIONAL = {
    "nvmlDeviceGetSerial": "serial",
    "nvmlDeviceGetPciInfo": "pci",
    "nvmlSystemGetDriverVersion": "driver",
    "nvmlDeviceGetVbiosVersion": "vbios",
    "nvmlDeviceGetEccMode": "ecc",
    "nvmlDeviceGetMigMode": "mig",
    "nvmlSystemGetConfComputeState": "confidential",
}


@pytest.mark.parametrize("call", OPTIONAL)
def test_what_a_card_does_not_have_is_left_out(driver, call: str) -> None:
    """That value alone; all else stays."""
    driver(**{call: refuse})
    assert inventory() == (msgspec.structs.replace(WHOLE, **{OPTIONAL[call]: None}),)


@pytest.mark.parametrize("call", sorted({*OPTIONAL} - {"nvmlSystemGetDriverVersion"}))
def test_a_library_that_is_too_old_for_a_call_is_no_error(driver, call: str) -> None:
    """It is as if the card did not have it."""
    fake = driver()
    delattr(fake, call)
    assert inventory() == (msgspec.structs.replace(WHOLE, **{OPTIONAL[call]: None}),)


@pytest.mark.parametrize(
    "call",
    ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"],
)
def test_a_card_that_cannot_be_named_is_left_out(driver, call: str) -> None:
    """One that is broken does not hide the others."""
    fake = driver(3)
    works = getattr(fake, call)
    setattr(fake, call, lambda at: refuse() if at == 1 else works(at))
    assert [device.uuid for device in inventory()] == ["GPU-0", "GPU-2"]
    assert fake.running == 0


def test_cards_that_cannot_be_counted_are_none(driver) -> None:
    """Quiet here too."""
    driver(nvmlDeviceGetCount=refuse)
    assert inventory() == ()


@pytest.mark.parametrize(
    ("feature", "tools", "mode"), [(1, 0, "on"), (0, 0, "off"), (1, 1, "devtools"), (0, 1, "devtools")]
)
def test_the_confidential_mode(driver, feature: int, tools: int, mode: str) -> None:
    """Developer tools see everything, whatever the feature says."""
    state = SimpleNamespace(ccFeature=feature, devToolsMode=tools)
    driver(nvmlSystemGetConfComputeState=lambda: state)
    assert inventory()[0].confidential == mode


@pytest.mark.parametrize("name", ["UUID", "Name"])
def test_a_device_without_a_name_of_its_own_is_left_out(driver, name: str) -> None:
    """Cards that all call themselves nothing must not be taken for one."""
    driver(**{f"nvmlDeviceGet{name}": lambda _: ""})
    assert inventory() == ()


@pytest.mark.parametrize(
    "text", ["Grüße\n", "\x1b[31mred", "x" * 500, b"caf\xc3\xa9", b"\x00\xff", "Ж" * 200]
)
def test_what_the_driver_says_fits_evidence(driver, text: str | bytes) -> None:
    """Printable ASCII of bounded length, whatever it answers; evidence takes it and gives it back."""
    texts = ("Name", "UUID", "Serial", "VbiosVersion")
    driver(
        **{f"nvmlDeviceGet{name}": lambda _: text for name in texts},
        nvmlSystemGetDriverVersion=lambda: text,
        nvmlDeviceGetPciInfo=lambda _: SimpleNamespace(busId=text),
    )
    (found,) = inventory()
    for value in (found.model, found.uuid, found.serial, found.driver, found.vbios, found.pci):
        assert value is not None
        assert len(value) <= 128
        assert all(" " <= c <= "~" for c in value)
    raw = write_submod({"inventory": found})
    assert read_submod("gpu/0", raw) == {"inventory": found}


def test_conditions_are_those_that_the_driver_tells(driver) -> None:
    """A value that is refused or impossible is left out."""
    driver()
    assert conditions(0) == {
        "clock-sm-mhz": 1000,
        "clock-memory-mhz": 2000,
        "temperature-c": 41,
        "power-mw": 70_000,
    }
    driver(nvmlDeviceGetPowerUsage=refuse, nvmlDeviceGetTemperature=lambda _, which: -1)
    assert conditions(0) == {"clock-sm-mhz": 1000, "clock-memory-mhz": 2000}
    fake = driver(nvmlDeviceGetHandleByIndex=refuse)
    assert conditions(7) == {}
    assert fake.running == 0


class Ticking:
    """A clock on which each look takes the next of these seconds, over and over."""

    def __init__(self, *steps: float) -> None:
        self._steps = steps
        self._looks = 0
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._steps[self._looks % len(self._steps)]
        self._looks += 1
        return self._now


@pytest.fixture
def tiny_run() -> Benchmark:
    """A run that takes a five-hundredth of a second a round by its clock."""
    pytest.importorskip("torch")
    return run("cpu", size=TINY, shape=SHAPE, repeats=5, now=lambda: 1234.9, clock=Ticking(1 / 512))


UNITS = {
    "matmul-bf16": "flop/s",
    "matmul-fp16": "flop/s",
    "matmul-fp32": "flop/s",
    "matmul-int8": "op/s",
    "memory-copy": "bytes/s",
    "decode-1": MILLITOKENS,
    "decode-3": MILLITOKENS,
}


def test_a_run_has_every_measure_in_its_unit(tiny_run: Benchmark) -> None:
    """With how often it was measured, when, by what, and on which device."""
    assert {measure.name: measure.unit for measure in tiny_run.measures} == UNITS
    assert len(tiny_run.measures) == len(UNITS)
    assert {(measure.repeats, measure.warm_up) for measure in tiny_run.measures} == {(5, 3)}
    assert tiny_run.at == 1234
    assert tiny_run.code == CODE
    assert {"torch", "touchstone"} <= tiny_run.versions.keys()
    assert tiny_run.device.startswith("cpu, ")
    assert tiny_run.conditions == {}


def test_rates_are_the_work_by_the_clock(tiny_run: Benchmark) -> None:
    """Two rounds fill the least time, so each repeat does twice the work in a tick."""
    found = {measure.name: measure.median for measure in tiny_run.measures}
    products = 2 * 2 * 32**3 * 512
    assert found == {
        **dict.fromkeys(("matmul-bf16", "matmul-fp16", "matmul-fp32", "matmul-int8"), products),
        "memory-copy": 2 * 2 * 4096 * 512,
        # One layer of four, in thousandths.
        "decode-1": 2 * 1000 * 512 // 4,
        "decode-3": 2 * 3 * 1000 * 512 // 4,
    }
    assert {measure.spread for measure in tiny_run.measures} == {0}


def test_the_median_and_the_spread_between_the_quartiles() -> None:
    """One slow repeat moves neither far; without any variation there is no spread."""
    pytest.importorskip("torch")
    size = Size(matrix=32, copy_bytes=1000, layers=1, batches=(1,))
    # Start and end of the probe and of three repeats, for each measure: 1, 2, 1 and 4 seconds.
    clock = Ticking(0, 1, 0, 2, 0, 1, 0, 4)
    found = {m.name: m for m in run("cpu", size=size, shape=SHAPE, repeats=3, clock=clock).measures}
    # Rates 1000, 2000 and 500 bytes a second.
    assert (found["memory-copy"].median, found["memory-copy"].spread) == (1000, 1500)


def test_a_clock_that_stands_still_is_no_division_by_nothing() -> None:
    """Coarse clocks tell no time of very short work."""
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchmark, "_MIN_REPEAT_S", 1e-9)
        found = run("cpu", size=TINY, shape=SHAPE, repeats=2, clock=lambda: 0.0)
    assert all(measure.median > 0 for measure in found.measures)


def test_each_measure_is_reported_as_soon_as_it_is_there() -> None:
    """In the order of the run."""
    pytest.importorskip("torch")
    told: list[Measure] = []
    found = run("cpu", size=TINY, shape=SHAPE, repeats=2, clock=Ticking(0.01), report=told.append)
    assert tuple(told) == found.measures


def test_a_run_on_no_device_is_refused_in_a_sentence() -> None:
    """Naming the device, without a trace."""
    pytest.importorskip("torch")
    with pytest.raises(EngineError, match="torch cannot use 'nonsense'"):
        run("nonsense", size=TINY)


def test_a_run_without_torch_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setattr(benchmark, "has_torch", lambda: False)
    with pytest.raises(EngineError, match="pip install"):
        run("cpu", size=TINY)


def test_a_run_fits_the_evidence(tiny_run: Benchmark) -> None:
    """Through a submodule and back it is the same."""
    assert read_submod("gpu/3", write_submod({"benchmark": tiny_run})) == {"benchmark": tiny_run}


def test_a_run_is_kept_in_a_home_and_found_again(tiny_run: Benchmark, tmp_path: Path) -> None:
    """By its number; a second run takes the place of the first."""
    home = Home(tmp_path)
    home.save_benchmark(2, tiny_run)
    assert home.benchmarks() == {2: tiny_run}
    later = msgspec.structs.replace(tiny_run, at=9999)
    home.save_benchmark(2, later)
    home.save_benchmark(10, tiny_run)
    assert home.benchmarks() == {2: later, 10: tiny_run}


def test_the_versions_of_a_run_are_plain_text(tiny_run: Benchmark) -> None:
    """What is not cannot be encoded."""
    assert {type(version) for version in tiny_run.versions.values()} == {str}


DECODER = [
    ("model.embed_tokens.weight", (1000, 8)),
    *(
        (f"model.layers.{layer}.{name}", shape)
        for layer in range(3)
        for name, shape in (
            ("attn.qkv.weight", (24, 8)),
            ("attn.out.weight", (8, 8)),
            ("mlp.up.weight", (32, 8)),
            ("mlp.down.weight", (8, 32)),
            ("norm.weight", (8,)),
            ("rotary.scale", (1, 8)),
        )
    ),
    ("lm_head.weight", (1000, 8)),
]


def test_the_shape_of_a_model_is_that_of_its_layers() -> None:
    """Matrices of one layer and how many layers; embeddings and vectors are left out."""
    shape = shape_of(DECODER)
    assert shape == Shape((((24, 8), (8, 8), (32, 8), (8, 32)),) * 3)
    assert shape.elements(3) == 3 * shape.elements(1) == 3 * (24 * 8 + 8 * 8 + 2 * 32 * 8)


def test_a_model_without_layers_has_no_steps() -> None:
    """Nothing to imitate is said, not guessed."""
    with pytest.raises(EngineError, match="no numbered layers"):
        shape_of([("embed.weight", (1000, 8)), ("layer.0.bias", (8,)), ("layer.0.conv", (3, 3, 8))])


def made(*measures: Measure, device: str = "cpu, 2 threads", **changes: Any) -> Benchmark:
    fields = {"at": 0, "code": "1", "versions": {"torch": "2"}, **changes}
    return Benchmark(device=device, measures=measures, **fields)


def of(name: str, median: int, unit: str = "bytes/s", spread: int = 0) -> Measure:
    return Measure(name=name, unit=unit, median=median, spread=spread, repeats=3, warm_up=3)


def drawn(found: Benchmark) -> ET.Element:
    return ET.fromstring(plot(found))


def texts(picture: ET.Element) -> list[str]:
    return ["".join(element.itertext()) for element in picture if element.tag.endswith("text")]


def bars(picture: ET.Element) -> list[float]:
    return [
        float(element.attrib["width"])
        for element in picture
        if element.tag.endswith("rect") and element.attrib["width"] != "100%"
    ]


def test_a_picture_has_every_measure(tiny_run: Benchmark) -> None:
    """By name and as people write it, with a bar each, the device and when."""
    picture = drawn(tiny_run)
    shown = texts(picture)
    for measure in tiny_run.measures:
        assert measure.name in shown
        assert format_measure(measure) in shown
    assert tiny_run.device in shown
    assert any("1970-01-01 00:20 UTC" in text for text in shown)
    assert len(bars(picture)) == len(tiny_run.measures)


def test_bars_are_scaled_within_their_unit() -> None:
    """A slow memory is not dwarfed by arithmetic."""
    picture = drawn(made(of("a", 100), of("b", 50), of("c", 10**15, "flop/s"), of("d", 0, "op/s")))
    assert bars(picture) == [420.0, 210.0, 420.0, 0.0]


def test_a_picture_escapes_what_stands_in_it() -> None:
    """Names are data: they make no elements."""
    evil = "<script>\"&'</script>"
    found = made(of(evil, 1, evil), device=evil, versions={evil: evil})
    picture = drawn(found)
    tags = {element.tag.rpartition("}")[2] for element in picture.iter()}
    assert tags == {"svg", "rect", "line", "text"}
    shown = texts(picture)
    assert shown[0] == evil
    assert any(f"{evil} {evil}" in text for text in shown[:2])
    assert evil in shown[2:]
    assert "<script" not in plot(found)


@pytest.mark.parametrize(
    ("median", "unit", "text"),
    [
        (0, "bytes/s", "0 B/s"),
        (999, "bytes/s", "999 B/s"),
        (1000, "bytes/s", "1 kB/s"),
        (1_234_000_000_000, "bytes/s", "1.23 TB/s"),
        (989_000_000_000_000, "flop/s", "989 Tflop/s"),
        (1_979_000_000_000_000, "op/s", "1.98 Pop/s"),
        (1, MILLITOKENS, "0.001 tokens/s"),
        (12_345, MILLITOKENS, "12.3 tokens/s"),
        (5_000_000, MILLITOKENS, "5 ktokens/s"),
    ],
)
def test_a_measure_as_people_write_it(median: int, unit: str, text: str) -> None:
    """Three digits and a prefix."""
    assert format_measure(of("x", median, unit)) == text


@pytest.mark.parametrize(
    ("median", "text"),
    [(999_700, "1 MB/s"), (999_999_999, "1 GB/s"), (1_200_000_000_000_000_000, "1200 PB/s")],
)
def test_a_measure_is_never_written_with_an_exponent(median: int, text: str) -> None:
    """Also where rounding makes a thousand of it, and beyond the last prefix."""
    assert format_measure(of("x", median)) == text


class NamesItself(BaseHTTPRequestHandler):
    """An engine that says its version, and nothing else."""

    def do_GET(self) -> None:
        body = b'{"version": "1.0"}' if self.path == "/api/version" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def engine_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), NamesItself) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def node_home(tmp_path: Path, model_folder: Path, engine_url: str) -> Path:
    """A node whose engine does nothing but name itself."""
    home = tmp_path / "a"
    done = invoke("init", "--home", home, "--verifier", "http://127.0.0.1:9", "--model", f"{MODEL}={model_folder}",
                  "--serve", "https://127.0.0.1:9", "--adapter", "files", "--engine", engine_url)  # fmt: skip
    assert done.exit_code == 0, done.output
    return home


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["attester", *(str(argument) for argument in arguments)])


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Size, "of", classmethod(lambda cls, device: TINY))


def test_the_command_keeps_a_run_and_the_evidence_has_it(
    node_home: Path, model_folder: Path, tmp_path: Path, tiny_sizes: None
) -> None:
    """Printed as JSON, kept in the home, drawn, and from then on in gpu/0."""
    pytest.importorskip("torch")
    assert "gpu/0" not in json.loads(invoke("show", "--home", node_home).stdout)
    picture = tmp_path / "run.svg"
    done = invoke("benchmark", "--device", "cpu", "--model", model_folder, "--repeats", 2, "--json",
                  "--home", node_home, "--plot", picture)  # fmt: skip
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert {measure["repeats"] for measure in printed["measures"]} == {2}
    assert set(UNITS) == {measure["name"] for measure in printed["measures"]}
    assert json.loads(msgspec.json.encode(Home(node_home).benchmarks()[0])) == printed
    assert json.loads(invoke("show", "--home", node_home).stdout)["gpu/0"] == {"benchmark": printed}
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_the_command_tells_a_person_each_measure(tiny_sizes: None, model_folder: Path) -> None:
    """A line each, and nothing is kept anywhere."""
    pytest.importorskip("torch")
    done = invoke("benchmark", "--device", "cpu", "--model", model_folder, "--repeats", 2)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(UNITS)
    assert all(line.endswith("/s") for line in lines)


def test_the_command_is_refused_before_it_runs_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """Minutes of work are not thrown away in the end."""
    done = invoke("benchmark", "--device", "cpu", "--home", tmp_path / "none", "--repeats", 2)
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")


def test_the_command_on_no_device_is_told_in_a_sentence() -> None:
    """By the command itself: no trace, nothing printed."""
    pytest.importorskip("torch")
    done = touchstone("attester", "benchmark", "--device", "cuda:99", "--repeats", "2", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: torch cannot use 'cuda:99'")


def test_a_damaged_run_is_said_and_not_sent(node_home: Path) -> None:
    """With what to do about it."""
    (node_home / "benchmark-0.json").write_text("{")
    done = invoke("show", "--home", node_home)
    assert done.exit_code == 0
    assert "Run the benchmark again" in done.output
    assert '"gpu/0"' not in done.output


def test_a_run_beyond_the_numbers_of_devices_is_not_sent(node_home: Path) -> None:
    """Files of other names are nobody's runs."""
    text = msgspec.json.encode(made(of("memory-copy", 1)))
    for name in ("benchmark-0.json", "benchmark-x.json", "benchmark-.json"):
        (node_home / name).write_bytes(text)
    assert list(Home(node_home).benchmarks()) == [0]
    assert json.loads(invoke("show", "--home", node_home).stdout)["gpu/0"]["benchmark"]["at"] == 0
