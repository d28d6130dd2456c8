"""Operators that divide channels: parts shrink where their sizes can follow, and are kept whole where they cannot."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from helpers.divided import BLOCKS, divided_network
from helpers.networks import widths

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def quiet_prune(model: nn.Module, image: Tensor, ratio: float) -> fec_fast.PruneResult:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was pruned")
        return fec_fast.prune(model, image, ratio=ratio, recover=None)


@pytest.mark.parametrize("name", BLOCKS)
def test_known_blocks_lose_half_of_every_layer_exactly(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = divided_network(name)
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert set(result.plan.pinned) == {"head"} and not result.plan.notes
    before, after = widths(model), widths(result.model)
    # Sets round to whole units, and a part of 7 channels keeps 4.
    assert all(before[layer] / 2 <= after[layer] <= before[layer] / 2 + 1.5 for layer in before)

    fec_fast.save(result, tmp_path / "pruned")
    loaded = fec_fast.load(divided_network(name), tmp_path / "pruned")
    applied = divided_network(name)
    applied.load_state_dict(model.state_dict())
    fec_fast.apply_plan(applied, fec_fast.Plan.from_json(result.plan.to_json()))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), result.model(IMAGE))
        assert torch.equal(applied(IMAGE), result.model(IMAGE))
    result.model.train()(IMAGE).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.model.parameters())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("C2f by split", {"block": {"c": (12, 6)}}),
        ("Res2Net by slices", {"block": {"width": (6, 3)}}),
        ("LightCNN", {"block": {"out_channels": (20, 10)}}),
        ("FasterNet", {"block": {"dim_conv3": (6, 3), "dim_untouched": (18, 9)}}),
        ("SHViT", {"block": {"pdim": (7, 4), "dim": (24, 13)}}),
        ("InceptionNeXt", {"block": {"split_indexes": ([15, 4, 4, 4], [8, 2, 2, 2])}}),
        ("MixNet", {"block": {"splits": ([7, 5, 4], [4, 3, 2])}}),
        ("ShuffleNet, attribute", {"block": {"channels": (16, 8)}}),
        ("generator by module", {"block.unflatten": {"unflattened_size": ([12, 4, 4], [6, 4, 4])}}),
        ("C2f by chunk", {}),
    ],
)
def test_attributes_that_hold_sizes_change_with_them(name: str, sizes: dict[str, dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = divided_network(name)
    attributes = {module: dict(vars(model.get_submodule(module))) for module in sizes}
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    expected = {
        module: {attribute: {"before": before, "after": after} for attribute, (before, after) in of_module.items()}
        for module, of_module in sizes.items()
    }
    assert result.plan.sizes == expected
    for module, of_module in sizes.items():
        for attribute, (_, after) in of_module.items():
            value = getattr(result.model.get_submodule(module), attribute)
            assert type(value) is type(attributes[module][attribute])
            assert value == (type(value)(after) if isinstance(after, list) else after)
            assert getattr(model.get_submodule(module), attribute) is attributes[module][attribute]


class Parts(nn.Module):
    """Divides a layer's channels into parts, convolves some, and joins them in another order.

    What stands in dictionaries is like numbers in the code: they are not looked into.
    """

    def __init__(self, sizes: list[int], how: str, order: list[int], convolved: list[bool]) -> None:
        super().__init__()
        self.how, self.order, self.literal = how, {"order": order}, {"sizes": tuple(sizes)}
        if "attribute" in how:
            self.sizes = list(sizes)
        self.first = nn.Conv2d(3, sum(sizes), 3, padding=1)
        self.convolutions = nn.ModuleDict({str(i): nn.Conv2d(sizes[i], sizes[i], 1) for i in order if convolved[i]})
        self.last = nn.Conv2d(sum(sizes), 4, 1)

    def divide(self, x: Tensor) -> list[Tensor]:
        sizes = [size * x.shape[1] // sum(self.literal["sizes"]) for size in self.literal["sizes"]]  # proportions
        if self.how == "chunk":
            return list(x.chunk(len(sizes), 1))
        if self.how == "computed slices":
            return [x[:, sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        if self.how == "attribute":
            return list(torch.split(x, self.sizes, 1))
        if self.how == "slices by attribute":
            return [x[:, sum(self.sizes[:i]) : sum(self.sizes[: i + 1])] for i in range(len(sizes))]
        if self.how == "narrow by attribute":
            return [x.narrow(1, sum(self.sizes[:i]), size) for i, size in enumerate(self.sizes)]
        return list(torch.split(x, sizes if self.how == "computed" else self.literal["sizes"], 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.divide(torch.relu(self.first(x)))
        parts = [self.convolutions[str(i)](p) if str(i) in self.convolutions else p for i, p in enumerate(parts)]
        return self.last(torch.cat([parts[i] for i in self.order["order"]], 1))


HOW = ["computed", "computed slices", "attribute", "slices by attribute", "narrow by attribute", "literal"]


@settings(max_examples=40)
@given(data=st.data(), how=st.sampled_from(["chunk", *HOW]), seed=st.integers(0, 2**16), ratio=st.floats(0.2, 0.8))
def test_any_number_and_order_of_parts(data: st.DataObject, how: str, seed: int, ratio: float) -> None:
    number = data.draw(st.integers(2, 5))
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=number, max_size=number))
    if how == "chunk":
        sizes = [sizes[0]] * number
    order = data.draw(st.permutations(range(number)))
    convolved = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
    torch.manual_seed(seed)
    model, image = Parts(sizes, how, order, convolved).eval(), torch.randn(2, 3, 5, 5)
    # Parts that are independent, because each size is a number of its own, or else whole blocks.
    units = max(sizes) if how == "attribute" and len(set(sizes)) > 1 else math.gcd(*sizes)
    try:
        result = quiet_prune(model, image, ratio)
    except fec_fast.LayerError as error:
        assert units == 1 and ("fixed positions" in str(error) or "tied to one another" in str(error))
        return
    assert result.difference is not None and result.difference < 1e-9
    assert not any("differs from the masked original" in note for note in result.plan.notes)  # no rule was wrong
    kept = result.model.first.out_channels
    if how == "literal":
        assert kept == sum(sizes)
        assert "fixed positions" in result.plan.pinned.get("first", "") or ratio * units < 1
    else:
        assert kept < sum(sizes) or ratio * units < 1
    again = Parts(sizes, how, order, convolved).eval()
    again.load_state_dict(model.state_dict())
    fec_fast.apply_plan(again, fec_fast.Plan.from_json(result.plan.to_json()))
    with torch.no_grad():
        assert torch.equal(again(image), result.model(image))


class Written(nn.Module):
    """A layer whose channels are divided by a function."""

    def __init__(self, divide: Any, **attributes: Any) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.LazyConv2d(3, 1)
        self.divide = divide
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.divide(self, self.conv(torch.relu(self.stem(x))))))


WHOLE = {
    "split": lambda m, x: torch.cat([part * i for i, part in enumerate(x.split(16, 1), 1)], 1),
    "sizes": lambda m, x: torch.cat([part * i for i, part in enumerate(x.split([8, 24], 1), 1)], 1),
    "slices": lambda m, x: torch.cat([x[:, :16], 2 * x[:, 16:]], 1),
    "a slice from the middle": lambda m, x: x[:, 4:20],
    "narrow": lambda m, x: x.narrow(1, 0, 16) + 2 * x.narrow(1, 16, 16),
    "view": lambda m, x: x.view(2, 2, 16, 12, 12).sum(1),
    "view that leaves the batch open": lambda m, x: x.view(-1, 16, 2, 12, 12).sum(2),
    "reshape": lambda m, x: x.permute(0, 2, 3, 1).reshape(2, 12, 12, 2, 16).sum(3).permute(0, 3, 1, 2),
    "one channel": lambda m, x: x * x[:, :1],
    "one channel by number": lambda m, x: x * x[:, 3].unsqueeze(1),
    "every other channel": lambda m, x: x[:, ::2] + x[:, 1::2],
    "roll": lambda m, x: x + x.roll(3, 1),
    "not less than": lambda m, x: x[:, : max(16, x.shape[1] // 2)],
}


@pytest.mark.parametrize("name", WHOLE)
def test_numbers_in_the_code_keep_their_channels_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = Written(WHOLE[name]).eval()
    model(IMAGE)  # makes the lazy head
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 32 and result.model.stem.out_channels == 4
    assert "fixed positions" in result.plan.pinned["conv"] and not result.plan.sizes
    assert len(result.plan.notes) == len(set(result.plan.notes)) > 0


def test_channels_that_are_all_tied_are_kept_and_the_plan_says_so() -> None:
    """A shuffle between two divisions into halves ties position after position, until all are one unit."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
            self.shuffle = nn.ChannelShuffle(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(torch.relu(self.stem(x)))
            for _ in range(3):
                left, right = x.chunk(2, 1)
                x = self.shuffle(torch.cat([left, torch.relu(right)], 1))
            return self.last(x)

    result = fec_fast.prune(Stage().eval(), IMAGE, ratio=0.5, recover=None)
    assert result.model.stem.out_channels == 3 and result.model.first.out_channels == 6
    assert "tied to one another" in result.plan.pinned["first"]


@pytest.mark.parametrize("pixels", [(4,), (8,), (4, 4), (8, 8)])
def test_a_vector_becomes_a_map_of_any_size(pixels: tuple[int, ...]) -> None:
    """The channels come first, also where there are as many pixels along a side."""
    torch.manual_seed(0)
    convolution = (nn.Conv1d, nn.Conv2d)[len(pixels) - 1](8, 4, 1)
    linear = nn.Linear(5, 8 * math.prod(pixels))
    model = nn.Sequential(linear, nn.Unflatten(1, (8, *pixels)), convolution).eval()
    result = fec_fast.prune(model, torch.randn(2, 5), ratio=0.5, recover=None)
    assert result.model[0].out_features == linear.out_features // 2 and result.model[2].in_channels == 4
    assert result.difference is not None and result.difference < 1e-6


def test_the_reason_of_a_convolution_that_meets_positions_is_the_reshape() -> None:
    """Of the numbers 16 and 24, which stand in the code, the longer one is taken for the channels."""
    linear, conv = nn.Linear(10, 384), nn.Conv1d(16, 8, 3, padding=1)
    model = nn.Sequential(linear, nn.Unflatten(1, (16, 24)), conv, nn.Flatten(), nn.Linear(192, 5)).eval()
    with pytest.raises(fec_fast.LayerError, match="meets channels on another dimension than its own"):
        fec_fast.prune(model, torch.randn(2, 10), ratio=0.5, recover=None)
