"""
A policy bundle: a folder of Rego, data, tests and reference values, known by the digest of all of it.

    bundle.json          name, version, author, description
    *.rego               rules; *_test.rego are tests
    data.json            thresholds, hardware classes, approved engines: `data` in Rego
    ar4si/data.json      the trust values by name, `data.ar4si`: this verifier's own, copied
    NAME/data.json       more data, `data.NAME`
    references/*         reference values that go with it: .json, .yaml, .corim (unsigned)
    bundle.dsse.json     the author's signature (DSSE) over the digests of all other files

Results name the exact version: ``NAME@VERSION#sha-256;DIGEST``.  On its way a bundle is a
zip archive of the same files.  Everything is bounded before it is read.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from msgspec import Meta, Struct

from attester import cbor, strictjson
from attester.cose import PrivateKey
from attester.errors import CBORError, SignatureError
from verifier import dsse
from verifier.errors import BundleError, ReferenceValueError
from verifier.policy import ar4si
from verifier.references import corim, handwritten, measured, profile
from verifier.references.measured import Document
from verifier.schemes.context import ModelReference, Thresholds

MAX_REGO = 256 * 1024
MAX_FILE = 8 << 20
MAX_FILES = 128
MAX_TOTAL = 32 << 20
MAX_ARCHIVE = 16 << 20
MAX_REFERENCES = 4 << 20
PAYLOAD_TYPE: Final = "application/vnd.touchstone.policy-bundle+cbor"
"""The payload is deterministic CBOR: a map of file name to SHA-256.  Its own SHA-256 is the digest."""
SIGNATURE: Final = "bundle.dsse.json"
TEST_SUFFIX: Final = "_test.rego"
_MANIFEST: Final = "bundle.json"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,2}")
_DATA_FILE: Final = re.compile(r"([a-z][a-z0-9_]*)/data\.json")


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """``bundle.json``."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+-]{1,32}\Z")]
    author: Annotated[str, Meta(min_length=1, max_length=200)]
    description: Annotated[str, Meta(min_length=1, max_length=2000)]


class _Data(Struct, frozen=True):
    thresholds: Thresholds


@dataclass(frozen=True)
class Bundle:
    """A bundle as read: never changed in place."""

    manifest: Manifest
    files: Mapping[str, bytes]
    """Everything that the digest covers, by name."""
    modules: tuple[tuple[str, str], ...]
    """Rego sources by file name, tests left out."""
    tests: tuple[tuple[str, str], ...]
    data: str
    """JSON text, loaded as `data`."""
    thresholds: Thresholds
    documents: tuple[Document, ...]
    """Reference values that are in force with it."""
    statement: bytes
    """What is signed: the digests of all files."""

    @property
    def digest(self) -> str:
        """SHA-256 of the statement, hex."""
        return hashlib.sha256(self.statement).hexdigest()

    @property
    def id(self) -> str:
        """As results name it."""
        return f"{self.manifest.name}@{self.manifest.version}#sha-256;{self.digest}"

    @property
    def data_approves_nothing(self) -> bool:
        """Whether it is as it was made: no engine is approved yet."""
        return not msgspec.json.decode(self.data).get("approved_engines", True)

    @cached_property
    def references(self) -> Mapping[str, ModelReference]:
        """Its reference values by model, as the appraisal takes them."""
        return {d.model: d.to_reference(source="bundle", signer=self.manifest.author) for d in self.documents}


def load(folder: Path) -> Bundle:
    """
    Read a bundle from a folder; hidden files are not part of it.

    Raises:
        BundleError: not a bundle, too large, without rules, or with a file that cannot be used.
    """
    files: dict[str, bytes] = {}
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder")
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if path.is_symlink():
                raise BundleError(f"{name}: a link; a bundle holds the files themselves")
            if path.is_dir():
                continue
            if not path.is_file():
                raise BundleError(f"{name}: not a regular file")
            _check_place(name, len(files))
            with open(path, "rb") as stream:
                files[name] = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    return of_files(files)


def signature_in(folder: Path) -> bytes | None:
    """The signature that lies in a folder, if there is one.  Raises `BundleError`."""
    try:
        with open(folder / SIGNATURE, "rb") as stream:
            return stream.read(dsse.MAX_ENVELOPE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / SIGNATURE} cannot be read: {error.strerror}") from None


def of_files(files: Mapping[str, bytes]) -> Bundle:
    """
    A bundle of files by name; a signature among them is left out.

    Raises:
        BundleError: as `load`.
    """
    content = {name: data for name, data in sorted(files.items()) if name != SIGNATURE}
    total = 0
    for number, (name, data) in enumerate(content.items()):
        _check_place(name, number)
        limit = MAX_REGO if name.endswith(".rego") else MAX_FILE
        total += len(data)
        if len(data) > limit or total > MAX_TOTAL:
            raise BundleError(f"{name}: more than {limit} bytes, or all together more than {MAX_TOTAL}")
    if _MANIFEST not in content:
        raise BundleError(f"{_MANIFEST} is missing: is this a policy bundle?")
    manifest = _decode(content, _MANIFEST, Manifest)
    sources = {name: _text(name, data) for name, data in content.items() if name.endswith(".rego")}
    modules = tuple((n, s) for n, s in sources.items() if not n.endswith(TEST_SUFFIX))
    if not modules:
        # An empty policy is an error, not a pass.
        raise BundleError("there are no rules: no *.rego that is not a test")
    merged = _data_of(content)
    try:
        thresholds = msgspec.convert(merged, _Data).thresholds
    except msgspec.ValidationError as error:
        raise BundleError(f"data.json: {error}") from None
    if unknown := sorted(content.keys() - sources.keys() - _known(content)):
        raise BundleError(f"{unknown[0]}: not a file that a bundle has; notes belong into README.md")
    digests = {name: hashlib.sha256(data).digest() for name, data in content.items()}
    bundle = Bundle(
        manifest=manifest,
        files=content,
        modules=modules,
        tests=tuple((n, s) for n, s in sources.items() if n.endswith(TEST_SUFFIX)),
        data=msgspec.json.encode(merged).decode(),
        thresholds=thresholds,
        documents=_documents(content),
        statement=cbor.encode(digests),
    )
    try:
        # Once, now: an appraisal must not find out that one of them cannot be used.
        _ = bundle.references
    except CBORError as error:
        raise BundleError(f"references: too large to have a digest: {error}") from None
    return bundle


def _check_place(name: str, number: int) -> None:
    if number >= MAX_FILES:
        raise BundleError(f"{name[:100]!r}: more than {MAX_FILES} files")
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{name[:100]!r}: a name that no bundle has; letters, digits, . _ - and at most two folders"
        )


def _known(content: Mapping[str, bytes]) -> set[str]:
    return {
        name
        for name in content
        if name in (_MANIFEST, "data.json")
        or name.endswith(".md")
        or _DATA_FILE.fullmatch(name)
        or name.startswith("references/")
    }


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BundleError(f"{name}:{line}: not UTF-8") from None


def _json(name: str, data: bytes) -> Any:
    try:
        value = strictjson.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{name}: not a JSON object")
    try:
        # Half a character, or a number beyond all: what the rules would get is not what stands there.
        same = msgspec.json.decode(msgspec.json.encode(value)) == value
    except (UnicodeEncodeError, OverflowError, msgspec.DecodeError):
        same = False
    if not same:
        raise BundleError(f"{name}: half a character, or a number beyond what JSON readers agree on")
    return value


def _decode(content: Mapping[str, bytes], name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(_json(name, content[name]), kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"{name}: {error}") from None


def _data_of(content: Mapping[str, bytes]) -> dict[str, Any]:
    if "data.json" not in content:
        raise BundleError("data.json is missing")
    merged: dict[str, Any] = dict(_json("data.json", content["data.json"]))
    for name, text in content.items():
        nested = _DATA_FILE.fullmatch(name)
        if nested is None or nested[1] == "references":
            continue
        if nested[1] in merged:
            raise BundleError(f"{name}: data.json has a {nested[1]!r} too")
        merged[nested[1]] = _json(name, text)
    if "ar4si" not in merged:
        raise BundleError("ar4si/data.json is missing: touchstone policy new has it")
    try:
        ar4si.check(merged["ar4si"])
    except ValueError as error:
        raise BundleError(f"ar4si/data.json: {error}") from None
    return merged


def _documents(content: Mapping[str, bytes]) -> tuple[Document, ...]:
    found: dict[str, Document] = {}
    left = MAX_REFERENCES
    for name, data in content.items():
        if not name.startswith("references/"):
            continue
        left -= len(data)
        if left < 0:
            raise BundleError(f"{name}: reference values of more than {MAX_REFERENCES} bytes in all")
        for document in _read_reference(name, data):
            if document.model in found:
                raise BundleError(f"{name}: a second reference value for {document.model}")
            found[document.model] = document
    return tuple(found.values())


def _read_reference(name: str, data: bytes) -> tuple[Document, ...]:
    try:
        match name.rpartition(".")[2]:
            case "json":
                return (measured.read_document(data),)
            case "yaml" | "yml":
                return (handwritten.read_yaml(data),)
            case "corim":
                # The bundle's own signature covers it; one with a signature of its own is imported.
                return profile.to_documents(corim.read_unsigned(data))
            case _:
                raise BundleError(f"{name}: not .json, .yaml or .corim")
    except ReferenceValueError as error:
        raise BundleError(f"{name}: {error}") from None


def write_archive(bundle: Bundle, envelope: bytes | None) -> bytes:
    """
    The bundle as a zip archive; equal bundles give equal bytes.

    Raises:
        BundleError: it would be larger than archives may be.
    """
    files = dict(bundle.files) if envelope is None else {**bundle.files, SIGNATURE: envelope}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    data = out.getvalue()
    if len(data) > MAX_ARCHIVE:
        raise BundleError(f"an archive of {len(data)} bytes, more than {MAX_ARCHIVE}")
    return data


def read_archive(data: bytes) -> tuple[Bundle, bytes | None]:
    """
    Read an archive: the bundle, and the signature in it.

    Nothing is written anywhere, and sizes are those that come out, not those that it says.

    Raises:
        BundleError: too large, not a zip archive, with a name that climbs out, a link, a file twice,
            an encrypted or too large file, or not a bundle.
    """
    if len(data) > MAX_ARCHIVE:
        raise BundleError(f"an archive of {len(data)} bytes, more than {MAX_ARCHIVE}")
    files: dict[str, bytes] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if _is_folder(entry):
                    # Other tools list folders too.
                    continue
                _check_place(entry.filename, len(files) - (entry.filename == SIGNATURE or SIGNATURE in files))
                if entry.filename in files:
                    raise BundleError(f"{entry.filename}: stands twice in the archive")
                if entry.flag_bits & 1 or (entry.external_attr >> 28) not in (0, 0o10):
                    raise BundleError(f"{entry.filename}: encrypted, or not a regular file")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    # Of the others one cannot say how much comes out before it does.
                    raise BundleError(f"{entry.filename}: compressed in a way that no bundle has")
                left = min(MAX_FILE, MAX_TOTAL - total)
                with archive.open(entry) as stream:
                    content = stream.read(left + 1)
                if len(content) > left:
                    raise BundleError(f"{entry.filename}: more than {left} bytes when unpacked")
                total += len(content)
                files[entry.filename] = content
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        ValueError,
        OSError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise BundleError(f"not a zip archive that can be read: {str(error)[:200]}") from None
    return of_files(files), files.get(SIGNATURE)


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is an empty folder that a bundle may have.  `ZipInfo.is_dir` fails if a name is empty."""
    name = entry.filename
    return name.endswith("/") and not entry.file_size and _NAME.fullmatch(name[:-1]) is not None


def sign(bundle: Bundle, key: PrivateKey) -> bytes:
    """The author's signature: a DSSE envelope over the digests of all files."""
    return dsse.sign(PAYLOAD_TYPE, bundle.statement, key)


def verify(bundle: Bundle, envelope: bytes | None, authors: Mapping[str, PublicKeyTypes]) -> str:
    """
    The author whose signature covers exactly this bundle.

    Raises:
        BundleError: unsigned, signed by nobody who may, or over other files, naming the first.
    """
    if envelope is None:
        raise BundleError(f"{SIGNATURE}: the bundle is not signed")
    try:
        author, statement = dsse.verify(envelope, PAYLOAD_TYPE, authors)
    except SignatureError as error:
        raise BundleError(f"{SIGNATURE}: {error}") from None
    if statement != bundle.statement:
        raise BundleError(
            f"{SIGNATURE}: the signature is over other files: {_first_other(statement, bundle)}"
        )
    return author


def _first_other(statement: bytes, bundle: Bundle) -> str:
    try:
        signed = cbor.decode(statement, max_size=dsse.MAX_ENVELOPE)
    except CBORError:
        return "it is no list of files"
    have = {name: hashlib.sha256(data).digest() for name, data in bundle.files.items()}
    named = {str(k): v for k, v in signed.items()} if isinstance(signed, dict) else {}
    differing = [n for n in sorted(have.keys() | named.keys()) if have.get(n) != named.get(n)]
    return differing[0][:100] if differing else "in another encoding"
