"""The table of ``docs/routing.md``, from the routes: ``python -m router.service.access_page docs/routing.md``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from router.config import ROLES
from router.service.access import routes
from verifier.service.access import Anyone, Route

_MARKS = ("<!-- routes: written by the code -->", "<!-- end of routes -->")


def table() -> str:
    """Every route with who may call it."""
    lines = ["| request | | who |", "|---|---|---|"]
    lines += [f"| `{route.method} {_path(route)}` | {route.summary} | {_who(route)} |" for route in routes()]
    return "\n".join(lines)


def _path(route: Route) -> str:
    """The path without the forms of its parts, which a table cannot hold."""
    return re.sub(r"\{(\w+):.+?\}(?=/|$)", r"{\1}", route.path)


def _who(route: Route) -> str:
    if isinstance(route.allowed, Anyone):
        return f"anyone: {route.allowed.because}"
    return ", ".join(role for role in ROLES if role in route.allowed)


def filled(text: str) -> str:
    """The page *text* with the table as it must be."""
    start, end = _MARKS
    before, after = text.partition(start)[0], text.partition(end)[2]
    return f"{before}{start}\n{table()}\n{end}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text()))
