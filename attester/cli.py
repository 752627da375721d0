"""What the commands of all roles share: errors without stack traces, logging, progress bars."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

F = TypeVar("F", bound=Callable[..., Any])
_CERTIFICATE = "A certificate with its chain, PEM: then TLS is spoken, and nothing else."


def plain_errors(*kinds: type[Exception]) -> Callable[[F], F]:
    """Show errors of *kinds* as a message, without a stack trace, and exit with status 1."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except kinds as error:
                raise click.ClickException(str(error)) from None

        return run  # type: ignore[return-value]  # functools.wraps keeps the signature

    return wrap


attester_home = click.option(
    "--home",
    "home_path",
    type=click.Path(path_type=Path),
    default=Path("touchstone-attester"),
    envvar="TOUCHSTONE_ATTESTER_HOME",
    show_default=True,
    show_envvar=True,
    help="The attester's home folder.",
)
"""Which attester it is about."""


def tls_options(function: F) -> F:
    """The certificate and the key of a service that speaks TLS itself."""
    for name, what in (("--tls-key", "The certificate's key, PEM."), ("--tls-certificate", _CERTIFICATE)):
        function = click.option(name, type=click.Path(path_type=Path), help=what)(function)
    return function


def absolute(path: Path | None) -> str | None:
    """A file as a configuration names it that lies somewhere else."""
    return None if path is None else str(path.absolute())


def configure_logging(*, as_json: bool, level: str = "info") -> None:
    """Log one line for each event to standard error: as text for people, or as JSON for machines."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextmanager
def progress(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """
    A progress bar over *total* bytes on standard error.

    It yields a function to call with the number of bytes just done.  There is no bar if
    *quiet*, or if standard error is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
