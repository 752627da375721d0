"""Bundles: what they are known by, who signed them, and what is refused, with file and place."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from attester.cose import ED25519, PrivateKey
from verifier import dsse
from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import bundle as bundles

BASE = bundles.load(default_policy())
KEY = PrivateKey.generate()
AUTHORS = {"kim": KEY.native.public_key()}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return out.getvalue()


def test_a_folder_and_its_archive_are_one_bundle() -> None:
    """The same digest and the same bytes each time; a signature does not count."""
    envelope = bundles.sign(BASE, KEY)
    data = bundles.write_archive(BASE, envelope)
    again, found = bundles.read_archive(data)
    assert (again, found) == (BASE, envelope)
    assert bundles.write_archive(again, found) == data
    assert again.id.startswith("default@")


@given(st.sampled_from(sorted(BASE.files)), st.integers(0, 10_000))
def test_every_byte_of_every_file_is_in_the_digest(name: str, place: int) -> None:
    """Also a comment's, also a test's."""
    data = bytearray(BASE.files[name])
    data[place % len(data)] ^= 1
    try:
        other = bundles.of_files({**BASE.files, name: bytes(data)})
    except BundleError:
        return
    assert other.digest != BASE.digest


def test_hidden_files_are_not_part_of_it(tmp_path: Path) -> None:
    """A checkout's own folder, an editor's leavings."""
    folder = tmp_path / "policy"
    shutil.copytree(default_policy(), folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / ".swp").write_text("x")
    assert bundles.load(folder) == BASE


def changed(**files: str | bytes | None) -> dict[str, bytes]:
    found = dict(BASE.files)
    for name, data in files.items():
        place = name.replace("__", "/").replace("_DOT_", ".")
        if data is None:
            del found[place]
        else:
            found[place] = data.encode() if isinstance(data, str) else data
    return found


DATA = json.loads(BASE.files["data.json"])
NUMBERS = json.loads(BASE.files["ar4si/data.json"])
DAMAGED: dict[str, tuple[dict[str, bytes], str]] = {
    "no manifest": (changed(bundle_DOT_json=None), "bundle.json is missing"),
    "a manifest that is no JSON": (changed(bundle_DOT_json="{"), "bundle.json: "),
    "a manifest with a name twice": (
        changed(bundle_DOT_json='{"name": "a", "name": "b"}'), "bundle.json: 'name' stands twice",
    ),
    "an unknown field in the manifest": (
        changed(bundle_DOT_json='{"name": "a", "version": "1", "author": "b", "description": "c", "more": 1}'),
        "bundle.json: Object contains unknown field",
    ),
    "a name that climbs": (
        changed(bundle_DOT_json='{"name": "../a", "version": "1", "author": "b", "description": "c"}'), "bundle.json: ",
    ),
    "no data": (changed(data_DOT_json=None), "data.json is missing"),
    "no thresholds": (changed(data_DOT_json="{}"), "data.json: "),
    "a threshold that is a float": (
        changed(data_DOT_json=json.dumps({**DATA, "thresholds": {**DATA["thresholds"], "missed_limit": 1.5}})),
        "data.json: Expected `int`",
    ),
    "no names of values": (changed(ar4si__data_DOT_json=None), "ar4si/data.json is missing"),
    "two names exchanged": (
        changed(ar4si__data_DOT_json=json.dumps({**NUMBERS, "configuration": {"approved": 96, "forbidden": 2}})),
        "configuration.approved is 96, and this verifier has 2",
    ),
    "a value's number that is true": (
        changed(ar4si__data_DOT_json=json.dumps({**NUMBERS, "configuration": {"unevaluable": True}})),
        "configuration.unevaluable is True",
    ),
    "data in two places": (
        changed(data_DOT_json=json.dumps({**DATA, "ar4si": {}})), "ar4si/data.json: data.json has a 'ar4si' too",
    ),
    "rules that are not UTF-8": (changed(gpu_DOT_rego=b"package touchstone\n\n\xff"), "gpu.rego:3: not UTF-8"),
    "rules without end": (changed(gpu_DOT_rego=b" " * (bundles.MAX_REGO + 1)), "gpu.rego: more than"),
    "a file of another kind": (changed(run_DOT_sh="x"), "run.sh: not a file that a bundle has"),
    "a reference that is none": (changed(references__m_DOT_json="{}"), "references/m.json: not a reference value"),
    "a reference in YAML with an anchor": (
        changed(references__m_DOT_yaml="model: &a b\nfiles: *a\n"), "references/m.yaml: ",
    ),
    "a reference of an unknown form": (changed(references__m_DOT_txt="x"), "references/m.txt: not .json"),
    "a CoRIM that is none": (changed(references__m_DOT_corim=b"\xa0"), "references/m.corim: "),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_bundle_is_refused_by_file(files: dict[str, bytes], message: str) -> None:
    """In a folder or an archive alike."""
    for read in (bundles.of_files, lambda given: bundles.read_archive(packed(given))):
        with pytest.raises(BundleError) as refused:
            read(files)
        assert message in str(refused.value)


def test_two_values_for_one_model_are_refused() -> None:
    """It is not for the order of names to say which counts."""
    text = "model: a\nfiles:\n  f:\n    sha256: " + "ab" * 32 + "\n"
    with pytest.raises(BundleError, match=r"references/b\.yaml: a second reference value for a"):
        bundles.of_files(changed(references__a_DOT_yaml=text, references__b_DOT_yaml=text))


@pytest.mark.parametrize(
    "name",
    ["../x.rego", "/x.rego", "a/../../x.rego", "a\\x.rego", "C:x.rego", ".hidden.rego", "a/b/c/d.rego", "x\n.rego", "é.rego"],
)  # fmt: skip
def test_a_path_that_climbs_out_is_refused(name: str) -> None:
    """Nothing is written anywhere, and no such name is taken either."""
    with pytest.raises(BundleError, match="a name that no bundle has"):
        bundles.read_archive(packed({name: b"package touchstone"}))


def test_a_link_is_refused(tmp_path: Path) -> None:
    """In a folder, and in an archive."""
    folder = tmp_path / "policy"
    shutil.copytree(default_policy(), folder)
    (folder / "passwd.md").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match=r"passwd\.md: a link"):
        bundles.load(folder)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        entry = zipfile.ZipInfo("link.md")
        entry.external_attr = 0o120777 << 16
        made.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match=r"link\.md: encrypted, or not a regular file"):
        bundles.read_archive(out.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_stands_twice_is_refused() -> None:
    """Readers would not agree which it is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("a.rego", "x")
        made.writestr("a.rego", "y")
    with pytest.raises(BundleError, match=r"a\.rego: stands twice"):
        bundles.read_archive(out.getvalue())


def test_a_bomb_is_not_unpacked() -> None:
    """By what comes out, not by what it says of itself."""
    with pytest.raises(BundleError, match=r"README\.md: more than"):
        bundles.read_archive(packed({"README.md": bytes(256 << 20)}))


def test_a_bomb_that_lies_about_its_size_is_not_unpacked() -> None:
    """The header says four bytes."""
    data = bytearray(packed({"README.md": bytes(64 << 20)}))
    place = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, place + 24, 4)
    with pytest.raises(BundleError):
        bundles.read_archive(bytes(data))


def test_an_archive_of_another_tool_may_list_its_folders() -> None:
    """It is the files that count."""
    again, _ = bundles.read_archive(packed({"ar4si/": b"", **BASE.files}))
    assert again == BASE


def test_too_many_files_are_refused() -> None:
    """Before they are read."""
    with pytest.raises(BundleError, match="more than 128 files"):
        bundles.read_archive(packed({f"n{number}.md": b"" for number in range(200)}))


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_are_a_bundle_or_refused(data: bytes, place: int, value: int) -> None:
    """And nothing else happens: also a real archive with one byte changed."""
    real = bytearray(bundles.write_archive(BASE, None))
    real[place * (len(real) // 401)] = value
    for given_bytes in (data, bytes(real)):
        try:
            bundles.read_archive(given_bytes)
        except BundleError:
            continue


@pytest.mark.parametrize("key", [KEY, PrivateKey.generate(ED25519)], ids=["ES256", "Ed25519"])
def test_the_author_is_whose_key_fits(key: PrivateKey) -> None:
    """Whatever keyid says."""
    envelope = json.loads(bundles.sign(BASE, key))
    envelope["signatures"][0]["keyid"] = "another"
    authors: dict[str, Any] = {**AUTHORS, "lee": key.native.public_key()}
    name = bundles.verify(BASE, json.dumps(envelope).encode(), {"lee": authors["lee"]})
    assert name == "lee"


def tampered(**changes: Any) -> bytes:
    return json.dumps({**json.loads(bundles.sign(BASE, KEY)), **changes}).encode()


UNSIGNED: dict[str, tuple[bytes | None, str]] = {
    "not at all": (None, "the bundle is not signed"),
    "by another key": (bundles.sign(BASE, PrivateKey.generate()), "signed by none of the 1 keys that may"),
    "over another type": (dsse.sign("text/plain", BASE.statement, KEY), "of type 'text/plain'"),
    "with a type exchanged": (tampered(payloadType="text/plain"), "of type 'text/plain'"),
    "over other bytes": (tampered(payload="b3RoZXI="), "signed by none"),
    "without a signature": (tampered(signatures=[]), "not a DSSE envelope"),
    "no JSON": (b"{", "not a DSSE envelope"),
    "no base64": (tampered(payload="?"), "not a DSSE envelope"),
    "too large": (b" " * (dsse.MAX_ENVELOPE + 1), "an envelope of"),
}


@pytest.mark.parametrize(("envelope", "message"), UNSIGNED.values(), ids=UNSIGNED)
def test_a_bundle_that_is_not_rightly_signed(envelope: bytes | None, message: str) -> None:
    """Refused by its signature's file."""
    with pytest.raises(BundleError) as refused:
        bundles.verify(BASE, envelope, AUTHORS)
    assert str(refused.value).startswith("bundle.dsse.json: ")
    assert message in str(refused.value)


def test_a_signature_over_other_files_names_the_first() -> None:
    """What the author signed is not what is there."""
    other = bundles.of_files(changed(gpu_DOT_rego=BASE.files["gpu.rego"] + b"\n"))
    with pytest.raises(BundleError, match=r"over other files: gpu\.rego"):
        bundles.verify(other, bundles.sign(BASE, KEY), AUTHORS)


def test_a_signature_is_as_other_implementations_have_it() -> None:
    """DSSE with ECDSA in DER: verified with the library alone."""
    import base64

    from cryptography.hazmat.primitives import hashes

    envelope = json.loads(bundles.sign(BASE, KEY))
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    public = KEY.native.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert not isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(hashes.SHA256()))


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """Said plainly."""
    with pytest.raises(BundleError, match="is not a folder"):
        bundles.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        bundles.load(tmp_path)
    assert list(tmp_path.iterdir()) == []
