"""
What a model's prompts are rendered with, and what it samples by where a request does not say: by file, or by the engine.

A result names both, so that a decision's record can say, a year later, which of them an answer came from.  Files are those
of the node's manifest, whose digests the reference value pins.  What an engine puts in their place is the node's word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attester.evidence import File, Manifest, Runtime
from verifier.schemes.context import ModelReference, ReferenceFile
from verifier.schemes.findings import to_printable

TEMPLATE: Final = "template"
SAMPLING: Final = "sampling"

_TEMPLATES: Final = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "template")
"""Where engines look for a chat template, in this order.  In the third it is one member of several."""
_SAMPLING: Final = ("generation_config.json", "params")
_WEIGHTS_WITH_TEMPLATE: Final = ".gguf"
"""A file of weights that has a template in it, and no sampling defaults."""
_ENGINE_TEMPLATE: Final = "chat_template"
"""The engine's argument: ``sha256:…`` of the template that it renders with."""
_ENGINE_SAMPLING: Final = "sampling"
"""The same of all its sampling defaults, whatever the files say."""
_GENERATION: Final = "generation_config"
"""vLLM's: ``auto`` for the model's file, ``vllm`` for none, else ``sha256:…`` of another file."""
_OVERRIDE: Final = "override_generation_config"
"""vLLM's: ``sha256:…`` of what goes before the file."""
_MAX: Final = 96
_ALGORITHMS: Final = ("sha256", "blake3")


def find(
    manifest: Manifest | None, reference: ModelReference | None, runtime: Runtime | None
) -> dict[str, str]:
    """
    Give where template and sampling defaults come from, each as ``NAME ALGORITHM:DIGEST``; what is not known is left out.

    ``engine`` as the name: the engine has another one, or names its own.
    """
    files = _files(manifest, reference)
    arguments = {} if runtime is None else runtime.arguments
    found = {
        TEMPLATE: _said(arguments.get(_ENGINE_TEMPLATE)) or _template_file(files),
        SAMPLING: _said(arguments.get(_ENGINE_SAMPLING)) or _sampling(files, arguments),
    }
    return {name: value for name, value in found.items() if value}


def _files(manifest: Manifest | None, reference: ModelReference | None) -> Mapping[str, File | ReferenceFile]:
    if manifest is not None:
        return {file.name: file for file in manifest.files}
    return {} if reference is None else reference.files


def _template_file(files: Mapping[str, File | ReferenceFile]) -> str:
    with_one = sorted(
        name for name in files if name.endswith(_WEIGHTS_WITH_TEMPLATE) and "mmproj" not in name
    )
    return _first(files, (*_TEMPLATES, *with_one))


def _sampling(
    files: Mapping[str, File | ReferenceFile], arguments: Mapping[str, str | int | bool | None]
) -> str:
    source, override = arguments.get(_GENERATION), _said(arguments.get(_OVERRIDE))
    if source in (None, "auto"):
        base = _first(files, _SAMPLING)
    elif source == "vllm":
        base = "engine neutral"
    else:
        base = _said(source)
    return "; ".join(each for each in (base, override) if each)


def _said(value: object) -> str:
    """What an engine says of its own, as people may see it; empty if it says nothing."""
    return f"engine {to_printable(value, _MAX)}" if isinstance(value, str) and value else ""


def _first(files: Mapping[str, File | ReferenceFile], names: Iterable[str]) -> str:
    for name in names:
        if name in files:
            return f"{to_printable(name, _MAX)} {_digest(files[name])}"
    return ""


def _digest(file: File | ReferenceFile) -> str:
    if isinstance(file, File):
        file = ReferenceFile(file.size, _known(sha256=file.sha256, blake3=file.blake3))
    return next((f"{name}:{value.hex()}" for name in _ALGORITHMS if (value := file.digests.get(name))), "")


def _known(**digests: bytes | None) -> dict[str, bytes]:
    return {name: value for name, value in digests.items() if value is not None}
