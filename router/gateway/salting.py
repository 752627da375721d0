"""
``cache_salt``: what a tenant's prompts leave in a node's prefix cache is found by that tenant's requests alone.

How long a first token takes tells whether a prompt's beginning was cached, and so what others have asked.  vLLM keeps
what has another salt apart (seen of 0.32, docs/longer-work.md).  The router writes the salt, from a secret of its own
that it draws anew each day, the tenant, what the tenant itself gave as a salt, and the first characters of the prompt:

    BLAKE2b-128(secret of the day, tenant ‖ own salt ‖ head)

Because of the head a node cannot link a tenant's requests by their salts, unless they begin alike.  A check has the
salt of a tenant of late, so that no salt is one of checks alone (docs/adr/0068).
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final

from msgspec import structs

from router.gateway.request import SALT, NodeRequest, Tenant
from router.model.clock import Clock
from router.model.prefix import head_of
from router.model.workload import Workload
from router.state.random_bytes import random_bytes

SALTING: Final = frozenset({"vllm"})
"""Engines of which it was seen that they keep apart what has another salt."""
_DAY_MS: Final = 86_400_000
_SECRET_BYTES: Final = 32
_SALT_BYTES: Final = 16
_AFFINITY_BYTES: Final = 8
_LATELY: Final = 256
"""Requests of a workload whose tenants are remembered."""


class Salts:
    """
    Makes salts.

    Args:
        clock: Its day is the life of a secret.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._day = -1
        self._secret = b""
        self._lasting = random_bytes(_SECRET_BYTES)
        """Of keys of affinity, which no node sees."""
        self._tenants: dict[str, deque[Tenant]] = {}

    def note(self, request: NodeRequest) -> None:
        """Note whose request came: checks are salted as those of tenants of late."""
        name = request.workload.name
        tenants = self._tenants.get(name)
        if tenants is None:
            tenants = self._tenants[name] = deque(maxlen=_LATELY)
        tenants.append(request.tenant)

    def as_of_late(self, request: NodeRequest, draw: float) -> NodeRequest:
        """
        A check as if it came from a tenant of late, each as likely as it has requests.

        Args:
            draw: A random number from 0 and below 1.
        """
        tenants = self._tenants.get(request.workload.name)
        return structs.replace(request, salted_as=tenants[int(draw * len(tenants))]) if tenants else request

    def write(self, request: NodeRequest, engine: tuple[str, str] | None) -> NodeRequest:
        """The request as a node with this engine gets it."""
        if (
            engine is None
            or engine[0] not in SALTING
            or not request.workload.cache_salt
            or not request.operation.limits
            or SALT in request.document
        ):
            return request
        salt = self.salt_of(request.tenant, head_of(request.document))
        # The body is an object in the router's own writing, and has a member at least.
        return structs.replace(request, body=b'{"cache_salt":"%b",' % salt.encode() + request.body[1:])

    def affinity_of(self, request: NodeRequest, workload: Workload | None = None) -> str | None:
        """
        The key by which a tenant's requests that begin alike find the same node; `None` if its workload has no such thing.

        What a tenant names as ``prompt_cache_key`` takes the place of the prompt's head.  *workload*: by another table.
        """
        if not (workload or request.workload).affinity_per_cent or not request.operation.limits:
            return None
        named = request.cache_key
        what = ("named", named) if named else ("head", head_of(request.document))
        return _digest(self._lasting, request.tenant.client, *what, size=_AFFINITY_BYTES).hex()

    def salt_of(self, tenant: Tenant, head: bytes) -> str:
        """The salt of a tenant's prompts that begin so, today."""
        day = self._clock.now_ms() // _DAY_MS
        if day != self._day:
            self._day, self._secret = day, random_bytes(_SECRET_BYTES)
        return _digest(self._secret, tenant.client, tenant.own_salt, head, size=_SALT_BYTES).hex()


def _digest(secret: bytes, *parts: str | bytes, size: int) -> bytes:
    digest = hashlib.blake2b(key=secret, digest_size=size)
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
