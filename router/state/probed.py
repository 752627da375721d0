"""What the fleet is told of probes, and of silence that is no node's."""

from __future__ import annotations

from router.model.clock import Clock
from router.state.placement import NodeEntry, Placement


class ProbedNodes:
    """The part of `router.state.fleet.Fleet` that is about probes."""

    def __init__(
        self, entries: dict[str, NodeEntry], placement: Placement, clock: Clock, probe_every_s: float
    ) -> None:
        self._entries = entries
        self._placement = placement
        self._clock = clock
        self._probe_every_s = probe_every_s

    def set_probe_interval(self, seconds: float) -> None:
        """Note how often nodes are probed from now on."""
        self._probe_every_s = seconds
        for entry in self._entries.values():
            entry.heartbeat.set_interval(seconds)

    def note_probe(self, node: str) -> None:
        """Note that a node is asked whether it is there."""
        entry = self._entries.get(node)
        if entry is not None:
            is_first = entry.heartbeat.last_contact is None
            entry.heartbeat.note_probe(self._clock.monotonic())
            if is_first:
                self._placement.place_everywhere(entry)

    def note_no_probe(self, node: str) -> None:
        """Note that the last probe of a node failed for this router's sake, and shows nothing of the node."""
        entry = self._entries.get(node)
        if entry is not None:
            entry.heartbeat.note_no_probe(self._clock.monotonic())
            self._placement.place_everywhere(entry)

    def excuse_silence(self, seconds: float) -> None:
        """Take so much from the silence of every node, because this router heard nobody meanwhile."""
        now = self._clock.monotonic()
        for entry in self._entries.values():
            entry.heartbeat.excuse(seconds, now)
            self._placement.place_everywhere(entry)

    def note_probe_answer(self, node: str) -> None:
        """Note that a node answered a probe."""
        entry = self._entries.get(node)
        if entry is not None:
            entry.heartbeat.note_probe_answer(self._clock.monotonic())
            self._placement.place_everywhere(entry)
