"""Receipts with all that verifies them, made by the functions of their formats: right, or wrong in one thing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import UNSET

from attester.cose import PrivateKey
from router.client.bundles import Bundle, parse_bundle
from router.client.exchanges import Exchange
from router.client.trust import LogTrust, Required, RouterTrust, Trust, TrustFile, VerifierTrust
from router.receipts import batches, payload, tokens
from router.receipts.payload import Node, Receipt, Request, Response, Usage
from tests.unit.router.doubles import result_key
from tests.unit.router.support import ISSUER, MODEL, NOW, PIN, ear
from verifier import canonical
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, sign_checkpoint
from verifier.log.notes import COSIGNATURE_V1, Signer
from verifier.log.proofs import LogProof
from verifier.result_keys import ResultKey, VerifyingKey, unb64url
from verifier.results import AttestationResult, decode_jwt, encode_jwt
from verifier.router_receipts import NO_ROOT, Batch, ReceiptKey, generate_key, sign_batch

ROUTER = "router-1"
URL = "https://router.test"
ORIGIN = "verifier.test/log"
BODY = msgspec.json.encode({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
ANSWER = b'{"object":"chat.completion","choices":[]}'
SALT = bytes(range(32))
WALKED = NOW * 1000 - 120_000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class World:
    """A router, a verifier with its log, and a witness."""

    receipt_key: PrivateKey = field(default_factory=generate_key)
    result_key: ResultKey = field(default_factory=result_key)
    log: Signer = field(default_factory=lambda: Signer(ORIGIN, Ed25519PrivateKey.generate()))
    witness: Signer = field(
        default_factory=lambda: Signer("witness.test/w1", Ed25519PrivateKey.generate(), COSIGNATURE_V1)
    )
    require: Required = field(default_factory=Required)

    def policy(self) -> str:
        return f"log {self.log.key}\nwitness w1 {self.witness.key}\nquorum w1\n"

    def trust_file(self, **router: Any) -> TrustFile:
        keys = (ReceiptKey(self.receipt_key.public).jwk(),)
        return TrustFile(
            router=RouterTrust(**{"url": URL, "name": ROUTER, "keys": keys, **router}),
            verifier=VerifierTrust(issuer=ISSUER, keys=(self.result_key.verifying.jwk(),)),
            log=LogTrust(policy=self.policy()),
            require=self.require,
        )

    def trust(self, **router: Any) -> Trust:
        return Trust(self.trust_file(**router))

    def ear(self, **given: Any) -> AttestationResult:
        """The result of the node that answers."""
        return ear("n", **{"revision": "ab" * 32, "measured": {"walk_at_ms": WALKED}, **given})

    @property
    def result_keys(self) -> dict[str, VerifyingKey]:
        return {self.result_key.kid: self.result_key.verifying}

    def token(self, result: AttestationResult | None = None) -> str:
        return encode_jwt(result or self.ear(), self.result_key)

    def receipt(self, token: str, *, seq: int = 1, prev: str | None = None, **given: Any) -> Receipt:
        """The receipt of an answer of the node that has this result."""
        result = decode_jwt(token, self.result_keys, issuer=_issuer(token), now=None)
        claims = result.submods[f"model/{MODEL}"].ear_verifier_claims
        node = Node(
            id=result.ueid,
            result=result.jti,
            result_sha256=digest(token.encode()),
            status=result.submods[f"model/{MODEL}"].ear_status.value,
            spki_sha256=PIN,
            reference=claims.reference or UNSET,
            assurance=claims.assurance,
            walk_at=WALKED,
            answer_sha256=digest(ANSWER),
        )
        members: dict[str, Any] = {
            "v": 1,
            "iss": ROUTER,
            "jti": secrets.token_hex(16),
            "iat": NOW * 1000 + 500,
            "key": digest(b"key"),
            "seq": seq,
            "prev": prev or UNSET,
            "request": Request(
                method="POST", path="/v1/chat/completions", salted=True, sha256=digest(SALT + BODY)
            ),
            "response": Response(
                status=200, sha256=digest(SALT + ANSWER), bytes=len(ANSWER), complete=True, streamed=False
            ),
            "model": MODEL,
            "workload": "tiny",
            "decision": "cd" * 16,
            "outcome": "completed",
            "node": node,
            "usage": Usage(by="router", prompt=2, completion=3),
        }
        return Receipt(**{**members, **given})

    def bundle(self, receipt: Receipt, token: str | None, *, others: int = 4, at: int = 2) -> dict[str, Any]:
        """What a router gives for it: the receipt is one of several in its batch, and the batch in a log of others."""
        data = payload.encode(receipt)
        leaves = [tree.leaf_hash(b"other %d" % n) for n in range(others)]
        leaves.insert(at, tree.leaf_hash(data))
        root, path = self._proven(leaves, at)
        batch = sign_batch(
            Batch(
                router=ROUTER,
                number=7,
                size=len(leaves),
                root=root.hex(),
                prev=NO_ROOT,
                from_ms=NOW * 1000,
                to_ms=NOW * 1000 + 900,
                kid=ReceiptKey(self.receipt_key.public).kid,
            ),
            self.receipt_key,
        )
        return {
            "receipt": tokens.sign(data, self.receipt_key),
            "result": token,
            "batch": batches.to_wire(batch),
            "index": at,
            "path": [each.hex() for each in path],
            "log": self.proof(batch),
        }

    def proof(self, batch: Batch, *, at: int = 5, size: int = 11) -> str:
        """The proof that the log has the batch."""
        entry = canonical.encode(
            {**msgspec.to_builtins(batch), "v": 1, "kind": "receipts", "at": NOW * 1000 + 1500}
        )
        leaves = [tree.leaf_hash(b"entry %d" % n) for n in range(size - 1)]
        leaves.insert(at, tree.leaf_hash(entry))
        root, path = self._proven(leaves, at)
        note = sign_checkpoint(Checkpoint(ORIGIN, size, root), self.log)
        note = note.with_signatures([self.witness.sign(note.text, NOW + 2)])
        return str(LogProof(at, tuple(path), note, entry))

    @staticmethod
    def _proven(leaves: list[bytes], at: int) -> tuple[bytes, list[bytes]]:
        def node(level: int, index: int) -> bytes:
            return tree.root_of(leaves[index << level : (index + 1) << level])

        return tree.root_of(leaves), tree.inclusion_proof(at, len(leaves), node)

    def whole(self, **given: Any) -> tuple[dict[str, Any], Receipt]:
        """A right bundle, and its receipt."""
        token = self.token()
        receipt = self.receipt(token, **given)
        return self.bundle(receipt, token), receipt


def _issuer(token: str) -> str:
    return str(msgspec.json.decode(unb64url(token.split(".")[1]))["iss"])


def parsed(bundle: dict[str, Any]) -> Bundle:
    return parse_bundle(msgspec.json.encode(bundle))


def exchange(**given: Any) -> Exchange:
    """What a client saw of the request and of the answer."""
    seen = Exchange(
        method="POST",
        path="/v1/chat/completions",
        status=200,
        request_sha256=digest(SALT + BODY),
        request_bytes=len(BODY),
        response_sha256=digest(SALT + ANSWER),
        response_bytes=len(ANSWER),
        is_salted=True,
        sent_ms=NOW * 1000,
        ended_ms=NOW * 1000 + 600,
        model=MODEL,
    )
    return Exchange(**{**vars(seen), **given})


def links(world: World, count: int) -> Iterable[tuple[Receipt, bytes]]:
    """Receipts of one key that continue each other, each with its payload."""
    token, prev = world.token(), None
    for seq in range(1, count + 1):
        receipt = world.receipt(token, seq=seq, prev=prev)
        data = payload.encode(receipt)
        prev = payload.digest_payload(data)
        yield receipt, data
