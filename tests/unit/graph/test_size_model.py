"""Sizes after removal are those of the pruned network, layer by layer; test_budget.py compares the totals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fec_fast.graph.counts import count, counts_of
from fec_fast.graph.size_model import SizeModel
from fec_fast.pruning.context import PruningContext, build_context
from fec_fast.utils.model_index import ModelIndex
from helpers.attention import attention_network
from helpers.divided import BLOCKS, divided_network

IMAGE = torch.randn(2, 3, 8, 8)


class Kinds(nn.Module):
    """Every kind of cost: dense, grouped alike, whole groups, depthwise, transposed, linear, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 18, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(18, 36, 3, padding=1, groups=18)
        self.dense = nn.Conv2d(36, 16, 1)
        self.cells = nn.Conv2d(16, 8, 1, groups=8)
        self.up = nn.ConvTranspose2d(8, 10, 2, stride=2)
        self.twice = nn.Conv2d(10, 10, 1)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(torch.relu(self.stem(x))))
        x = self.up(self.cells(torch.relu(self.dense(x))))
        return self.last(self.twice(torch.relu(self.twice(x))).mean((2, 3)))


def context_of(model: nn.Module) -> tuple[PruningContext, SizeModel]:
    context = build_context(model, IMAGE, "l1", None, "both", ())
    return context, SizeModel(context.index, context.trace, context.coupling)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8])
def test_macs_by_layer_are_those_of_a_trace_of_the_pruned_network(share: float) -> None:
    torch.manual_seed(0)
    context, sizes = context_of(Kinds().eval())
    prunable = {layer for coupled in context.coupling.sets for layer in coupled.layers}
    assert prunable >= {"stem", "grouped", "dense", "up"}
    counts = [int(share * len(coupled.units)) for coupled in context.coupling.sets]
    pruned = context.pruned_copy(counts)
    real = count(pruned, IMAGE)
    assert counts_of(ModelIndex.of(pruned), sizes.macs_by_layer(counts)) == real
    assert sum(sizes.macs_by_layer(counts).values()) == float(sizes.macs(np.array(counts))) == real.macs
    assert float(sizes.params(np.array(counts))) == real.parameters
    if share == 0:
        assert sizes.macs_by_layer(counts) == context.trace.macs_by_layer()
    else:
        assert real.macs < sum(context.trace.macs_by_layer().values())


def test_macs_are_exact_for_large_numbers() -> None:
    """Products of widths and costs leave the whole numbers of float64; the results do not."""
    model = nn.Sequential(nn.Conv2d(3, 997, 1), nn.Conv2d(997, 991, 1), nn.Conv2d(991, 3, 1))
    _, sizes = context_of(model.eval())
    costs = [10**12 * 997 * 3, 10**10 * 997 * 991, 10**12 * 991 * 3]
    sizes._macs = np.array(costs, dtype=np.float64)
    first, second = 123, 457
    widths = [(3, 997 - first), (997 - first, 991 - second), (991 - second, 3)]
    expected = [10**12 * a * b for a, b in widths]
    expected[1] //= 100
    assert list(sizes.macs_by_layer([first, second]).values()) == expected


ATTENTION = (
    "other width of values",
    "SDPA",
    "fused, chunk",
    "YOLO12, four areas",
    "BoTNet",
    "non-local",
    "EfficientViT",
)


@pytest.mark.parametrize("name", [*BLOCKS, *ATTENTION])
def test_sizes_of_networks_that_divide_channels_are_those_of_running_them(name: str) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 12, 12)
    model = attention_network(name) if name in ATTENTION else divided_network(name)
    context = build_context(model, image, "l1", None, "both", ()).settled()
    sizes = SizeModel(context.index, context.trace, context.coupling)
    counts = [len(coupled.units) // 2 for coupled in context.coupling.sets]
    pruned = context.pruned_copy(counts)
    assert counts_of(ModelIndex.of(pruned), sizes.macs_by_layer(counts)) == count(pruned, image)
    after = build_context(pruned, image, "l1", None, "both", ())
    sizes_after = SizeModel(after.index, after.trace, after.coupling)
    none = np.zeros(len(after.coupling.sets))
    for quantity in ("params", "macs", "memory"):
        assert float(getattr(sizes, quantity)(np.array(counts))) == float(getattr(sizes_after, quantity)(none)), (
            quantity
        )
