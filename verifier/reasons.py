"""
Every code that a result, an incident or a problem document can carry, once.

A code is ``subject.part.finding``, lower case and stable: people build on it.  The table
also drives ``docs/reason-codes.md`` and says which findings are serious.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MODEL_INTEGRITY: Final = "model-integrity-failure"
MALFORMED: Final = "evidence-malformed"
UNANSWERED: Final = "challenge-unanswered"
DECLARED_DUPLICATE: Final = "declared-duplicate"


@dataclass(frozen=True)
class Reason:
    """A row of the table."""

    code: str
    sentence: str
    hint: str
    """What the operator, or whoever is refused, can do."""
    incident: str | None = None
    """The kind of incident that the finding makes when a node has signed it."""


_TABLE: Final = (
    # identity
    Reason("identity.node.quarantined", "The node is in quarantine.", "A person must review the incident: touchstone verifier incidents."),
    Reason("identity.node.retired", "The node was retired.", "Enrol it again with a new token."),
    Reason("identity.endpoint.missing", "The evidence names no endpoint, so no work can be sent.", "Set [serve] in the attester's configuration."),
    Reason("identity.endpoint.unproven", "The endpoint's TLS key did not sign for this node and session.", "Give the attester the key that the engine serves with."),
    Reason("identity.endpoint.taken", "Another live node holds this TLS key.", "Make a TLS key for each node.", DECLARED_DUPLICATE),
    Reason("identity.duplicate-device", "Another live node declares this device.", "Enrol one node for each device.", DECLARED_DUPLICATE),
    # hardware
    Reason("gpu.inventory.missing", "The device was not named.", "Install the attester's gpu extra, or leave the submodule out."),
    Reason("gpu.inventory.memory", "The device names another amount of memory than its class has.", "Enrol the node with the class it has."),
    Reason("gpu.benchmark.missing", "No benchmark was run on the device.", "Run: touchstone attester benchmark"),
    Reason("gpu.benchmark.implausible", "A declared rate is more than the hardware class allows.", "Run the benchmark again; enrol the node with the class it has."),
    Reason("gpu.benchmark.boast", "A declared rate is far above what walks have verified.", "Check what else uses the device."),
    # runtime
    Reason("runtime.missing", "The running configuration was not reported.", "Let the attester reach the engine."),
    Reason("runtime.engine.unapproved", "The engine or its version is not approved.", "Run a version that the policy's data lists."),
    Reason("runtime.engine.weak", "The engine's version has a known weakness.", "Update the engine."),
    Reason("runtime.argument.forbidden", "The engine runs with a forbidden setting.", "Restart the engine without it."),
    Reason("runtime.package.forbidden", "A package of a forbidden version is installed.", "Install another version."),
    Reason("capabilities.missing", "The node did not report its capabilities.", "Let the attester reach the engine."),
    Reason("capabilities.class.mismatch", "The hardware class is not the one the node was enrolled with.", "Declare the class from enrolment, or enrol anew."),
    Reason("capabilities.class.contradicted", "Even the fastest walk is far from what the hardware class can do.", "Enrol the node with the class it has."),
    Reason("capabilities.class.exceeded", "A walk was faster than the hardware class allows.", "Enrol the node with the class it has."),
    Reason("capabilities.class.unknown", "The hardware class is not in the policy's table.", "Ask the security team to add the class."),
    # weights
    Reason("weights.reference.unknown", "There is no reference value for this model.", "Ask the verifier's operator to measure or import it."),
    Reason("weights.reference.expired", "The reference value's validity is over, or has not begun.", "Ask the verifier's operator to import a newer one."),
    Reason("weights.reference.superseded", "The files are those of a reference value that another has replaced.", "Download the published files anew before the grace period ends."),
    Reason("weights.model.missing", "The evidence says nothing of a model the node enrolled with.", "Add the model to the attester's configuration.", UNANSWERED),
    Reason("weights.manifest.missing", "The evidence lists no files.", "Let the attester read the model folder.", UNANSWERED),
    Reason("weights.manifest.malformed", "The list of files does not have its form.", "Update the attester.", MALFORMED),
    Reason("weights.manifest.unordered", "The files are not listed in the order of their names.", "Update the attester.", MALFORMED),
    Reason("weights.manifest.mismatch", "A file of weights is missing or differs from the reference.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.renamed", "A published file stands under another name.", "Give the files their published names.", MODEL_INTEGRITY),
    Reason("weights.manifest.swapped", "A file holds what belongs to another: shards were exchanged.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.quantised", "The weights are of other types than the published ones: quantised, or cast.", "Use the published weights, or have a reference value made of these.", MODEL_INTEGRITY),
    Reason("weights.manifest.configuration", "A file that is no weights and changes answers differs (chat template, tokeniser, configuration).", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.incomparable", "The node and the reference have no digest algorithm in common.", "Set [manifest] digests in attester.toml to one that the reference has."),
    Reason("weights.cache.old", "The digests are from the node's cache, and old.", "Lower [manifest] reread_s in attester.toml."),
    Reason("weights.cache.stale", "The digests are from the node's cache, and the bytes are others: the read answer is wrong.", "Remove digests.db from the attester's home, and download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.extra", "There are files beyond the reference.", "Remove them, or have them added to the reference."),
    Reason("weights.read.unasked", "No read challenge was posed in this session.", "Wait for the verifier's call, or open a session with the node's key."),
    Reason("weights.read.missing", "The read challenge was left unanswered.", "Let the attester read the model folder.", UNANSWERED),
    Reason("weights.read.malformed", "The read answer does not have its form.", "Update the attester.", MALFORMED),
    Reason("weights.read.wrong", "The read answer is wrong: the published files are not there.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.walk.missing", "The walk challenge was left unanswered.", "Let the attester reach the engine.", UNANSWERED),
    Reason("weights.walk.malformed", "The walk answers do not have their form.", "Update the attester.", MALFORMED),
    Reason("weights.walk.wrong", "A walk answer is wrong: other weights went through the arithmetic.", "Load the published weights, unquantised.", MODEL_INTEGRITY),
    Reason("weights.walk.unredeemed", "An earlier walk was wrong, and none has been right since.", "Load the published weights, and wait for a call."),
    Reason("weights.walk.late", "The median walk took longer than the hardware class needs.", "Check what else uses the device."),
    Reason("weights.walk.shared", "Called together with the operator's other nodes it answers far slower than alone: one device serves several nodes.", "Give each node a device of its own."),
    Reason("weights.walk.missed", "Calls were missed repeatedly.", "Keep the attester running and its call channel open."),
    Reason("weights.walk.announced", "The walk was not called at a secret moment, so it does not show residence.", "Keep the call channel open and wait for a call."),
    Reason("weights.walk.untimed", "The walk is too short to tell residence on this hardware class.", "More passes are needed; ask the verifier's operator."),
    Reason("weights.walk.from-file", "The walk went over the files, not over what the engine has loaded.", "Use an engine with an adapter that walks its own tensors."),
    Reason("weights.walk.stale", "The last right walk is older than the policy allows.", "Keep the call channel open and wait for a call."),
    Reason("weights.answers.differ", "The answers in the evidence differ from those given to the call.", "Submit the answers that were given.", MALFORMED),
    Reason("challenges.exhausted", "The pool of challenges is empty, so nothing was asked.", "The verifier's operator must mint more."),
    # evidence as a whole
    Reason("evidence.submod.unknown", "A submodule of a kind this verifier does not know.", "Update the verifier, or use an attester of its version.", MALFORMED),
    Reason("evidence.claims.malformed", "Claims do not have the form of the claims table.", "Update the attester.", MALFORMED),
    Reason("evidence.media-type", "The content type is not one of the session's accept list.", "Send application/eat+cwt with our eat_profile."),
    Reason("evidence.size", "The evidence is larger than this verifier reads.", "Send less."),
    Reason("evidence.malformed", "The evidence is not deterministic CBOR in a COSE_Sign1.", "See docs/evidence-profile.md."),
    Reason("evidence.profile", "The evidence is of another profile.", "See docs/evidence-profile.md."),
    Reason("evidence.key", "The key is not enrolled, or not the one of this session's node.", "Enrol, or open a session of your own."),
    Reason("evidence.algorithm", "The algorithm is not the one the key was enrolled with.", "Sign with the enrolled key."),
    Reason("evidence.signature", "The signature does not fit.", "Sign with the enrolled key, and send the bytes as signed."),
    Reason("evidence.nonce", "The nonce is not this session's.", "Use the nonce exactly as issued, once."),
    Reason("evidence.time", "The evidence was signed at another time than now.", "Set the node's clock."),
    Reason("evidence.audience", "The evidence is for another verifier.", "Set aud to the verifier's own name."),
    Reason("evidence.ueid", "The ueid is not the one given at enrolment.", "Use the id from enrolment."),
    # what a router has seen and metered itself
    Reason("router.settlement-mismatch", "The node claims more than the router metered.", "Compare the usage records.", "settlement-mismatch"),
    Reason("router.latency-spike", "The node answered far slower than it had.", "Check what else uses the device.", "latency-spike"),
    Reason("router.missed-probe", "The node did not answer the router's probe.", "Check that the engine is reachable.", "missed-probe"),
    # policy and verifier
    Reason("policy.failed", "The policy gave no outcome.", "Ask the security team; the verifier's log names the failure."),
    Reason("policy.ceiling", "The policy asked for a better value than the evidence can carry.", "Ask the security team to correct the policy."),
    Reason("policy.blocked", "Blocked in an emergency by the security team.", "Ask the security team."),
    Reason("policy.unusable", "A policy bundle cannot be used.", "See the message: it names file and place."),
    Reason("policy.state", "The policy is not where this step can be taken.", "Look at the rollout first: touchstone policy history."),
    Reason("result.unacceptable", "An attestation result that must not be accepted.", "See its message."),
    # requests
    Reason("request.malformed", "The request does not have its form.", "See the message."),
    Reason("request.too-large", "The body is larger than this endpoint reads.", "Send less."),
    Reason("request.unauthorised", "The caller did not prove who it is.", "Sign the request with the node's key, or send the token."),
    Reason("request.replayed", "This request was seen before.", "Sign each request anew."),
    Reason("request.forbidden", "The caller may not do this.", "Ask the verifier's operator."),
    Reason("request.too-often", "Too many requests.", "Wait as Retry-After says."),
    Reason("request.not-found", "There is nothing here.", "Check the id."),
    Reason("request.method", "The resource does not have this method.", "See Allow."),
    Reason("request.not-acceptable", "None of the accepted forms can be given.", "Accept application/eat+jwt, application/eat+cwt or application/json."),
    Reason("session.expired", "The session has expired.", "Open a new one."),
    Reason("session.closed", "The session is no longer waiting for this.", "Open a new one."),
    Reason("token.unusable", "The enrolment token is unknown, used, expired, or for something else.", "Ask the verifier's operator for a new one."),
    Reason("node.exists", "The key is enrolled already.", "Use the node as it is, or make a new key."),
    Reason("incident.state", "The incident is not in a state that allows this.", "Look at it first."),
    Reason("incident.report-reused", "The id of this report was given to one about another node or kind.", "Give each report an id of its own."),
    Reason("reference.unusable", "A reference value or pool cannot be used as asked.", "See the message."),
    Reason("store.refused", "The database refused.", "Try again; if it stays, the verifier's log says why."),
    Reason("config.unusable", "The configuration cannot be used.", "See the message."),
    Reason("verifier.internal", "The verifier failed.", "Try again; if it stays, the verifier's log says why."),
)  # fmt: skip

REASONS: Final[Mapping[str, Reason]] = {reason.code: reason for reason in _TABLE}
