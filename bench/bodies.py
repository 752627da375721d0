"""
How long the worst request bodies keep the router's other requests waiting.

The router runs in this process, with no node, and clients in another one send one kind of body again and
again.  A timer in the router's loop comes up every millisecond; how late it comes is how long another
request would have waited.

    python -m bench.bodies
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from attester.cli import configure_logging
from fixtures.fleet import free_port
from router.config import RouterConfig
from router.model.workload import Table, Workload
from router.service.app import make_app
from router.service.garbage import tune_garbage_collector
from router.service.setup import RouterSetup

_MODEL: Final = "example/tiny"
_SIZE: Final = 15 << 20
_TIMES: Final = 5

_CLIENT: Final = """
import http.client, sys
body = sys.stdin.buffer.read()
for _ in range(int(sys.argv[3])):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("POST", sys.argv[2], body, {"Idempotency-Key": "k%d" % _})
    print(connection.getresponse().status, flush=True)
    connection.close()
"""


def _body(item: bytes, size: int, *, most: int | None = None) -> bytes:
    """A body full of *item*: of so many bytes, or so many items if those are fewer."""
    count = min(size // (len(item) + 1), most or size)
    return b'{"model":"%b","input":[%b]}' % (_MODEL.encode(), b",".join([item] * count))


BODIES: Final[Mapping[str, bytes]] = {
    "15 MiB of `[],`": _body(b"[]", _SIZE),
    '15 MiB of `{"a":{}},`': _body(b'{"a":{}}', _SIZE),
    "15 MiB of text": _body(b'"' + b"a, b " * 1000 + b'"', _SIZE),
    '15 MiB of `"",`': _body(b'""', _SIZE),
    "524,000 empty lists": _body(b"[]", _SIZE, most=262_000),
    "262,000 objects with an object": _body(b'{"a":{}}', _SIZE, most=130_000),
    "300,000 token ids": _body(b"12345", _SIZE, most=300_000),
    "16,000 empty lists, which are not read aside": _body(b"[]", 256 << 10, most=16_000),
}


async def _watch(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


async def _measure(port: int, body: bytes) -> tuple[str, float]:
    late: list[float] = []
    watching = asyncio.create_task(_watch(late))
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CLIENT, str(port), "/v1/embeddings", str(_TIMES)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await client.communicate(body)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return said.decode().split()[0], max(late)


async def main() -> None:
    """Print one line for each kind of body."""
    configure_logging(as_json=False, level="error")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "router.token").write_text("token", encoding="ascii")
        await _run(port, Path(folder))


async def _run(port: int, folder: Path) -> None:
    given = {
        "verifier": {"url": f"http://127.0.0.1:{free_port()}", "router_token_file": "router.token"},
        "gateway": {"open": True},
    }
    config = msgspec.convert(given, RouterConfig)
    table = Table([Workload(_MODEL, name="tiny")])
    app = make_app(RouterSetup(config, table, folder))
    app.on_startup.append(tune_garbage_collector)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    for name, body in BODIES.items():
        status, longest_s = await _measure(port, body)
        print(f"{name:45} {len(body) >> 10:6} KiB  {status}  longest wait {longest_s * 1000:.1f} ms")
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
