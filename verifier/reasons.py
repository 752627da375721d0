"""
Every code that a result, an incident or a problem document can have, once.

A code is ``subject.part.finding``, lower case and stable: people build on it.  The sentences and hints
may change.  ``docs/reason-codes.md`` has the same table, and the table says which findings make incidents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MODEL_INTEGRITY: Final = "model-integrity-failure"
MALFORMED: Final = "evidence-malformed"
UNANSWERED: Final = "challenge-unanswered"
DECLARED_DUPLICATE: Final = "declared-duplicate"
ANSWER_MISMATCH: Final = "answer-mismatch"


@dataclass(frozen=True)
class Reason:
    """A row of the table."""

    code: str
    sentence: str
    hint: str
    """What the operator of the node, or the caller who is refused, can do: one sentence or more."""
    incident: str | None = None
    """The kind of incident that the finding makes if a node has signed it."""


_TABLE: Final = (
    # identity
    Reason("identity.node.quarantined", "The node is in quarantine.", "A person must review the incident: touchstone verifier incidents."),
    Reason("identity.node.retired", "The node was retired, or its key was changed.", "Enrol it again with a new token."),
    Reason("identity.endpoint.missing", "The evidence names no endpoint, so the node cannot be sent any work.", "Set [serve] in attester.toml."),
    Reason("identity.endpoint.unproven", "The TLS key of the endpoint did not sign for this node and session.", "Give the attester the TLS key that the engine serves with."),
    Reason("identity.endpoint.taken", "Another live node holds this TLS key.", "Make a TLS key of its own for each node.", DECLARED_DUPLICATE),
    Reason("identity.duplicate-device", "Another live node declares this device.", "Enrol one node for each device.", DECLARED_DUPLICATE),
    # hardware
    Reason("gpu.inventory.missing", "The evidence does not name the device.", "Install the attester's gpu extra, or leave the submodule out."),
    Reason("gpu.inventory.memory", "The device has another amount of memory than its hardware class.", "Enrol the node with the hardware class that it has."),
    Reason("gpu.benchmark.missing", "No benchmark was run on the device.", "Run the benchmark: touchstone attester benchmark."),
    Reason("gpu.benchmark.implausible", "A declared rate is more than the hardware class allows.", "Run the benchmark again, or enrol the node with the hardware class that it has."),
    Reason("gpu.benchmark.boast", "A declared rate is far above what walks have verified.", "Check what else uses the device."),
    # runtime
    Reason("runtime.missing", "The evidence has no running configuration.", "Make sure that the attester can reach the engine."),
    Reason("runtime.engine.unapproved", "The policy does not approve the engine or its version.", "Run a version that the policy's data lists."),
    Reason("runtime.engine.weak", "The engine's version has a known weakness.", "Update the engine."),
    Reason("runtime.argument.forbidden", "The engine runs with a forbidden setting.", "Restart the engine without that setting."),
    Reason("runtime.package.forbidden", "A package is installed in a forbidden version.", "Install another version of it."),
    Reason("runtime.exposed", "Control routes of the engine can be reached through the node's endpoint.", "Serve by touchstone attester front, or let the proxy pass only the operations: touchstone attester front --print."),
    Reason("capabilities.missing", "The evidence has no capabilities.", "Make sure that the attester can reach the engine."),
    Reason("capabilities.class.mismatch", "The hardware class is not the one that the node was enrolled with.", "Declare the hardware class of the enrolment, or enrol the node again."),
    Reason("capabilities.class.contradicted", "Even the fastest walk was far slower than a device of the hardware class.", "Enrol the node with the hardware class that it has."),
    Reason("capabilities.class.exceeded", "A walk was faster than the hardware class allows.", "Enrol the node with the hardware class that it has."),
    Reason("capabilities.class.unknown", "The hardware class is not in the policy's table.", "Ask the security team to add the class."),
    # weights
    Reason("weights.reference.unknown", "There is no reference value for this model.", "Ask the verifier's operator to measure or import it."),
    Reason("weights.reference.expired", "The reference value is not valid now: its validity has ended, or has not begun.", "Ask the verifier's operator to import a newer one."),
    Reason("weights.reference.superseded", "The files are those of a reference value that was replaced.", "Download the published files again before the grace period ends."),
    Reason("weights.revision.changed", "The challenges were for another revision of the model than the node's files are, and count as not answered.", "Say which revision the node has before it is asked: start the attester again. The next call comes soon."),
    Reason("weights.model.missing", "The evidence has nothing about a model that the node was enrolled with.", "Add the model to the attester's configuration.", UNANSWERED),
    Reason("weights.manifest.missing", "The evidence has no list of the model's files.", "Make sure that the attester can read the model folder.", UNANSWERED),
    Reason("weights.manifest.malformed", "The list of files is malformed.", "Update the attester.", MALFORMED),
    Reason("weights.manifest.unordered", "The files are not listed in the order of their names.", "Update the attester.", MALFORMED),
    Reason("weights.manifest.mismatch", "A file with weights is missing, or differs from the reference value.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.renamed", "A published file has another name.", "Give the files their published names.", MODEL_INTEGRITY),
    Reason("weights.manifest.swapped", "A file has the contents of another one: shards were exchanged.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.quantised", "The weights have other types than the published ones: they were quantised or cast.", "Use the published weights, or ask for a reference value of these.", MODEL_INTEGRITY),
    Reason("weights.manifest.configuration", "A file that can change answers is missing or differs: a chat template, a tokeniser or a configuration.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.incomparable", "The node and the reference value have no digest algorithm in common.", "Set [manifest] digests in attester.toml to an algorithm that the reference value has."),
    Reason("weights.cache.old", "The digests come from the node's cache and are too old.", "Lower [manifest] reread_s in attester.toml."),
    Reason("weights.cache.stale", "The read answer is wrong: the digests come from the node's cache, and the files have changed since.", "Remove digests.db from the attester's home, and download the published files again.", MODEL_INTEGRITY),
    Reason("weights.manifest.extra", "There are files that are not in the reference value and could change answers.", "Remove them, or ask for a reference value that has them."),
    Reason("weights.manifest.others", "Files that change no answers, such as a model card, are missing or differ from the reference value.", "Nothing needs to be done."),
    Reason("weights.read.unasked", "The session had no read challenge.", "Wait for a call of the verifier, or open a session with the node's key."),
    Reason("weights.read.missing", "The node did not answer the read challenge.", "Make sure that the attester can read the model folder.", UNANSWERED),
    Reason("weights.read.malformed", "The answer to the read challenge is malformed.", "Update the attester.", MALFORMED),
    Reason("weights.read.wrong", "The answer to the read challenge is wrong: the node does not have the published files.", "Download the published files again.", MODEL_INTEGRITY),
    Reason("weights.walk.missing", "The node did not answer the walk challenge.", "Make sure that the attester can reach the engine.", UNANSWERED),
    Reason("weights.walk.malformed", "The answers to the walk challenge are malformed.", "Update the attester.", MALFORMED),
    Reason("weights.walk.wrong", "An answer to the walk challenge is wrong: the engine computed with other weights.", "Load the published weights, unquantised.", MODEL_INTEGRITY),
    Reason("weights.walk.other", "The node walked the published tensors and was asked for what its engine has loaded, or the reverse.", "Set walk of the model in attester.toml as its reference value is, and name the model of this build of the engine."),
    Reason("weights.walk.unredeemed", "The node answered an earlier walk wrongly, and has answered no walk right since.", "Load the published weights, and wait for a call."),
    Reason("weights.walk.late", "The median walk took longer than the deadline for the hardware class.", "Check what else uses the device."),
    Reason("weights.walk.shared", "When the operator's other nodes are called too, the node is far slower than alone: one device serves several nodes.", "Give each node a device of its own."),
    Reason("weights.walk.unanswered", "The node did not answer its last call with a walk.", "Keep the attester running and its call channel open. The next call comes soon, and a right answer to it is enough."),
    Reason("weights.walk.missed", "The node did not answer its last calls, or too many of the last day.", "Keep the attester running and its call channel open."),
    Reason("weights.walk.announced", "The node has answered no walk at a secret moment, so it is not shown to have the weights loaded.", "Keep the call channel open and wait for a call."),
    Reason("weights.walk.untimed", "The walk is too short to show, on this hardware class, that the weights are loaded.", "Ask the verifier's operator for walks with more passes."),
    Reason("weights.walk.from-file", "The walk read the files, not the weights that the engine has loaded.", "Use an engine whose adapter walks the loaded tensors, or offer it where workloads take model_claims: [file-system]."),
    Reason("weights.walk.stale", "The last right walk is older than the policy allows.", "Keep the call channel open and wait for a call."),
    Reason("weights.answers.differ", "The answers in the evidence are not those that the node gave to the call.", "Submit the answers that the node gave.", MALFORMED),
    Reason("answers.node.not-serving", "There is no such node with a live result for the model.", "Take checks of nodes that have a live result."),
    Reason("answers.check.expired", "The answer to a check came too late.", "Bring answers within the seconds of expires_in_s."),
    Reason("answers.check.reused", "A check was answered before, with other bytes.", "Bring each answer once; the same bytes may be sent again."),
    Reason("answers.result.unknown", "The node has no such result.", "Name the result by which the node was chosen."),
    Reason("challenges.exhausted", "The pool has no challenges left, so none was issued.", "Ask the verifier's operator to mint more."),
    Reason("challenges.reserved", "The challenges that are left are kept for calls.", "Hold the call channel open and wait for a call, or try again later."),
    Reason("challenges.quota", "As many challenges were taken as may be within an hour: by the operator's nodes in sessions of their own, or by a router in checks of answers.", "Try again after the seconds in Retry-After. A node can hold the call channel open and wait for a call."),
    # evidence as a whole
    Reason("evidence.submod.unknown", "The evidence has a submodule of a kind that this verifier does not know.", "Update the verifier, or use an attester of its version.", MALFORMED),
    Reason("evidence.claims.malformed", "Claims do not have the form of the claims table.", "Update the attester.", MALFORMED),
    Reason("evidence.media-type", "The content type is not in the session's accept list.", "Send application/eat+cwt, with the eat_profile of the accept list or without one."),
    Reason("evidence.size", "The evidence, or its result, is too large.", "Send less."),
    Reason("evidence.malformed", "The evidence is not deterministic CBOR in a COSE_Sign1.", "See docs/evidence-profile.md."),
    Reason("evidence.profile", "The evidence has another profile.", "See docs/evidence-profile.md."),
    Reason("evidence.key", "The key is not enrolled, or is not that of the session's node.", "Enrol the node, or open a session of its own."),
    Reason("evidence.algorithm", "The algorithm is not the one that the key was enrolled with.", "Sign with the enrolled key."),
    Reason("evidence.signature", "The signature is wrong.", "Sign with the enrolled key, and send the bytes as signed."),
    Reason("evidence.nonce", "The nonce is not the session's.", "Use the nonce exactly as issued, and once."),
    Reason("evidence.time", "The evidence was not signed during the session, by the verifier's clock.", "Set the node's clock, and sign when the session asks for evidence."),
    Reason("evidence.audience", "The evidence is for another verifier.", "Set aud to the issuer in the verifier's discovery document."),
    Reason("evidence.ueid", "The ueid is not the one that the node got at enrolment.", "Use the ueid from the enrolment."),
    # what a router has seen and metered itself
    Reason("router.settlement-mismatch", "The node claims more than the router metered.", "Compare the usage records.", "settlement-mismatch"),
    Reason("router.latency-spike", "The node answered far slower than before.", "Check what else uses the device.", "latency-spike"),
    Reason("router.missed-probe", "The node did not answer the router's probe.", "Make sure that the engine can be reached.", "missed-probe"),
    # answers, held against minted ones
    Reason("answers.text.differs", "Answers differ from those of the published weights, where these are not undecided.", "Load the published weights unquantised, in the precision of the reference value, and check sampling defaults and the chat template.", ANSWER_MISMATCH),
    Reason("answers.vector.differs", "Embeddings are farther from those of the published weights than the reference's precision allows.", "Load the published weights in the precision of the reference value.", ANSWER_MISMATCH),
    Reason("answers.distribution.differs", "The probabilities of tokens are farther from those of the published weights than the reference's precision allows.", "Load the published weights in the precision of the reference value, and the key-value cache too.", ANSWER_MISMATCH),
    Reason("answers.prompt.differs", "The prompt was rendered to another number of tokens than by the reference.", "Use the chat template and the tokeniser of the published files."),
    Reason("answers.drift.node", "Answers part from those of the published weights, or are near the limit, more often than is usual for the engine.", "Load the published weights in the precision of the reference value; check the chat template and sampling defaults.", ANSWER_MISMATCH),
    Reason("answers.drift.version", "Answers of all nodes of an engine version have moved together: the minted answers, the tolerances or a template do not fit that version.", "Mint answers with this engine version, then release the review: docs/drift.md."),
    Reason("answers.drift.few", "Too few operators were checked to say what is usual.", "Wait until three operators have 20 checks each within four weeks."),
    Reason("answers.speed.impossible", "Streams are faster than the walked weights can be read.", "Tell the verifier's operator how tokens are drafted (speculative decoding), or load the published weights."),
    # policy and verifier
    Reason("policy.failed", "The policy failed, or gave no valid outcome.", "Ask the security team. The verifier's log has the error."),
    Reason("policy.ceiling", "The policy gave a better value than the evidence can show.", "Ask the security team to correct the policy."),
    Reason("policy.blocked", "The security team has blocked it in an emergency.", "Ask the security team."),
    Reason("policy.unusable", "A policy bundle cannot be used.", "Correct the file at the place that the message names."),
    Reason("policy.block.misses", "The block would hit no node.", "Correct the value. Show what nodes run: touchstone policy block --dry-run."),
    Reason("policy.state", "The rollout is not in a state that allows this step.", "Show the rollout: touchstone policy history."),
    Reason("policy.version", "Another policy has this name and version.", "Write the version that the message names into bundle.json."),
    Reason("result.unacceptable", "The attestation result must not be accepted.", "Get a new result from the verifier."),
    Reason("log.unacceptable", "Something of the transparency log must not be accepted.", "Keep what you were given: it may show that the log was edited, cut short or forked. Then fetch it again."),
    Reason("log.pending", "The entry is written, and is not yet in the log.", "Ask again in a second."),
    Reason("receipts.forked", "The router has sent another batch of receipts for this number.", "Ask the router's operator: its store was restored or edited. A new receipt key begins a new chain."),
    Reason("receipts.key", "The router has not registered this receipt key.", "Register it: PUT /api/v1/routers/NAME/receipt-key."),
    Reason("log.unreadable", "The transparency log cannot be read.", "Try again. If it fails again, ask the operator of the log."),
    # requests
    Reason("request.malformed", "The request is malformed.", "Correct what the message names."),
    Reason("request.too-large", "The body is larger than this resource allows.", "Send less."),
    Reason("request.unauthorised", "The caller did not prove who it is.", "Sign the request with the node's key, or send a key that is live."),
    Reason("request.too-slow", "The request did not come in time.", "Send it again, and faster."),
    Reason("request.head-too-large", "The head of the request is too large.", "Send fewer and shorter headers."),
    Reason("request.unauthorised", "The caller did not prove who it is.", "Sign the request with the node's key, or send the token."),
    Reason("request.replayed", "The request, or its nonce, was used before.", "Sign each request anew, with a new nonce."),
    Reason("request.forbidden", "The caller may not do this.", "Ask the verifier's operator. docs/access.md has the roles."),
    Reason("request.issuer-unavailable", "The issuer of the token cannot be asked for its keys.", "Try again after the seconds of Retry-After, or use a key of the verifier."),
    Reason("request.too-often", "There were too many requests.", "Wait for the seconds in Retry-After."),
    Reason("service.busy", "The service does as much at once as it may, or holds as many bytes.", "Wait for the seconds in Retry-After. Nothing is held against you meanwhile."),
    Reason("request.not-found", "The resource does not exist.", "Check the path and the id in it."),
    Reason("receipt.unknown", "No such receipt is kept, or it is of another key.", "Check the id of X-Touchstone-Receipt, and use the key that made the request. Receipts are kept as long as decisions."),
    Reason("receipt.not-yet", "The answer has not ended, or its router has not signed the receipt yet.", "Ask again after the seconds in Retry-After."),
    Reason("settlement.malformed", "The claim, the receipt or the period is malformed.", "Send it as docs/settlement.md has it, and as it was signed."),
    Reason("settlement.key", "The claim is not signed with the key of the node that it names.", "Sign it with the node's current key: touchstone attester run does."),
    Reason("settlement.never-routed", "This router has not routed that work to this node for this caller.", "Send it to the router that decided, with the key that asked."),
    Reason("settlement.conflict", "Something else was taken for this already, and stays.", "Look at what is kept. A statement is changed by a correction alone: touchstone settle correct."),
    Reason("settlement.unknown", "There is no such statement, dispute, receipt or node, or it is another's.", "Check the id, and whose key you use."),
    Reason("settlement.day", "The day or the period is not over, or too long ago.", "Wait until it is over."),
    Reason("request.method", "The resource does not support this method.", "Use a method of the Allow header."),
    Reason("request.not-acceptable", "The response has none of the accepted media types.", "Accept application/eat+jwt, application/eat+cwt or application/json."),
    Reason("session.expired", "The session has expired.", "Open a new session."),
    Reason("session.closed", "The session accepts no more evidence or answers.", "Open a new session."),
    Reason("token.unusable", "The enrolment token is unknown, used, expired, or for something else.", "Ask the verifier's operator for a new one."),
    Reason("key.exists", "A key of this name exists.", "Take another name, or revoke it: touchstone verifier key revoke."),
    Reason("node.exists", "The key is already enrolled.", "Use the node as it is, or make a new key."),
    Reason("registration.certificate", "The certificate is not one that a router may have.", "Delete the router's identity file, so that it makes a new one, and set its clock."),
    Reason("registration.signature", "The router did not prove that the certificate is its own.", "Set [verifier] url of the router to the verifier's own URL."),
    Reason("registration.removed", "A person has removed the router's key.", "Delete the router's identity file, so that it makes a new one, or ask the verifier's operator."),
    Reason("registration.full", "There are too many routers.", "Remove those that are gone: touchstone verifier router list."),
    Reason("incident.state", "The incident is not in a state that allows this step.", "Show the incident and its state: touchstone verifier incidents show."),
    Reason("change.state", "The change of the table of workloads is not in a state that allows this step.", "Show it: touchstone router change status."),
    Reason("incident.report-reused", "The id of this report was used for a report about another node or of another kind.", "Give each report an id of its own."),
    Reason("reference.unusable", "The reference value, or the pool of challenges, cannot be used.", "Correct what the message names."),
    Reason("rollout.state", "The roll-out of the model is not in a state that allows this step.", "Show it: touchstone reference rollout status."),
    Reason("revision.unknown", "No reference value with this digest is valid for the model now.", "Read which are: GET /api/v1/revisions/MODEL."),
    Reason("revision.model", "The node is not enrolled with this model.", "Name models of the node's enrolment only."),
    Reason("store.refused", "The database refused the change.", "Try again. If it fails again, ask the operator of the service."),
    Reason("store.unavailable", "The database cannot be used now.", "Try again after the seconds of Retry-After. Nothing is held against you meanwhile."),
    Reason("config.unusable", "The configuration cannot be used.", "Correct what the message names."),
    Reason("verifier.internal", "The service failed.", "Try again. If it fails again, ask the operator of the service."),
)  # fmt: skip

REASONS: Final[Mapping[str, Reason]] = {reason.code: reason for reason in _TABLE}
