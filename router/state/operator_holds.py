"""Since when each operator has a node in quarantine: its new nodes wait for that review (ADR 0017)."""

from __future__ import annotations


class OperatorHolds:
    """The open incidents of each operator's nodes, with the time each was opened, Unix seconds."""

    def __init__(self) -> None:
        self._opened: dict[str, dict[str, float]] = {}
        self._since: dict[str, float] = {}

    def since(self, operator: str) -> float | None:
        """When the first of the open incidents was opened; `None` if none is open."""
        return self._since.get(operator)

    def set_incident(self, operator: str, incident: str, opened: float | None) -> bool:
        """
        Note that an incident is open since *opened*, or with `None` that it is over.

        Returns:
            Whether `since` changed.
        """
        incidents = self._opened.setdefault(operator, {})
        if opened is None:
            incidents.pop(incident, None)
        else:
            incidents[incident] = opened
        if not incidents:
            del self._opened[operator]
        since = min(incidents.values(), default=None)
        if since == self._since.get(operator):
            return False
        if since is None:
            del self._since[operator]
        else:
            self._since[operator] = since
        return True
