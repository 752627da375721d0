"""
From bytes received to what a node has signed: steps 0 to 4 of the appraisal (`verifier.appraisal`), pure.

    read_envelope(media_type, data) → SealedEvidence    steps 0 and 1: the envelope
    authenticate(sealed, node)      → OpenedEvidence    steps 3 and 4, then 1 and 2: the payload

Anybody can send evidence, and a large payload takes long to read.  So the payload's part of steps 1
and 2 comes last: nothing of it is read before the session's node is known to have signed it.
"""

from __future__ import annotations

from dataclasses import dataclass

from attester import cose, evidence
from attester.errors import CBORError, ClaimError, COSEError, SignatureError
from verifier.errors import EvidenceError
from verifier.schemes.context import Node


@dataclass(frozen=True)
class SealedEvidence:
    """Evidence whose envelope is well-formed.  Anybody may have sent it, and its payload may be anything."""

    envelope: cose.Sign1

    @property
    def kid(self) -> bytes:
        """The thumbprint of the key that it claims to be signed with."""
        kid: bytes = self.envelope.header[cose.KID]
        return kid


@dataclass(frozen=True)
class OpenedEvidence:
    """Evidence after step 4: its node has signed it, and its payload is well-formed and of this profile."""

    token: evidence.Token


def read_envelope(media_type: str, data: bytes) -> SealedEvidence:
    """
    Step 0, and step 1 for the envelope.

    Raises:
        EvidenceError: it names the step.
    """
    # 0. Media type and size.  The service refuses a larger body earlier, with `request.too-large`.
    if not is_accepted(media_type):
        raise EvidenceError(0, "evidence.media-type", f"the content type is {media_type[:100]!r}")
    if len(data) > evidence.MAX_EVIDENCE:
        raise EvidenceError(
            0, "evidence.size", f"the evidence has {len(data)} bytes, more than {evidence.MAX_EVIDENCE}"
        )
    # 1. Strict decoding, of the envelope alone.
    try:
        return SealedEvidence(evidence.decode_envelope(data))
    except (CBORError, COSEError) as error:
        raise EvidenceError(1, "evidence.malformed", str(error)) from None


def is_accepted(media_type: str) -> bool:
    """Whether a Content-Type is that of this profile's evidence; its parameter may be left out."""
    kind, _, parameters = media_type.partition(";")
    if kind.strip().lower() != "application/eat+cwt":
        return False
    profile = parameters.strip()
    return profile in ("", f'eat_profile="{evidence.PROFILE}"')


def authenticate(sealed: SealedEvidence, node: Node) -> OpenedEvidence:
    """
    Steps 3 and 4: the session's node signed it.  Then steps 1 and 2 for the payload.

    Raises:
        EvidenceError: it names the step.
    """
    envelope = sealed.envelope
    # 3. The session's node by kid; algorithm and key are those it was enrolled with.
    if sealed.kid != node.key.kid:
        raise EvidenceError(3, "evidence.key", "the key is not that of the session's node")
    if envelope.header[cose.ALG] != node.key.alg:
        raise EvidenceError(
            3, "evidence.algorithm", "the algorithm is not the one that the key was enrolled with"
        )
    # 4. Signature over the bytes received.
    try:
        envelope.verify(node.key)
    except SignatureError as error:
        raise EvidenceError(4, "evidence.signature", str(error)) from None
    return _read_payload(envelope.payload)


def reopen(data: bytes) -> OpenedEvidence:
    """
    Open evidence that was authenticated when it came, and recorded.

    Raises:
        EvidenceError: this version cannot read it.
    """
    return _read_payload(read_envelope(evidence.MEDIA_TYPE, data).envelope.payload)


def _read_payload(payload: bytes) -> OpenedEvidence:
    # 1. Strict decoding of the token's own claims.
    try:
        return OpenedEvidence(evidence.Token.from_payload(payload))
    except ClaimError as error:
        # 2. Profile: under another one, the other claims may mean something else.
        if error.claim == "eat_profile":
            raise EvidenceError(2, "evidence.profile", str(error)) from None
        raise EvidenceError(1, "evidence.malformed", str(error)) from None
    except CBORError as error:
        raise EvidenceError(1, "evidence.malformed", str(error)) from None
