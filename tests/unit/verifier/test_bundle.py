"""Bundles on their way: folder and archive alike, one defect at a time, and whose signature covers what."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import struct
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attester import cbor
from attester.cose import ED25519, ES256, PrivateKey
from verifier import dsse
from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import ar4si, bundle, content
from verifier.policy.archive import MAX_ARCHIVE, read_archive, write_archive
from verifier.policy.bundle import Bundle
from verifier.references import corim, profile
from verifier.references.measured import Document, DocumentFile

MANIFEST = {"name": "small", "version": "1", "author": "Acme", "description": "As little as a bundle can be."}
THRESHOLDS = {"walk_max_age_s": 3600, "missed_limit": 3, "classes": {}}
DATA: dict[str, Any] = {"approved_engines": {"vllm": {}}, "thresholds": THRESHOLDS}
HEX = hashlib.sha256(b"weights").hexdigest()
DOCUMENT = Document(model="acme/tiny", files=(DocumentFile("model.safetensors", 7, HEX),))
YAML = f"model: acme/other\nfiles:\n  model.safetensors:\n    sha256: {HEX}\n".encode()


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


FILES: dict[str, bytes] = {
    "README.md": "What it is for. – é\n".encode(),
    "ar4si/data.json": ar4si.to_json(),
    "bundle.json": encode(MANIFEST),
    "data.json": encode(DATA),
    "references/tiny.json": msgspec.json.encode(DOCUMENT),
    "rules.rego": b"package touchstone\n\noutcome := {}\n",
    "rules_test.rego": b"package touchstone_test\n\ntest_nothing if true\n",
}
BUNDLE = bundle.of_files(FILES)


def with_file(name: str, data: bytes = b"") -> dict[str, bytes]:
    return {**FILES, name: data}


def without(*names: str) -> dict[str, bytes]:
    return {name: data for name, data in FILES.items() if name not in names}


def with_data(**values: Any) -> dict[str, bytes]:
    return with_file("data.json", encode({**DATA, **values}))


def with_manifest(**values: Any) -> dict[str, bytes]:
    return with_file("bundle.json", encode({**MANIFEST, **values}))


def folder_of(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive as any tool writes it: nothing is looked at."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def zip_with(*entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """The small bundle with more entries behind it."""
    out = io.BytesIO(zip_of(FILES))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return out.getvalue()


def raw_zip(name: bytes, stored: bytes, *, method: int, size: int, crc: int, extra: bytes = b"") -> bytes:
    """An archive of one entry whose headers say what they are told to."""
    offset = 0xFFFFFFFF if extra else 0
    fields = (method, 0, 0x21, crc, len(stored), size, len(name))
    local = struct.pack("<4s2H3H3L2H", b"PK\3\4", 20, 0, *fields, 0) + name + stored
    central = struct.pack(
        "<4s4B4H3L5H2L", b"PK\1\2", 45, 3, 45, 0, 0, *fields, len(extra), 0, 0, 0, 0, offset
    )
    central += name + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def refusal(call: Callable[..., object], *args: Any) -> str:
    with pytest.raises(BundleError) as error:
        call(*args)
    return str(error.value)


# A folder and its archive.


def test_folder_and_archive_are_the_same_bundle(tmp_path: Path) -> None:
    """Digest, data, rules and reference values, whichever way it came."""
    loaded = bundle.load(folder_of(FILES, tmp_path / "p"))
    read, envelope = read_archive(zip_of(FILES))
    assert loaded == read == BUNDLE
    assert loaded.digest == read.digest
    assert envelope is None


def test_default_policy_is_the_same_from_an_archive() -> None:
    """What we ship travels."""
    loaded = bundle.load(default_policy())
    assert read_archive(write_archive(loaded, None)) == (loaded, None)


def test_archive_keeps_the_signature_beside_the_files() -> None:
    """It is no part of what the digest covers."""
    envelope = bundle.sign(BUNDLE, PrivateKey.generate())
    read, found = read_archive(write_archive(BUNDLE, envelope))
    assert found == envelope
    assert read == BUNDLE
    assert bundle.SIGNATURE not in read.files


def test_archive_is_the_same_each_time() -> None:
    """Equal bundles give equal bytes, whatever the time and the order of files."""
    first = write_archive(BUNDLE, b"{}")
    again = bundle.of_files(dict(reversed(FILES.items())))
    assert write_archive(again, b"{}") == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted([*FILES, bundle.SIGNATURE])


def test_order_and_compression_of_an_archive_do_not_matter() -> None:
    """What counts are names and contents."""
    stored = zip_of(dict(reversed(FILES.items())), zipfile.ZIP_STORED)
    assert read_archive(stored)[0] == BUNDLE


def test_id_names_version_and_digest() -> None:
    """As results name it; the digest is that of the statement."""
    assert bundle.of_files(FILES).id == f"small@1#sha-256;{hashlib.sha256(BUNDLE.statement).hexdigest()}"


def test_statement_is_the_digests_of_all_files() -> None:
    """Deterministic CBOR, as the signature's payload type says."""
    digests = {name: hashlib.sha256(data).digest() for name, data in FILES.items()}
    assert cbor.decode(BUNDLE.statement, max_size=1 << 16) == digests


def test_parts_of_a_bundle_are_told_apart() -> None:
    """Rules, tests, merged data, thresholds and reference values."""
    assert [name for name, _ in BUNDLE.modules] == ["rules.rego"]
    assert [name for name, _ in BUNDLE.tests] == ["rules_test.rego"]
    assert json.loads(BUNDLE.data) == {**DATA, "ar4si": ar4si.names()}
    assert BUNDLE.thresholds.missed_limit == 3
    assert BUNDLE.references["acme/tiny"].source == "bundle"
    assert BUNDLE.references["acme/tiny"].signer == "Acme"


def test_data_in_a_folder_has_the_folders_name() -> None:
    """`NAME/data.json` is `data.NAME`."""
    found = bundle.of_files(with_file("limits/data.json", b'{"most": 3}'))
    assert json.loads(found.data)["limits"] == {"most": 3}


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny.yml"])
def test_reference_values_by_hand_are_read(name: str) -> None:
    """YAML, under either ending."""
    found = bundle.of_files(with_file(f"references/{name}", YAML))
    assert sorted(found.references) == ["acme/other", "acme/tiny"]


def test_reference_values_from_an_unsigned_corim_are_read() -> None:
    """The bundle's signature covers it."""
    files = without("references/tiny.json")
    files["references/tiny.corim"] = corim.encode(profile.from_document(DOCUMENT))
    assert bundle.of_files(files).references.keys() == {"acme/tiny"}


def test_hidden_files_are_no_part_of_a_folder(tmp_path: Path) -> None:
    """What an editor or a version control leaves behind does not change the digest."""
    more = {".DS_Store": b"\0", ".git/config": b"[core]\n", "ar4si/.data.json.swp": b"\0"}
    assert bundle.load(folder_of({**FILES, **more}, tmp_path / "p")).digest == BUNDLE.digest


def test_hidden_links_are_no_part_of_a_folder(tmp_path: Path) -> None:
    """Editors lock files with links."""
    folder = folder_of(FILES, tmp_path / "p")
    (folder / ".#rules.rego").symlink_to("somebody@somewhere")
    assert bundle.load(folder).digest == BUNDLE.digest


def test_empty_folders_are_no_part_of_a_folder(tmp_path: Path) -> None:
    """An archive has none either."""
    folder = folder_of(FILES, tmp_path / "p")
    (folder / "empty" / "deeper").mkdir(parents=True)
    assert bundle.load(folder).digest == BUNDLE.digest


def test_signature_in_a_folder_is_found_and_not_covered(tmp_path: Path) -> None:
    """A signature cannot cover itself."""
    folder = folder_of(FILES, tmp_path / "p")
    assert bundle.signature_in(folder) is None
    (folder / bundle.SIGNATURE).write_bytes(b"{}")
    assert bundle.signature_in(folder) == b"{}"
    assert bundle.load(folder).digest == BUNDLE.digest


def test_signature_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    """Said, and not taken for unsigned."""
    (tmp_path / bundle.SIGNATURE).mkdir()
    assert bundle.SIGNATURE in refusal(bundle.signature_in, tmp_path)


# A folder's own refusals.


def test_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    """What it points at may be another machine's secret."""
    folder = folder_of(FILES, tmp_path / "p")
    (folder / "notes.md").symlink_to(folder / "README.md")
    assert refusal(bundle.load, folder) == "notes.md: this is a link, and a bundle must hold the file itself"


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Also where nothing in it would be read."""
    folder = folder_of(FILES, tmp_path / "p")
    (tmp_path / "elsewhere").mkdir()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    assert refusal(bundle.load, folder).startswith("more: this is a link")


def test_dangling_link_is_refused(tmp_path: Path) -> None:
    """By name."""
    folder = folder_of(FILES, tmp_path / "p")
    (folder / "gone.rego").symlink_to(tmp_path / "nowhere")
    assert refusal(bundle.load, folder).startswith("gone.rego: this is a link")


def test_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    """Opening it would wait for a writer for ever."""
    folder = folder_of(FILES, tmp_path / "p")
    os.mkfifo(folder / "pipe.rego")

    def let_go() -> None:
        with suppress(OSError):
            os.close(os.open(folder / "pipe.rego", os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(20, let_go)
    timer.start()
    started = time.monotonic()
    try:
        assert "pipe.rego" in refusal(bundle.load, folder)
        assert time.monotonic() - started < 10
    finally:
        timer.cancel()
        timer.join()


def test_file_too_large_in_a_folder_is_refused(tmp_path: Path) -> None:
    """By name, and without reading all of it."""
    folder = folder_of(FILES, tmp_path / "p")
    with open(folder / "large.md", "wb") as stream:
        stream.truncate(1 << 34)
    assert refusal(bundle.load, folder).startswith(f"large.md: more than {bundle.MAX_FILE} bytes")


def test_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    """An archive is not read as a folder."""
    (tmp_path / "p").write_bytes(zip_of(FILES))
    assert "is not a folder" in refusal(bundle.load, tmp_path / "p")


def test_too_many_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    """The first beyond the limit is named."""
    folder = folder_of({f"n{number:03}.md": b"" for number in range(content.MAX_FILES + 1)}, tmp_path / "p")
    assert (
        refusal(bundle.load, folder)
        == f"'n{content.MAX_FILES}.md': the bundle has more than {content.MAX_FILES} files"
    )


# What is in the files.

REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "no manifest": (without("bundle.json"), "bundle.json is missing. Is this a policy bundle?"),
    "no data": (without("data.json"), "data.json is missing"),
    "no trust values": (without("ar4si/data.json"), "ar4si/data.json is missing"),
    "no rules": (without("rules.rego"), "there are no rules"),
    "tests alone": (without("rules.rego"), "A bundle needs a file *.rego that is not a test"),
    "nothing": ({}, "bundle.json is missing"),
    "an unknown file": (with_file("rules.txt"), "rules.txt: a bundle may not have this file"),
    "an unknown file in a folder": (with_file("lib/run.sh"), "lib/run.sh: a bundle may not have this file"),
    "a manifest that is not JSON": (with_file("bundle.json", b"{"), "bundle.json: "),
    "a manifest that is no object": (
        with_file("bundle.json", b"[]"),
        "bundle.json: the file is not a JSON object",
    ),
    "a manifest with more": (with_manifest(licence="MIT"), "bundle.json: Object contains unknown field"),
    "a manifest without author": (
        with_file("bundle.json", encode({k: v for k, v in MANIFEST.items() if k != "author"})),
        "bundle.json: Object missing required field `author`",
    ),
    "a name in capitals": (with_manifest(name="Small"), "bundle.json: "),
    "a name with a line end": (with_manifest(name="small\n"), "bundle.json: "),
    "a version with a hash sign": (with_manifest(version="1#2"), "bundle.json: "),
    "a version that is a number": (with_manifest(version=1), "bundle.json: "),
    "a name twice in the manifest": (
        with_file("bundle.json", b'{"name": "a", "name": "b"}'),
        "bundle.json: 'name' occurs twice",
    ),
    "a name twice in data": (
        with_file("data.json", b'{"thresholds": {}, "x": {"y": 1, "y": 2}}'),
        "data.json: 'y' occurs twice",
    ),
    "a name twice in data of a folder": (
        with_file("limits/data.json", b'{"y": 1, "y": 2}'),
        "limits/data.json: 'y' occurs twice",
    ),
    "data in UTF-16": (with_file("data.json", json.dumps(DATA).encode("utf-16")), "data.json: "),
    "data that is no object": (with_file("data.json", b"[]"), "data.json: the file is not a JSON object"),
    "data with NaN": (with_file("data.json", b'{"x": NaN}'), "data.json: NaN is not JSON"),
    "data with a number beyond all": (
        with_file("data.json", encode(DATA)[:-1] + b', "x": 1e999}'),
        "data.json: ",
    ),
    "data with half a character": (with_data(x="\ud800"), "data.json: "),
    "data with half a character for a name": (with_data(**{"\udfff": 1}), "data.json: "),
    "a manifest with half a character": (with_manifest(author="\ud800"), "bundle.json: "),
    "data nested without end": (
        with_file("data.json", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "data.json: it is nested too deep",
    ),
    "data of a folder twice": (
        {**with_data(limits={"most": 1}), "limits/data.json": b'{"most": 1}'},
        "limits/data.json: data.json has data.limits.most too, and only objects can be merged",
    ),
    "no thresholds": (
        with_file("data.json", b"{}"),
        "data.json: Object missing required field `thresholds`",
    ),
    "a threshold too much": (
        with_data(thresholds={**THRESHOLDS, "patience": 1}),
        "data.json: Object contains unknown field `patience` - at `$.thresholds`",
    ),
    "a threshold of nothing": (with_data(thresholds={**THRESHOLDS, "boast_permille": 0}), "data.json: "),
    "a trust value that is another": (
        with_file("ar4si/data.json", b'{"file_system": {"other": 2}}'),
        "ar4si/data.json: file_system.other is 2, but this verifier has 96",
    ),
    "a trust value that is a boolean": (
        with_file("ar4si/data.json", b'{"hardware": {"unevaluable": true}}'),
        "ar4si/data.json: hardware.unevaluable is True",
    ),
    "a trust value that is a float": (
        with_file("ar4si/data.json", b'{"hardware": {"genuine": 2.0}}'),
        "ar4si/data.json: hardware.genuine is 2.0",
    ),
    "a trust value of another name": (
        with_file("ar4si/data.json", b'{"hardware": {"splendid": 2}}'),
        "ar4si/data.json: hardware.splendid is 2, but this verifier has None",
    ),
    "a trust claim of another name": (
        with_file("ar4si/data.json", b'{"goodness": {"genuine": 2}}'),
        "ar4si/data.json: goodness.genuine",
    ),
    "trust values that are a list": (
        with_file("ar4si/data.json", b'{"hardware": [2]}'),
        "ar4si/data.json: hardware is not a JSON object",
    ),
    "trust values within other data": (
        {**without("ar4si/data.json"), "data.json": encode({**DATA, "ar4si": {"hardware": {"genuine": 3}}})},
        "hardware.genuine is 3",
    ),
    "rules that are not UTF-8": (
        with_file("bad.rego", b"package touchstone\n\n# \xe9\n"),
        "bad.rego:3: the line is not UTF-8",
    ),
    "tests that are not UTF-8": (
        with_file("bad_test.rego", b"\xff"),
        "bad_test.rego:1: the line is not UTF-8",
    ),
    "rules in UTF-16": (
        with_file("bad.rego", "package touchstone".encode("utf-16")),
        "bad.rego:1: the line is not UTF-8",
    ),
    "a broken reference value": (
        with_file("references/b.json", b"{"),
        "references/b.json: this is not a reference value",
    ),
    "a broken reference value by hand": (
        with_file("references/b.yaml", b"model: a/b\nfiles: [\n"),
        "references/b.yaml: line 3",
    ),
    "a broken CoRIM": (with_file("references/b.corim", b"\xd9"), "references/b.corim: "),
    "a reference value of another kind": (
        with_file("references/b.txt"),
        "references/b.txt: the name must end in .json, .yaml or .corim",
    ),
    "two reference values for a model": (
        with_file("references/zz.json", FILES["references/tiny.json"]),
        "references/zz.json: this is a second reference value for acme/tiny",
    ),
    "reference values too large": (
        with_file("references/z.json", bytes(bundle.MAX_REFERENCES + 1)),
        f"references/z.json: the reference values have more than {bundle.MAX_REFERENCES} bytes together",
    ),
    "rules too large": (
        with_file("large.rego", b" " * (bundle.MAX_REGO + 1)),
        f"large.rego: more than {bundle.MAX_REGO} bytes",
    ),
    "a file too large": (
        with_file("large.md", bytes(bundle.MAX_FILE + 1)),
        f"large.md: more than {bundle.MAX_FILE} bytes",
    ),
    "too large together": (
        {**FILES, **{f"z{number}.md": bytes(bundle.MAX_FILE) for number in range(4)}},
        f"z3.md: more than {bundle.MAX_FILE} bytes, or more than {bundle.MAX_TOTAL} bytes in all files together",
    ),
    "too many files": (
        {**FILES, **{f"z{number:03}.md": b"" for number in range(content.MAX_FILES)}},
        f"more than {content.MAX_FILES} files",
    ),
}


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED)
def test_content_is_refused_with_its_place(files: dict[str, bytes], message: str) -> None:
    """An operator must find what is wrong: file, and place where there is one."""
    assert message in refusal(bundle.of_files, files)


@pytest.mark.parametrize("name", ["no manifest", "an unknown file", "two reference values for a model"])
def test_archive_is_refused_for_the_same_reasons(name: str) -> None:
    """What a folder may not hold, an archive may not."""
    files, message = REFUSED[name]
    assert message in refusal(read_archive, zip_of(files))


def test_fewer_trust_values_will_do() -> None:
    """A bundle names those that it uses."""
    assert bundle.of_files(with_file("ar4si/data.json", b'{"hardware": {"genuine": 2}}'))


def test_file_at_the_limit_is_read() -> None:
    """The limit is what still passes."""
    largest = b"package touchstone\n\noutcome := {}\n".ljust(bundle.MAX_REGO)
    assert bundle.of_files(with_file("rules.rego", largest)).modules[0][1] == largest.decode()


def test_as_many_files_as_may_be_travel_signed() -> None:
    """The signature is not one of the files."""
    more = {f"z{number:03}.md": b"" for number in range(content.MAX_FILES - len(FILES))}
    full = bundle.of_files({**FILES, **more})
    envelope = bundle.sign(full, PrivateKey.generate())
    assert read_archive(write_archive(full, envelope)) == (full, envelope)


@pytest.mark.parametrize("name", sorted(FILES))
@given(data=st.data())
@settings(max_examples=15)
def test_every_byte_counts(name: str, data: st.DataObject) -> None:
    """A changed byte of any file is another bundle, or none."""
    place = data.draw(st.integers(0, len(FILES[name]) - 1))
    other = bytearray(FILES[name])
    other[place] ^= data.draw(st.integers(1, 255))
    with suppress(BundleError):
        assert bundle.of_files(with_file(name, bytes(other))).digest != BUNDLE.digest


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_counts(name: str) -> None:
    """A file left out is another bundle, or none."""
    with suppress(BundleError):
        assert bundle.of_files(without(name)).digest != BUNDLE.digest


def test_name_of_a_file_counts() -> None:
    """The same bytes under another name are another bundle."""
    files = {**without("README.md"), "NOTES.md": FILES["README.md"]}
    assert bundle.of_files(files).digest != BUNDLE.digest


# Archives with one defect each.

OUTSIDE = {
    "up": "../x.md",
    "up from within": "ar4si/../../x.md",
    "up and nowhere else": "..",
    "in place": "./x.md",
    "absolute": "/etc/x.md",
    "backslash": "..\\x.md",
    "drive": "C:/x.md",
    "drive with backslash": "C:\\x.md",
    "share": "//host/x.md",
    "empty folder name": "a//x.md",
    "folder that climbs": "../a/",
    "hidden": ".x.md",
    "hidden folder": "a/.b/x.md",
    "deep": "a/b/c/d/e/f/g/x.md",
    "long": "a" * 101,
    "space": "a b.md",
    "line end": "x.md\n",
    "letters of others": "пример.md",
    "full width": "．．/x.md",
}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
def test_name_that_no_bundle_has_is_refused(name: str) -> None:
    """The name is shown as it is, control characters escaped."""
    entry = zipfile.ZipInfo("x.md")
    entry.filename = name
    message = refusal(read_archive, zip_with((entry, b"")))
    assert message.startswith(f"{name[:100]!r}: no file of a bundle may have this name")


NAMELESS = {
    "empty": b"",
    "null": b"\0",
    "null before letters": b"\0x.md",
    "slash": b"/",
    "slashes": b"///",
    "folder without a name": b"a//",
    "null before a slash": b"\0/",
}


@pytest.mark.parametrize("name", NAMELESS.values(), ids=NAMELESS)
def test_name_with_nothing_in_it_is_refused(name: bytes) -> None:
    """Each name is checked before it is used, also for whether it is a folder."""
    message = refusal(read_archive, raw_zip(name, b"", method=0, size=0, crc=0))
    assert "no file of a bundle may have this name" in message


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
def test_name_that_no_bundle_has_is_refused_wherever_it_is_from(name: str) -> None:
    """Not only from an archive."""
    assert "no file of a bundle may have this name" in refusal(bundle.of_files, with_file(name))


KINDS = {"link": 0o12, "folder": 0o4, "pipe": 0o1, "device": 0o2, "socket": 0o14}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_entry_that_is_not_a_file_is_refused(kind: int) -> None:
    """A link in an archive would be one where it is unpacked."""
    entry = zipfile.ZipInfo("z.md")
    entry.external_attr = (kind << 12 | 0o777) << 16
    assert refusal(read_archive, zip_with((entry, b"/etc/passwd"))).startswith("z.md: ")


def test_entry_that_says_it_is_a_file_is_read() -> None:
    """As most tools write it."""
    entry = zipfile.ZipInfo("z.md")
    entry.external_attr = 0o100644 << 16
    assert "z.md" in read_archive(zip_with((entry, b"")))[0].files


def test_file_twice_in_an_archive_is_refused() -> None:
    """Readers disagree which one counts."""
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zip_with((zipfile.ZipInfo("data.json"), encode(DATA)))
    assert refusal(read_archive, data) == "data.json: the archive has this file twice"


def test_file_twice_behind_a_null_is_refused() -> None:
    """Names end at a null for some readers."""
    entry = zipfile.ZipInfo("data.json")
    entry.filename = "data.json\0.md"
    refusal(read_archive, zip_with((entry, encode(DATA))))


def test_encrypted_entry_is_refused() -> None:
    """By name, and no password is asked for."""
    data = bytearray(zip_of(FILES))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.infolist()[-1]
        central = archive.start_dir
    place = data.rindex(b"PK\1\2", central)
    data[place + 8] |= 1
    data[entry.header_offset + 6] |= 1
    assert refusal(read_archive, bytes(data)).startswith(f"{entry.filename}: encrypted")


def test_bomb_is_refused_when_it_goes_off() -> None:
    """By what comes out, not by what the header says."""
    entry = zipfile.ZipInfo("z.md")
    entry.compress_type = zipfile.ZIP_DEFLATED
    message = refusal(read_archive, zip_with((entry, bytes(bundle.MAX_FILE + 1))))
    assert message == f"z.md: more than {bundle.MAX_FILE} bytes when unpacked"


@pytest.mark.parametrize("size", [0, 10, 1 << 20, 0xFFFFFFF0])
def test_bomb_that_lies_about_its_size_is_refused(size: int) -> None:
    """Little is unpacked of it, whatever it claims."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("z.md", bytes(1 << 27))
        entry = archive.infolist()[0]
    start = entry.header_offset + 30 + len("z.md")
    stored = out.getvalue()[start : start + entry.compress_size]
    data = raw_zip(b"z.md", stored, method=zipfile.ZIP_DEFLATED, size=size, crc=entry.CRC)
    assert most_memory(lambda: refusal(read_archive, data)) < 4 * bundle.MAX_FILE


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_bomb_of_another_compression_is_refused(method: int) -> None:
    """Some are unpacked at once, however much comes out."""
    data = zip_of({"z.md": bytes(1 << 26)}, method)
    assert most_memory(lambda: refusal(read_archive, data)) < 4 * bundle.MAX_FILE


def most_memory(call: Callable[[], object]) -> int:
    """Bytes that *call* held at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 99])
def test_compression_that_no_bundle_has_is_refused(method: int) -> None:
    """Also where what is compressed is damaged."""
    refusal(read_archive, raw_zip(b"z.md", b"\5\0\5\0" + b"\xff" * 60, method=method, size=9, crc=0))


def test_bombs_together_are_refused() -> None:
    """The total is bounded as each file is."""
    files = {f"z{number}.md": bytes(bundle.MAX_FILE) for number in range(5)}
    message = refusal(read_archive, zip_of(files))
    assert message == "z4.md: more than 0 bytes when unpacked"


def test_too_many_entries_are_refused() -> None:
    """The first beyond the limit is named."""
    files = {f"z{number:03}.md": b"" for number in range(content.MAX_FILES + 1)}
    message = refusal(read_archive, zip_of(files))
    assert message == f"'z{content.MAX_FILES}.md': the bundle has more than {content.MAX_FILES} files"


def test_archive_that_nobody_could_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it is packed, and not where it is needed."""
    most = len(write_archive(BUNDLE, None))
    monkeypatch.setattr("verifier.policy.archive.MAX_ARCHIVE", most)
    assert read_archive(write_archive(BUNDLE, None))[0] == BUNDLE
    monkeypatch.setattr("verifier.policy.archive.MAX_ARCHIVE", most - 1)
    assert f"at most {most - 1}" in refusal(write_archive, BUNDLE, None)


def test_archive_too_large_is_not_read() -> None:
    """Its length is enough to refuse it."""
    message = refusal(read_archive, bytes(MAX_ARCHIVE + 1))
    assert message == f"the archive has {MAX_ARCHIVE + 1} bytes, and it may have at most {MAX_ARCHIVE}"


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"{}", b"\x1f\x8b" + bytes(40)], ids=["nothing", "PK", "JSON", "gzip"]
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    """With a sentence that says so."""
    assert refusal(read_archive, data).startswith("not a zip archive that can be read: ")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archive_is_refused(part: float) -> None:
    """However much of it arrived."""
    whole = zip_of(FILES)
    refusal(read_archive, whole[: int(len(whole) * part)])


def test_damaged_content_is_refused() -> None:
    """What is stored must be what was put in."""
    whole = zip_of(FILES, zipfile.ZIP_STORED)
    damaged = whole.replace(b"What it is for", b"What it was for"[:14])
    assert damaged != whole
    assert "README.md" in refusal(read_archive, damaged)


def test_archive_without_entries_is_refused() -> None:
    """An empty policy is an error, not a pass."""
    assert "bundle.json is missing" in refusal(read_archive, zip_of({}))


def test_offset_beyond_all_archives_is_refused() -> None:
    """Whatever a 64-bit header claims."""
    extra = struct.pack("<HHQ", 1, 8, (1 << 63) + 5)
    refusal(read_archive, raw_zip(b"z.md", b"", method=0, size=0, crc=0, extra=extra))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_bundle_or_an_error_of_it(data: bytes) -> None:
    """No other exception comes out."""
    with suppress(BundleError):
        read_archive(data)


WHOLE = zip_of({name: FILES[name] for name in ("bundle.json", "data.json", "rules.rego")})


# The lengths of name, extra field and comment of the first entry in the list of entries.
LENGTHS = WHOLE.index(b"PK\1\2") + 28


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(0, len(WHOLE)),
)
@example([(LENGTHS, struct.pack("<3H", 0, 0, len("bundle.json")))], 0)
@settings(max_examples=300)
def test_any_damage_is_an_error_of_the_bundle(damage: list[tuple[int, bytes]], cut: int) -> None:
    """No other exception comes out, whichever header is hit."""
    data = bytearray(WHOLE)
    for place, other in damage:
        data[place : place + len(other)] = other
    for given_data in (bytes(data), bytes(data[cut:]), bytes(data[:cut])):
        refusal(read_archive, given_data)


@given(
    name=st.sampled_from([b"z.md", *NAMELESS.values()]) | st.binary(max_size=12),
    method=st.sampled_from([0, 8, 12, 14]),
    stored=st.binary(max_size=60),
    size=st.integers(0, 0xFFFFFFFF),
    extra=st.binary(max_size=30),
)
@example(name=b"", method=0, stored=b"", size=0, extra=b"")
@example(name=b"/", method=0, stored=b"", size=0, extra=b"")
@settings(max_examples=300)
def test_any_entry_is_an_error_of_the_bundle(
    name: bytes, method: int, stored: bytes, size: int, extra: bytes
) -> None:
    """No other exception comes out, whatever the headers say."""
    refusal(read_archive, raw_zip(name, stored, method=method, size=size, crc=0, extra=extra))


@given(st.sampled_from(sorted(FILES)), st.binary(max_size=60))
@settings(max_examples=200)
def test_any_content_is_a_bundle_or_an_error_of_it(name: str, data: bytes) -> None:
    """No other exception comes out of any file."""
    with suppress(BundleError):
        bundle.of_files(with_file(name, data))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=4), inner),
    max_leaves=8,
)


@given(VALUES)
def test_any_data_is_kept_or_refused(value: Any) -> None:
    """What rules see as data is what the file says."""
    try:
        found = bundle.of_files(with_data(x=value))
    except BundleError:
        return
    assert json.loads(found.data)["x"] == value


# Signatures.

KEYS = {"ES256": PrivateKey.generate(ES256), "Ed25519": PrivateKey.generate(ED25519)}
AUTHORS = {name: key.native.public_key() for name, key in KEYS.items()}
KEY = KEYS["ES256"]


def edited(envelope: bytes, **fields: Any) -> bytes:
    return encode({**json.loads(envelope), **fields})


@pytest.mark.parametrize("name", KEYS)
def test_right_signature_names_its_author(name: str) -> None:
    """With either algorithm, among several authors."""
    assert bundle.verify(BUNDLE, bundle.sign(BUNDLE, KEYS[name]), AUTHORS) == name


def test_unsigned_bundle_is_refused() -> None:
    """Said by the name of the file that is missing."""
    assert refusal(bundle.verify, BUNDLE, None, AUTHORS) == f"{bundle.SIGNATURE}: the bundle is not signed"


def test_signature_of_another_key_is_refused() -> None:
    """Whatever key it names."""
    envelope = bundle.sign(BUNDLE, PrivateKey.generate())
    assert "none of the 2 trusted keys signed it" in refusal(bundle.verify, BUNDLE, envelope, AUTHORS)


def test_signature_is_refused_where_nobody_may_sign() -> None:
    """No author is not any author."""
    envelope = bundle.sign(BUNDLE, KEY)
    assert "none of the 0 trusted keys signed it" in refusal(bundle.verify, BUNDLE, envelope, {})


OTHERS = {
    "changed": (with_file("rules.rego", b"package touchstone\noutcome := 1\n"), "rules.rego"),
    "added": (with_file("NOTES.md"), "NOTES.md"),
    "left out": (without("rules_test.rego"), "rules_test.rego"),
    "several": ({**with_file("rules.rego", b"package touchstone\nx := 1\n"), "a.md": b""}, "a.md"),
}


@pytest.mark.parametrize(("files", "first"), OTHERS.values(), ids=OTHERS)
def test_signature_over_other_files_names_the_first(files: dict[str, bytes], first: str) -> None:
    """So that an author sees what was changed after signing."""
    envelope = bundle.sign(BUNDLE, KEY)
    message = refusal(bundle.verify, bundle.of_files(files), envelope, AUTHORS)
    assert message == f"{bundle.SIGNATURE}: the signature is over other files: {first}"


def test_tampered_payload_is_refused() -> None:
    """The signature is over the payload, not beside it."""
    other = bundle.of_files(with_file("NOTES.md"))
    envelope = edited(bundle.sign(BUNDLE, KEY), payload=base64.b64encode(other.statement).decode())
    assert "trusted keys signed it" in refusal(bundle.verify, other, envelope, AUTHORS)


def test_signature_over_another_type_is_refused() -> None:
    """What an author signed as something else is no bundle."""
    envelope = dsse.sign("application/vnd.in-toto+json", BUNDLE.statement, KEY)
    assert "of type 'application/vnd.in-toto+json'" in refusal(bundle.verify, BUNDLE, envelope, AUTHORS)


def test_signature_over_another_type_renamed_is_refused() -> None:
    """The type is signed too."""
    envelope = edited(dsse.sign("text/plain", BUNDLE.statement, KEY), payloadType=bundle.PAYLOAD_TYPE)
    assert "trusted keys signed it" in refusal(bundle.verify, BUNDLE, envelope, AUTHORS)


def test_wrong_key_id_does_not_matter() -> None:
    """It is a hint, and not ours to follow."""
    envelope = bundle.sign(BUNDLE, KEY)
    (signature,) = json.loads(envelope)["signatures"]
    other = edited(envelope, signatures=[{**signature, "keyid": "00" * 32}])
    assert bundle.verify(BUNDLE, other, AUTHORS) == "ES256"


PAYLOADS = {
    "nothing": b"",
    "not CBOR": b"\xff\xff",
    "JSON": b'{"rules.rego": "00"}',
    "a list": cbor.encode([1, 2]),
    "a number": cbor.encode(7),
    "no files": cbor.encode({}),
    "numbers for names": cbor.encode({1: b""}),
    "text for digests": cbor.encode(dict.fromkeys(FILES, "x")),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_signed_payload_of_another_form_is_refused(payload: bytes) -> None:
    """Also an author's tools can be wrong."""
    envelope = dsse.sign(bundle.PAYLOAD_TYPE, payload, KEY)
    assert "the signature is over other files" in refusal(bundle.verify, BUNDLE, envelope, AUTHORS)


@given(st.binary(max_size=100))
def test_any_envelope_is_refused_as_an_error_of_the_bundle(envelope: bytes) -> None:
    """No other exception comes out."""
    assert refusal(bundle.verify, BUNDLE, envelope, AUTHORS).startswith(f"{bundle.SIGNATURE}: ")


def test_bundle_as_made_approves_nothing(tmp_path: Path) -> None:
    """Told apart, so that an operator is reminded."""
    shutil.copytree(default_policy(), tmp_path / "p")
    assert bundle.load(tmp_path / "p").data_approves_nothing
    assert not BUNDLE.data_approves_nothing


def test_bundle_is_never_changed_in_place() -> None:
    """What was checked is what judges."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        BUNDLE.data = "{}"  # type: ignore[misc]
    assert isinstance(BUNDLE, Bundle)


def test_archive_of_another_tool_may_list_its_folders() -> None:
    """It is the files that count."""
    entries = {"ar4si/": b"", **FILES}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, data in entries.items():
            made.writestr(name, data)
    assert read_archive(out.getvalue())[0] == bundle.of_files(FILES)


def test_an_archive_that_lists_too_many_files_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB have room for 300,000 entries, of each of which the library makes an object."""
    entry = b"PK\x01\x02" + bytes(42)
    monkeypatch.setattr("verifier.policy.archive.zipfile.ZipFile", None)
    with pytest.raises(BundleError, match="lists more files than a bundle may have"):
        read_archive(entry * 300_000)
