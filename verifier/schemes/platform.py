"""
The `platform` submodule: the endpoint, the running configuration and the capabilities.

The node declares all of it (`declared`) except the endpoint: its TLS key signs for this node and
this session, so no node can claim the endpoint of another.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attester.cose import ED25519, ES256, PublicKey
from attester.errors import SignatureError
from attester.evidence import Capabilities, Endpoint, Exposure, Runtime, endpoint_statement
from verifier.schemes import blocking, rates
from verifier.schemes.context import Context, Submods
from verifier.schemes.facts import PlatformFacts
from verifier.schemes.findings import CheckedSubmod, Finding, plain

SUBMOD = "platform"
_MAX_DETAIL: Final = 300
_KEPT_TLS_KEYS: Final = 8192
"""About 3 kB each.  Only evidence that a node has signed comes here, so no stranger can displace one."""


def check(submod: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of the platform."""
    findings: list[Finding] = []
    if error := submods.errors.get(submod):
        findings.append(Finding("evidence.claims.malformed", str(error)))
    claims: dict[str, Any] = {}
    may_affirm: dict[str, int] = {}

    endpoint: Endpoint | None = submods.claim(submod, "endpoint")
    proven = endpoint is not None and _is_proven(endpoint, context)
    if endpoint is None or proven:
        may_affirm["instance-identity"] = 2
    if endpoint is None:
        findings.append(Finding("identity.endpoint.missing", "there is no endpoint claim"))
    elif proven:
        claims["endpoint"] = {"url": endpoint.url, "spki_sha256": pin(endpoint)}
    else:
        detail = f"the TLS key claimed for {endpoint.url} did not sign the endpoint statement"
        findings.append(Finding("identity.endpoint.unproven", detail))

    runtime: Runtime | None = submods.claim(submod, "runtime")
    if runtime is None:
        findings.append(Finding("runtime.missing", "there is no runtime claim"))
    else:
        may_affirm["configuration"] = 2
        if context.tells_engine:
            # What a relying party must know to have one node go on where another one broke off.
            claims["runtime"] = {"engine": runtime.engine, "version": runtime.version}

    exposure: Exposure | None = submods.claim(submod, "exposure")
    if exposure is not None and exposure.routes:
        reached = f"reached through the endpoint: {', '.join(exposure.routes)}"
        findings.append(Finding("runtime.exposed", reached[:_MAX_DETAIL]))
    capabilities: Capabilities | None = submods.claim(submod, "capabilities")
    if capabilities is not None:
        claims["capabilities"] = plain(capabilities)
    findings += _check_class(capabilities, context)
    doubt = rates.check_class(context)
    if doubt is not None:
        findings.append(doubt)
    if context.node.state == "retired":
        findings.append(Finding("identity.node.retired", f"node {context.node.id} was retired"))

    facts = PlatformFacts(
        malformed=submod in submods.errors,
        node_state=context.node.state,
        endpoint="missing" if endpoint is None else "proven" if proven else "unproven",
        class_matches=capabilities is not None and capabilities.hardware_class == context.node.hardware_class,
        class_doubted=doubt is not None,
        exposure=_exposure_fact(exposure),
        runtime=runtime,
        capabilities=capabilities,
    )
    return CheckedSubmod(
        facts,
        findings=tuple(findings),
        may_affirm=may_affirm,
        attester_claims=claims,
        blocked=_blocked(runtime, submods, context),
    )


def _exposure_fact(exposure: Exposure | None) -> Literal["unreached", "closed", "open"] | None:
    if exposure is None:
        return None
    if exposure.routes:
        return "open"
    return "closed" if exposure.reached else "unreached"


def _check_class(capabilities: Capabilities | None, context: Context) -> list[Finding]:
    """The declared hardware class, compared with the one that the node was enrolled with."""
    findings = []
    enrolled = context.node.hardware_class
    if capabilities is None:
        findings.append(Finding("capabilities.missing", "there is no capabilities claim"))
    elif capabilities.hardware_class != enrolled:
        findings.append(
            Finding(
                "capabilities.class.mismatch",
                "the node declares another hardware class than it was enrolled with",
                expected=enrolled,
                actual=capabilities.hardware_class,
            )
        )
    if enrolled not in context.thresholds.classes:
        findings.append(
            Finding("capabilities.class.unknown", f"the policy has no hardware class {enrolled!r}")
        )
    return findings


def _blocked(runtime: Runtime | None, submods: Submods, context: Context) -> dict[str, str]:
    blocked = {}
    if runtime is not None and context.blocks.engines:
        block = blocking.find_engine(context.blocks.engines, runtime.engine, runtime.version)
        if block is not None:
            blocked["configuration"] = f"engine {runtime.engine}@{runtime.version}, by the block of {block}"
    if context.blocks.devices:
        # Routers look at the platform: a node with a blocked device must not be trusted at all.
        inventories = [submods.claim(name, "inventory") for name in submods.read]
        found = sorted(
            i.uuid
            for i in inventories
            if i is not None and blocking.find_device(context.blocks.devices, i.uuid) is not None
        )
        if found:
            blocked["instance-identity"] = f"device {found[0]}"
    return blocked


def pin(endpoint: Endpoint) -> str:
    """The SHA-256 of the endpoint's TLS public key, hex."""
    return hashlib.sha256(endpoint.spki).hexdigest()


def _is_proven(endpoint: Endpoint, context: Context) -> bool:
    statement = endpoint_statement(endpoint.url, context.session.nonce, context.node.key.kid)
    try:
        _read_tls_key(endpoint.spki).verify(endpoint.signature, statement)
    except (ValueError, UnsupportedAlgorithm, SignatureError):
        return False
    return True


@lru_cache(maxsize=_KEPT_TLS_KEYS)
def _read_tls_key(spki: bytes) -> PublicKey:
    """
    A TLS key by its DER SubjectPublicKeyInfo.  A node sends the same with each of its evidence.

    Raises:
        ValueError, UnsupportedAlgorithm: it is no key, or neither P-256 nor Ed25519.
    """
    key = serialization.load_der_public_key(spki)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        numbers = key.public_numbers()
        return PublicKey(ES256, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(ED25519, key.public_bytes_raw())
    raise ValueError("neither P-256 nor Ed25519")
