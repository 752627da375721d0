"""The manifest against the reference: what differs is said, case by case, and nothing slips through."""

from __future__ import annotations

import hashlib
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.evidence import Cached, File, Manifest
from attester.weights.roles import roles_of
from verifier.schemes.context import ModelReference, ReferenceFile
from verifier.schemes.findings import Finding
from verifier.schemes.manifest import MISMATCHES, compare, matches

NOW_S = 1_795_000_000
MAX_AGE_S = 1000
SHARDS = ("a-1.safetensors", "a-2.safetensors", "a-3.safetensors")
TYPES = {"BF16": 3000}


def sha(content: str) -> bytes:
    return hashlib.sha256(content.encode()).digest()


def blake(content: str) -> bytes:
    """Stands for BLAKE3: 32 other bytes that depend on the content."""
    return hashlib.sha3_256(content.encode()).digest()


def file(name: str, content: str, size: int = 1000, *, by: str = "sha256") -> File:
    digests = {"sha256": sha(content), "blake3": blake(content)}
    return File(name=name, size=size, **{algorithm: digests[algorithm] for algorithm in by.split()})


CONTENTS = {
    **{shard: f"content of {shard}" for shard in SHARDS},
    "chat_template.jinja": "hello",
    "config.json": "{}",
}
REFERENCE = ModelReference(
    digest="digest",
    files={name: ReferenceFile(1000, {"sha256": sha(content)}) for name, content in CONTENTS.items()},
    tensor_bytes=3000,
    dtypes=TYPES,
)


def manifest(
    changed: dict[str, str | None] | None = None, dtypes: dict[str, int] | None = None, by: str = "sha256"
) -> Manifest:
    """The published files, but for those that are changed, added, or, by `None`, left out."""
    contents = {**CONTENTS, **(changed or {})}
    files = (file(name, content, by=by) for name, content in contents.items() if content is not None)
    return Manifest(
        files=tuple(sorted(files, key=lambda f: f.name.encode())), dtypes=TYPES if dtypes is None else dtypes
    )


def compared(
    claim: Manifest | None, reference: ModelReference | None = REFERENCE
) -> tuple[str, list[Finding]]:
    return compare(claim, reference, NOW_S * 1000, MAX_AGE_S)


def codes(claim: Manifest | None, reference: ModelReference | None = REFERENCE) -> tuple[str, list[str]]:
    verdict, findings = compared(claim, reference)
    return verdict, [finding.code.removeprefix("weights.") for finding in findings]


def test_equal_is_equal() -> None:
    """No finding where there is nothing to find."""
    assert compared(manifest()) == ("equal", [])


def test_nothing_listed() -> None:
    """Missing, whether there is a reference or not."""
    assert codes(None) == ("missing", ["manifest.missing"])
    assert codes(None, None) == ("missing", ["manifest.missing"])


def test_without_a_reference_nothing_is_concluded() -> None:
    """The finding that there is none is made elsewhere."""
    assert compared(manifest(), None) == ("unknown", [])


def test_a_file_listed_twice_is_malformed() -> None:
    """Also where both entries agree: whichever a reader took, the other would be ignored."""
    once = manifest()
    twice = msgspec.structs.replace(once, files=(*once.files, once.files[-1]))
    assert codes(twice) == ("malformed", ["manifest.malformed"])
    assert codes(twice, None) == ("malformed", ["manifest.malformed"])


def test_another_order_is_malformed() -> None:
    """Every permutation but the one."""
    files = manifest({"config.json": None, "chat_template.jinja": None}).files
    verdicts = [
        codes(Manifest(files=order), None) for order in permutations(files) if list(order) != list(files)
    ]
    assert verdicts == [("malformed", ["manifest.unordered"])] * 5


def test_the_order_is_that_of_bytes() -> None:
    """Not that of UTF-16, nor of a language."""
    names = ["B", "a", "é", "\uffff", "\U00010000"]
    files = tuple(file(name, name) for name in names)
    assert compared(Manifest(files=files), None) == ("unknown", [])
    reference = ModelReference(
        digest="d", files={n: ReferenceFile(1000, {"sha256": sha(n)}) for n in names}, tensor_bytes=1
    )
    assert compared(Manifest(files=files), reference) == ("equal", [])


def test_tampered_weights() -> None:
    """Named, with the digest that was expected and the one that came, and what it rests on."""
    verdict, (finding,) = compared(manifest({SHARDS[1]: "other"}))
    assert verdict == "differs"
    assert finding == Finding(
        "weights.manifest.mismatch",
        f"1 are missing or differ: {SHARDS[1]}",
        f"sha256:{sha(CONTENTS[SHARDS[1]]).hex()}",
        f"sha256:{sha('other').hex()}",
        "reference:digest",
    )


def test_a_tampered_template_is_no_weight() -> None:
    """Files that are no weights change answers too."""
    assert codes(manifest({"chat_template.jinja": "evil"})) == ("differs", ["manifest.configuration"])
    assert codes(manifest({"config.json": None})) == ("differs", ["manifest.configuration"])


def test_template_and_weights_are_told_apart() -> None:
    """Both codes where both differ."""
    claim = manifest({"chat_template.jinja": "evil", SHARDS[0]: "other"})
    assert codes(claim) == ("differs", ["manifest.configuration", "manifest.mismatch"])


def test_a_quantised_copy() -> None:
    """Told by the amounts of each type; the weights' digests are then not listed one by one."""
    claim = manifest(dict.fromkeys(SHARDS, "small"), {"I8": 1500, "F16": 10})
    verdict, (finding,) = compared(claim)
    assert (verdict, finding.code) == ("differs", "weights.manifest.quantised")
    assert (finding.expected, finding.actual) == ("3000 bytes of BF16", "10 bytes of F16, 1500 bytes of I8")
    assert finding.cause == "reference:digest"


def test_a_quantised_copy_with_another_template() -> None:
    """What is no weight is still said."""
    claim = manifest(
        {**dict.fromkeys(SHARDS, "small"), "chat_template.jinja": "evil", SHARDS[2]: None}, {"I8": 1500}
    )
    assert codes(claim) == ("differs", ["manifest.quantised", "manifest.configuration"])


def test_a_reference_or_a_node_that_says_no_types_tells_no_quantisation() -> None:
    """A signature alone has no types, nor has a folder without tensors."""
    claim = manifest(dict.fromkeys(SHARDS, "small"), {"I8": 1500})
    untyped = ModelReference(digest="d", files=REFERENCE.files, tensor_bytes=0)
    assert codes(claim, untyped) == ("differs", ["manifest.mismatch"])
    assert codes(manifest(dict.fromkeys(SHARDS, "small"), {})) == ("differs", ["manifest.mismatch"])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_permuted_shards(order: tuple[int, ...]) -> None:
    """However three shards are exchanged, those that moved are named, and only those."""
    claim = manifest({SHARDS[to]: CONTENTS[SHARDS[source]] for to, source in enumerate(order)})
    moved = [SHARDS[to] for to, source in enumerate(order) if to != source]
    if not moved:
        assert compared(claim) == ("equal", [])
        return
    verdict, (finding,) = compared(claim)
    assert (verdict, finding.code) == ("differs", "weights.manifest.swapped")
    assert finding.detail == f"{len(moved)} have the contents of others: {', '.join(moved)}"


def test_two_exchanged_and_one_tampered() -> None:
    """Each file under one code."""
    claim = manifest({SHARDS[0]: CONTENTS[SHARDS[1]], SHARDS[1]: CONTENTS[SHARDS[0]], SHARDS[2]: "other"})
    verdict, (swapped, mismatch) = compared(claim)
    assert verdict == "differs"
    assert (swapped.code, mismatch.code) == ("weights.manifest.swapped", "weights.manifest.mismatch")
    assert SHARDS[2] not in swapped.detail
    assert mismatch.detail == f"1 are missing or differ: {SHARDS[2]}"


def test_one_shard_copied_over_another_is_no_exchange() -> None:
    """The one that was copied still stands where it belongs."""
    assert codes(manifest({SHARDS[0]: CONTENTS[SHARDS[1]]})) == ("differs", ["manifest.mismatch"])


def test_a_renamed_file() -> None:
    """Its content is there under a name that is not published."""
    claim = manifest({SHARDS[0]: None, "b.safetensors": CONTENTS[SHARDS[0]]})
    verdict, (finding,) = compared(claim)
    assert (verdict, finding.code) == ("differs", "weights.manifest.renamed")
    assert finding.detail == f"1 have other names: {SHARDS[0]}"
    assert (finding.expected, finding.actual) == (None, None)


def test_a_file_renamed_and_tampered_with_is_missing() -> None:
    """No digest ties it to the published one."""
    claim = manifest({SHARDS[0]: None, "b.safetensors": "other"})
    assert codes(claim) == ("differs", ["manifest.mismatch"])


def test_one_renamed_and_another_tampered_with() -> None:
    """Both are said."""
    claim = manifest({SHARDS[0]: None, "b.safetensors": CONTENTS[SHARDS[0]], SHARDS[1]: "other"})
    assert codes(claim) == ("differs", ["manifest.renamed", "manifest.mismatch"])


def test_extra_files_alone() -> None:
    """They are said, and are not a difference."""
    verdict, (finding,) = compared(manifest({"zz": "1", "zy": "2", "zx": "3", "zw": "4"}))
    assert verdict == "extra"
    assert (finding.code, finding.detail) == ("weights.manifest.extra", "4 files: zw, zx, zy, …")
    assert finding.cause is None


def test_extra_and_missing_together_is_a_difference() -> None:
    """The worse of the two counts."""
    assert codes(manifest({SHARDS[1]: None, "zz": "new"})) == ("differs", ["manifest.mismatch"])
    assert codes(manifest({"config.json": None, "zz": "new"})) == ("differs", ["manifest.configuration"])


def test_a_missing_shard_is_not_called_quantised() -> None:
    """The types are the published ones, only fewer bytes: the download is incomplete."""
    claim = manifest({SHARDS[1]: None}, {"BF16": 2000})
    assert codes(claim) == ("differs", ["manifest.mismatch"])


def test_a_size_that_the_reference_does_not_know() -> None:
    """A signature names digests and no sizes: any size will do, another digest will not."""
    reference = ModelReference(
        digest="d", files={"f": ReferenceFile(None, {"sha256": sha("x")})}, tensor_bytes=0
    )
    assert compared(Manifest(files=(file("f", "x", 1),)), reference) == ("equal", [])
    assert compared(Manifest(files=(file("f", "x", 7),)), reference) == ("equal", [])
    assert codes(Manifest(files=(file("f", "y", 1),)), reference) == ("differs", ["manifest.configuration"])


def test_another_size_with_the_same_digest_differs() -> None:
    """One of the two is a lie."""
    claim = manifest()
    files = (msgspec.structs.replace(claim.files[0], size=999), *claim.files[1:])
    assert compared(msgspec.structs.replace(claim, files=files))[0] == "differs"


def test_no_digest_in_common_is_incomparable() -> None:
    """Said of those files, and no verdict on them; it blames nobody's weights."""
    verdict, (finding,) = compared(manifest(by="blake3"))
    assert (verdict, finding.code) == ("incomparable", "weights.manifest.incomparable")
    assert finding.detail.startswith("5 files have no digest algorithm in common: ")
    assert finding.cause is None
    assert finding.code not in MISMATCHES


def test_one_incomparable_file_is_enough() -> None:
    """A node cannot hide one file behind an algorithm that the reference does not have."""
    claim = manifest()
    hidden = file(claim.files[0].name, "tampered", by="blake3")
    assert codes(msgspec.structs.replace(claim, files=(hidden, *claim.files[1:]))) == (
        "incomparable",
        ["manifest.incomparable"],
    )


def test_a_reference_by_blake3_alone() -> None:
    """Compared by what both have, and shown by it."""
    reference = ModelReference(
        digest="d",
        files={name: ReferenceFile(None, {"blake3": blake(c)}) for name, c in CONTENTS.items()},
        tensor_bytes=0,
    )
    assert compared(manifest(by="blake3"), reference) == ("equal", [])
    assert compared(manifest(by="sha256 blake3"), reference) == ("equal", [])
    assert codes(manifest(), reference) == ("incomparable", ["manifest.incomparable"])
    _, (finding,) = compared(manifest({SHARDS[0]: "other"}, by="sha256 blake3"), reference)
    assert finding.expected == f"blake3:{blake(CONTENTS[SHARDS[0]]).hex()}"
    assert finding.actual == f"blake3:{blake('other').hex()}"


def test_all_digests_in_common_must_agree() -> None:
    """One right and one wrong is wrong."""
    reference = ReferenceFile(None, {"sha256": sha("x"), "blake3": blake("x")})
    assert matches(file("f", "x", by="sha256 blake3"), reference)
    assert matches(file("f", "x", by="blake3"), reference)
    assert not matches(File(name="f", size=1, sha256=sha("x"), blake3=blake("y")), reference)
    assert not matches(File(name="f", size=1, sha256=sha("y"), blake3=blake("x")), reference)
    assert not matches(file("f", "x", by="sha256"), ReferenceFile(None, {"blake3": blake("x")}))


@pytest.mark.parametrize(("age_s", "verdict"), [(0, "equal"), (MAX_AGE_S, "equal"), (MAX_AGE_S + 1, "aged")])
def test_digests_from_a_cache_grow_old(age_s: int, verdict: str) -> None:
    """To the second."""
    claim = msgspec.structs.replace(manifest(), cached=Cached(files=2, oldest=NOW_S - age_s))
    assert codes(claim) == (verdict, ["cache.old"] if verdict == "aged" else [])


def test_an_old_cache_hides_no_difference() -> None:
    """What differs or is extra is said first."""
    old = Cached(files=2, oldest=0)
    differs = msgspec.structs.replace(manifest({SHARDS[0]: "other"}), cached=old)
    extra = msgspec.structs.replace(manifest({"zz": "new"}), cached=old)
    assert codes(differs) == ("differs", ["manifest.mismatch"])
    assert codes(extra) == ("extra", ["manifest.extra"])


def test_a_finding_stays_short_whatever_the_names_are() -> None:
    """A node must not make its own result too large to read."""
    names = {f"{'x' * 900}{number}": str(number) for number in range(20)}
    _, (finding,) = compared(manifest(names))
    assert len(finding.detail) <= 300


_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
).filter(lambda name: name not in (".", "..") and _is_gate(name))
"""Of files that change answers.  Others, such as a LICENCE, may differ (docs/adr/0049)."""


def _is_gate(name: str) -> bool:
    # Beside a file that is one: a model of nothing but others would be these.
    return name in roles_of(frozenset({name, "model.safetensors"})).gates


@st.composite
def models(draw: st.DrawFn) -> tuple[Manifest, ModelReference]:
    """A manifest by both algorithms, and a reference that knows some of it; contents are all different."""
    names = sorted(draw(st.sets(_NAMES, min_size=1, max_size=6)), key=str.encode)
    files = tuple(file(name, f"{number}", number, by="sha256 blake3") for number, name in enumerate(names))
    known = {}
    for entry in files:
        algorithms = draw(st.sets(st.sampled_from(["sha256", "blake3"]), min_size=1))
        size = draw(st.sampled_from([entry.size, None]))
        known[entry.name] = ReferenceFile(size, {name: getattr(entry, name) for name in sorted(algorithms)})
    return Manifest(files=files), ModelReference(digest="d", files=known, tensor_bytes=0)


@given(models())
def test_an_unchanged_manifest_is_always_equal(model: tuple[Manifest, ModelReference]) -> None:
    """Whatever of it the reference knows."""
    assert compared(*model) == ("equal", [])


CHANGES = ("digest", "size", "name", "drop", "add", "exchange", "order", "twice", "algorithm")


@given(models(), st.sampled_from(CHANGES), st.data())
def test_a_single_change_is_never_equal(
    model: tuple[Manifest, ModelReference], change: str, data: Any
) -> None:
    """Of anything that the reference knows."""
    claim, reference = model
    files = list(claim.files)
    place = data.draw(st.integers(0, len(files) - 1))
    entry, known = files[place], reference.files[files[place].name]
    if change == "digest":
        algorithm = data.draw(st.sampled_from(sorted(known.digests)))
        bit = data.draw(st.integers(0, 255))
        flipped = int.from_bytes(getattr(entry, algorithm)) ^ (1 << bit)
        files[place] = msgspec.structs.replace(entry, **{algorithm: flipped.to_bytes(32)})
    elif change == "size" and known.size is not None:
        files[place] = msgspec.structs.replace(entry, size=entry.size + data.draw(st.integers(1, 1 << 40)))
    elif change == "name":
        name = data.draw(_NAMES.filter(lambda name: name not in reference.files))
        files[place] = msgspec.structs.replace(entry, name=name)
    elif change == "drop" and len(files) > 1:
        del files[place]
    elif change == "exchange" and place > 0:
        other = files[place - 1]
        files[place] = msgspec.structs.replace(other, name=entry.name)
        files[place - 1] = msgspec.structs.replace(entry, name=other.name)
    elif change == "order" and place > 0:
        files[place - 1 : place + 1] = [entry, files[place - 1]]
    elif change == "twice":
        files.insert(place, entry)
    elif change == "algorithm" and len(known.digests) == 1:
        (algorithm,) = known.digests
        files[place] = msgspec.structs.replace(entry, **{algorithm: None})
    else:
        name = data.draw(_NAMES.filter(lambda name: name not in reference.files))
        files.append(file(name, "new"))
    if change not in ("order", "twice"):
        files.sort(key=lambda f: f.name.encode())
    verdict, findings = compared(Manifest(files=tuple(files)), reference)
    assert verdict != "equal"
    assert findings
