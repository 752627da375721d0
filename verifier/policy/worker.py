"""
The process in which policies are read, tested and evaluated: regorus, with a limit on memory.

Speaks frames on its standard input and output: four bytes little-endian length, then the
content.  The first frame in is the task and its bundle, as JSON; what follows depends on the
task.  A policy that crashes takes this process with it and nothing else; its parent kills
it when it takes too long.

    evaluate  is answered once when the bundle is compiled, and then goes on with batches: how
              many inputs, then each, JSON; for each an outcome, JSON behind a byte that says
              whether it is one (0) or an error's text (1)
    inspect   is answered once: lint findings, and the rules of each module
    test      is answered once: how each rule named test_* went, and what was covered
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

RULE: Final = "data.touchstone.outcome"
MAX_FRAME: Final = 8 << 20
OUTCOME, ERROR = b"\x00", b"\x01"
_FLUSH_S: Final = 0.02
"""Answers are not held back longer: the parent's deadline is for a single one."""
# With nothing to judge only mistakes show: names are resolved at the first evaluation.
NOTHING: Final = (
    '{"checked": {}, "references": {}, "node": {"operator": "", "state": "active"}, "date": "1970-01-01"}'
)

_PLACED: Final = re.compile(r"--> (\S+:\d+:\d+)\n.*^error: (.*)\Z", re.DOTALL | re.MULTILINE)

_Task: TypeAlias = Callable[[Any, Mapping[str, Any], BinaryIO, BinaryIO], None]


def main() -> None:
    """Do one task."""
    os.environ["RUST_BACKTRACE"] = "0"
    import regorus

    source = sys.stdin.buffer
    # Large enough that a batch goes out at once; what is to be seen sooner is flushed.
    sink = open(1, "wb", buffering=1 << 18, closefd=False)  # noqa: SIM115  # for life
    head = receive(source)
    if head is None:
        return
    setup = json.loads(head)
    _limit(int(setup["memory_bytes"]))
    tasks: Mapping[str, _Task] = {"evaluate": _evaluate, "inspect": _inspect, "test": _test}
    try:
        tasks[setup["task"]](regorus.Engine(), setup, source, sink)
    except (RuntimeError, RecursionError) as error:
        send(sink, json.dumps({"error": message(error)}).encode())


def _limit(memory_bytes: int) -> None:
    # The interpreter and the engine have reserved address space of their own by now.
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(engine: Any, setup: Mapping[str, Any]) -> None:
    for name, text in setup["modules"]:
        engine.add_policy(name, text)
    engine.add_data_json(setup["data"])


def _evaluate(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    _load(engine, setup)
    engine.set_input_json(NOTHING)
    engine.eval_rule_as_json(RULE)
    send(sink, b"{}")
    while (count := receive(source)) is not None:
        flushed = time.monotonic()
        for given in _inputs(source, int.from_bytes(count, "little")):
            try:
                engine.set_input_json(given.decode())
                answer = OUTCOME + engine.eval_rule_as_json(RULE).encode()
            except (RuntimeError, ValueError) as error:
                answer = ERROR + message(error).encode()
            sink.write(len(answer).to_bytes(4, "little") + answer)
            if time.monotonic() - flushed > _FLUSH_S:
                sink.flush()
                flushed = time.monotonic()
        sink.flush()


def _inputs(source: BinaryIO, count: int) -> Iterator[bytes]:
    for _ in range(count):
        given = receive(source)
        if given is None:
            return
        yield given


def _inspect(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    from verifier.policy import lint, rules

    del source
    for name, text in setup["modules"]:
        engine.add_policy(name, text)
    modules = json.loads(engine.get_ast_as_json())
    found = lint.check(modules, tests=frozenset(setup["tests"]))
    findings = [[f.level, f.rule, f.file, f.line, f.column, f.sentence] for f in found]
    send(sink, json.dumps({"findings": findings, "rules": rules.of(modules)}).encode())


def _test(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    from verifier.policy import rules

    del source
    engine.set_enable_coverage(True)
    engine.set_gather_prints(True)
    _load(engine, setup)
    found = []
    for file, package, rule, line in rules.tests(json.loads(engine.get_ast_as_json()), setup["tests"]):
        started = time.perf_counter()
        engine.set_input_json(NOTHING)
        try:
            value = engine.eval_rule_as_json(f"{package}.{rule}")
            why = None if value == "true" else f"is {value[:200]}, not true"
        except (RuntimeError, ValueError) as error:
            why = message(error)
        found.append({
            "file": file, "line": line, "name": f"{package}.{rule}", "why": why,
            "seconds": time.perf_counter() - started, "printed": engine.take_prints(),
        })  # fmt: skip
    report = json.loads(engine.get_coverage_report_as_json())
    coverage = {
        file["path"]: [sorted(file["covered"]), sorted(file["not_covered"])]
        for file in report["files"]
        if file["path"] not in setup["tests"]
    }
    send(sink, json.dumps({"tests": found, "coverage": coverage}).encode())


def message(error: BaseException) -> str:
    """An error of the engine as ``FILE:LINE:COLUMN: sentence``, where it names a place; bounded."""
    text = str(error).split("\n\nStack backtrace")[0].strip()
    placed = _PLACED.match(text)
    return (f"{placed[1]}: {placed[2]}" if placed else text)[:2000]


def receive(source: BinaryIO) -> bytes | None:
    """A frame; `None` at the end."""
    head = source.read(4)
    if len(head) < 4:
        return None
    return source.read(int.from_bytes(head, "little"))


def send(sink: BinaryIO, data: bytes) -> None:
    """Write a frame."""
    sink.write(len(data).to_bytes(4, "little") + data)
    sink.flush()


if __name__ == "__main__":
    main()
