"""
The statement in a bundle of OpenSSF Model Signing (ossf/model-signing-spec, v1.0).

It is an in-toto Statement whose predicate lists every file with its digest.  Reading is
tolerant if an implementation differs from the specification, and strict otherwise.  The
subject's digest binds neither names nor lengths, so it is used for nothing but step 5
(`verifier.references.oms` has the steps).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from attester import strictjson
from attester.weights.hashing import BLAKE3, SHA256
from verifier.errors import ReferenceValueError
from verifier.references.measured import Publisher

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
BLAKE2B: Final = "blake2b"
_DIGEST_BYTES: Final = {SHA256: 32, BLAKE3: 32, BLAKE2B: 64}
_MAX_RESOURCES: Final = 1_000_000
_HEX: Final = re.compile(r"[0-9a-f]*")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Resource:
    """A file, or a part of one, with its digest."""

    name: str
    start: int
    end: int | None
    """`None` for a whole file."""
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement that was signed, verified and read."""

    algorithm: str
    """sha256, blake3 or blake2b."""
    resources: tuple[Resource, ...]
    shard_size: int | None
    """Bytes of a shard; `None` if the resources are whole files."""
    ignore_paths: tuple[str, ...]
    """Paths in the folder that the publisher did not sign."""
    publisher: Publisher


def read_statement(payload: bytes, publisher: Publisher) -> Statement:
    """
    Steps 4 and 5: read the statement in a payload whose signature was verified.

    Args:
        payload: The signed bytes.
        publisher: The one who signed them.

    Raises:
        ReferenceValueError: a step fails; the message says why.
    """
    # 4. The statement.
    raw = object_of(json_of(payload, "the statement"), "the statement")
    if raw.get("_type") != STATEMENT_TYPE:
        raise ReferenceValueError(f"the statement is of type {str(raw.get('_type'))[:80]!r}")
    if raw.get("predicateType") != PREDICATE_TYPE:
        raise ReferenceValueError(f"the predicate is of type {str(raw.get('predicateType'))[:80]!r}")
    subjects = raw.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise ReferenceValueError("the statement has not exactly one subject")
    subject = object_of(object_of(subjects[0], "the subject").get("digest"), "the subject's digest")
    predicate = object_of(raw.get("predicate"), "the predicate")
    serialization_ = object_of(predicate.get("serialization"), "the serialization")
    algorithm, shard_size, ignored = _serialization(serialization_)
    # 5. The resources.
    listed = predicate.get("resources")
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_RESOURCES:
        raise ReferenceValueError("the predicate lists no resources, or too many of them")
    resources = [_resource(entry, algorithm, shard_size) for entry in listed]
    places = {(resource.name, resource.start, resource.end) for resource in resources}
    if len(places) != len(resources):
        raise ReferenceValueError("the predicate lists a resource twice")
    # In the order of the list: implementations sort in two ways, and the digest is over their order.
    root = hashlib.sha256(b"".join(resource.digest for resource in resources)).hexdigest()
    if subject.get(SHA256) != root:
        raise ReferenceValueError("the subject's digest is not that of the resources")
    return Statement(
        algorithm=algorithm,
        resources=tuple(resources),
        shard_size=shard_size,
        ignore_paths=ignored,
        publisher=publisher,
    )


def _serialization(raw: dict[str, Any]) -> tuple[str, int | None, tuple[str, ...]]:
    method, algorithm, size = raw.get("method"), raw.get("hash_type"), raw.get("shard_size")
    # The reference implementation accepts either name for its blake2b.
    algorithm = BLAKE2B if algorithm == "blake2" else algorithm
    if not isinstance(algorithm, str) or algorithm not in _DIGEST_BYTES:
        raise ReferenceValueError(f"the hash type {str(algorithm)[:40]!r} is not known")
    ignored = raw.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(path, str) for path in ignored):
        raise ReferenceValueError("ignore_paths is not a list of paths")
    if method == "files":
        if size is not None:
            raise ReferenceValueError("shard_size is set, but the method files has no shards")
        return algorithm, None, tuple(ignored)
    if method != "shards":
        raise ReferenceValueError(f"the method {str(method)[:40]!r} is not known")
    # The reference implementation writes 1000000000.0, because its format has only floats.
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if type(size) is not int or not 0 < size < 1 << 62:
        raise ReferenceValueError(
            f"the shard size must be a positive integer below 2^62, not {str(size)[:40]}"
        )
    return algorithm, size, tuple(ignored)


def _resource(entry: Any, algorithm: str, shard_size: int | None) -> Resource:
    raw = object_of(entry, "a resource")
    name, named = raw.get("name"), raw.get("algorithm")
    # The reference implementation writes sha256-sharded-1000000000.
    allowed = {algorithm} | ({f"{algorithm}-sharded-{shard_size}"} if shard_size else set())
    if algorithm == BLAKE2B:
        allowed |= {"blake2"}
    if not isinstance(named, str) or named not in allowed:
        raise ReferenceValueError(
            f"a resource's algorithm is {str(named)[:40]!r}, but the hash type is {algorithm}"
        )
    if not isinstance(name, str):
        raise ReferenceValueError("a resource has no name")
    start, end = 0, None
    if shard_size is not None:
        name, start, end = _shard(name, shard_size)
    digest = raw.get("digest")
    digits = 2 * _DIGEST_BYTES[algorithm]
    if not isinstance(digest, str) or len(digest) != digits or not _HEX.fullmatch(digest):
        raise ReferenceValueError(f"the digest of {name[:80]!r} is not {algorithm} in lower-case hex")
    return Resource(_checked_name(name), start, end, bytes.fromhex(digest))


def _shard(name: str, size: int) -> tuple[str, int, int]:
    path, _, rest = name.rpartition(":")
    path, _, first = path.rpartition(":")
    if not (_DECIMAL.fullmatch(first) and _DECIMAL.fullmatch(rest)):
        raise ReferenceValueError(f"the shard {name[:80]!r} is not of the form path:start:end")
    start, end = int(first), int(rest)
    if start % size or not start < end <= start + size:
        raise ReferenceValueError(f"the shard {name[:80]!r} does not fit shards of {size} bytes")
    return path, start, end


def _checked_name(name: str) -> str:
    parts = name.split("/")
    # The reference implementation gives the file of a model with one file the name ".".
    if name != "." and (
        not name or name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts)
    ):
        raise ReferenceValueError(f"{name[:80]!r} is not a path within the model")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ReferenceValueError("a resource's name is not Unicode text") from None
    return name


def json_of(data: bytes, what: str) -> Any:
    """Decode JSON.  Raises `ReferenceValueError`, which calls it *what*."""
    try:
        return strictjson.loads(data)
    except ValueError as error:
        raise ReferenceValueError(f"{what} is not JSON: {str(error)[:120]}") from None


def object_of(value: Any, what: str) -> dict[str, Any]:
    """Check that *value* is a JSON object.  Raises `ReferenceValueError`, which calls it *what*."""
    if not isinstance(value, dict):
        raise ReferenceValueError(f"{what} is not an object")
    return value
