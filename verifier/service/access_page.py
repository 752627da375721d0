"""The tables of ``docs/access.md``, from the routes: ``python -m verifier.service.access_page docs/access.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from verifier.roles import Role
from verifier.service import route_table
from verifier.service.app import routes


def table() -> str:
    """Every route with who may call it, and every role with its meaning."""
    lines = ["| role | |", "|---|---|", *(f"| `{role}` | {role.meaning} |" for role in Role), ""]
    return "\n".join([*lines, *route_table.table(routes(), Role)])


def filled(text: str) -> str:
    """The page *text* with the tables as they must be."""
    return route_table.filled(text, table())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text()))
