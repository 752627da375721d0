"""Policies: publication, trials, rollout in steps and rollback."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from verifier import trial
from verifier.errors import RequestError
from verifier.policy import admission, diff, questions
from verifier.policy import bundle as bundles
from verifier.policy.archive import MAX_ARCHIVE, read_archive
from verifier.policy.engine import Limits, opened
from verifier.policy.rollout import Rollout
from verifier.reappraisal import Reappraiser
from verifier.roles import with_note
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, integer, json_response, parse_json, read_body
from verifier.service.inputs import StoredLookup
from verifier.service.state import Service, service_of
from verifier.store import policies, recordings, shadows, steps
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.recordings import Window

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Text = Annotated[str, Meta(min_length=1, max_length=2000)]
MAX_TRIAL_RECORDINGS: Final = 200_000
"""Recordings of one trial.  A larger trial needs the command line, which runs outside the service."""


class AuthorBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The reason of a change.  Its author is the caller."""

    actor: _Name | None = None
    """On whose behalf: a note, kept with the reason."""
    reason: _Text

    def author(self, request: web.Request) -> ChangeAuthor:
        """The author for the store."""
        return author_of(request, self.reason, self.actor)


def author_of(request: web.Request, reason: str, named: str | None = None) -> ChangeAuthor:
    """
    The caller as the author of a change.

    Raises:
        RequestError: the reason is blank.
    """
    name = caller_of(request).name
    return ChangeAuthor(name, with_note(reason, name, named))


def author_of_query(request: web.Request) -> ChangeAuthor:
    """The author of a change whose reason is in the query: ``?reason=…``, and ``actor=…`` as a note."""
    return author_of(request, request.query.get("reason", "")[:2000], request.query.get("actor", "")[:128])


class _PromoteBody(AuthorBody, frozen=True):
    anyway: bool = False
    """Also if the policy failed in its trial, or as the shadow."""


class _ShareBody(_PromoteBody, frozen=True, kw_only=True):
    permille: Annotated[int, Meta(ge=1, le=1000)]


class _RollbackBody(AuthorBody, frozen=True):
    to: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class _TrialBody(AuthorBody, frozen=True):
    nodes: Annotated[tuple[_Name, ...], Meta(max_length=500)] = ()
    operator: _Name | None = None
    since: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    """Seconds since 1970."""
    until: Annotated[int, Meta(ge=0, le=1 << 40)] = 1 << 40
    newest_only: bool = False


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/policies"
    one = f"{base}/{{policy}}"
    return [
        access.get(base, list_policies, access.POLICIES, "List policies."),
        access.post(base, publish, access.AUTHOR, "Publish a policy."),
        access.get(f"{base}/rollout", show_rollout, access.POLICIES, "Show the rollout."),
        access.get(f"{base}/history", history, access.POLICY_WORK, "Show every change, with who and why."),
        access.post(f"{base}/rollback", rollback, access.APPROVE, "Roll back."),
        access.delete(f"{base}/shadow", end_shadow, access.AUTHOR, "End the shadow."),
        access.get(one, show, access.POLICIES, "Show a policy."),
        access.get(f"{one}/bundle", archive, access.POLICIES, "Give a policy's bundle."),
        access.get(f"{one}/diff/{{other}}", compare, access.POLICY_WORK, "Compare two policies."),
        access.get(
            f"{one}/shadow", shadow_report, access.POLICY_WORK, "Show what a shadow would have changed."
        ),
        access.post(f"{one}/trial", try_out, access.AUTHOR, "Try a policy on recordings."),
        access.post(f"{one}/shadow", shadow, access.AUTHOR, "Make a policy the shadow."),
        access.post(f"{one}/canary", canary, access.APPROVE, "Let a policy judge a share of the nodes."),
        access.post(f"{one}/promote", promote, access.APPROVE, "Let a policy judge all nodes."),
    ]


async def list_policies(request: web.Request) -> web.Response:
    """All policies, the newest first, each with its state in the rollout."""
    async with service_of(request).db.read() as tx:
        rows = await policies.every(tx)
        rollout = await policies.rollout(tx)
    return json_response({"policies": [to_wire(row, rollout) for row in rows]})


async def publish(request: web.Request) -> web.Response:
    """
    Publish a bundle: a zip archive that an author has signed.  It must pass the linter and its own tests.

    ``?reason=…`` says why.
    """
    service = service_of(request)
    who = author_of_query(request)
    body = await read_body(request, MAX_ARCHIVE)
    # Unpacking and parsing take long, and other requests must not wait.
    bundle, envelope = await asyncio.to_thread(read_archive, body)
    signer = bundles.verify(bundle, envelope, service.authors)
    passed = await admission.check(bundle, limits_of(service))
    assert envelope is not None
    now_ms = service.now_ms()
    is_new = await service.db.write(lambda tx: policies.publish(tx, bundle, envelope, signer, who, now_ms))
    answer = {
        "policy": bundle.id,
        "digest": bundle.digest,
        "signer": signer,
        "tests": len(passed.report.tests),
        "coverage": round(passed.report.coverage, 1),
        "samples": passed.answers.asked,
        "warnings": [str(finding) for finding in passed.inspection.findings],
    }
    headers = {"Location": f"/api/v1/policies/{bundle.digest}"}
    return json_response(answer, status=201 if is_new else 200, headers=headers)


def limits_of(service: Service) -> Limits:
    """The limits of this service on one evaluation."""
    policy = service.config.policy
    return Limits(1, policy.timeout_s, policy.memory_mib << 20)


async def show(request: web.Request) -> web.Response:
    """One policy: who made it, its state in the rollout, and the names of its files."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await policies.find(tx, request.match_info["policy"])
        rollout = await policies.rollout(tx)
        bundle = await service.inputs.load_bundle(tx, row["digest"])
    return json_response({**to_wire(row, rollout), "files": sorted(bundle.files)})


async def archive(request: web.Request) -> web.Response:
    """The bundle as it was published, with its signature."""
    async with service_of(request).db.read() as tx:
        row = await policies.find(tx, request.match_info["policy"])
    return web.Response(
        body=row["archive"], content_type="application/zip", headers={"ETag": f'"{row["digest"]}"'}
    )


async def compare(request: web.Request) -> web.Response:
    """The differences in meaning between the policy and `other`."""
    service = service_of(request)
    async with service.db.read() as tx:
        digests = [(await policies.find(tx, request.match_info[n]))["digest"] for n in ("policy", "other")]
        old, new = [await service.inputs.load_bundle(tx, digest) for digest in digests]
    found = diff.compare(old, await admission.inspect(old), new, await admission.inspect(new))
    return json_response({"differences": msgspec.to_builtins(found)})


async def show_rollout(request: web.Request) -> web.Response:
    """The active policy, the canary and the shadow."""
    async with service_of(request).db.read() as tx:
        rollout = await policies.rollout(tx)
        rows = {row["digest"]: row["id"] for row in await policies.every(tx)}
    assert rollout is not None
    return json_response(rollout_to_wire(rollout, rows))


async def history(request: web.Request) -> web.Response:
    """Every change with who and why, the newest first; ``before`` and ``limit`` page through it."""
    before = integer(request, "before", default=1 << 53, low=1, high=1 << 53)
    limit = integer(request, "limit", default=100, low=1, high=500)
    async with service_of(request).db.read() as tx:
        rows = await policies.history(tx, before, limit)
    following = rows[-1]["seq"] if len(rows) == limit else None
    return json_response({"changes": [change_to_wire(row) for row in rows], "next": following})


async def try_out(request: web.Request) -> web.Response:
    """Judge recorded evidence again under the policy, and report what would change."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _TrialBody)
    window = Window(
        nodes=body.nodes,
        operator=body.operator,
        since_ms=body.since * 1000,
        until_ms=body.until * 1000,
        newest_only=body.newest_only,
    )
    async with service.db.read() as tx:
        row = await policies.find(tx, request.match_info["policy"])
        bundle = await service.inputs.load_bundle(tx, row["digest"])
        count = await recordings.count(tx, window)
    if count > MAX_TRIAL_RECORDINGS:
        raise RequestError(
            f"the trial has {count} recordings, more than {MAX_TRIAL_RECORDINGS}:"
            " narrow the window, or use the command line"
        )
    limits = limits_of(service)
    samples = await questions.find_failure(bundle, (await admission.inspect(bundle)).words, limits)
    async with opened(bundle, limits) as pool:
        reappraiser = Reappraiser(bundle, pool.ask, StoredLookup(service.db, service.inputs))
        report = await trial.run(
            recordings.pages(service.db, window), reappraiser, bundle.id, samples=samples
        )
    wire = report.to_wire()
    detail = {name: value for name, value in wire.items() if name != "changes"}
    await service.db.write(
        lambda tx: policies.note(tx, "trial", bundle.digest, body.author(request), service.now_ms(), detail)
    )
    return json_response(wire)


async def shadow(request: web.Request) -> web.Response:
    """Make the policy the shadow: it is asked too, without effect."""
    body = await _read_author(request, AuthorBody)
    return await _take_named_step(request, "shadow", body.author(request))


async def end_shadow(request: web.Request) -> web.Response:
    """End the shadow."""
    body = await _read_author(request, AuthorBody)
    return await _take_step(request, "shadow", None, body.author(request))


async def shadow_report(request: web.Request) -> web.Response:
    """What would have been different under the policy, while it was the shadow."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await policies.find(tx, request.match_info["policy"])
        report = await shadows.report(tx, row["digest"])
    if report is None:
        raise RequestError("the policy was never the shadow", code="request.not-found")
    return json_response(report)


async def canary(request: web.Request) -> web.Response:
    """Let the policy judge a share of the nodes."""
    body = await _read_author(request, _ShareBody)
    return await _take_named_step(
        request, "canary", body.author(request), permille=body.permille, anyway=body.anyway
    )


async def promote(request: web.Request) -> web.Response:
    """Let the policy judge all nodes."""
    body = await _read_author(request, _PromoteBody)
    return await _take_named_step(request, "promote", body.author(request), anyway=body.anyway)


async def rollback(request: web.Request) -> web.Response:
    """End the canary; or return to the policy that was active before, or to an earlier one named in the body."""
    body = await _read_author(request, _RollbackBody)
    return await _take_step(request, "rollback", body.to, body.author(request))


async def _read_author(request: web.Request, kind: type[Any]) -> Any:
    return parse_json(await read_body(request, MAX_JSON), kind)


async def _take_named_step(
    request: web.Request, action: str, who: ChangeAuthor, *, permille: int = 0, anyway: bool = False
) -> web.Response:
    name = request.match_info["policy"]
    return await _take_step(request, action, name, who, permille=permille, anyway=anyway)


async def _take_step(
    request: web.Request,
    action: str,
    name: str | None,
    who: ChangeAuthor,
    *,
    permille: int = 0,
    anyway: bool = False,
) -> web.Response:
    service = service_of(request)
    if name is not None:
        async with service.db.read() as tx:
            # Unpacking takes long: it must be done, and cached, before the write transaction begins.
            await service.inputs.load_bundle(tx, (await policies.find(tx, name))["digest"])

    async def take(tx: Tx) -> tuple[Rollout, dict[str, str]]:
        rollout = await steps.take_step(
            tx, action, name, who, service.now_ms(), load=service.inputs.load_bundle,
            grace_ms=service.config.references.grace_s * 1000, permille=permille,
            two_person=service.config.policy.two_person, anyway=anyway,
        )  # fmt: skip
        return rollout, {row["digest"]: row["id"] for row in await policies.every(tx)}

    rollout, rows = await service.db.write(take)
    return json_response(rollout_to_wire(rollout, rows))


def to_wire(row: Row, rollout: Rollout | None) -> dict[str, Any]:
    """A policy as JSON."""
    names = ("digest", "name", "version", "author", "description", "signer")
    return {
        "policy": row["id"],
        **{name: row[name] for name in names},
        "published": row["added_ms"] // 1000,
        "state": state_of(row["digest"], rollout),
    }


def state_of(digest: str, rollout: Rollout | None) -> str:
    """A policy's state in the rollout: active, canary, shadow or published."""
    if rollout is None:
        return "published"
    places = {rollout.shadow: "shadow", rollout.canary: "canary", rollout.active: "active"}
    return places.get(digest, "published")


def rollout_to_wire(rollout: Rollout, ids: dict[str, str]) -> dict[str, Any]:
    """The rollout as JSON.  A policy whose id is not known is named by its digest."""

    def name(digest: str | None) -> str | None:
        return None if digest is None else ids.get(digest, digest)

    return {
        "active": name(rollout.active),
        "canary": name(rollout.canary),
        "permille": rollout.permille,
        "shadow": name(rollout.shadow),
        "generation": rollout.generation,
    }


def change_to_wire(row: Row) -> dict[str, Any]:
    """A change as JSON."""
    return {
        "seq": row["seq"],
        "at": row["at_ms"] // 1000,
        "actor": row["actor"],
        "reason": row["reason"],
        "action": row["action"],
        "subject": row["subject"],
        "detail": msgspec.json.decode(row["detail"]),
        "active": row["active"],
        "canary": row["canary"],
        "permille": row["permille"],
        "shadow": row["shadow"],
    }
