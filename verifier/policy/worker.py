"""
The process in which policies are read, tested and evaluated: regorus, with a limit on memory.

It reads and writes frames on its standard input and output: the length as four bytes,
little-endian, and the content.  The first frame that it reads is the task with its bundle, as
JSON; the others depend on the task.  A policy that crashes ends this process and nothing
else.  The parent kills the process if it takes too long.

    evaluate  answers once when the bundle is compiled.  After that it reads batches: a frame
              with the number of inputs, and a frame with each input as JSON.  It answers each
              input with a byte and a text: 0 and the outcome as JSON, or 1 and an error
    inspect   answers once, with the lint findings and the rules of each module
    format    answers once, with the sources as they are laid out
    test      answers once, with the result of each rule named test_* and the lines they reached
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

RULE: Final = "data.touchstone.outcome"
"""What the contract asks a policy for."""
_QUESTION_FILE: Final = "the contract's question"
"""No file of a bundle can have this name."""
_UNDEFINED: Final = '"<undefined>"'
MAX_FRAME: Final = 8 << 20
OUTCOME, ERROR = b"\x00", b"\x01"
_NOTHING_GIVEN: Final = ERROR + f"{RULE} is undefined".encode()
_FLUSH_S: Final = 0.02
"""Answers are not held back longer, because the parent's time limit is for a single one."""
# An evaluation with nothing to judge: it shows mistakes, because names are resolved at the first evaluation.
NOTHING: Final = (
    '{"checked": {}, "references": {}, "node": {"operator": "", "state": "active"}, "date": "1970-01-01"}'
)

_ERROR_WITH_PLACE: Final = re.compile(r"--> (\S+:\d+:\d+)\n.*^error: (.*)\Z", re.DOTALL | re.MULTILINE)

_Task: TypeAlias = Callable[[Any, Mapping[str, Any], BinaryIO, BinaryIO], None]


def main() -> None:
    """Do one task."""
    os.environ["RUST_BACKTRACE"] = "0"
    import regorus

    source = sys.stdin.buffer
    # The buffer holds the answers to a whole batch.  What must be seen sooner is flushed.
    sink = open(1, "wb", buffering=1 << 18, closefd=False)  # noqa: SIM115  # open until the process ends
    head = receive(source)
    if head is None:
        return
    setup = json.loads(head)
    limit_memory(int(setup["memory_bytes"]))
    tasks: Mapping[str, _Task] = {
        "evaluate": _evaluate,
        "inspect": _inspect,
        "test": _test,
        "format": _format,
    }
    try:
        tasks[setup["task"]](regorus.Engine(), setup, source, sink)
    except (RuntimeError, RecursionError) as error:
        send(sink, json.dumps({"error": message(error)}).encode())


def limit_memory(memory_bytes: int) -> None:
    """Limit the address space of this process to so many bytes more than it has now."""
    # The limit comes on top of the address space that the interpreter and the engine have reserved by now.
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
    answer_rule = _add_question(engine, setup["modules"])
    engine.set_input_json(NOTHING)
    engine.eval_rule_as_json(answer_rule)
    send(sink, b"{}")
    while (count := receive(source)) is not None:
        flushed = time.monotonic()
        for policy_input in _inputs(source, int.from_bytes(count, "little")):
            try:
                engine.set_input_json(policy_input.decode())
                outcome = engine.eval_rule_as_json(answer_rule)
                answer = _NOTHING_GIVEN if outcome == _UNDEFINED else OUTCOME + outcome.encode()
            except (RuntimeError, ValueError) as error:
                answer = ERROR + message(error).encode()
            sink.write(len(answer).to_bytes(4, "little") + answer)
            if time.monotonic() - flushed > _FLUSH_S:
                sink.flush()
                flushed = time.monotonic()
        sink.flush()


def _add_question(engine: Any, modules: Sequence[tuple[str, str]]) -> str:
    """
    Add a rule that refers to what the contract asks for, and return its path.

    regorus gives a rule by its path only if the path is the head of a rule.  ``outcome[name].reasons`` and a
    package ``touchstone.outcome`` are no such heads; a reference to the path is read as OPA reads it.  The
    package is named after the modules, so that no module can be in it.
    """
    digest = hashlib.sha256(json.dumps(modules).encode()).hexdigest()
    engine.add_policy(_QUESTION_FILE, f"package question_{digest}\n\nanswer := {RULE}\n")
    return f"data.question_{digest}.answer"


def _inputs(source: BinaryIO, count: int) -> Iterator[bytes]:
    for _ in range(count):
        policy_input = receive(source)
        if policy_input is None:
            return
        yield policy_input


def _inspect(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    from verifier.policy import checker, lint, packages, rules, words

    del source
    for name, text in setup["modules"]:
        engine.add_policy(name, text)
    modules = json.loads(engine.get_ast_as_json())
    tests, terms = frozenset(setup["tests"]), checker.Terms(**setup["terms"])
    data = json.loads(setup["data"])
    found = lint.ordered([
        *lint.check(modules, tests=tests),
        *packages.check(modules, data, tests=tests),
        *checker.check(modules, tests=tests, data=data, terms=terms),
    ])  # fmt: skip
    findings = [[f.level, f.rule, f.file, f.line, f.column, f.sentence] for f in found]
    judging = [module for module in modules if module["source"]["file"] not in tests]
    found_words = words.of_rules(judging)
    send(sink, json.dumps({"findings": findings, "rules": rules.of(modules), "words": found_words}).encode())


def _format(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    from verifier.errors import BundleError
    from verifier.policy import formatting

    del source

    def parse(name: str, text: str) -> Any:
        one = type(engine)()
        one.add_policy(name, text)
        return json.loads(one.get_ast_as_json())[0]

    formatted, errors = {}, {}
    for name, text in setup["modules"]:
        try:
            formatted[name] = formatting.lay_out(name, text, parse)
        except RuntimeError as error:
            errors[name] = message(error)
        except BundleError as error:
            errors[name] = str(error)
    send(sink, json.dumps({"formatted": formatted, "errors": errors}).encode())


def _test(engine: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    from verifier.policy import cases

    del source
    engine.set_enable_coverage(True)
    engine.set_gather_prints(True)
    _load(engine, setup)

    def another(changed: Mapping[str, str]) -> Any:
        made = type(engine)()
        made.set_gather_prints(True)
        _load(
            made, {**setup, "modules": [(name, changed.get(name, text)) for name, text in setup["modules"]]}
        )
        return made

    modules = json.loads(engine.get_ast_as_json())
    found = list(cases.run(engine, another, modules, setup["tests"], setup["pattern"], NOTHING, message))
    report = json.loads(engine.get_coverage_report_as_json())
    coverage = {
        file["path"]: [sorted(file["covered"]), sorted(file["not_covered"])]
        for file in report["files"]
        if file["path"] not in setup["tests"]
    }
    send(sink, json.dumps({"tests": found, "coverage": coverage}).encode())


_HINTS: Final = (
    (
        "`if` keyword is required",
        ". Rules are Rego v1 here: opa fmt --write --v0-v1 rewrites older ones, and deny[x] { … } is deny contains x if { … }",
    ),
    ("expecting `package`", " Begin the file with package touchstone, or with another name"),
    (
        "this import shadows previous import",
        ". import rego.v1 has all keywords: remove import future.keywords",
    ),
)
"""What to write instead, where the engine's message alone leaves users of OPA in the dark."""


def message(error: BaseException) -> str:
    """An error of the engine in bounded length, as ``FILE:LINE:COLUMN: sentence`` if it names a place."""
    text = str(error).split("\n\nStack backtrace")[0].strip()
    placed = _ERROR_WITH_PLACE.match(text)
    hint = next((hint for part, hint in _HINTS if part in text), "")
    return (f"{placed[1]}: {placed[2]}" if placed else text)[:2000] + hint


def receive(source: BinaryIO) -> bytes | None:
    """Read a frame; `None` at the end of the input."""
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
