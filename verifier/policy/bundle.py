"""
A policy bundle: a folder of Rego, data, tests and reference values, identified by the digest of all of it.

    bundle.json          name, version, author, description; folders that it shares with other bundles
    *.rego               rules; *_test.rego are tests
    data.json            thresholds, hardware classes, approved engines: `data` in Rego; data.yaml does too
    ar4si/data.json      the trust values by name, `data.ar4si`: a copy of this verifier's own
    A/B/data.json        more data, `data.A.B` (`verifier.policy.rooted`)
    references/*         reference values of the bundle: .json, .yaml, .corim (unsigned)
    README.md, LICENSE   documents: no rule reads them, and the digest covers them
    bundle.dsse.json     the author's signature (DSSE) over the digests of all other files

Hidden files and what editors leave behind are no part of it.
Results name the exact version: ``NAME@VERSION#sha-256;DIGEST``.  A bundle travels as a zip
archive of the same files (`verifier.policy.archive`).  Every size is bounded before a file is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from msgspec import Meta, Struct

from attester import cbor
from attester.cose import PrivateKey
from attester.errors import CBORError, SignatureError
from verifier import dsse
from verifier.errors import BundleError, ReferenceValueError
from verifier.policy import ar4si, rooted
from verifier.policy.content import (
    OPA_MANIFEST,
    check_name,
    check_opa_manifest,
    is_data,
    is_document,
    is_left_out,
    read_json,
    refusal,
)
from verifier.references import corim, handwritten, measured, profile
from verifier.references.measured import Document
from verifier.schemes.context import ModelReference, Thresholds

MAX_REGO = 256 * 1024
MAX_FILE = 8 << 20
MAX_TOTAL = 32 << 20
MAX_REFERENCES = 4 << 20
PAYLOAD_TYPE: Final = "application/vnd.touchstone.policy-bundle+cbor"
"""The payload is deterministic CBOR: a map of file names to SHA-256 digests.  Its own SHA-256 is the bundle's."""
SIGNATURE: Final = "bundle.dsse.json"
TEST_SUFFIX: Final = "_test.rego"
_MANIFEST: Final = "bundle.json"


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """``bundle.json``."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+-]{1,32}\Z")]
    author: Annotated[str, Meta(min_length=1, max_length=200)]
    description: Annotated[str, Meta(min_length=1, max_length=2000)]
    include: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(\.\./){1,3}[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")], ...],
        Meta(max_length=8),
    ] = ()
    """Folders that several bundles share, such as ``../lib``.  Their files are part of the bundle, under ``lib/``."""


class _Data(Struct, frozen=True):
    thresholds: Thresholds


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read.  It is never changed in place."""

    manifest: Manifest
    files: Mapping[str, bytes]
    """Everything that the digest covers, by name."""
    modules: tuple[tuple[str, str], ...]
    """File name and Rego source of each module that is not a test."""
    tests: tuple[tuple[str, str], ...]
    """File name and Rego source of each test."""
    data: str
    """JSON text, loaded as `data`."""
    thresholds: Thresholds
    documents: tuple[Document, ...]
    """Reference values that are in force while the policy judges."""
    statement: bytes
    """The signed payload: the digests of all files."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the statement, hex."""
        return hashlib.sha256(self.statement).hexdigest()

    @cached_property
    def id(self) -> str:
        """The id by which results name the bundle."""
        return f"{self.manifest.name}@{self.manifest.version}#sha-256;{self.digest}"

    @property
    def data_approves_nothing(self) -> bool:
        """Whether its data approves no engine, like that of a new bundle."""
        return not msgspec.json.decode(self.data).get("approved_engines", True)

    @cached_property
    def references(self) -> Mapping[str, ModelReference]:
        """Its reference values by model, in the form that the appraisal takes."""
        return {d.model: d.to_reference(source="bundle", signer=self.manifest.author) for d in self.documents}


def load(folder: Path) -> Bundle:
    """
    Read a bundle from a folder, with the folders beside it that ``include`` in ``bundle.json`` names.

    Hidden files, and what editors leave behind, are no part of it.

    Raises:
        BundleError: the folder is not a bundle, is too large, has no rules, or has an unusable file.
    """
    files = _files_in(folder)
    if _MANIFEST in files:
        for path in _decode(files, _MANIFEST, Manifest).include:
            _include(files, folder, path)
    return of_files(files)


def _include(files: dict[str, bytes], folder: Path, path: str) -> None:
    name = path.rpartition("/")[2]
    own = {file: data for file, data in files.items() if file.startswith(f"{name}/")}
    if own and not (folder / path).is_dir():
        # An archive that was unpacked has them in it already.
        return
    if (folder / path).is_symlink():
        raise BundleError(f"{_MANIFEST}: include: {path} is a link, and must be the folder itself")
    if not (folder / path).is_dir():
        raise BundleError(f"{_MANIFEST}: include: there is no folder {path} beside {folder}")
    shared = _files_in(folder / path, f"{name}/", len(files) - len(own))
    if own not in ({}, shared):
        raise BundleError(
            f"{min(own)}: {_MANIFEST} includes {path} under the same name. Keep one of the two folders {name}"
        )
    if f"{name}/{_MANIFEST}" in shared:
        raise BundleError(
            f"{_MANIFEST}: include: {path} is a bundle itself. Include a folder of rules or data"
        )
    files.update(shared)


def _files_in(folder: Path, prefix: str = "", number: int = 0) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder")
        for path in sorted(folder.rglob("*")):
            name = prefix + path.relative_to(folder).as_posix()
            if name == OPA_MANIFEST and path.is_file():
                check_opa_manifest(_read(path))
            if is_left_out(name):
                continue
            if path.is_symlink():
                raise BundleError(f"{name}: this is a link, and a bundle must hold the file itself")
            if path.is_dir():
                continue
            if not path.is_file():
                raise BundleError(f"{name}: this is not a regular file")
            check_name(name, number + len(files))
            files[name] = _read(path)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    return files


def _read(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(MAX_FILE + 1)


def signature_in(folder: Path) -> bytes | None:
    """The signature in a folder, or `None` if there is none.  Raises `BundleError`."""
    try:
        with open(folder / SIGNATURE, "rb") as stream:
            return stream.read(dsse.MAX_ENVELOPE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / SIGNATURE} cannot be read: {error.strerror}") from None


def of_files(files: Mapping[str, bytes]) -> Bundle:
    """
    Make a bundle of files by name.  A signature among them is left out.

    Raises:
        BundleError: as for `load`.
    """
    content = {name: data for name, data in sorted(files.items()) if name != SIGNATURE}
    total = 0
    for number, (name, data) in enumerate(content.items()):
        check_name(name, number)
        limit = MAX_REGO if name.endswith(".rego") else MAX_FILE
        total += len(data)
        if len(data) > limit or total > MAX_TOTAL:
            raise BundleError(
                f"{name}: more than {limit} bytes, or more than {MAX_TOTAL} bytes in all files together"
            )
    if _MANIFEST not in content:
        raise BundleError(f"{_MANIFEST} is missing. Is this a policy bundle?{_where_else(content)}")
    manifest = _decode(content, _MANIFEST, Manifest)
    for path in manifest.include:
        name = path.rpartition("/")[2]
        if not any(file.startswith(f"{name}/") for file in content):
            raise BundleError(f"{_MANIFEST}: include: no file of {path} is in the bundle, under {name}/")
    sources = {name: _text(name, data) for name, data in content.items() if name.endswith(".rego")}
    modules = tuple((n, s) for n, s in sources.items() if not n.endswith(TEST_SUFFIX))
    if not modules:
        # An empty policy is an error, not a pass.
        raise BundleError("there are no rules. A bundle needs a file *.rego that is not a test")
    merged = _data_of(content)
    try:
        thresholds = msgspec.convert(merged, _Data).thresholds
    except msgspec.ValidationError as error:
        raise BundleError(f"{rooted.file_with(content, 'thresholds')}: {error}") from None
    if unknown := sorted(content.keys() - sources.keys() - _known_names(content)):
        raise refusal(unknown[0])
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
        # Computed here once, so that no appraisal finds out that one of them cannot be used.
        _ = bundle.references
    except CBORError as error:
        raise BundleError(f"references: a value is too large to have a digest: {error}") from None
    return bundle


def _where_else(content: Mapping[str, bytes]) -> str:
    """A hint for an archive of the folder, instead of what is in the folder."""
    deeper = sorted(name for name in content if name.endswith(f"/{_MANIFEST}"))
    return f" It is in {deeper[0].removesuffix(_MANIFEST)}: take what is in that folder" if deeper else ""


def _known_names(content: Mapping[str, bytes]) -> set[str]:
    return {
        name
        for name in content
        if name == _MANIFEST or is_data(name) or is_document(name) or name.startswith("references/")
    }


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BundleError(f"{name}:{line}: the line is not UTF-8") from None


def _decode(content: Mapping[str, bytes], name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(read_json(name, content[name]), kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"{name}: {error}") from None


def _data_of(content: Mapping[str, bytes]) -> dict[str, Any]:
    if not any(map(is_data, content.keys() - {"ar4si/data.json"})):
        raise BundleError("data.json is missing. A bundle needs data.json or data.yaml with its thresholds")
    merged = rooted.data_of(content)
    if "ar4si" not in merged:
        raise BundleError(
            "ar4si/data.json is missing. Copy it from a policy that touchstone policy new makes"
        )
    try:
        ar4si.check(merged["ar4si"])
    except ValueError as error:
        raise BundleError(f"{rooted.file_with(content, 'ar4si')}: {error}") from None
    return merged


def _documents(content: Mapping[str, bytes]) -> tuple[Document, ...]:
    found: dict[str, Document] = {}
    bytes_left = MAX_REFERENCES
    for name, data in content.items():
        if not name.startswith("references/") or is_document(name):
            continue
        bytes_left -= len(data)
        if bytes_left < 0:
            raise BundleError(f"{name}: the reference values have more than {MAX_REFERENCES} bytes together")
        for document in _read_reference(name, data):
            if document.model in found:
                raise BundleError(f"{name}: this is a second reference value for {document.model}")
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
                # The bundle's signature covers it.  A signed CoRIM is imported by a command instead.
                return profile.to_documents(corim.read_unsigned(data))
            case _:
                raise BundleError(f"{name}: the name must end in .json, .yaml or .corim")
    except ReferenceValueError as error:
        raise BundleError(f"{name}: {error}") from None


def sign(bundle: Bundle, key: PrivateKey) -> bytes:
    """Sign a bundle: a DSSE envelope over the digests of all files."""
    return dsse.sign(PAYLOAD_TYPE, bundle.statement, key)


def verify(bundle: Bundle, envelope: bytes | None, authors: Mapping[str, PublicKeyTypes]) -> str:
    """
    Verify a bundle's signature, and return the name of the author who signed exactly this bundle.

    Raises:
        BundleError: there is no signature, none of *authors* made it, or it is over other files;
            names the first file that differs.
    """
    if envelope is None:
        raise BundleError(f"{SIGNATURE}: the bundle is not signed")
    try:
        author, statement = dsse.verify(envelope, PAYLOAD_TYPE, authors)
    except SignatureError as error:
        raise BundleError(f"{SIGNATURE}: {error}") from None
    if statement != bundle.statement:
        raise BundleError(
            f"{SIGNATURE}: the signature is over other files: {_first_difference(statement, bundle)}"
        )
    return author


def _first_difference(statement: bytes, bundle: Bundle) -> str:
    try:
        signed = cbor.decode(statement, max_size=dsse.MAX_ENVELOPE)
    except CBORError:
        return "its payload is not a list of files"
    present = {name: hashlib.sha256(data).digest() for name, data in bundle.files.items()}
    named = {str(k): v for k, v in signed.items()} if isinstance(signed, dict) else {}
    differing = [n for n in sorted(present.keys() | named.keys()) if present.get(n) != named.get(n)]
    return differing[0][:100] if differing else "their list is in another encoding"
