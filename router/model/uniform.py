"""
One form for the requests that nodes see, so that nothing of a request tells who wrote it.  Pure.

Nodes are asked what a trusted engine has answered already (docs/adr/0057), and must not know when.  So
every request for a model that is asked about is written anew:

    order     of the members, and of those of a message
    numbers   ``0.0`` and ``0`` are one
    left out  what no engine uses for an answer, and what says no more than is usual
    added     what checks need: a seed where the answer is drawn, the usage of a stream, and log-probabilities
              where the workload says so

What was added for all is taken away again from the answers of those that did not ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from router.model import dialects

TOP: Final = 5
"""Alternatives at each position that are asked for with log-probabilities."""
MAX_SEED: Final = 1 << 31
"""Seeds are below it: some engines keep them in 32 bits with a sign."""
_UNUSED: Final = frozenset(
    {"user", "metadata", "safety_identifier", "service_tier", "prompt_cache_key", "store"}
)
"""Members that no engine uses for its answer: they name callers, or are for a provider's books."""
_NUMBERS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)
_FIRST: Final = ("role", "content")
_MOST_EXACT: Final = 1 << 53


class Added(Struct, frozen=True):
    """What was added to a request, and is to be taken away from its answer."""

    seed: bool = False
    usage: bool = False
    """Whether the usage at the end of its stream was not asked for."""
    hides_logprobs: bool = False
    """Whether the answer has log-probabilities, or more of them, that were not asked for."""
    shown: int | None = None
    """How many alternatives the client has asked for; `None` if for no log-probabilities."""


NOTHING: Final = Added()


def write_uniform(
    document: Mapping[str, Any],
    *,
    generates: bool,
    with_logprobs: bool,
    with_seed: bool,
    seed: Callable[[], int],
) -> tuple[dict[str, Any], Added]:
    """
    A request in the one form, and what was added to it.

    Args:
        document: As the client sent it, checked already.
        generates: Whether it is answered with text.
        with_logprobs: Whether all requests of the workload ask for log-probabilities.
        with_seed: Whether all that are drawn have a seed.
        seed: Draws one.
    """
    found = essential(document)
    for name in _NUMBERS:
        value = found.get(name)
        if type(value) is float and value.is_integer() and abs(value) <= _MOST_EXACT:
            found[name] = int(value)
    messages = found.get("messages")
    if isinstance(messages, list):
        found["messages"] = [_ordered(each) if isinstance(each, dict) else each for each in messages]
    added = NOTHING
    if generates:
        has_seed = with_seed and _add_seed(found, seed)
        has_usage = found.get("stream") is True and _add_usage(found)
        hides, shown = _add_logprobs(found) if with_logprobs else (False, None)
        added = Added(has_seed, has_usage, hides, shown)
    return dict(sorted(found.items())), added


def essential(document: Mapping[str, Any]) -> dict[str, Any]:
    """A request without what no engine uses, and without what says no more than is usual."""
    return {
        name: value
        for name, value in document.items()
        if value is not None and name not in _UNUSED and not (name == "n" and value == 1)
    }


def without_added(document: Mapping[str, Any], added: Added) -> dict[str, Any]:
    """A request without what is drawn anew each time: the same request sent again is the same."""
    return {name: value for name, value in document.items() if name != "seed" or not added.seed}


def _ordered(message: dict[str, Any]) -> dict[str, Any]:
    if list(message) == list(_FIRST):
        return message
    first = {name: message[name] for name in _FIRST if name in message}
    return first | {name: value for name, value in message.items() if name not in first and value is not None}


def _add_seed(found: dict[str, Any], seed: Callable[[], int]) -> bool:
    """Engines draw an answer unless its temperature is 0; of several answers to one prompt each is to be another."""
    if "seed" in found or found.get("temperature") == 0 or "n" in found or found.get("best_of"):
        return False
    found["seed"] = seed()
    return True


def _add_usage(found: dict[str, Any]) -> bool:
    options = found.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return False
    if isinstance(options, dict) and options.get("include_usage") is True:
        return False
    found["stream_options"] = {**(options or {}), "include_usage": True}
    return True


def _add_logprobs(found: dict[str, Any]) -> tuple[bool, int | None]:
    """Ask for log-probabilities; returns whether something must be hidden, and how many the client asked for."""
    if "messages" not in found:
        # The older form, of completions of a prompt.
        given = found.get("logprobs")
        if found.get("echo") or not (given is None or type(given) is int):
            # Of the prompt they cost far more, and nobody wants them.
            return False, None
        found["logprobs"] = max(TOP, given or 0)
        return (given is None or given < TOP), given
    if "logprobs" not in found and "top_logprobs" not in found:
        found["logprobs"], found["top_logprobs"] = True, TOP
        return True, None
    wants, top = found.get("logprobs"), found.get("top_logprobs", 0)
    if type(wants) is not bool or type(top) is not int or (top and not wants):
        # What an engine refuses is refused by the engine.
        return False, None
    found["logprobs"], found["top_logprobs"] = True, max(TOP, top)
    return (not wants or top < TOP), top if wants else None


_MARK: Final = b'"logprobs"'


def hide(data: bytes, added: Added) -> bytes:
    """An answer, or an event of a stream, without what its client has not asked for."""
    if not added.hides_logprobs or _MARK not in data:
        return data
    document = dialects.decode(data)
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list):
        return data
    changed = False
    for choice in choices:
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None if added.shown is None else _cut(choice["logprobs"], added.shown)
            changed = True
    return dialects.encode(document) if changed else data


def _cut(logprobs: Any, shown: int) -> Any:
    """Log-probabilities with so many alternatives at each position."""
    if not isinstance(logprobs, dict):
        return logprobs
    content, top = logprobs.get("content"), logprobs.get("top_logprobs")
    cut = dict(logprobs)
    if isinstance(content, list):
        cut["content"] = [_cut_position(each, shown) for each in content]
    if isinstance(top, list):
        cut["top_logprobs"] = [_likeliest(each, shown) for each in top]
    return cut


def _cut_position(position: Any, shown: int) -> Any:
    if isinstance(position, dict) and isinstance(position.get("top_logprobs"), list):
        return {**position, "top_logprobs": position["top_logprobs"][:shown]}
    return position


def _likeliest(alternatives: Any, shown: int) -> Any:
    """Of the older form: a token with its log-probability, the likeliest so many."""
    if not isinstance(alternatives, dict) or not all(
        isinstance(value, (int, float)) for value in alternatives.values()
    ):
        return alternatives
    ordered = sorted(alternatives.items(), key=lambda item: -item[1])
    return dict(ordered[:shown])
