"""
The property tests on examples that no run has seen before: a plugin of pytest for ``make fuzz``.

It multiplies the number of examples of every test, ends when its time is over, and says how a case
that failed can be run again.  Environment:

    TOUCHSTONE_FUZZ_EXAMPLES  examples of a test that does not say how many; others in proportion
    TOUCHSTONE_FUZZ_SECONDS   after so many seconds no further example begins
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.errors import UnsatisfiedAssumption

_DEFAULT_EXAMPLES = 100
"""Of Hypothesis, for a test that does not say how many."""
_TIME_OVER = "the time for this run is over (FUZZ_SECONDS)"

_examples = int(os.environ.get("TOUCHSTONE_FUZZ_EXAMPLES", "500"))
# The workers inherit the environment, and so they share one end.
_end = float(
    os.environ.setdefault(
        "TOUCHSTONE_FUZZ_END", str(time.time() + float(os.environ.get("TOUCHSTONE_FUZZ_SECONDS", "600")))
    )
)


def scale(given: settings) -> settings:
    """The settings of a test, with more examples."""
    return settings(given, max_examples=max(given.max_examples * _examples // _DEFAULT_EXAMPLES, 1))


def limit(test: Callable[..., Any], end: float) -> Callable[..., Any]:
    """
    A test body that skips the rest of its test after *end*.

    It skips after an example has passed: Hypothesis draws some examples piece by piece, and one that
    stops before its draws looks flaky. After a failure it does not skip, so that Hypothesis can find
    the smallest example and report it.
    """
    failed = False

    @functools.wraps(test)
    def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        try:
            found = test(*args, **kwargs)
        except UnsatisfiedAssumption:
            raise
        except Exception:
            failed = True
            raise
        if not failed and time.time() > end:
            pytest.skip(_TIME_OVER)
        return found

    return limited


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prepare every property test once, however many parameters it has."""
    prepared: set[object] = set()
    for item in items:
        if item.get_closest_marker("hypothesis") is None:
            continue
        assert isinstance(item, pytest.Function)
        machine = getattr(item.cls, "settings", None)
        # A test of a state machine is made by Hypothesis, and its settings are those of its class.
        target = item.obj if machine is None else item.cls
        if target in prepared:
            continue
        prepared.add(target)
        if machine is not None:
            item.cls.settings = scale(machine)
            continue
        # The attribute in which the decorator leaves them; the plugin of Hypothesis reads it too.
        target._hypothesis_internal_use_settings = scale(target._hypothesis_internal_use_settings)
        if not inspect.iscoroutinefunction(target.hypothesis.inner_test):
            target.hypothesis.inner_test = limit(target.hypothesis.inner_test, _end)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no further test when the time is over."""
    if time.time() > _end:
        pytest.skip(_TIME_OVER)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how to run again what failed."""
    if not (failed := terminalreporter.stats.get("failed", [])):
        return
    write = terminalreporter.write_line
    write("The cases that failed are in .hypothesis. The next run of a test begins with them:")
    for report in failed:
        write(f"  make fuzz PYTEST='-n 0 {report.nodeid}'")
    write("Once you understand a case, add it to its test as an @example. `make test` runs it from then on.")
