"""Sizes that are written into a model's code: the channels are kept, or the result is proven; it is never wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fec_fast

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions with a function of 16 channels between them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.scale, self.shift = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))
        self.mixed = nn.Parameter(torch.randn(16, 16))
        self.channels = 16
        self.register_buffer("blur", torch.rand(16, 1, 3, 3))
        self.register_buffer("grouped", torch.rand(16, 4, 3, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.function(self, self.first(x)).relu()).relu().mean((2, 3)))


def filled(x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    result[:, :8] = x[:, :8]
    return result


def changed_in_place(x: Tensor) -> Tensor:
    result = x.clone()
    result[:, :8].mul_(2)
    return result


def channels_last_norm(x: Tensor, *scales: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (16,), *scales).permute(0, 3, 1, 2)


# The function, and how many of the 16 channels are left with norms="exact" and norms="renormalise".
FUNCTIONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, int]] = {
    "group_norm of 8": (lambda m, x: F.group_norm(x, 8), 16, 8),
    "group_norm of 8, scaled": (lambda m, x: F.group_norm(x, 8, m.scale, m.shift), 16, 8),
    "group_norm of 1": (lambda m, x: F.group_norm(x, 1), 16, 8),
    "group_norm of 16": (lambda m, x: F.group_norm(x, 16, m.scale, m.shift), 16, 16),
    "layer_norm": (lambda m, x: channels_last_norm(x), 16, 16),
    "layer_norm, scaled": (lambda m, x: channels_last_norm(x, m.scale, m.shift), 16, 16),
    "layer_norm of all": (lambda m, x: F.layer_norm(x, (16, 6, 6)), 16, 16),
    "layer_norm of the shape": (lambda m, x: F.layer_norm(x, x.shape[1:]), 16, 8),
    "view": (lambda m, x: x.view(-1, 16, 6, 6), 16, 16),
    "view of places": (lambda m, x: x.view(x.shape[0], 16, -1).view(x.shape[0], 16, 6, 6), 16, 16),
    "view of heads": (lambda m, x: x.view(-1, 4, 4, 6, 6).flip(1).flatten(1, 2), 16, 16),
    "view of four": (lambda m, x: x.view(x.shape[0], 4, -1, 6, 6).flip(1).flatten(1, 2), 8, 8),
    "unflatten": (lambda m, x: x.unflatten(1, (2, 8)).flip(1).flatten(1, 2), 16, 16),
    "first eight": (lambda m, x: torch.cat([x[:, :8] * 2, x[:, 8:]], 1), 16, 16),
    "first eight twice": (lambda m, x: torch.cat([x[:, :8], x[:, :8]], 1), 16, 16),
    "last eight": (lambda m, x: torch.cat([x[:, -8:], x[:, :-8]], 1), 16, 16),
    "first four": (lambda m, x: torch.cat([x[:, :4] * 2, x[:, 4:]], 1), 16, 16),
    "narrow": (lambda m, x: torch.cat([x.narrow(1, 0, 8), x.narrow(1, 8, 8) * 2], 1), 16, 16),
    "split": (lambda m, x: torch.cat(x.split(8, 1)[::-1], 1), 16, 16),
    "split of sizes": (lambda m, x: torch.cat(x.split([4, 12], 1)[::-1], 1), 16, 16),
    "indices": (lambda m, x: x[:, list(range(15, -1, -1))], 16, 16),
    "index_select": (lambda m, x: x.index_select(1, torch.arange(16).flip(0)), 16, 16),
    "write to a slice": (lambda m, x: filled(x), 16, 16),
    "write in place to a slice": (lambda m, x: changed_in_place(x), 16, 16),
    "new zeros": (lambda m, x: x + torch.zeros(1, 16, 1, 1), 16, 16),
    "ones beside": (lambda m, x: torch.cat([x, torch.ones(x.shape[0], 16, 6, 6)], 1)[:, :16], 16, 16),
    "arange": (lambda m, x: x * torch.arange(16.0).view(1, 16, 1, 1), 16, 16),
    "expand": (lambda m, x: x.amax(1, keepdim=True).expand(-1, 16, -1, -1) + x, 16, 16),
    "pad to the width": (lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 16 - x.shape[1])), 16, 16),
    "one by one": (lambda m, x: torch.stack([x[:, i] for i in range(16)], 1), 16, 16),
    "roll": (lambda m, x: x.roll(1, 1), 16, 16),
    "slice of a weight": (
        lambda m, x: (x.flatten(2).transpose(1, 2)[..., :8] @ m.mixed[:8]).transpose(1, 2).reshape(x.shape),
        16,
        16,
    ),
    "fixed filters, groups by the shape": (lambda m, x: F.conv2d(x, m.blur, padding=1, groups=x.shape[1]), 8, 8),
    "fixed filters, groups by an attribute": (lambda m, x: F.conv2d(x, m.blur, padding=1, groups=m.channels), 8, 8),
    "fixed filters, groups by a number": (lambda m, x: F.conv2d(x, m.blur, padding=1, groups=16), 16, 16),
    "four groups by the shape": (lambda m, x: F.conv2d(x, m.grouped, padding=1, groups=x.shape[1] // 4), 8, 8),
    "four groups by a number": (lambda m, x: F.conv2d(x, m.grouped, padding=1, groups=4), 16, 16),
    "a number": (lambda m, x: x / 16, 8, 8),
    "mean by a number": (lambda m, x: x - x.sum(1, keepdim=True) / 16, 8, 8),
    "condition": (lambda m, x: x * 2 if x.shape[1] == 16 else x, 16, 16),
    "condition of more": (lambda m, x: x * 2 if x.shape[1] > 10 else x, 16, 16),
}


@pytest.mark.parametrize("norms", ["exact", "renormalise"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_kept_or_equals_the_masked_original(name: str, norms: str) -> None:
    function, *widths = FUNCTIONS[name]
    torch.manual_seed(0)
    model = Between(function).eval()
    result = fec_fast.prune(model, IMAGES, ratio=0.5, norms=norms, recover=None)
    width = result.model.first.out_channels
    assert width == widths[norms == "renormalise"]
    assert result.difference is not None and result.difference < 1e-9
    if width == 16:
        assert result.plan.pinned["first"]
    if result.plan.changed_norms:
        return
    masked, pruned = copy.deepcopy(model).double(), copy.deepcopy(result.model).double()
    with torch.no_grad():
        for tensor_name, axes in result.plan.keep.items():
            tensor = masked.state_dict(keep_vars=True)[tensor_name]
            for axis, kept in axes.items():
                removed = sorted({*range(tensor.shape[int(axis)])} - {*kept})
                tensor.index_fill_(int(axis), torch.tensor(removed), 0)
        images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
        if name not in ("new zeros", "ones beside", "arange"):  # what the code makes is float32
            assert torch.allclose(pruned(images), masked(images), atol=1e-12)
