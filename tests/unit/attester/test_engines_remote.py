"""Tensors of another rank: what is known at once, and what is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from attester.errors import EngineError

torch = pytest.importorskip("torch", reason="torch is not installed")


class Elsewhere:
    """Another rank, which notes what it is asked for."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.sent: list[int] = []

    def fetch(self, rank: int, name: str, views: Sequence[Any], empty: Any) -> Any:
        from attester.engines.remote import apply

        part = apply(self.tensor, views)
        assert (rank, name, empty.shape) == (3, "w", part.shape)
        empty.copy_(part)
        self.sent.append(part.numel())
        return empty

    def remote(self, pointer: int = 77) -> Any:
        from attester.engines.remote import Origin, Remote

        shadow = torch.empty(self.tensor.shape, dtype=self.tensor.dtype, device="meta")
        return Remote(shadow, Origin(3, "w", pointer, self.fetch), torch.device("cpu"))


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere(torch.arange(6 * 4 * 2, dtype=torch.float32).reshape(6, 4, 2))


def test_what_a_mapping_asks_is_known_without_a_fetch(elsewhere):
    remote = elsewhere.remote()
    assert isinstance(remote, torch.Tensor)
    assert (remote.shape, remote.dtype, remote.numel()) == ((6, 4, 2), torch.float32, 48)
    assert (remote.layout, remote.is_conj(), remote.is_contiguous()) == (torch.strided, False, True)
    assert (remote.data_ptr(), remote.device.type, remote.element_size()) == (77, "cpu", 4)
    assert elsewhere.sent == []


VIEWS: dict[str, Callable[[Any], Any]] = {
    "rows": lambda t: t[2:5],
    "rows from the end": lambda t: t[-2:],
    "every other row": lambda t: t[::2],
    "one row": lambda t: t[3],
    "a part of one row": lambda t: t[3][1:3],
    "columns": lambda t: t[:, 1:2],
    "turned": lambda t: t.transpose(-1, -2),
    "turned rows": lambda t: t.transpose(0, 1)[1:3],
    "nothing": lambda t: t[6:],
    "detached": lambda t: t.detach(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_only_the_values_of_a_part_are_fetched(elsewhere, name):
    part = VIEWS[name](elsewhere.remote())
    assert elsewhere.sent == []
    expected = VIEWS[name](elsewhere.tensor)
    assert part.shape == expected.shape
    assert torch.equal(part.contiguous().reshape(-1).view(torch.int8), expected.reshape(-1).view(torch.int8))
    assert elsewhere.sent == [expected.numel()]


def test_parts_are_joined_with_those_of_this_rank(elsewhere):
    joined = torch.cat([elsewhere.tensor[:2], elsewhere.remote()[2:]])
    assert torch.equal(joined, elsewhere.tensor)
    assert type(joined) is torch.Tensor


def test_a_copy_on_another_stage_is_compared_part_by_part(elsewhere):
    remote = elsewhere.remote()
    remote.origin.twins.append(elsewhere.tensor.clone())
    assert torch.equal(remote[1:3], elsewhere.tensor[1:3])
    remote.origin.twins[0][4] += 1
    assert torch.equal(remote[1:3], elsewhere.tensor[1:3])
    with pytest.raises(EngineError, match=r"^w: its copies on two stages of the pipeline differ$"):
        remote[3:5].sum()


@pytest.mark.parametrize("view", [("index", (1,)), ("slice", (0, 1)), ("select", ())], ids=str)
def test_a_view_that_is_none_is_refused(elsewhere, view):
    """Requests come from another process."""
    from attester.engines.remote import apply

    with pytest.raises(EngineError, match="there is no view"):
        apply(elsewhere.tensor, [view])
