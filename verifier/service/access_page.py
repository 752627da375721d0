"""The tables of ``docs/access.md``, from the routes: ``python -m verifier.service.access_page docs/access.md``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from verifier.roles import Role
from verifier.service.access import Anyone, Route
from verifier.service.app import routes

_MARKS = ("<!-- routes: written by the code -->", "<!-- end of routes -->")


def table() -> str:
    """Every route with who may call it, and every role with its meaning."""
    lines = ["| role | |", "|---|---|", *(f"| `{role}` | {role.meaning} |" for role in Role)]
    lines += ["", "| request | | who |", "|---|---|---|"]
    lines += [f"| `{route.method} {_path(route)}` | {route.summary} | {_who(route)} |" for route in routes()]
    return "\n".join(lines)


def _path(route: Route) -> str:
    """The path without the forms of its parts, which a table cannot hold."""
    return re.sub(r"\{(\w+):.+?\}(?=/|$)", r"{\1}", route.path)


def _who(route: Route) -> str:
    if isinstance(route.allowed, Anyone):
        return f"anyone: {route.allowed.because}"
    names = ", ".join(role for role in Role if role in route.allowed)
    return (
        f"{names}; anyone on the same machine, if `[access] metrics_on_loopback`"
        if route.on_loopback
        else names
    )


def filled(text: str) -> str:
    """The page *text* with the tables as they must be."""
    start, end = _MARKS
    before, after = text.partition(start)[0], text.partition(end)[2]
    return f"{before}{start}\n{table()}\n{end}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text()))
