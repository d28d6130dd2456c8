"""Attributes that a model's code compares with the width: they change with it, or the channels are kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Checked(nn.Module):
    """A convolution whose input, and output, are checked by a function; attributes hold numbers."""

    def __init__(self, channels: int, check: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.conv, self.check = nn.Conv2d(channels, channels, 3, padding=1), check
        self.channels, self.out_channels = channels, channels
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.check(self, self.conv(self.check(self, x)).relu())


class Blocks(nn.Module):
    def __init__(self, check: Callable[[Any, Tensor], Tensor], blocks: int = 3, **attributes: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Checked(16, check, **attributes) for _ in range(blocks)))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def asserted(block: Any, x: Tensor) -> Tensor:
    assert x.shape[1] == block.channels
    return x


def raised(block: Any, x: Tensor) -> Tensor:
    if x.size(1) != block.channels:
        raise ValueError(f"{block.channels} channels, not {x.size(1)}")
    return x


def other_way(block: Any, x: Tensor) -> Tensor:
    return x if x.shape[1] == block.channels else x.sigmoid()


def listed(block: Any, x: Tensor) -> Tensor:
    assert tuple(x.shape[1:]) == block.shape
    return x


@pytest.mark.parametrize("check", [asserted, raised, other_way])
def test_it_changes_with_the_width(check: Callable[[Any, Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Blocks(check).eval()
    result = fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert [block.conv.out_channels for block in result.model.blocks] == [8, 8, 8]
    # Nothing reads the other attribute of the same value: it stays.
    assert [(block.channels, block.out_channels) for block in result.model.blocks] == [(8, 16)] * 3
    assert result.plan.sizes["blocks.1"] == {"channels": {"before": 16, "after": 8}}
    assert [block.channels for block in model.blocks] == [16, 16, 16]
    torch.manual_seed(0)
    loaded = fec_fast.load(Blocks(check).eval(), fec_fast.save(result, tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), result.model(IMAGES))


def test_a_number_of_a_tuple_changes() -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(Blocks(listed, shape=(16, 8, 8)).eval(), IMAGES, ratio=0.5, recover=None)
    assert result.difference is not None and result.model.blocks[0].shape == (8, 8, 8)


@pytest.mark.parametrize(
    "check",
    [
        lambda block, x: asserted(block, x) * block.channels,
        lambda block, x: asserted(block, x) / block.channels**0.5,
        lambda block, x: asserted(block, x) + block.channels,
    ],
)
def test_one_that_is_computed_with_keeps_the_channels(check: Any) -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(Blocks(check).eval(), IMAGES, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.stem.out_channels == 16 and not result.plan.sizes
    assert all(block.channels == 16 for block in result.model.blocks)


def test_a_number_of_the_code_keeps_the_channels() -> None:
    def check(_: Any, x: Tensor) -> Tensor:
        assert x.shape[1] == 16
        return x

    torch.manual_seed(0)
    result = fec_fast.prune(
        nn.Sequential(Blocks(check), nn.Linear(4, 8), nn.Linear(8, 2)).eval(), IMAGES, ratio=0.5, recover=None
    )
    assert result.model[0].stem.out_channels == 16 and result.model[1].out_features == 4
    assert "AssertionError" in result.plan.pinned["0.stem"]


@pytest.mark.parametrize(
    "number",
    [
        lambda x: x.shape[1] ** -0.5,
        lambda x: 1 / x.shape[1],
        lambda x: 2.0 if x.shape[1] == 16 else 3.0,
        lambda x: x.numel() / x.shape[0],
        lambda x: x.shape[1] ** -0.5 if x.sum() > -1e9 else 1.0,  # a run with values
    ],
)
def test_a_number_that_follows_the_width_keeps_the_channels(number: Callable[[Tensor], float]) -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(Blocks(lambda _, x: x * number(x), 1).eval(), IMAGES, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.stem.out_channels == result.model.blocks[0].conv.out_channels == 16
    assert re.search(r"from its width at aten\.mul.*test_compared_sizes\.py:\d+\)", result.plan.pinned["stem"])
