"""
What a request asks of the form of its answer, and whether an answer keeps to it.

An engine that does not know a setting passes it over in silence, and the answer looks whole.  So an
answer is held against the few settings that can be seen in it.  Two kinds are told apart
(docs/adr/0038):

    the engine's   lengths and counts: `dimensions`, how many answers, `max_tokens`, `stop`
    the model's    what a model may be unable to write: JSON, a call that is required

A text that was cut at its limit is held against nothing that only its end would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.model import dialects
from router.model.gathered import Gathered, GatheredChoice
from router.model.usage import Usage

_MAX_CHECKED: Final = 256 << 10
"""Bytes of arguments, or of a text that must be JSON: longer ones are not parsed."""
_MAX_TOOLS: Final = 4096
_MAX_STOPS: Final = 16
_CUT: Final = frozenset({"length", "max_tokens", "content_filter"})
"""Why a text ended, if its end is not the model's own."""
_SLACK: Final = 1.25
_SLACK_TOKENS: Final = 16
_FLOAT_BYTES: Final = 4


class Form(StrEnum):
    """The form of an operation's answers, as far as they are held against their requests."""

    TEXTS = "texts"
    VECTORS = "vectors"


class Setting(StrEnum):
    """A setting that an answer does not keep to."""

    DIMENSIONS = "dimensions"
    INPUT = "input"
    CHOICES = "n"
    MAX_TOKENS = "max_tokens"
    STOP = "stop"
    RESPONSE_FORMAT = "response_format"
    TOOL_CHOICE = "tool_choice"

    @property
    def is_models(self) -> bool:
        """Whether it may be the model that cannot keep to it, so that its node is not to blame."""
        return self in (Setting.RESPONSE_FORMAT, Setting.TOOL_CHOICE)


class Wishes(Struct, frozen=True, kw_only=True):
    """What a request asks of the form of its answer."""

    choices: int = 1
    dimensions: int | None = None
    inputs: int | None = None
    """How many texts are to be embedded."""
    max_tokens: int | None = None
    """Of all choices together."""
    stops: tuple[str, ...] = ()
    is_json: bool = False
    """Whether each text must be JSON."""
    is_json_object: bool = False
    tools: Mapping[str, frozenset[str]] | None = None
    """The tools that are offered: the parameters that each requires."""
    must_call: bool = False
    called: str | None = None
    """The only tool that may be called."""

    @property
    def is_plain(self) -> bool:
        """Whether the texts need not be looked at."""
        return not (self.stops or self.is_json or self.tools is not None)


_NO_WISHES: Final = Wishes()


class Kept(Struct, frozen=True):
    """How an answer keeps to the wishes of its request."""

    unhonoured: Setting | None = None
    """The first setting that it does not keep to."""
    detail: str = ""
    calls_are_valid: bool | None = None
    """Whether all its calls of tools are such as the request's tools can take; `None` if there is none to look at."""

    @property
    def is_models(self) -> bool:
        """Whether it may be the model that could not keep to the setting."""
        return self.unhonoured is not None and self.unhonoured.is_models

    @property
    def sentence(self) -> str:
        """The setting, and what there is instead."""
        return f"{self.unhonoured}: {self.detail}"


_ALL_KEPT: Final = Kept()


def read_wishes(document: Mapping[str, Any], form: Form, max_tokens: int | None) -> Wishes | None:
    """
    The wishes of a request; `None` if it has none.

    Args:
        document: The request's body.
        form: Of its answers.
        max_tokens: How many tokens all its answers may have together.
    """
    if form is Form.VECTORS:
        dimensions, texts = document.get("dimensions"), document.get("input")
        is_many = isinstance(texts, list) and any(isinstance(text, (str, list)) for text in texts)
        wishes = Wishes(
            dimensions=dimensions if type(dimensions) is int and dimensions > 0 else None,
            inputs=len(texts) if isinstance(texts, list) and is_many else None,
        )
        return None if wishes == _NO_WISHES else wishes
    # Of candidates that are thrown away engines count the tokens too.
    most = None if document.get("best_of") else max_tokens
    if not document.keys() & _READ:
        return None if most is None else Wishes(max_tokens=most)
    is_json, is_json_object = _json_wish(document.get("response_format"))
    tools = _tools(document)
    must_call, called = _call_wish(document) if tools else (False, None)
    found = Wishes(
        choices=_choices(document),
        max_tokens=most,
        stops=() if document.get("include_stop_str_in_output") or document.get("echo") else _stops(document),
        is_json=is_json,
        is_json_object=is_json_object,
        tools=tools,
        must_call=must_call,
        called=called,
    )
    return None if found == _NO_WISHES else found


_READ: Final = frozenset(
    {"n", "prompt", "stop", "response_format", "tools", "functions", "tool_choice", "function_call"}
)


def _choices(document: Mapping[str, Any]) -> int:
    count, prompts = document.get("n"), document.get("prompt")
    texts = 1
    # A list of token ids is one prompt; any other list holds several.
    if isinstance(prompts, list) and prompts and not all(type(each) is int for each in prompts):
        texts = len(prompts)
    return texts * (count if type(count) is int and count > 0 else 1)


def _stops(document: Mapping[str, Any]) -> tuple[str, ...]:
    given = document.get("stop")
    words = given if isinstance(given, list) else [given]
    found = tuple(word for word in words if isinstance(word, str) and word)
    # To look for many words in a long text would hold up the loop.
    return found if len(found) <= _MAX_STOPS else ()


def _json_wish(given: Any) -> tuple[bool, bool]:
    """Whether a text must be JSON, and whether it must be an object."""
    if not isinstance(given, dict):
        return False, False
    if given.get("type") == "json_object":
        return True, True
    if given.get("type") != "json_schema":
        return False, False
    wrapped = given.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    return True, isinstance(schema, dict) and schema.get("type") == "object"


def _tools(document: Mapping[str, Any]) -> dict[str, frozenset[str]] | None:
    """The functions that are offered; `None` if there are none, or something that is no function among them."""
    tools, functions = document.get("tools"), document.get("functions")
    offered = [tool.get("function") if isinstance(tool, dict) else None for tool in _list(tools)]
    offered += _list(functions)
    if not offered or len(offered) > _MAX_TOOLS:
        return None
    found = {}
    for function in offered:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            # Tools of another kind: what calls of them look like is not known here.
            return None
        found[function["name"]] = _required(function.get("parameters"))
    return found


def _required(schema: Any) -> frozenset[str]:
    if not isinstance(schema, dict):
        return frozenset()
    properties = schema.get("properties")
    names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
    # What is required and not described is a mistake of the request.
    return frozenset(name for name in names if isinstance(properties, dict) and name in properties)


def _call_wish(document: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a tool must be called, and which."""
    choice = document.get("tool_choice", document.get("function_call"))
    if choice in ("required", "any"):
        return True, None
    if not isinstance(choice, dict):
        return False, None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return (True, name) if isinstance(name, str) else (False, None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def check_whole(wishes: Wishes, form: Form, body: bytes, claimed: Usage | None) -> Kept:
    """
    How a whole answer keeps to the wishes.

    Args:
        wishes: Of its request.
        form: The form in which it could be read.
        body: Its body.
        claimed: The usage that the node claims.
    """
    return (
        _check_embeddings(wishes, body) if form is Form.VECTORS else _check_completion(wishes, body, claimed)
    )


def _check_completion(wishes: Wishes, body: bytes, claimed: Usage | None) -> Kept:
    if wishes.is_plain and wishes.choices == 1:
        return check_gathered(wishes, None, 1, claimed)
    completion = dialects.read_completion(body)
    if completion is None:
        return _ALL_KEPT
    gathered = Gathered()
    # In a whole answer the place says which choice it is; some engines leave the index out.
    for place, choice in enumerate(completion.choices):
        gathered.add([msgspec.structs.replace(choice, index=place)])
    return check_gathered(wishes, gathered, len(completion.choices), claimed)


def _check_embeddings(wishes: Wishes, body: bytes) -> Kept:
    data = _list(dialects.decode(body).get("data"))
    if wishes.inputs is not None and len(data) < wishes.inputs:
        return Kept(Setting.INPUT, f"{len(data)} embeddings for {wishes.inputs} texts")
    if wishes.dimensions is None:
        return _ALL_KEPT
    for each in data:
        length = _length_of(each.get("embedding"))
        if length != wishes.dimensions:
            return Kept(Setting.DIMENSIONS, f"{length} dimensions, and {wishes.dimensions} were asked for")
    return _ALL_KEPT


def _length_of(embedding: Any) -> int:
    if isinstance(embedding, list):
        return len(embedding)
    # Base64 of float32: four characters for three bytes, and up to two of them for filling.
    text = str(embedding).rstrip("=")
    return len(text) * 3 // 4 // _FLOAT_BYTES


def check_gathered(wishes: Wishes, gathered: Gathered | None, count: int, claimed: Usage | None) -> Kept:
    """
    How a completion keeps to the wishes.

    Args:
        wishes: Of its request.
        gathered: Its choices; `None` if the wishes are plain, and the texts were not kept.
        count: How many choices it has.
        claimed: The usage that the node claims.
    """
    if count < wishes.choices:
        return Kept(Setting.CHOICES, f"{count} of {wishes.choices} choices")
    if (
        wishes.max_tokens is not None
        and claimed is not None
        and _is_over(claimed.completion, wishes.max_tokens)
    ):
        return Kept(
            Setting.MAX_TOKENS, f"{claimed.completion} tokens, and {wishes.max_tokens} were asked for at most"
        )
    if gathered is None or not gathered.is_whole:
        return _ALL_KEPT
    choices = list(gathered.choices.values())
    valid = _are_calls_valid(wishes, choices)
    for setting, check in _CHECKS:
        if (detail := check(wishes, choices)) is not None:
            # Who must call, and does not, has made no valid call.
            is_valid = False if setting is Setting.TOOL_CHOICE else valid
            return Kept(setting, detail, is_valid)
    return Kept(calls_are_valid=valid)


def _is_over(tokens: int, most: int) -> bool:
    # Some engines make several tokens in a step, and count the end of the text.
    return tokens > most * _SLACK + _SLACK_TOKENS


_Check = Callable[[Wishes, list[GatheredChoice]], str | None]


def _check_stop(wishes: Wishes, choices: list[GatheredChoice]) -> str | None:
    for choice in choices:
        text = choice.text
        if any(stop in text for stop in wishes.stops):
            return "the text goes on after a stop"
    return None


def _check_json(wishes: Wishes, choices: list[GatheredChoice]) -> str | None:
    if not wishes.is_json:
        return None
    for choice in choices:
        text = choice.text
        # A model that calls a tool says nothing else.
        if choice.end in _CUT or choice.calls or len(text) > _MAX_CHECKED:
            continue
        found = dialects.decode(text.encode(errors="replace"))
        if found is None and text.strip() != "null":
            return "the text is not JSON"
        if wishes.is_json_object and not isinstance(found, dict):
            return "the text is JSON, and no object"
    return None


def _check_tool_choice(wishes: Wishes, choices: list[GatheredChoice]) -> str | None:
    if not wishes.must_call:
        return None
    for choice in choices:
        if choice.end in _CUT:
            continue
        names = {name for name, _ in choice.named_calls()}
        if not names:
            return "no tool is called"
        if wishes.called is not None and wishes.called not in names:
            return "another tool is called than the named one"
    return None


_CHECKS: Final[tuple[tuple[Setting, _Check], ...]] = (
    (Setting.STOP, _check_stop),
    (Setting.TOOL_CHOICE, _check_tool_choice),
    (Setting.RESPONSE_FORMAT, _check_json),
)
"""The engine's settings first: they say more of its node."""


def _are_calls_valid(wishes: Wishes, choices: list[GatheredChoice]) -> bool | None:
    """Whether each call names a tool that is offered, with JSON that has the parameters that it requires."""
    if wishes.tools is None:
        return None
    calls = [call for choice in choices if choice.end not in _CUT for call in choice.named_calls()]
    return all(_is_valid(wishes.tools, name, arguments) for name, arguments in calls) if calls else None


def _is_valid(tools: Mapping[str, frozenset[str]], name: str, arguments: str) -> bool:
    required = tools.get(name)
    if required is None:
        return False
    if len(arguments) > _MAX_CHECKED:
        return True
    # A tool without parameters may be called without arguments.
    found = dialects.decode(arguments.encode(errors="replace")) if arguments.strip() else {}
    return isinstance(found, dict) and required <= found.keys()
