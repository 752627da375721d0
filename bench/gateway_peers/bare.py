"""
The bare proxy: the least that streams an answer through, with what our gateway is made of.

    python -m bench.gateway_peers.bare BACKEND CERTIFICATE

It reads the request, posts it over a connection that is kept, and hands on what comes: no
decision, no key, no check of the answer.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import aiohttp
import uvloop
from aiohttp import web


async def serve(backend: str, certificate: str) -> None:
    """Serve until ended."""
    context = ssl.create_default_context(cafile=certificate)

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": "application/json"}
        async with http.post(backend + request.path, data=body, headers=headers, ssl=context) as given:
            if given.content_type != "text/event-stream":
                return web.Response(
                    status=given.status, body=await given.read(), content_type=given.content_type
                )
            response = web.StreamResponse(
                status=given.status, headers={"Content-Type": given.headers["Content-Type"]}
            )
            await response.prepare(request)
            async for chunk in given.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
