"""
Which control routes of an engine can be reached through the served endpoint.

An engine's own routes for its operator (load other weights, put it to sleep, run a method in its workers) check no
credentials, or only some.  Whoever reaches them through the node's public endpoint can change what it serves.

A probe changes nothing: `OPTIONS` has no effect on any route (RFC 9110 §9.2.1), and a web framework answers it for a
path that it has (405) otherwise than for one that it has not (404).  `GET` is sent only where the engine answers
every `OPTIONS` alike, and only to routes that read.  No probe has a body.  A path that no engine has is asked
too, so that an endpoint which answers everything alike exposes nothing by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OPTIONS: Final = "OPTIONS"
GET: Final = "GET"
NOWHERE: Final = "/touchstone-probe-of-no-route"
"""A path that no engine has: how the endpoint answers what it does not know."""
_REFUSED: Final = frozenset({401, 403, 404, 407, 408, 421, 425, 429, 431})
"""Statuses by which whoever answers keeps the route to itself, or says that it is busy."""


@dataclass(frozen=True)
class Control:
    """A control route of an engine."""

    path: str
    does: str
    """Why nobody else may reach it."""
    method: str = OPTIONS


CONTROLS: Final[Mapping[str, tuple[Control, ...]]] = {
    # vLLM 0.32, by its source; those of development mode among them.
    "vllm": (
        Control("/collective_rpc", "runs any method in the workers"),
        Control("/invocations", "generates beside /v1/, without the API key"),
        Control("/inference/v1/generate", "generates from tokens"),
        Control("/update_weights", "loads other weights"),
        Control("/start_weight_update", "begins to load other weights"),
        Control("/init_weight_transfer_engine", "connects to a sender of weights"),
        Control("/weight_checker", "compares, and can overwrite, the weights"),
        Control("/sleep", "drops the weights"),
        Control("/wake_up", "loads the weights again"),
        Control("/pause", "stops generating"),
        Control("/abort_requests", "ends the requests of others"),
        Control("/reset_prefix_cache", "drops the cache"),
        Control("/start_profile", "writes profiles to the disk"),
        Control("/scale_elastic_ep", "changes how many workers there are"),
        Control("/fault_tolerance/apply", "changes how it recovers"),
        Control("/server_info", "shows the configuration and the environment"),
        Control("/metrics", "shows what the clients of others do"),
        Control("/v1/load_lora_adapter", "loads an adapter, and so other weights"),
        Control("/v1/unload_lora_adapter", "unloads an adapter"),
        Control("/tokenizer_info", "shows the chat template"),
    ),
    # llama.cpp answers each OPTIONS with 200; reading its /metrics resets averages.
    "llama.cpp": (
        Control("/props", "shows the path of the model, and can be set", GET),
        Control("/slots", "shows the prompts of others, and can save and erase them", GET),
        Control("/lora-adapters", "shows the adapters, and can be set", GET),
    ),
    # Ollama answers each OPTIONS alike.
    "ollama": (Control("/api/tags", "its neighbours pull, create and delete models", GET),),
    "sglang": (
        Control("/update_weights_from_disk", "loads other weights"),
        Control("/update_weights_from_tensor", "loads other weights"),
        Control("/update_weights_from_distributed", "loads other weights"),
        Control("/weights_checker", "compares, and can overwrite, the weights"),
        Control("/release_memory_occupation", "drops the weights"),
        Control("/flush_cache", "drops the cache"),
        Control("/generate", "generates beside /v1/"),
    ),
    # An engine of the operator's own, with what `attester.engines.host` mounts.
    "touchstone": (
        Control("/touchstone/walk", "walks the loaded weights"),
        Control("/touchstone/engine", "shows the configuration"),
    ),
}
"""By engine.  All of them are asked, whatever the adapter: an operator may have changed the engine behind it."""

ALL: Final = tuple(control for controls in CONTROLS.values() for control in controls)


def is_reached(status: int, elsewhere: int) -> bool:
    """
    Whether the status of an answer shows that the route is there and would take a request.

    Args:
        status: Of the route's answer.
        elsewhere: Of the answer to the same method at `NOWHERE`.
    """
    # What fails at the server says nothing of the route: it may be a proxy whose engine is gone.
    return status != elsewhere and status not in _REFUSED and not 300 <= status < 400 and status < 500
