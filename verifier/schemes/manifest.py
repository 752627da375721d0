"""
The `manifest` claim against the reference: what differs, and in which way.

How files differ tells what happened: contents under another name, shards exchanged, other
weights, another chat template.  Each has its own reason code, so that the operator knows
what to mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attester.evidence import File, Manifest
from verifier.schemes.base import Finding, ModelReference, ReferenceFile
from verifier.schemes.facts import ManifestFact

MISMATCHES: Final = (
    "weights.manifest.mismatch",
    "weights.manifest.renamed",
    "weights.manifest.swapped",
    "weights.manifest.quantised",
    "weights.manifest.configuration",
)
"""What an equal manifest with a right read speaks against: the reference value stands."""

_WEIGHTS: Final = (
    ".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".bin.index.json", ".pt", ".pth",
    ".ckpt", ".h5", ".msgpack", ".onnx", ".npz",
)  # fmt: skip
_NAMED_FILES: Final = 3
"""How many files a finding names; the count is always there."""


def compare(
    claim: Manifest | None, reference: ModelReference | None, now_ms: int, max_age_s: int
) -> tuple[ManifestFact, list[Finding]]:
    """
    What the manifest amounts to, and why.

    equal, aged (equal, and the digests are from an old cache), extra, differs, incomparable
    (no common digest algorithm), malformed, missing, or unknown (no reference value).
    """
    if claim is None:
        return "missing", [Finding("weights.manifest.missing", "no manifest claim")]
    names = [file.name for file in claim.files]
    if len(set(names)) != len(names):
        return "malformed", [Finding("weights.manifest.malformed", "a file stands in it twice")]
    if names != sorted(names, key=str.encode):
        return "malformed", [Finding("weights.manifest.unordered", "the files are not in the order of names")]
    if reference is None:
        return "unknown", []
    present = {file.name: file for file in claim.files}
    silent = [
        name for name, file in reference.files.items() if name in present and not _common(present[name], file)
    ]
    if silent:
        detail = f"{len(silent)} without a digest in common: {_some(silent)}"
        return "incomparable", [Finding("weights.manifest.incomparable", detail)]
    findings = _differences(present, claim.dtypes, reference)
    if findings:
        return "differs", findings
    extra = [name for name in names if name not in reference.files]
    if extra:
        return "extra", [Finding("weights.manifest.extra", f"{len(extra)} beyond it: {_some(extra)}")]
    if claim.cached is not None and now_ms // 1000 - claim.cached.oldest > max_age_s:
        detail = f"{claim.cached.files} digests from a cache, the oldest older than {max_age_s} s"
        return "aged", [Finding("weights.cache.old", detail)]
    return "equal", []


def _differences(
    present: Mapping[str, File], dtypes: Mapping[str, int], reference: ModelReference
) -> list[Finding]:
    missing = [name for name in reference.files if name not in present]
    differ = [
        name for name, file in reference.files.items() if name in present and not same(present[name], file)
    ]
    wrong = {*missing, *differ}
    cause = f"reference:{reference.digest}"
    findings: list[Finding] = []

    def found(code: str, files: Sequence[str], what: str) -> None:
        if files:
            expected, actual = _first(files, present, reference)
            findings.append(Finding(code, f"{len(files)} {what}: {_some(files)}", expected, actual, cause))
            wrong.difference_update(files)

    # Contents that are there under a name that is not in the reference.  By digest: a node
    # lists thousands of files, and every one with every other would take minutes.
    extra = {key for name, file in present.items() if name not in reference.files for key in _given(file)}
    renamed = [name for name in missing if extra & reference.files[name].digests.items()]
    found("weights.manifest.renamed", renamed, "stand under other names")
    # Contents of one published file under the name of another.
    theirs = {key for name in differ for key in reference.files[name].digests.items()}
    swapped = [name for name in differ if theirs & _given(present[name])]
    found("weights.manifest.swapped", swapped, "hold what belongs to others")
    if wrong and dtypes and reference.dtypes and dtypes.keys() != reference.dtypes.keys():
        findings.append(
            Finding(
                "weights.manifest.quantised",
                "the weights are of other types",
                _types(reference.dtypes),
                _types(dtypes),
                cause,
            )
        )
        wrong = {name for name in wrong if not name.endswith(_WEIGHTS)}
    rest = sorted(wrong)
    found(
        "weights.manifest.configuration",
        [name for name in rest if not name.endswith(_WEIGHTS)],
        "are missing or differ, which are no weights and change answers",
    )
    found("weights.manifest.mismatch", sorted(wrong), "are missing or differ")
    return findings


def same(file: File, reference: ReferenceFile) -> bool:
    """Equal size where both are known, equal digests where both have one, and one at least."""
    if reference.size is not None and file.size != reference.size:
        return False
    common = _common(file, reference)
    return bool(common) and all(getattr(file, name) == reference.digests[name] for name in common)


def _given(file: File) -> set[tuple[str, bytes]]:
    named = (("sha256", file.sha256), ("blake3", file.blake3))
    return {(name, digest) for name, digest in named if digest is not None}


def _common(file: File, reference: ReferenceFile) -> list[str]:
    return [name for name in reference.digests if getattr(file, name, None) is not None]


def _first(
    files: Sequence[str], present: Mapping[str, File], reference: ModelReference
) -> tuple[str | None, str | None]:
    """Expected and actual digest of the first file that is there, in the first common algorithm."""
    for name in files:
        if name in present:
            algorithm = _common(present[name], reference.files[name])[0]
            expected = reference.files[name].digests[algorithm].hex()
            return f"{algorithm}:{expected}", f"{algorithm}:{getattr(present[name], algorithm).hex()}"
    return None, None


def _types(dtypes: Mapping[str, int]) -> str:
    return ", ".join(f"{size} bytes of {dtype}" for dtype, size in sorted(dtypes.items()))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_NAMED_FILES])
    return shown if len(names) <= _NAMED_FILES else f"{shown}, …"
