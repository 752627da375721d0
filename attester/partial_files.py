"""Names of files that are not whole yet, as tools that download and copy give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_PARTIAL: Final = re.compile(
    # Of download tools and browsers; and of rsync, which writes .NAME.XXXXXX.
    r".*\.(incomplete|part|partial|crdownload|download|aria2|tmp|temp|filepart)\Z|\.[^/]+\.[A-Za-z0-9]{6}\Z",
    re.DOTALL,
)


def find_partial(names: Iterable[str]) -> str | None:
    """The first of *names* that a tool gives to a file that it has not finished; `None` if there is none."""
    return next((name for name in names if _PARTIAL.fullmatch(name.rpartition("/")[2])), None)
