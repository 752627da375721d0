"""
Reference values as CoRIMs and back.

The profile of this project loses nothing.  Of CoRIMs of other profiles it reads what a
manifest can be compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from attester import cbor
from attester.errors import CBORError
from verifier.errors import ReferenceValueError
from verifier.references import comid, understood
from verifier.references.comid import (
    Comid,
    Environment,
    Measurement,
    ReferenceTriple,
)
from verifier.references.corim import MAX_CORIM, Corim
from verifier.references.digests import canonical
from verifier.references.measured import Document, DocumentFile
from verifier.references.shapes import refuse, shown_key

PROFILE: Final = "tag:github.com,2026:touchstone/corim#1"
"""One CoMID for each model, with a measurement for each file and one, with the key 0, for the whole model."""

_WHOLE_MODEL: Final = 0
"""The key of the measurement of the whole model."""
_REST: Final = -2
"""The key of the measurement value with the document's other fields."""
_SIZE: Final = -1
"""The key of the measurement value with a file's size in bytes."""
# The algorithms of manifests, by the names that the draft and the registry give them.
_SHA256, _BLAKE3 = 1, "blake3"


def from_document(
    document: Document,
    *,
    id: str | None = None,  # noqa: A002  # the draft calls it so
    not_before: int | None = None,
    not_after: int | None = None,
) -> Corim:
    """
    A reference value in the profile of this project.  `to_documents` gives the same document again.

    Args:
        document: Any valid document.
        id: The id of the CoRIM.  By default it is the document's digest.
        not_before: The first second of rim-validity, in seconds since 1970.
        not_after: The last second of rim-validity.

    Raises:
        ReferenceValueError: the document has more values than `attester.cbor` allows.
    """
    rest: dict[str, Any] = msgspec.to_builtins(document)
    del rest["model"], rest["files"]
    try:
        digest = document.digest
        # Encoded and decoded, so that equal documents give equal values.
        rest = cbor.decode(cbor.encode(rest), max_size=MAX_CORIM)
        files = tuple(_measurement_of(file) for file in document.files)
    except (CBORError, ValueError) as error:
        raise ReferenceValueError(f"{document.model}: {error}") from None
    whole = Measurement(mkey=_WHOLE_MODEL, extra={comid.NAME: document.model, _REST: rest})
    triple = ReferenceTriple(Environment(model=document.model), (*files, whole))
    return Corim(
        id=digest if id is None else id,
        tags=(Comid(tag_id=digest, reference=(triple,)),),
        profile=PROFILE,
        not_before=not_before,
        not_after=not_after,
    )


def to_documents(corim: Corim, model: str | None = None) -> tuple[Document, ...]:
    """
    The reference values in a CoRIM, a document for each model.

    In the profile of this project nothing is lost.  In any other profile, a reference triple
    becomes the files of the model that its class names, by the text keys of its measurements.
    Triples without a model are left out, and so are tags that another one replaces.  A value that
    no manifest can be compared with is refused and never dropped.

    Args:
        corim: A verified CoRIM.
        model: Only this model.  If a CoRIM of another profile has a single triple, the triple gets this name.

    Raises:
        ReferenceValueError: the profile is not known, or something else would have to be understood
            (`verifier.references.understood`); no manifest can be compared with a value, which the message
            names; a model comes twice; there is no model, or not *model*.
    """
    understood.check_profile(corim, (PROFILE,))
    own = corim.profile == PROFILE
    documents = tuple(_own(corim) if own else _foreign(corim, model))
    understood.check(corim, (_SIZE, _REST) if own else ())
    if own and model is not None:
        documents = tuple(document for document in documents if document.model == model)
    for name, count in Counter(document.model for document in documents).items():
        if count > 1:
            raise ReferenceValueError(f"the CoRIM has the model {name} twice")
    if not documents:
        wanted = "any model" if model is None else f"the model {model[:80]!r}"
        raise ReferenceValueError(f"the CoRIM has no reference values of {wanted}")
    return documents


def unused(corim: Corim) -> list[str]:
    """What a CoRIM whose documents were taken has besides them: half sentences for people."""
    return understood.unused(corim)


def _own(corim: Corim) -> Iterator[Document]:
    counting = {number for number, _ in understood.in_force(corim)}
    for number, tag in enumerate(corim.tags):
        place = f"tags[{number}]"
        if isinstance(tag, Comid) and number not in counting:
            continue
        if not isinstance(tag, Comid) or len(tag.reference) != 1 or tag.triples:
            refuse(
                place,
                "must be a CoMID with one reference triple and no other triples, because the profile is Touchstone's",
            )
        triple = tag.reference[0]
        place = f"{place}.triples.reference[0]"
        name = triple.environment.model
        if name is None or triple.environment != Environment(model=name):
            refuse(
                f"{place}.environment",
                "must have the class's model and nothing else, because the profile is Touchstone's",
            )
        *files, whole = triple.measurements
        if (
            type(whole.mkey) is not int
            or whole.mkey != _WHOLE_MODEL
            or whole.extra.keys() != {comid.NAME, _REST}
        ):
            refuse(
                f"{place}.measurements",
                "must end with the measurement of the whole model (mkey 0, mval 11 and -2)",
            )
        rest = whole.extra[_REST]
        if whole.extra[comid.NAME] != name or whole.digests or whole.authorized or not isinstance(rest, dict):
            refuse(
                f"{place}.measurements[{len(files)}]",
                f"is not a measurement of the whole model {name[:80]!r}",
            )
        if {"model", "files"} & rest.keys():
            refuse(f"{place}.measurements[{len(files)}]", "has the model or its files again in mval -2")
        yield _document(
            {
                "model": name,
                "files": [_own_file(each, f"{place}.measurements[{n}]") for n, each in enumerate(files)],
                **rest,
            },
            place,
        )


def _foreign(corim: Corim, model: str | None) -> Iterator[Document]:
    triples = [
        (f"tags[{number}].triples.reference[{index}]", triple)
        for number, tag in understood.in_force(corim)
        for index, triple in enumerate(tag.reference)
    ]
    alone = model is not None and len(triples) == 1
    for place, triple in triples:
        environment = triple.environment
        name = model if alone else environment.model
        if name is None or (model is not None and name != model):
            continue
        if environment.instance is not None or environment.group is not None:
            refuse(
                f"{place}.environment", "is of one instance or group, which no manifest can be compared with"
            )
        files = [
            _foreign_file(each, f"{place}.measurements[{n}]") for n, each in enumerate(triple.measurements)
        ]
        yield _document({"model": name, "files": files}, place)


def _document(raw: dict[str, Any], place: str) -> Document:
    try:
        return msgspec.convert(raw, type=Document)
    except (ValueError, TypeError) as error:
        # msgspec's ValidationError is a ValueError; a tag in it is a TypeError.
        refuse(place, f"is not a reference value: {str(error)[:200]}")


def _measurement_of(file: DocumentFile) -> Measurement:
    """The measurement of a file in the profile of this project."""
    digests: dict[int | str, bytes] = {}
    if file.sha256 is not None:
        digests[_SHA256] = bytes.fromhex(file.sha256)
    if file.blake3 is not None:
        digests[_BLAKE3] = bytes.fromhex(file.blake3)
    return Measurement(mkey=file.name, digests=digests, extra={} if file.size is None else {_SIZE: file.size})


def _own_file(measurement: Measurement, place: str) -> dict[str, Any]:
    """The fields of a document's file, from a measurement in the profile of this project."""
    others = measurement.extra.keys() - {_SIZE} or measurement.digests.keys() - {_SHA256, _BLAKE3}
    if not isinstance(measurement.mkey, str) or others or measurement.authorized:
        refuse(
            place,
            "must have a file's name as mkey, the digests 1 and blake3, and the size as mval -1",
        )
    return {
        "name": measurement.mkey,
        **_hex(measurement),
        **({"size": measurement.extra[_SIZE]} if measurement.extra else {}),
    }


def _foreign_file(measurement: Measurement, place: str) -> dict[str, Any]:
    """The fields of a document's file, from a measurement in any profile."""
    name = measurement.mkey
    if not isinstance(name, str):
        refuse(place, "has a key that is not the name of a file, so no manifest can be compared with it")
    place = f"{place} ({name[:80]!r})"
    found = _hex(measurement)
    if not found:
        refuse(place, "has neither a SHA-256 nor a BLAKE3 digest, so no manifest can be compared with it")
    # Each further value is a condition that the signer set, so it must not be dropped.
    if others := measurement.extra.keys() - {comid.NAME}:
        key = shown_key(min(others, key=str))
        refuse(
            place, f"has the measurement value {key} besides digests, which no manifest can be compared with"
        )
    if measurement.authorized:
        refuse(place, "has a list of keys that may sign for it, which no manifest can be compared with")
    return {"name": name, **found}


def _hex(measurement: Measurement) -> dict[str, str]:
    """The digests that manifests have, by their names in a document."""
    found = {canonical(algorithm): digest.hex() for algorithm, digest in measurement.digests.items()}
    names = {_SHA256: "sha256", _BLAKE3: "blake3"}
    return {name: found[algorithm] for algorithm, name in names.items() if algorithm in found}
