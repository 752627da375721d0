"""What all resources share: one `Service`, made at the start and kept in the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from attester.cose import PublicKey
from attester.errors import AttesterError, COSEError
from attester.proof import Proof, Request
from verifier.challenges.pool_key import PoolKey
from verifier.config import VerifierConfig
from verifier.errors import RequestError
from verifier.policy.engine import PolicyEngine
from verifier.references.anchors import Anchor
from verifier.result_keys import ResultKey, VerifyingKey
from verifier.roles import HOME_ADMIN, HOME_ROUTER, Caller, Role
from verifier.schemes.context import Node
from verifier.service.clock import Clock
from verifier.service.duties import Duties
from verifier.service.front import note_failure, note_identity
from verifier.service.inputs import InputLoader
from verifier.service.key_ring import KeyRing
from verifier.service.oidc import Issuer
from verifier.service.opened import OpenedSessions
from verifier.service.pools import PoolWatch
from verifier.service.rates import Rates
from verifier.service.readiness import Readiness
from verifier.service.review_watch import ReviewWatch
from verifier.service.sealed import Sealer
from verifier.service.seen_nodes import SeenNodes
from verifier.service.sequencer import Sequencer
from verifier.store import api_keys, nodes
from verifier.store.database import Database, Tx
from verifier.store.marks import HighWater
from verifier.store.restoring import Fence

_PER_SESSION: Final = 20
"""Times that a session may be named, for each request that its node may sign."""
BYTES_PER_REQUEST: Final = 32 * 1024
"""What so many bytes of evidence or answers cost, one request costs."""


@dataclass(frozen=True)
class Service:
    """The running verifier."""

    config: VerifierConfig
    db: Database
    engine: PolicyEngine
    key_ring: KeyRing
    """The keys that sign results."""
    pool_key: PoolKey
    admin_token: str
    """The tokens of the home; empty if its file was removed."""
    router_token: str
    clock: Clock
    marks: HighWater
    """Above what is given out, for the day on which the database must be restored."""
    log_key: Ed25519PrivateKey | None
    """The key that signs the log, if the home has it."""
    log_guard: Path
    """The file that says what that key signed last."""
    archive_folder: Path | None = None
    """Where results that are too old are moved; None: they are deleted."""
    fence: Fence = field(default_factory=Fence)
    inputs: InputLoader = field(default_factory=InputLoader)
    authors: Mapping[str, PublicKeyTypes] = field(default_factory=dict)
    """Keys that may sign policies, by name."""
    anchors: Callable[[], Mapping[str, Anchor]] = dict
    """Reads the keys and certificates that may sign reference values, by name: anew for each import."""
    opened: OpenedSessions = field(default_factory=OpenedSessions)
    seen: SeenNodes = field(default_factory=SeenNodes)
    oidc: Issuer | None = field(init=False)
    """The issuer whose tokens are credentials, if one is configured."""
    duties: Duties = field(init=False)
    pools: PoolWatch = field(init=False)
    reviews: ReviewWatch = field(init=False)
    sealer: Sealer = field(init=False)
    readiness: Readiness = field(init=False)
    sequencer: Sequencer = field(init=False)
    node_rates: Rates = field(init=False)
    caller_rates: Rates = field(init=False)
    """By the name of a credential."""
    session_rates: Rates = field(init=False)
    """By session of a node: whoever learns a session's id can spend no more than what that session has."""

    def __post_init__(self) -> None:
        sessions = self.config.sessions
        oidc = self.config.access.oidc
        object.__setattr__(self, "oidc", None if oidc is None else Issuer(oidc, self.clock))
        object.__setattr__(self, "sealer", Sealer(self.pool_key))
        object.__setattr__(self, "duties", Duties(self.db, self.clock, sessions.skew_s))
        watch = ReviewWatch(self.db, self.duties.shared_ms, self.clock.monotonic)
        object.__setattr__(self, "reviews", watch)
        object.__setattr__(self, "pools", PoolWatch(self.config, self.db, self.inputs, self.clock))
        origin = self.config.log_origin
        sequencer = Sequencer(self.db, self.duties, origin, self.log_key, self.log_guard)
        object.__setattr__(self, "sequencer", sequencer)
        object.__setattr__(self, "readiness", Readiness(self.db, self.clock.monotonic))
        object.__setattr__(self, "node_rates", Rates(sessions.per_node_per_minute, self.clock.monotonic))
        per_caller = self.config.access.per_caller_per_minute
        object.__setattr__(self, "caller_rates", Rates(per_caller, self.clock.monotonic))
        per_session = _PER_SESSION * sessions.per_node_per_minute
        object.__setattr__(self, "session_rates", Rates(per_session, self.clock.monotonic))

    @property
    def issuer(self) -> str:
        """The issuer of results, and the audience of evidence."""
        return self.config.service.url

    @property
    def signing_key(self) -> ResultKey:
        """The key that signs results now."""
        return self.key_ring.signer(self.now_ms())

    def verifying_keys(self) -> Mapping[str, VerifyingKey]:
        """Every key that can have signed a live result, or will sign soon, by kid: the newest first."""
        return self.key_ring.listed(self.now_ms())

    @property
    def jwks(self) -> bytes:
        """The same as a JWKS (RFC 7517 §5)."""
        return msgspec.json.encode({"keys": [key.jwk() for key in self.verifying_keys().values()]})

    @cached_property
    def home_callers(self) -> Mapping[bytes, Caller]:
        """The callers with a token of the home, by its digest."""
        given = {
            self.admin_token: Caller(HOME_ADMIN, frozenset({Role.ADMINISTRATOR})),
            self.router_token: Caller(HOME_ROUTER, frozenset({Role.ROUTER})),
        }
        return {api_keys.digest_of(token): caller for token, caller in given.items() if token}

    def now_ms(self) -> int:
        """Milliseconds since 1970, by the clock that all replicas share: what one writes, another compares."""
        return self.duties.shared_ms()

    def spend_session(self, session_id: str, size: int = 0) -> None:
        """
        Count a request about a node's session, and the bytes that it has brought.

        Raises:
            RequestError: there were too many.
        """
        self.session_rates.spend(session_id)
        self.session_rates.charge(session_id, size / BYTES_PER_REQUEST)

    async def authenticate(
        self, request: web.Request, body: bytes, *, will_check: bool = False
    ) -> tuple[Node, Proof]:
        """
        The node that signed this request, and its proof, which the caller must use up with `use`.

        A failure counts against the caller's address, and a success never does.

        Args:
            will_check: Whether the transaction of what the request asks for checks that the node is still as it is
                given here (`verifier.store.node_state.check`): then it may be as it was seen last.

        Raises:
            RequestError: there is no proof, it is of another request, or the node is unknown or retired; or there
                were too many failures.
            COSEError, CBORError, ClaimError: the proof is malformed.
        """
        try:
            node, proof = await self._authenticate(request, body, may_remember=will_check)
        except (RequestError, AttesterError):
            note_failure(request)
            raise
        note_identity(request, f"node:{node.id}")
        return node, proof

    async def _authenticate(
        self, request: web.Request, body: bytes, *, may_remember: bool
    ) -> tuple[Node, Proof]:
        proof = self.proof(request)
        node = self.seen.by_kid(proof.kid) if may_remember else None
        if node is None:
            async with self.db.read() as tx:
                node = await nodes.by_kid(tx, proof.kid)
        if node is None:
            raise RequestError("the key is not enrolled", code="request.unauthorised")
        self.verify(proof, request, body, node.key)
        if node.state == "retired":
            raise RequestError("the node was retired", code="request.forbidden")
        return node, proof

    def proof(self, request: web.Request) -> Proof:
        """The proof in the Authorization header, unchecked."""
        header = request.headers.get("Authorization")
        if header is None:
            raise RequestError(
                "the request has no Authorization header with a signature by the node's key",
                code="request.unauthorised",
            )
        return Proof.decode(header)

    async def use(self, tx: Tx, proof: Proof) -> None:
        """
        Use a proof up, in the transaction of what the request asks for.

        Raises:
            RequestError: it was used before.
        """
        await nodes.use_request(tx, proof.kid, proof.random, self.forget_at(proof))

    def forget_at(self, proof: Proof) -> int:
        """From when on the proof is refused for its time, milliseconds: it need not be remembered longer."""
        return (proof.claims.time + self.config.sessions.skew_s + 2) * 1000

    def signed_request(self, request: web.Request, body: bytes) -> Request:
        """What a node must have signed of *request*: for this verifier, whatever the Host header says."""
        authority = self.issuer.partition("://")[2]
        return Request(request.method, authority, request.raw_path, body)

    def verify(self, proof: Proof, request: web.Request, body: bytes, key: PublicKey) -> None:
        """Check a proof against the request.  Raises `RequestError` if it does not match."""
        try:
            proof.verify(
                self.signed_request(request, body),
                key,
                now=self.now_ms() // 1000,
                skew=self.config.sessions.skew_s,
            )
        except COSEError as error:
            self._hear_late(proof, request, body, key)
            raise RequestError(str(error), code="request.unauthorised") from None
        if self.duties.doubt:
            self.duties.doubt.hear(proof.kid, proof.claims.time * 1000, self.now_ms())
        if proof.claims.time * 1000 <= self.fence.signed_ms:
            wait_s = max(self.fence.signed_ms - self.now_ms(), 0) // 1000 + 1
            raise RequestError(
                "this may have been used before the verifier's database was restored. Sign it again later",
                code="request.replayed",
                retry_after=wait_s,
            )

    def _hear_late(self, proof: Proof, request: web.Request, body: bytes, key: PublicKey) -> None:
        """If it is not known whether our clock is right: take in the time that a node signed and that we refuse."""
        if not self.duties.doubt:
            return
        with suppress(COSEError):
            proof.verify(self.signed_request(request, body), key, now=proof.claims.time, skew=0)
            self.duties.doubt.hear(proof.kid, proof.claims.time * 1000, self.now_ms())


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)


def service_of(request: web.Request) -> Service:
    """The service behind a request."""
    return request.app[SERVICE]
