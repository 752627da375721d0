"""
Evidence: the claims, the EAT profile, and how they are signed (RFC 9711, RFC 8392).

The encoding is ``61(18([protected, {}, payload, signature]))`` in deterministic CBOR.  Two tables,
`TOKEN_CLAIMS` here and `attester.kinds.KINDS`, drive encoding, decoding,
``docs/evidence-profile.md`` and the test for collisions with the private claims of others.

Evidence is read in two steps, because only what a key has signed may be held against its node.
`decode_envelope` and `Token.from_payload` read the envelope and the claims of the token;
`attester.kinds.read_submod` reads one submodule, and is called after the signature was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from attester import cbor, cose
from attester.errors import ClaimError, COSEError

PROFILE: Final = "tag:github.com,2026:touchstone/node-evidence#1"
MEDIA_TYPE: Final = f'application/eat+cwt; eat_profile="{PROFILE}"'
COSE_TYP: Final = "application/eat+cwt"

MAX_EVIDENCE = 1 << 20
"""Bytes of one token.  4,096 files and 2 × 2,048 answers fit."""
MAX_FILES = 4096
MAX_ROWS = 2048
MAX_SUBMODS = 64
_MAX_ENVELOPE_VALUES = 32
"""An envelope has 7: two tags, the array, its four parts.  A stranger's may have more, which are not read."""
_MAX_HEADER = 256
"""Bytes of the protected header.  That of the profile has about 60."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
# Printable ASCII: people see what a node says, and it must not control their terminals.
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+\Z")]
Line = Annotated[str, Meta(max_length=512, pattern=r"^[\x20-\x7e]*\Z")]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]

ENDPOINT_URL = r"^https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?\Z"
"""Only scheme, host and port, in a form that no resolver has to normalise."""


class Claims(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The value of one claim: a map with text keys, all of them known."""


class File(Claims, frozen=True):
    """One file of a model: its name relative to the folder, size in bytes, at least one digest."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    size: Count
    sha256: Digest | None = None
    blake3: Digest | None = None

    def __post_init__(self) -> None:
        """Refuse a file without a digest: it says nothing."""
        if self.sha256 is None and self.blake3 is None:
            raise ValueError("a file must have at least one digest")


class Cached(Claims, frozen=True):
    """The digests of a manifest that come from a cache: their files were not read now."""

    files: Annotated[int, Meta(ge=1, le=MAX_FILES)]
    oldest: Annotated[int, Meta(ge=0, le=1 << 53)]
    """When the oldest of them was computed, seconds since 1970 by the node's clock."""


class Manifest(Claims, frozen=True):
    """Every file of a model, in the order of the UTF-8 bytes of their names."""

    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=MAX_FILES)]
    dtypes: Annotated[dict[Name, Count], Meta(max_length=64)] = msgspec.field(default_factory=dict)
    """Bytes of weights by their type, as the headers of the files declare them."""
    cached: Cached | None = None


class ReadAnswer(Claims, frozen=True):
    """The answer to a `read` challenge (`attester.weights.possession.read`)."""

    answer: Digest
    micros: Count
    """Time taken, microseconds by the node's clock.  It is declared, and not used."""


WalkSource: TypeAlias = Literal["engine", "loaded", "file"]
"""
`engine`: the serving process walked the tensors that it has loaded, in their published layout.
`loaded`: it walked them as they are, for a reference value of this build of the engine.  `file`: the files were walked.
"""


class WalkAnswer(Claims, frozen=True):
    """The answers to a `walk` challenge, one for each row, in the order of the rows."""

    answers: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=MAX_ROWS)]
    source: WalkSource
    """What was walked."""
    device: Line
    micros: Count


class Endpoint(Claims, frozen=True):
    """
    Where the node serves.  Its TLS key signs, so that no node can claim the endpoint of another.

    `signature` is by the TLS key over `endpoint_statement`; an ECDSA signature is in raw form.
    """

    url: Annotated[str, Meta(max_length=256, pattern=ENDPOINT_URL)]
    spki: Annotated[bytes, Meta(min_length=1, max_length=512)]
    """The TLS key as a DER SubjectPublicKeyInfo.  Its SHA-256 is the pin."""
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Runtime(Claims, frozen=True):
    """What runs on the node, with everything that may change an answer."""

    engine: Name
    version: Name
    arguments: Annotated[dict[Name, Line | int | bool | None], Meta(max_length=256)]
    """The engine's arguments that can change answers."""
    packages: Annotated[dict[Name, Name], Meta(max_length=512)]
    python: Name
    kernel: Line
    container: Line | None = None
    """The digest of the image, if there is one."""
    driver: Line | None = None


class Capabilities(Claims, frozen=True):
    """Which work the node can do.  It is declared, and used only to exclude the node, never to rank it."""

    hardware_class: Name
    memory_bytes: Count
    context_length: Count
    quantisation: Name
    features: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    region: Name | None = None


class Exposure(Claims, frozen=True):
    """Which control routes of the engine can be reached through the endpoint, as the node itself saw it from outside."""

    reached: bool
    """Whether it could look: the endpoint answered, and with the attested key."""
    routes: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    """The paths that answered."""


class Inventory(Claims, frozen=True):
    """A GPU as its driver's library describes it (NVML).  It is declared: the library runs on the node."""

    model: Name
    uuid: Name
    memory_bytes: Count
    serial: Name | None = None
    pci: Name | None = None
    driver: Name | None = None
    vbios: Name | None = None
    ecc: bool | None = None
    mig: bool | None = None
    confidential: Name | None = None
    """The confidential-computing mode: on, off, devtools."""


class Measure(Claims, frozen=True):
    """One number of a benchmark run."""

    name: Name
    unit: Name
    median: Count
    spread: Count
    """The distance between the quartiles, in the same unit."""
    repeats: Annotated[int, Meta(ge=1, le=100_000)]
    warm_up: Annotated[int, Meta(ge=0, le=100_000)]


class Benchmark(Claims, frozen=True):
    """A benchmark run on one device (`attester.gpu.benchmark`)."""

    device: Line
    at: Annotated[int, Meta(ge=0, le=1 << 53)]
    """When, seconds since 1970 by the node's clock."""
    code: Name
    """The version of the benchmark's code."""
    versions: Annotated[dict[Name, Name], Meta(max_length=32)]
    measures: Annotated[tuple[Measure, ...], Meta(min_length=1, max_length=64)]
    conditions: Annotated[dict[Name, Count], Meta(max_length=32)] = msgspec.field(default_factory=dict)
    """Clocks, temperature and power while it ran, if the driver reports them."""

    def __post_init__(self) -> None:
        """Refuse two measures with one name: they may contradict each other."""
        if len({measure.name for measure in self.measures}) != len(self.measures):
            raise ValueError("two measures have the same name")


@dataclass(frozen=True)
class Claim:
    """A row of the claims table."""

    key: int
    name: str
    type: Any
    meaning: str


TOKEN_CLAIMS: Final = (
    Claim(265, "eat_profile", str, "This profile's URI; no other is accepted (RFC 9711 §4.3.2)."),
    Claim(10, "eat_nonce", bytes, "The session's nonce, exactly as issued (RFC 9711 §4.1)."),
    Claim(256, "ueid", bytes, "The id that the verifier gave the node at enrolment (RFC 9711 §4.2.1)."),
    Claim(6, "iat", int, "When the evidence was signed, whole seconds (RFC 8392 §3.1.6)."),
    Claim(3, "aud", str, "The verifier this evidence is for (RFC 8392 §3.1.3)."),
    Claim(266, "submods", dict, "One claims-set for each thing measured (RFC 9711 §4.2.18)."),
)  # fmt: skip
"""The claims of the token itself.  Those of submodules are in `attester.kinds`."""

_TOKEN_BY_KEY: Final[Mapping[int, Claim]] = {claim.key: claim for claim in TOKEN_CLAIMS}
_TOKEN_KEYS: Final[Mapping[str, int]] = {claim.name: claim.key for claim in TOKEN_CLAIMS}


@dataclass(frozen=True)
class Token:
    """One piece of Evidence: the claims of every token, and its submodules, not yet read."""

    nonce: bytes
    ueid: bytes
    iat: int
    aud: str
    submods: Mapping[str, Any]
    """By name, the claims-sets as decoded, for `attester.kinds.read_submod`."""

    def sign(self, key: cose.Signer) -> bytes:
        """Encode and sign."""
        claims = {
            _TOKEN_KEYS["eat_profile"]: PROFILE,
            _TOKEN_KEYS["eat_nonce"]: self.nonce,
            _TOKEN_KEYS["ueid"]: self.ueid,
            _TOKEN_KEYS["iat"]: self.iat,
            _TOKEN_KEYS["aud"]: self.aud,
            _TOKEN_KEYS["submods"]: dict(self.submods),
        }
        return cose.sign(
            cbor.encode(claims),
            key,
            header={cose.TYP: COSE_TYP},
            tags=(cose.TAG_CWT, cose.TAG_SIGN1),
        )

    @classmethod
    def from_payload(cls, payload: bytes) -> Token:
        """
        Read the claims of a token.  The caller must check the signature.

        Raises:
            CBORError: it is not deterministic CBOR.
            ClaimError: a claim is missing, unknown, or has the wrong form.
        """
        raw = cbor.decode(payload, max_size=MAX_EVIDENCE)
        if not isinstance(raw, dict):
            raise ClaimError("token", "the payload must be a claims-set")
        table = _TOKEN_BY_KEY
        if unknown := [key for key in raw if key not in table]:
            raise ClaimError("token", f"unknown claim {str(unknown[0])[:40]}")
        named = {claim.name: raw.get(claim.key) for claim in table.values()}
        # The profile comes first: under another one, nothing below has the meaning that this profile gives it.
        if named["eat_profile"] != PROFILE:
            raise ClaimError("eat_profile", f"it must be {PROFILE}")
        try:
            fields = msgspec.convert(named, _TokenClaims, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise ClaimError("token", str(error)) from None
        return cls(
            nonce=fields.eat_nonce, ueid=fields.ueid, iat=fields.iat, aud=fields.aud, submods=fields.submods
        )


class _TokenClaims(Claims, frozen=True):
    eat_profile: str
    eat_nonce: Annotated[bytes, Meta(min_length=8, max_length=64)]
    ueid: Annotated[bytes, Meta(min_length=7, max_length=33)]
    iat: Annotated[int, Meta(ge=0, le=1 << 53)]
    aud: Annotated[str, Meta(min_length=1, max_length=256)]
    submods: Annotated[
        dict[
            Annotated[str, Meta(max_length=160, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*\Z")],
            dict[int | str, Any],
        ],
        Meta(min_length=1, max_length=MAX_SUBMODS),
    ]


def decode_envelope(data: bytes) -> cose.Sign1:
    """
    Read the COSE_Sign1 of a token, which must have exactly the headers of the profile.

    The payload is not read.  What a stranger sends is cheap to refuse, whatever it holds.

    Raises:
        CBORError: it is not deterministic CBOR.
        COSEError: it is not ``61(18(…))``, or has other headers than alg, kid and typ.
    """
    message = cose.Sign1.decode(
        data,
        max_size=MAX_EVIDENCE,
        tags=(cose.TAG_CWT, cose.TAG_SIGN1),
        max_header=_MAX_HEADER,
        max_values=_MAX_ENVELOPE_VALUES,
    )
    if message.unprotected:
        raise COSEError("the unprotected header must be empty")
    if message.header.keys() != {cose.ALG, cose.KID, cose.TYP}:
        raise COSEError("the protected header must have exactly alg, kid and typ")
    if message.header[cose.TYP] != COSE_TYP:
        raise COSEError(f"typ must be {COSE_TYP}")
    alg = message.header[cose.ALG]
    if type(alg) is not int or alg not in cose.ALGORITHM_NAMES:
        raise COSEError("alg must be ES256 (-7) or Ed25519 (-19)")
    kid = message.header[cose.KID]
    if not isinstance(kid, bytes) or len(kid) != 32:
        raise COSEError("kid must be a COSE Key Thumbprint (RFC 9679)")
    return message


ENDPOINT_DOMAIN: Final = "touchstone/endpoint/1"


def endpoint_statement(url: str, nonce: bytes, kid: bytes) -> bytes:
    """What the TLS key signs: it serves at *url* for the node with the key *kid*, in the session with *nonce*."""
    return cbor.encode([ENDPOINT_DOMAIN, url, nonce, kid])
