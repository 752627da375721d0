"""
The process of the second engine: rego-cpp (Microsoft's, `regopy` on PyPI), in the frames of `verifier.policy.worker`.

It never decides anything: its answers are compared with the engine's, and differences are shown.  It
hangs on some regular expressions, accepts what OPA refuses and can read the environment, so it runs
in a process with limits and without the service's environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from verifier.policy.worker import ERROR, OUTCOME, RULE, limit_memory, receive, send

_NOT_INSTALLED: Final = "regopy is not installed. Install touchstone-attestation[second-opinion]"
_NUL: Final = "\\u0000"
"""It takes a text to its first NUL, so it would judge another input."""


def main() -> None:
    """Compile the bundle, answer once, and answer batches of inputs as the task ``evaluate`` does."""
    source = sys.stdin.buffer
    sink = open(1, "wb", closefd=False)  # noqa: SIM115  # open until the process ends
    head = receive(source)
    if head is None:
        return
    setup = json.loads(head)
    try:
        import regopy
    except ImportError:
        send(sink, json.dumps({"error": _NOT_INSTALLED}).encode())
        return
    # Its allocator reserves address space when it is loaded, which is no memory that a policy takes.
    interpreter = regopy.Interpreter()
    limit_memory(int(setup["memory_bytes"]))
    try:
        _evaluate(interpreter, setup, source, sink)
    except regopy.RegoError as error:
        send(sink, json.dumps({"error": str(error)[:2000]}).encode())


def _evaluate(interpreter: Any, setup: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    for name, text in setup["modules"]:
        interpreter.add_module(name, text)
    interpreter.add_data_json(setup["data"])
    compiled = interpreter.build(setup.get("rule", RULE))
    send(sink, b"{}")
    while (count := receive(source)) is not None:
        for _ in range(int.from_bytes(count, "little")):
            policy_input = receive(source)
            if policy_input is None:
                return
            send(sink, _answer(interpreter, compiled, policy_input.decode()))


def _answer(interpreter: Any, compiled: Any, policy_input: str) -> bytes:
    """A byte and a text, as the task ``evaluate`` answers."""
    import regopy

    if _NUL in policy_input:
        return ERROR + b"this engine cannot read an input with a NUL"
    try:
        interpreter.set_input_term(policy_input)
        found = str(interpreter.query_bundle(compiled))
    except regopy.RegoError as error:
        return ERROR + str(error)[:2000].encode()
    try:
        outcome = json.loads(found)["expressions"][0]
    except (ValueError, LookupError, TypeError):
        return ERROR + f"no outcome: {found}"[:2000].encode()
    return OUTCOME + json.dumps(outcome).encode()


if __name__ == "__main__":
    main()
