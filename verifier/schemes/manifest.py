"""
The `manifest` claim compared with the reference value: what differs, and in which way.

The way in which files differ tells what happened: a file has another name, shards were exchanged, or
the weights or the chat template are other ones.  Each has its own reason code, so that the operator
knows what to correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attester.evidence import File, Manifest
from attester.weights.patterns import Excluded
from attester.weights.roles import Role, roles_of
from verifier.schemes.context import ModelReference, ReferenceFile
from verifier.schemes.facts import ManifestFact
from verifier.schemes.findings import Finding

MISMATCHES: Final = (
    "weights.manifest.mismatch",
    "weights.manifest.renamed",
    "weights.manifest.swapped",
    "weights.manifest.quantised",
    "weights.manifest.configuration",
)
"""Mismatches.  A node with an equal manifest and a right read shows that the reference value is not at fault."""

_WEIGHT_SUFFIXES: Final = (
    ".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".bin.index.json", ".pt", ".pth",
    ".ckpt", ".h5", ".msgpack", ".onnx", ".npz",
)  # fmt: skip
_MAX_NAMED_FILES: Final = 3
"""A finding names at most this many files, and always says how many there are."""


def compare(
    claim: Manifest | None, reference: ModelReference | None, now_ms: int, max_age_s: int
) -> tuple[ManifestFact, list[Finding]]:
    """
    Compare the manifest with the reference value, and say why it is not equal.

    Only files that change answers count (`attester.weights.roles`); of the others there is a note at most.

    The fact is equal, aged (equal, but the digests come from an old cache), extra, differs,
    incomparable (no digest algorithm in common), malformed, missing, or unknown (no reference value).
    """
    if claim is None:
        return "missing", [Finding("weights.manifest.missing", "there is no manifest claim")]
    names = [file.name for file in claim.files]
    if len(set(names)) != len(names):
        return "malformed", [Finding("weights.manifest.malformed", "it lists a file twice")]
    if names != sorted(names, key=str.encode):
        return "malformed", [
            Finding("weights.manifest.unordered", "the files are not in the order of their names")
        ]
    if reference is None:
        return "unknown", []
    present = {file.name: file for file in claim.files}
    gates = reference.gates
    incomparable = [
        name
        for name, file in reference.files.items()
        if name in gates and name in present and not _common_algorithms(present[name], file)
    ]
    if incomparable:
        detail = f"{len(incomparable)} files have no digest algorithm in common: {_list_some(incomparable)}"
        return "incomparable", [Finding("weights.manifest.incomparable", detail)]
    findings = _differences(present, claim.dtypes, reference)
    if findings:
        return "differs", findings
    notes = _differing_others(present, reference)
    if extra := _extra_gates(names, reference):
        return "extra", [
            Finding("weights.manifest.extra", f"{len(extra)} files: {_list_some(extra)}"),
            *notes,
        ]
    if claim.cached is not None and now_ms // 1000 - claim.cached.oldest > max_age_s:
        detail = f"{claim.cached.files} digests come from a cache; the oldest is older than {max_age_s} s"
        return "aged", [Finding("weights.cache.old", detail), *notes]
    return "equal", notes


def _extra_gates(names: Sequence[str], reference: ModelReference) -> list[str]:
    """Files beyond the reference value that could change answers, and that it does not leave out."""
    extra = [name for name in names if name not in reference.files]
    if not extra:
        return []
    excluded = Excluded(reference.ignore)
    roles = roles_of(frozenset(reference.files))
    return [name for name in extra if roles.of(name) is Role.GATE and not excluded.covers_path(name)]


def _differing_others(present: Mapping[str, File], reference: ModelReference) -> list[Finding]:
    """A note about files of the reference value that change no answers: a model card that was edited, or left out."""
    others = [name for name in reference.files if name not in reference.gates]
    missing = [name for name in others if name not in present]
    differ = [
        name for name in others if name in present and not matches(present[name], reference.files[name])
    ]
    if not missing and not differ:
        return []
    said = [f"{len(each)} {what}" for each, what in ((differ, "differ"), (missing, "are missing")) if each]
    return [Finding("weights.manifest.others", f"{' and '.join(said)}: {_list_some([*differ, *missing])}")]


def _differences(
    present: Mapping[str, File], dtypes: Mapping[str, int], reference: ModelReference
) -> list[Finding]:
    gates = reference.gates
    missing = [name for name in reference.files if name in gates and name not in present]
    differ = [
        name
        for name, file in reference.files.items()
        if name in gates and name in present and not matches(present[name], file)
    ]
    wrong = {*missing, *differ}
    cause = f"reference:{reference.digest}"
    findings: list[Finding] = []

    def add_finding(code: str, files: Sequence[str], what: str) -> None:
        if files:
            expected, actual = _first_digests(files, present, reference)
            detail = f"{len(files)} {what}: {_list_some(files)}"
            findings.append(Finding(code, detail, expected=expected, actual=actual, cause=cause))
            wrong.difference_update(files)

    # Published contents under a name that is not in the reference.  The search is by digest: comparing
    # each of thousands of files with each other one would take minutes.
    extra = {
        digest
        for name, file in present.items()
        if name not in reference.files
        for digest in _digests_of(file)
    }
    renamed = [name for name in missing if extra & reference.files[name].digests.items()]
    add_finding("weights.manifest.renamed", renamed, "have other names")
    # Contents of one published file under the name of another.
    expected_digests = {digest for name in differ for digest in reference.files[name].digests.items()}
    swapped = [name for name in differ if expected_digests & _digests_of(present[name])]
    add_finding("weights.manifest.swapped", swapped, "have the contents of others")
    if wrong and dtypes and reference.dtypes and dtypes.keys() != reference.dtypes.keys():
        findings.append(
            Finding(
                "weights.manifest.quantised",
                "the weights have other types",
                expected=_list_types(reference.dtypes),
                actual=_list_types(dtypes),
                cause=cause,
            )
        )
        wrong = {name for name in wrong if not name.endswith(_WEIGHT_SUFFIXES)}
    others = [name for name in sorted(wrong) if not name.endswith(_WEIGHT_SUFFIXES)]
    add_finding("weights.manifest.configuration", others, "that are not weights are missing or differ")
    add_finding("weights.manifest.mismatch", sorted(wrong), "are missing or differ")
    return findings


def matches(file: File, reference: ReferenceFile) -> bool:
    """Whether a file has the reference's size, if that is known, and all digests in common are equal: one at least."""
    if reference.size is not None and file.size != reference.size:
        return False
    common = _common_algorithms(file, reference)
    return bool(common) and all(getattr(file, name) == reference.digests[name] for name in common)


def _digests_of(file: File) -> set[tuple[str, bytes]]:
    named = (("sha256", file.sha256), ("blake3", file.blake3))
    return {(name, digest) for name, digest in named if digest is not None}


def _common_algorithms(file: File, reference: ReferenceFile) -> list[str]:
    return [name for name in reference.digests if getattr(file, name, None) is not None]


def _first_digests(
    files: Sequence[str], present: Mapping[str, File], reference: ModelReference
) -> tuple[str | None, str | None]:
    """Expected and actual digest of the first of *files* that is present, in the first common algorithm."""
    for name in files:
        if name in present:
            algorithm = _common_algorithms(present[name], reference.files[name])[0]
            expected = reference.files[name].digests[algorithm].hex()
            return f"{algorithm}:{expected}", f"{algorithm}:{getattr(present[name], algorithm).hex()}"
    return None, None


def _list_types(dtypes: Mapping[str, int]) -> str:
    return ", ".join(f"{size} bytes of {dtype}" for dtype, size in sorted(dtypes.items()))


def _list_some(names: Sequence[str]) -> str:
    text = ", ".join(name[:80] for name in names[:_MAX_NAMED_FILES])
    return text if len(names) <= _MAX_NAMED_FILES else f"{text}, …"
