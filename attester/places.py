"""Where the models' folders are: as configured, or at the place that the node has claimed last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path


class Places(Mapping[str, Path]):
    """
    By model, the folder from which evidence is made.

    It is the configured one until the node has claimed what is there.  From then on it is the place to which the
    configured path led, until the node claims something else: an operator may switch a symbolic link at any moment,
    and one session must not see two revisions.
    """

    def __init__(self, configured: Mapping[str, Path]) -> None:
        self.configured = configured
        self._pinned: dict[str, Path] = {}

    def __getitem__(self, model: str) -> Path:
        configured, pinned = self.configured[model], self._pinned.get(model)
        # Where both are the same, the configured path: an engine may see the folder under that one alone.
        return configured if pinned is None or _real(configured) == pinned else pinned

    def __iter__(self) -> Iterator[str]:
        return iter(self.configured)

    def __len__(self) -> int:
        return len(self.configured)

    def pin(self, model: str, folder: Path) -> None:
        """Make evidence of *model* from *folder*, a real path, wherever the configured path leads."""
        self._pinned[model] = folder

    def all_of(self, model: str) -> tuple[Path, ...]:
        """The configured folder, and the one that was claimed."""
        return tuple(dict.fromkeys((self.configured[model], self[model])))


def _real(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None
