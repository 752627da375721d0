"""
Processes of `python -m touchstone` that start quickly.

To start Python and import a role's modules takes most of a second, and the tests start hundreds of such processes.  So
each process of the suite has a parent of them, which has imported the roles' modules and copies itself:

    python -m tests.quick_start SOCKET

What the tests get is a process like any other: its number, pipes, signals, folder and environment are its own, it is a
child of the process that asked for it, and it is killed, waited for and ended by the interpreter as usual.  Only its
imports are done already.  ``TOUCHSTONE_TEST_QUICK=0`` starts each process from nothing, and so does an environment that
Python or a library reads while it is imported.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None
_CLONE_PARENT = 0x8000
_RUN = "from touchstone import main\n"
"""A program that is given with ``-c`` and has this line may be a copy too."""
_READ_AT_START = ("PYTHON", "SSL_", "LD_", "LANG", "LC_", "MALLOC_")
"""Variables that are read before a process has begun its own work."""
_MOST = 1 << 17
_MODULES = (
    "attester.commands",
    "attester.running",
    "attester.selftest",
    "router.client.commands",
    "router.commands",
    "router.receipts.commands",
    "router.service.app",
    "uvloop",
    "verifier.commands.audit",
    "verifier.commands.challenges",
    "verifier.commands.log",
    "verifier.commands.reference_sources",
    "verifier.commands.rollout",
    "verifier.commands.verifier",
    "verifier.service.app",
    "verifier.service.serve",
)
_EXECUTE = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(_EXECUTE)


class Parent:
    """The parent, as seen from the process whose children are to be started.  It begins with the first of them."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._socket: socket.socket | None = None
        self._read_at_start = _read_at_start(os.environ)

    def can_start(self, asked: Mapping[str, Any]) -> bool:
        """Whether a process, as `subprocess.Popen` is asked for it, can be a copy."""
        environment = os.environ if asked["env"] is None else asked["env"]
        return (
            _is_ours(asked["args"])
            and (asked["executable"], asked["preexec_fn"], asked["shell"]) == (None, None, False)
            and (asked["gid"], asked["gids"], asked["uid"], asked["umask"]) == (None, None, None, -1)
            and not asked["pass_fds"]
            and asked["process_group"] in (None, -1)
            and _read_at_start(environment) == self._read_at_start
        )

    def start(self, asked: Mapping[str, Any]) -> int:
        """Start it; its number."""
        order = {
            "arguments": list(map(os.fsdecode, asked["args"][1:])),
            "environment": dict(os.environ if asked["env"] is None else asked["env"]),
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "session": asked["start_new_session"],
        }
        ends = [
            own if given == -1 else given
            for own, given in enumerate((asked["p2cread"], asked["c2pwrite"], asked["errwrite"]))
        ]
        with self._one_at_a_time:
            if self._socket is None:
                self._socket = self._begin()
            socket.send_fds(self._socket, [json.dumps(order).encode()], ends)
            answer = self._socket.recv(_MOST)
        if not answer:
            raise RuntimeError("the parent of the processes has ended")
        return int(answer)

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.quick_start", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A copy has no threads but its own: numpy would wait for those of the original.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return ours

    def end(self) -> None:
        """End the parent; its children go on."""
        if self._socket is not None:
            self._socket.close()
            self._process.wait(20)


def _is_ours(arguments: Sequence[str | bytes]) -> bool:
    if isinstance(arguments, (str, bytes)) or len(arguments) < 3 or arguments[0] != sys.executable:
        return False
    how, what = arguments[1:3]
    return (how, what) == ("-m", "touchstone") or (how == "-c" and isinstance(what, str) and _RUN in what)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def starting_through(parent: Parent) -> Any:
    """What takes the place of `Popen._execute_child`: it leaves to that what *parent* cannot start."""

    def execute(self: Any, *given: Any) -> None:
        asked = _SIGNATURE.bind(self, *given).arguments
        if not parent.can_start(asked):
            _EXECUTE(self, *given)
            return
        self.pid = parent.start(asked)
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in names))

    return execute


def is_possible() -> bool:
    """Whether this machine can do it, and is not told to leave it."""
    return _CLONE is not None and os.environ.get("TOUCHSTONE_TEST_QUICK") != "0"


# In the parent.


def _copy() -> int:
    """Like `os.fork`, but the copy is a child of this process's own parent."""
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    number = ctypes.PyDLL(None).syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if number == 0:
        api.PyOS_AfterFork_Child()
    else:
        api.PyOS_AfterFork_Parent()
    return int(number)


def _serve(own: socket.socket) -> dict[str, Any] | None:
    """Make copies as long as somebody asks; returns, in each copy, what it is to be."""
    while True:
        message, ends, _, _ = socket.recv_fds(own, _MOST, 3)
        if not message:
            return None
        number = _copy()
        if number == 0:
            own.close()
            order: dict[str, Any] = json.loads(message)
            _become(order, ends)
            return order
        for end in ends:
            os.close(end)
        own.send(str(number).encode())


def _become(order: Mapping[str, Any], ends: list[int]) -> None:
    if order["session"]:
        os.setsid()
    for target, end in enumerate(ends):
        os.dup2(end, target)
    for end in ends:
        os.close(end)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])


def _run(how: str, what: str, *arguments: str) -> None:
    """Run a program as ``python HOW WHAT ARGUMENTS`` has it."""
    main = sys.modules["__main__"]
    sys.path[0] = str(Path.cwd()) if how == "-m" else ""
    if how == "-c":
        sys.argv = ["-c", *arguments]
        main.__spec__, main.__package__ = None, None
        exec(compile(what, "<string>", "exec"), vars(main))
        return
    program = sys.modules[what]
    sys.argv = [program.__file__ or "", *arguments]
    main.__spec__, main.__package__ = program.__spec__, program.__package__
    program.main()


def _main(number: int) -> None:
    for name in ("touchstone", *_MODULES):
        importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a process with several threads cannot be copied")
    gc.collect()
    gc.freeze()
    order = _serve(socket.socket(fileno=number))
    if order is not None:
        _run(*order["arguments"])


if __name__ == "__main__":
    _main(int(sys.argv[1]))
