"""
The backend: answers made beforehand, over https, one port for each certificate given.

    python -m bench.gateway_peers.backend FOLDER NAME...

FOLDER has NAME.crt and NAME.key for each; the ports stand on one line of output.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from bench.gateway_peers import answers

_COMPLETION: Final = answers.completion()
_CHUNKS: Final = answers.chunks()
_EMBEDDING: Final = answers.embedding()
_AT_ONCE: Final = answers.AT_ONCE.encode()


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """The same for everybody: what is measured is what stands before."""
    body = await request.read()
    if request.path.endswith("/embeddings"):
        return web.Response(body=_EMBEDDING, content_type="application/json")
    # A proxy that writes the request anew may space it differently.
    if b'"stream":true' not in body.replace(b" ", b""):
        return web.Response(body=_COMPLETION, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    if _AT_ONCE in body:
        await response.write(b"".join(_CHUNKS))
    else:
        for chunk in _CHUNKS:
            await response.write(chunk)
    await response.write_eof()
    return response


async def serve(folder: Path, names: list[str]) -> None:
    """Serve until ended."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    for name in names:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    sys.stdout.write(" ".join(str(address[1]) for address in runner.addresses) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), sys.argv[2:]))
