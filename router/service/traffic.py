"""What the traffic of each model looks like, for those who mint answers by it."""

from __future__ import annotations

from aiohttp import web

from router.gateway.openai import GATEWAY
from verifier.answers.shapes import encode_profile


async def show(request: web.Request) -> web.Response:
    """The profile, as ``touchstone challenges mint --profile`` reads it."""
    profile = request.app[GATEWAY].checks.profile()
    return web.Response(body=encode_profile(profile), content_type="application/json")
