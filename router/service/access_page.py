"""The table of ``docs/routing.md``, from the routes: ``python -m router.service.access_page docs/routing.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from router.config import ROLES
from router.service.access import routes
from verifier.service import route_table


def table() -> str:
    """Every route with who may call it."""
    return "\n".join(route_table.table(routes(), ROLES))


def filled(text: str) -> str:
    """The page *text* with the table as it must be."""
    return route_table.filled(text, table())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text()))
