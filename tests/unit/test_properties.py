"""What `make test` draws for the property tests."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    settings.get_current_profile_name() != "test", reason="make fuzz draws what it likes"
)


def drawn() -> list[tuple[int, str]]:
    found = []

    @settings(max_examples=300)
    @given(st.integers(), st.text())
    def draw(number: int, text: str) -> None:
        found.append((number, text))

    draw()
    return found


def test_the_examples_do_not_depend_on_what_was_imported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn()
    path = tmp_path / "with_constants.py"
    path.write_text("\n".join(f"N{n} = {10**9 + n}; S{n} = 'constant {n}'" for n in range(400)))
    spec = spec_from_file_location("with_constants", path)
    assert spec is not None
    monkeypatch.setitem(sys.modules, "with_constants", module_from_spec(spec))
    after = drawn()
    assert after == before
    assert not any("constant " in text for _, text in after)
