"""Where the parts of the checker put what they find."""

from __future__ import annotations

from typing import Any, Final

from verifier.policy.lint import Level, LintFinding
from verifier.policy.syntax import position_of

_MAX_FOUND: Final = 100
"""So many findings in one file are enough to begin with."""


class Source:
    """A module's file, its text, and what was found in it."""

    def __init__(self, module: Any) -> None:
        self.file = str(module["source"]["file"])
        self.text = module["source"]["contents"].encode()
        self.found: dict[LintFinding, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether enough was found in it."""
        return len(self.found) >= _MAX_FOUND

    def error(self, span: Any, rule: str, sentence: str, level: Level = Level.ERROR) -> None:
        """Add a finding.  The same one counts once."""
        if self.is_full:
            return
        line, column = position_of(span, self.text)
        self.found[
            LintFinding(level=level, rule=rule, file=self.file, line=line, column=column, sentence=sentence)
        ] = None

    def warning(self, span: Any, rule: str, sentence: str) -> None:
        """Add a finding for which no bundle is refused."""
        self.error(span, rule, sentence, Level.WARNING)
