"""A client's request, read strictly and written anew for nodes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.config import ApiKey
from router.gateway.body import decode
from router.gateway.errors import GatewayError
from router.gateway.terms import MEMBERS, require, take_requirements
from router.model.allowance import Size
from router.model.comparable import is_comparable
from router.model.errors import RequestFormError, WorkloadError
from router.model.operations import Operation
from router.model.requirements import CallerRequirements
from router.model.responses import STATE_MEMBERS
from router.model.tokens import estimated, prompt_ids
from router.model.uniform import MAX_SEED, NOTHING, Added, without_added, write_uniform
from router.model.wishes import Wishes, read_wishes
from router.model.workload import Table, Workload

SALT: Final = "cache_salt"
_CACHE_KEY: Final = "prompt_cache_key"
_MAX_SALT: Final = 1024
_MAX_MODEL_NAME: Final = 128
_SHOWN: Final = 40
_MAX_EVIDENCE: Final = 256 << 10
"""Bytes: to look through the messages of a larger body would hold up the loop."""
_NUMBERS: Final = ("n", "max_tokens", "max_completion_tokens", "max_output_tokens")
_READ_BY_THE_ROUTER: Final = frozenset(
    {"model", "stream", "stream_options", SALT, *MEMBERS, *_NUMBERS, *STATE_MEMBERS}
)
"""Keys that the router uses.  In another spelling a node might read them, and the router would not."""
_MAX_CHOICES: Final = 128
"""Answers to one prompt, as OpenAI's API bounds ``n``."""
_MAX_ANSWERS: Final = 4096
"""Answers to all prompts of a request: an engine begins all of them at once."""
_MOST: Final = 1 << 53
"""Beyond it numbers of JSON are not the same to every reader."""


class Tenant(Struct, frozen=True):
    """Whose prompts are not to be found by others in a node's cache, and by what it keeps its own apart."""

    client: str
    own_salt: str = ""


class NodeRequest(Struct, frozen=True, kw_only=True):
    """A request as nodes will see it."""

    operation: Operation
    workload: Workload
    body: bytes
    document: Mapping[str, Any]
    """The decoded body."""
    is_streamed: bool = False
    operator: str | None = None
    """The operator of nodes that the caller belongs to, if it belongs to one."""
    caller: str = ""
    """The name of the caller's API key."""
    added: Added = NOTHING
    """What the router has added, and takes away from the answer."""
    required: CallerRequirements | None = None
    """What the caller itself requires of the node."""
    own_salt: str = ""
    """What the caller gave as ``cache_salt``: no node sees it (`router.gateway.salting`)."""
    cache_key: str = ""
    """What the caller names as ``prompt_cache_key``: its requests with the same one begin alike."""
    salted_as: Tenant | None = None
    """Of a check, as whose request it is to look."""

    @property
    def repeatable(self) -> bytes:
        """The body without what is drawn anew each time: the same request sent again has the same."""
        return _encode(without_added(self.document, self.added)) if self.added.seed else self.body

    @property
    def client(self) -> str:
        """Who asks: all keys of one operator of nodes are one client, and so are all callers without a key."""
        return f"key:{self.caller}" if self.operator is None else f"operator:{self.operator}"

    @property
    def tenant(self) -> Tenant:
        """Whose it is to a node's cache."""
        return Tenant(self.client, self.own_salt) if self.salted_as is None else self.salted_as

    @property
    def is_evidence(self) -> bool:
        """Whether what is billed for it says something of the node, and not of what the client has asked for."""
        return len(self.body) <= _MAX_EVIDENCE and is_comparable(self.document)

    @property
    def wishes(self) -> Wishes | None:
        """What it asks of the form of its answer, as far as an answer shows whether it keeps to that."""
        form = self.operation.form
        return None if form is None else read_wishes(self.document, form, self.max_shown_tokens)

    @property
    def has_tools(self) -> bool:
        """Whether its answer may call tools."""
        return bool(self.document.get("tools") or self.document.get("functions"))

    @property
    def wants_usage(self) -> bool:
        """Whether the stream is to end with the usage."""
        if self.added.usage:
            return False
        options = self.document.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def max_shown_tokens(self) -> int | None:
        """How many tokens the client is shown at most, all choices together; `None` if the request does not say."""
        limits = [self.document.get(name) for name in self.operation.limits]
        given = [limit for limit in limits if type(limit) is int and limit > 0]
        if not given:
            return None
        # What is asked to be shown again comes in every choice.
        return (max(given) * self.prompts + self._max_echoed) * self.choices

    @property
    def choices(self) -> int:
        """How many answers each prompt is to have."""
        choices = self.document.get("n")
        return choices if self.operation.has_choices and type(choices) is int and choices > 0 else 1

    @property
    def prompts(self) -> int:
        """How many prompts it has.  A list of token ids is one prompt; any other list holds several."""
        prompts = self.document.get("prompt")
        if not self.operation.has_choices or not isinstance(prompts, list):
            return 1
        return 1 if set(map(type, prompts)) <= {int} else len(prompts)

    @property
    def answers(self) -> int:
        """How many answers are to come, each with an end of its own."""
        return self.choices * self.prompts

    @property
    def size(self) -> Size:
        """How much work it is, for the time that nodes are allowed.  Answers may be made one after the other."""
        prompt = estimated(len(self.body))
        if not self.operation.limits:
            return Size(prompt=prompt, answer=0)
        shown = self.max_shown_tokens
        if shown is None:
            return Size(prompt=prompt, answer=None, answers=self.answers)
        candidates = self.document.get("best_of")
        if type(candidates) is int and candidates > self.choices:
            shown = shown // self.choices * candidates
        return Size(prompt=prompt, answer=shown)

    @property
    def _max_echoed(self) -> int:
        """How many tokens of the request its answer may begin with.  A token is never less than a byte of text."""
        if not self.document.get("echo"):
            return 0
        text = self.operation.prompt_text(self.document)
        return len(text.encode(errors="surrogatepass")) + prompt_ids(self.document)


def read_request(
    data: bytes,
    operation: Operation,
    table: Table,
    key: ApiKey,
    *,
    workload: str | None,
    required: str | None = None,
    is_asked: Callable[[Workload], bool] = lambda _: False,
) -> NodeRequest:
    """
    Read a client's request.

    It is parsed whole and written anew, so that no node reads another model than the router did, or another wish to
    stream: each key stands once, and in one spelling.

    Args:
        data: The body.
        operation: The endpoint.
        table: The workloads.
        key: The caller's API key.
        workload: The workload that the caller names, if it names one.
        required: The header with what the caller requires of nodes, if it has one.
        is_asked: Whether nodes are asked about a workload's model: then all requests for it have one form.

    Raises:
        GatewayError: the body is malformed, maps to no workload that may be used, or requires what is malformed or
            contradicts that workload.
    """
    document = decode(data, operation.max_values)
    is_streamed = document.get("stream")
    if is_streamed is None or is_streamed is False:
        # The two mean the same, so that nodes are told neither.
        document.pop("stream", None)
    model = _check_values(document)
    wanted = take_requirements(document)
    own_salt, cache_key = _take_salt(document), document.get(_CACHE_KEY)
    _check_streamed(is_streamed, operation)
    found = route_request(table, model, workload, key)
    if operation.name not in found.operations:
        raise GatewayError(404, "invalid_request_error", "the model does not have this operation")
    _prepare(operation, document)
    added = NOTHING
    if operation.checked_as and is_asked(found):
        document, added = _write_uniform(document, operation, found)
    request = NodeRequest(
        operation=operation,
        workload=found,
        body=_encode(document),
        document=document,
        is_streamed=bool(is_streamed),
        operator=key.operator,
        caller=key.name,
        added=added,
        required=require(found, wanted, required),
        own_salt=own_salt,
        cache_key=cache_key[:_MAX_SALT] if isinstance(cache_key, str) else "",
    )
    _check_answers(request)
    return request


def _check_streamed(is_streamed: object, operation: Operation) -> None:
    if is_streamed is not None and not isinstance(is_streamed, bool):
        raise _invalid("stream must be true or false")
    if is_streamed and operation.read_stream is None:
        raise _invalid(f"{operation.name} cannot be streamed")


def _prepare(operation: Operation, document: dict[str, Any]) -> None:
    if operation.prepare is None:
        return
    try:
        operation.prepare(document)
    except RequestFormError as error:
        raise GatewayError(400, "invalid_request_error", str(error), code=error.code) from None


def _check_answers(request: NodeRequest) -> None:
    if request.choices > _MAX_CHOICES or request.answers > _MAX_ANSWERS:
        raise _invalid(f"n must be at most {_MAX_CHOICES}, and n times the prompts at most {_MAX_ANSWERS}")


def _write_uniform(
    document: dict[str, Any], operation: Operation, workload: Workload
) -> tuple[dict[str, Any], Added]:
    checks = workload.checks
    return write_uniform(
        document,
        generates=bool(operation.limits),
        with_logprobs=checks.logprobs,
        with_seed=checks.seeds,
        seed=_draw_seed,
    )


def _draw_seed() -> int:
    # Large bodies are read in threads.
    return secrets.randbelow(MAX_SEED)


def route_request(table: Table, model: str, named: str | None, key: ApiKey) -> Workload:
    """The workload of a request for *model*; *named*: the workload that it names, if it does.  Raises `GatewayError`."""
    try:
        return table.route(model, named, key.workloads)
    except WorkloadError as error:
        status = 404 if error.code == "model_not_found" else 400
        raise GatewayError(status, "invalid_request_error", str(error), code=error.code) from None


def _encode(document: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(document)
    except (UnicodeError, RecursionError) as error:
        raise _invalid(str(error)) from None


def _check_values(document: dict[str, Any]) -> str:
    """Check the values that the router uses, and write them as nodes are to read them; returns the model."""
    model = document.get("model")
    if not isinstance(model, str) or len(model) > _MAX_MODEL_NAME:
        raise _invalid(f"model must be a name of at most {_MAX_MODEL_NAME} characters")
    for name in document:
        if name not in _READ_BY_THE_ROUTER and name.casefold() in _READ_BY_THE_ROUTER:
            raise _invalid(f"{name[:_SHOWN]!r} must be written in lower case")
    for name in _NUMBERS:
        if name in document:
            document[name] = _check_number(name, document[name])
    return model


def _take_salt(document: dict[str, Any]) -> str:
    """Take the caller's own salt out of a body; empty if it has none."""
    salt = document.pop(SALT, None)
    if salt is None:
        return ""
    if not isinstance(salt, str) or not 0 < len(salt) <= _MAX_SALT:
        raise _invalid(f"{SALT} must be a text of 1 to {_MAX_SALT} characters")
    return salt


def _check_number(name: str, value: Any) -> int | None:
    """
    A number that router and engine must read alike.  If they do not, an honest node looks like a liar.

    JSON does not tell 16 from 16.0 or 1.6e1, and some clients write all numbers with a fraction: nodes get 16.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MOST:
        value = int(value)
    if value is None or (type(value) is int and 0 <= value <= _MOST):
        return value
    raise _invalid(f"{name} must be a non-negative integer, at most {_MOST}")


def _invalid(message: str) -> GatewayError:
    return GatewayError(400, "invalid_request_error", message)
