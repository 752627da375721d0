"""The settings of archives."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class ArchiveConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[archive]``: where what is too old is moved, instead of being deleted."""

    folder: Annotated[str, Meta(max_length=4096)] = ""
    """A folder for Parquet files, relative to the configuration.  Without it, what is too old is deleted."""
    rows_per_file: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    """The most rows of one file; they are in memory while it is written."""
