"""
The process in which a policy runs: Rego by regorus, with a limit on memory.

Speaks frames on its standard input and output: four bytes little-endian length, then
JSON.  The first frame in is the bundle, every further one an input; each is answered by
``{"value": …}`` or ``{"error": "…"}``.  A policy that crashes takes this process with it and
nothing else; its parent kills it when it takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, BinaryIO

RULE = "data.touchstone.outcome"
MAX_FRAME = 8 << 20


def main() -> None:
    """Serve until the other side closes."""
    os.environ["RUST_BACKTRACE"] = "0"
    import regorus

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = _receive(source)
    if setup is None:
        return
    # The interpreter and the engine have reserved address space of their own by now.
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    reserved = pages * resource.getpagesize()
    limit = reserved + int(setup["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    engine = regorus.Engine()
    try:
        for name, text in setup["modules"]:
            engine.add_policy(name, text)
        engine.add_data_json(setup["data"])
        # Names are resolved at the first evaluation: with nothing to judge, only mistakes show.
        engine.set_input_json('{"checked": {}, "node": {}}')
        engine.eval_rule_as_json(RULE)
    except RuntimeError as error:
        _send(sink, {"error": _message(error)})
        return
    _send(sink, {"value": None})
    while (given := _receive(source)) is not None:
        try:
            engine.set_input_json(json.dumps(given))
            value = json.loads(engine.eval_rule_as_json(RULE))
        except (RuntimeError, ValueError) as error:
            _send(sink, {"error": _message(error)})
        else:
            _send(sink, {"value": value})


def _message(error: Exception) -> str:
    return str(error).split("\n\nStack backtrace")[0].strip()[:2000]


def _receive(source: BinaryIO) -> Any:
    head = source.read(4)
    if len(head) < 4:
        return None
    return json.loads(source.read(int.from_bytes(head, "little")))


def _send(sink: BinaryIO, value: Any) -> None:
    data = json.dumps(value).encode()
    sink.write(len(data).to_bytes(4, "little") + data)
    sink.flush()


if __name__ == "__main__":
    main()
