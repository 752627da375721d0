"""The numbered scripts that make and change the tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Script:
    """One step of a schema."""

    number: int
    text: str
    oldest: int
    """The oldest schema whose programs can go on working after this step: a step that only adds keeps them."""


_OLDEST = re.compile(r"^-- oldest: ([0-9]+)$", re.MULTILINE)


def read_scripts(package: str, folder: str) -> list[Script]:
    """
    Give the scripts of *package* in their order.

    A script names with a line ``-- oldest: N`` the oldest schema whose programs can work with its result.  Without
    one, only programs of its own schema and of later ones can.
    """
    found = []
    for entry in (resources.files(package) / folder).iterdir():
        if entry.name.endswith(".sql"):
            number, text = int(entry.name[:4]), entry.read_text()
            named = _OLDEST.search(text)
            found.append(Script(number, text, number if named is None else int(named[1])))
    return sorted(found, key=lambda script: script.number)
