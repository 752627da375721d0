"""Processes that start as copies are processes like any other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import quick_start

pytestmark = pytest.mark.skipif(not quick_start.is_possible(), reason="each process starts from nothing here")
TOLD = """
import json, os, sys
from touchstone import main
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("SAID"), os.getppid(), os.getsid(0), sys.stdin.read()]))
print("aside", file=sys.stderr)
sys.exit(7)
"""


def test_it_is_a_child_with_all_of_its_own(tmp_path: Path) -> None:
    """Arguments, folder, environment, session, pipes and exit status."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD, "one", "--two"],
        input="heard",
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "SAID": "so"},
    )
    expected = f'[["-c", "one", "--two"], "{tmp_path}", "so", {os.getpid()}, {os.getsid(0)}, "heard"]\n'
    assert (done.returncode, done.stdout, done.stderr) == (7, expected, "aside\n")


def test_it_was_copied() -> None:
    """Of a process that has imported more than it asks for."""
    code = "import sys\nfrom touchstone import main\nprint('verifier.service.app' in sys.modules)\n"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"True\n"


@pytest.mark.parametrize(
    "more", [{"PYTHONHASHSEED": "1"}, {"SSL_CERT_FILE": os.devnull}], ids=["python", "tls"]
)
def test_what_is_read_at_the_start_is_read(more: dict[str, str]) -> None:
    """With another environment of Python's or of a library's it begins from nothing."""
    code = "import sys\nfrom touchstone import main\nprint('verifier.service.app' in sys.modules)\n"
    assert subprocess.check_output([sys.executable, "-c", code], env={**os.environ, **more}) == b"False\n"


def test_its_errors_are_pythons_own() -> None:
    code = "from touchstone import main\nraise ValueError('so')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ValueError: so\n")


async def test_it_is_killed_and_waited_for() -> None:
    """By the loop that started it."""
    code = "import time\nfrom touchstone import main\nprint('up', flush=True)\ntime.sleep(60)\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    assert os.getsid(process.pid) == process.pid
    process.kill()
    assert await process.wait() == -signal.SIGKILL
