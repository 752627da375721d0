"""Roll-outs of models over HTTP: how they are listed, started, finished and aborted."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta

from verifier.service import access, model_rollout_steps
from verifier.service.access import Route
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.model_rollout_steps import NewRollout
from verifier.service.policies import AuthorBody
from verifier.service.state import service_of
from verifier.store.database import Tx
from verifier.store.model_rollouts import ModelRollout

_Model = Annotated[str, Meta(min_length=1, max_length=128)]
_Grace = Annotated[int, Meta(ge=0, le=365 * 86400)]


class StartBody(AuthorBody, frozen=True):
    """What a roll-out is started with."""

    model: _Model
    to: Annotated[str, Meta(pattern=r"^[0-9a-f]{6,64}\Z")]
    """The digest of the new value, or its first digits."""
    until: Annotated[int, Meta(ge=0, le=1 << 40)] | None = None
    """Seconds since 1970."""


class AbortBody(AuthorBody, frozen=True):
    """Which roll-out is aborted."""

    model: _Model
    grace_s: _Grace | None = None
    """For how long the new value is only a warning for nodes that have it."""


class FinishBody(AuthorBody, frozen=True):
    """Which roll-out is finished."""

    model: _Model
    anyway: bool = False
    """Whether nodes may be on the old value still."""
    grace_s: _Grace | None = None
    """For how long the old value is only a warning."""


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/rollouts"
    return [
        access.get(
            base, list_rollouts, access.REFERENCES, "List the roll-outs of models, and how far they are."
        ),
        access.post(base, start, access.ADMINISTER, "Start the roll-out of a model."),
        access.post(f"{base}/finish", finish, access.ADMINISTER, "Finish the roll-out of a model."),
        access.post(f"{base}/abort", abort, access.ADMINISTER, "Abort the roll-out of a model."),
    ]


async def list_rollouts(request: web.Request) -> web.Response:
    """The roll-outs that run, with the nodes on each revision; ``model`` selects one model's."""
    service = service_of(request)
    async with service.db.scan() as tx:
        found = await model_rollout_steps.show(
            tx, service.inputs, service.config, service.now_ms(), request.query.get("model")
        )
    return json_response({"rollouts": found})


async def start(request: web.Request) -> web.Response:
    """Start the roll-out of a model, if the pools of both revisions hold enough challenges."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), StartBody)
    until_ms = None if body.until is None else body.until * 1000
    author = body.author(request)

    async def work(tx: Tx) -> ModelRollout:
        new = NewRollout(body.model, body.to, until_ms)
        return await model_rollout_steps.start(
            tx, service.inputs, service.config, new, author, service.now_ms()
        )

    started = await service.db.write(work)
    return json_response({"model": started.model, "from": started.old, "to": started.new}, status=201)


async def finish(request: web.Request) -> web.Response:
    """Put the new value in force; it is refused while nodes are on the old one, unless ``anyway``."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), FinishBody)
    grace_s = service.config.references.grace_s if body.grace_s is None else body.grace_s
    author = body.author(request)
    ended, left = await service.db.write(
        lambda tx: model_rollout_steps.finish(
            tx, body.model, author, service.now_ms(), grace_ms=grace_s * 1000, anyway=body.anyway
        )
    )
    return json_response(
        {"model": ended.model, "from": ended.old, "to": ended.new, "on_old": left, "grace_s": grace_s}
    )


async def abort(request: web.Request) -> web.Response:
    """Let the new value wait again; for nodes that have it, it is a warning for the grace period."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), AbortBody)
    grace_s = service.config.references.grace_s if body.grace_s is None else body.grace_s
    author = body.author(request)
    ended, moved = await service.db.write(
        lambda tx: model_rollout_steps.abort(
            tx, body.model, author, service.now_ms(), grace_ms=grace_s * 1000
        )
    )
    return json_response(
        {"model": ended.model, "from": ended.old, "to": ended.new, "on_new": moved, "grace_s": grace_s}
    )
