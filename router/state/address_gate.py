"""Which nodes this router may not connect to: by their URLs, and by what the names in them lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from router.choose.gates import PENDING, GateVerdict
from router.model.node import NodeView
from router.state.placement import NodeEntry

JudgeURL: TypeAlias = Callable[[str], GateVerdict | None]
"""Why this router may not connect to a URL, by the URL alone; `None` if it may."""


class AddressGate:
    """
    Keeps the verdicts of the gate ``address``.

    Args:
        entries: All nodes, by id.
        check_gates: Places a node anew.
        judge_url: Judges each new URL.
    """

    def __init__(
        self, entries: Mapping[str, NodeEntry], check_gates: Callable[[NodeEntry], None], judge_url: JudgeURL
    ) -> None:
        self._entries = entries
        self._check_gates = check_gates
        self._judge_url = judge_url
        self._unchecked: list[str] = []

    def note(self, entry: NodeEntry, view: NodeView) -> None:
        """Judge where a node serves, if that is new."""
        url = None if view.endpoint is None else view.endpoint[0]
        if url != entry.url:
            entry.url = url
            entry.refused = None if url is None else self._judge_url(url)
            if entry.refused is not None and entry.refused.code == PENDING:
                self._unchecked.append(view.node)

    def take_unchecked(self) -> list[str]:
        """Nodes whose names are to be looked up, each once."""
        taken, self._unchecked = self._unchecked, []
        return taken

    def refused_names(self) -> list[str]:
        """Nodes that may be let in another day: it is what their names lead to that was refused."""
        found = []
        for node, entry in self._entries.items():
            if entry.refused is not None and entry.url is not None:
                by_url = self._judge_url(entry.url)
                if by_url is None or by_url.code != entry.refused.code:
                    found.append(node)
        return found

    def set_verdict(self, node: str, url: str, verdict: GateVerdict | None) -> None:
        """Note why this router may not connect to a node's URL; `None`: it may.  Nothing if the URL is another by now."""
        entry = self._entries.get(node)
        if entry is None or entry.url != url:
            return
        before = None if entry.refused is None else entry.refused.code
        if before != (None if verdict is None else verdict.code):
            entry.refused = verdict
            self._check_gates(entry)
