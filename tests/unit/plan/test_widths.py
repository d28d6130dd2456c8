"""Widths of a plan's layers: as the pruned model has them."""

from __future__ import annotations

import torch
from torch import nn

import fec_fast
from fec_fast.plan.widths import layer_widths
from helpers.networks import SharedWeight


def test_widths_are_those_of_the_pruned_model() -> None:
    torch.manual_seed(0)
    model = SharedWeight().eval()
    result = fec_fast.prune(model, torch.randn(1, 3, 8, 8), ratio=0.5, recover=None)
    widths = {entry.name: entry for entry in layer_widths(result.plan)}
    assert {"stem", "one", "inner", "outer", "grouped", "up", "head"} <= set(widths)
    for name, entry in widths.items():
        before, after = model.get_submodule(name), result.model.get_submodule(name)
        if entry.width is None:
            assert entry.reason and after.weight.shape[0] == before.weight.shape[0]
        elif not isinstance(before, nn.ConvTranspose2d):
            assert (entry.width, entry.kept) == (before.weight.shape[0], after.weight.shape[0]), name
            assert entry.reason is None and entry.sets
    assert widths["up"].kept == result.model.up.out_channels


def test_rounds_are_counted_as_a_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)).eval()
    image = torch.randn(1, 3, 4, 4)
    first = fec_fast.prune(model, image, ratio=0.5, recover=None)
    second = fec_fast.prune(first.model, image, ratio=0.5, recover=None)
    widths = layer_widths(fec_fast.compose(first.plan, second.plan))
    assert [(entry.name, entry.width, entry.kept) for entry in widths][:1] == [("0", 16, 4)]


def test_the_order_is_that_of_the_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    plan = fec_fast.prune(model, torch.randn(1, 3, 4, 4), ratio=0.5, recover=None).plan
    assert [entry.name for entry in layer_widths(plan, ["2", "1"])] == ["2", "1", "0"]
