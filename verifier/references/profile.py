"""Reference values as CoRIMs and back: by our own profile, and what of others manifests can be held to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from attester import cbor
from attester.errors import CBORError
from verifier.errors import ReferenceValueError
from verifier.references import comid
from verifier.references.comid import (
    Comid,
    Environment,
    Measurement,
    ReferenceTriple,
    refuse,
)
from verifier.references.corim import MAX_CORIM, Corim
from verifier.references.measured import Document

PROFILE: Final = "tag:github.com,2026:touchstone/corim#1"
"""Ours: one CoMID a model, one measurement a file, and one, with the key 0, of the model as a whole."""

# Of our profile's measurement of the model as a whole: its key, and a document's other fields.
_WHOLE, _REST = 0, -2


def from_document(
    document: Document,
    *,
    id: str | None = None,  # noqa: A002  # the draft's own word
    not_before: int | None = None,
    not_after: int | None = None,
) -> Corim:
    """
    A reference value in our own profile: `to_documents` gives the same document again.

    Args:
        document: Any that is valid.
        id: The CoRIM's; the document's digest if not given.
        not_before: Of rim-validity, seconds since 1970.
        not_after: Its last second.

    Raises:
        ReferenceValueError: the document has more values than CBOR of ours may have.
    """
    rest: dict[str, Any] = msgspec.to_builtins(document)
    del rest["model"], rest["files"]
    try:
        digest = document.digest
        # Lists and texts as they are read back, so that equal documents give equal values.
        rest = cbor.decode(cbor.encode(rest), max_size=MAX_CORIM)
        files = tuple(comid.measurement_of(file) for file in document.files)
    except (CBORError, ValueError) as error:
        raise ReferenceValueError(f"{document.model}: {error}") from None
    whole = Measurement(mkey=_WHOLE, extra={comid.NAME: document.model, _REST: rest})
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

    Of our own profile nothing is lost.  Of any other, a reference triple becomes the files
    of its class's model, by the text keys of its measurements; triples of no model are
    left out.  What a manifest could not be held against is refused, never dropped.

    Args:
        corim: As verified.
        model: Only this one; where another's CoRIM has a single triple, the name that it gets.

    Raises:
        ReferenceValueError: a value that no manifest can hold, by its place; a model that
            stands in it twice; no model, or not the one asked for.
    """
    own = corim.profile == PROFILE
    documents = tuple(_own(corim) if own else _foreign(corim, model))
    if own and model is not None:
        documents = tuple(document for document in documents if document.model == model)
    for name, count in Counter(document.model for document in documents).items():
        if count > 1:
            raise ReferenceValueError(f"the model {name} stands in it twice")
    if not documents:
        wanted = "no model" if model is None else f"no model {model[:80]!r}"
        raise ReferenceValueError(f"there are reference values of {wanted} in the CoRIM")
    return documents


def _own(corim: Corim) -> Iterator[Document]:
    for number, tag in enumerate(corim.tags):
        place = f"tags[{number}]"
        if not isinstance(tag, Comid) or len(tag.reference) != 1 or tag.triples:
            refuse(place, "our profile has one CoMID a model, with one reference triple and no other")
        triple = tag.reference[0]
        place = f"{place}.triples.reference[0]"
        name = triple.environment.model
        if name is None or triple.environment != Environment(model=name):
            refuse(f"{place}.environment", "our profile has the class's model, and nothing else")
        *files, whole = triple.measurements
        if type(whole.mkey) is not int or whole.mkey != _WHOLE or whole.extra.keys() != {comid.NAME, _REST}:
            refuse(
                f"{place}.measurements",
                "the last one is not of the model as a whole (mkey 0, mval 11 and -2)",
            )
        rest = whole.extra[_REST]
        if whole.extra[comid.NAME] != name or whole.digests or whole.authorized or not isinstance(rest, dict):
            refuse(f"{place}.measurements[{len(files)}]", f"not of the model {name[:80]!r} as a whole")
        if {"model", "files"} & rest.keys():
            refuse(f"{place}.measurements[{len(files)}]", "mval -2 has the model or its files again")
        yield _document(
            {
                "model": name,
                "files": [comid.own_file(each, f"{place}.measurements[{n}]") for n, each in enumerate(files)],
                **rest,
            },
            place,
        )


def _foreign(corim: Corim, model: str | None) -> Iterator[Document]:
    triples = [
        (f"tags[{number}].triples.reference[{index}]", triple)
        for number, tag in enumerate(corim.tags)
        if isinstance(tag, Comid)
        for index, triple in enumerate(tag.reference)
    ]
    alone = model is not None and len(triples) == 1
    for place, triple in triples:
        environment = triple.environment
        name = model if alone else environment.model
        if name is None or (model is not None and name != model):
            continue
        if environment.instance is not None or environment.group is not None:
            refuse(f"{place}.environment", "of one instance or group, and manifests cannot hold it")
        files = [
            comid.foreign_file(each, f"{place}.measurements[{n}]")
            for n, each in enumerate(triple.measurements)
        ]
        yield _document({"model": name, "files": files}, place)


def _document(raw: dict[str, Any], place: str) -> Document:
    try:
        return msgspec.convert(raw, type=Document)
    except (ValueError, TypeError) as error:
        # msgspec's ValidationError is a ValueError; a tag in it is a TypeError.
        refuse(place, f"not a reference value: {str(error)[:200]}")
