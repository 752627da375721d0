"""
Which revision of a model evidence is of, where several are known: those that are valid, and those in their grace.

The one that its manifest equals is the one that it is judged on, and nothing of another counts for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attester.evidence import Manifest
from verifier.schemes import manifest as manifests
from verifier.schemes.context import Context, IssuedChallenges, IssuedRead, IssuedWalk, ModelReference
from verifier.schemes.facts import ManifestFact
from verifier.schemes.findings import Finding

HAS_FILES: Final = ("equal", "aged", "extra")
"""The manifest has every file of the reference value."""
_ORDER: Final = (("equal", "aged"), ("extra",), ("differs",), ("incomparable",))


def choose(
    manifest: Manifest | None, asked: str | None, model: str, context: Context
) -> ModelReference | None:
    """
    Choose the reference value that a manifest is judged on; `None` if none is valid now.

    It is the one that the manifest equals.  If it equals none, it is the nearest of those that are valid, so that
    what is found names the files that differ; of equally near ones that which was asked for, or the one in force.

    Args:
        asked: The digest of the value that the session's challenges were for.
    """
    valid, known = context.valid(model), context.known(model)
    if not valid or len(known) == 1:
        return valid[0] if valid else None
    # The sort is stable: after what was asked for come those that are valid, the one in force first.
    in_order = sorted(known, key=lambda reference: reference.digest != asked)
    if manifest is None:
        return in_order[0]
    facts = {reference.digest: _fact(manifest, reference, context) for reference in in_order}
    for rank in _ORDER:
        alike = [reference for reference in in_order if facts[reference.digest] in rank]
        if rank[0] in HAS_FILES:
            found = next((each for each in alike if each in valid), alike[0] if alike else None)
        else:
            found = max(
                (each for each in alike if each in valid),
                key=lambda reference: _equal_files(manifest, reference),
                default=None,
            )
        if found is not None:
            return found
    return in_order[0]


def _fact(manifest: Manifest, reference: ModelReference, context: Context) -> ManifestFact:
    return manifests.compare(manifest, reference, context.now_ms, context.thresholds.manifest_max_age_s)[0]


def _equal_files(manifest: Manifest, reference: ModelReference) -> int:
    return sum(
        file.name in reference.files and manifests.matches(file, reference.files[file.name])
        for file in manifest.files
    )


def issued_for(reference: ModelReference | None, issued: IssuedChallenges) -> IssuedChallenges:
    """
    Give the challenges that were issued for the value that evidence is judged on.

    Answers to the others say nothing of it, and must not count.
    """
    if reference is None:
        return issued
    return IssuedChallenges(
        issued.read if not is_of_another(issued.read, reference) else None,
        issued.walk if not is_of_another(issued.walk, reference) else None,
        issued.exhausted if issued.reference in (None, reference.digest) else (),
        issued.reference,
    )


def is_of_another(challenge: IssuedRead | IssuedWalk | None, reference: ModelReference) -> bool:
    """Whether a challenge was made from another reference value."""
    return challenge is not None and challenge.reference not in (None, reference.digest)


def exchanged(
    reference: ModelReference | None, issued: IssuedChallenges, known: Sequence[ModelReference]
) -> str | None:
    """
    Give the revision that was asked for, if the node has shown another one than it was known to have.

    It is `None` if the challenge is not of a value that is known now, or of one with the same files: then we have
    changed the values meanwhile, and the node has not.
    """
    if reference is None:
        return None
    # Also if there was no challenge of it left: that excuses nobody who has another one.
    asked = [issued.reference, *(c.reference for c in (issued.walk, issued.read) if c is not None)]
    others = {digest for digest in asked if digest not in (None, reference.digest)}
    return next(
        (each.digest for each in known if each.digest in others and each.files != reference.files), None
    )


def changed(asked: str, reference: ModelReference) -> Finding:
    """Say that the challenges were for another revision than the files are."""
    detail = f"the challenges were for {asked}, and the files are those of {reference.digest}"
    return Finding("weights.revision.changed", detail)
