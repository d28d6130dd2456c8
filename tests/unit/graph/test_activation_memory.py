"""Which results of a run are counted as activation memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fec_fast.graph.trace import trace_model
from fec_fast.utils.model_index import ModelIndex


def test_a_released_constant_hides_no_later_result() -> None:
    """The storage of a constant is not counted; once it is released, its identity is given to another storage."""

    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            for step in range(50):
                torch.tensor(float(step))
                x = self.conv(x)
            return x

    allocations = trace_model(ModelIndex.of(Constants().eval()), torch.randn(1, 3, 4, 4)).allocations
    assert len(allocations) == 50
    # Each result is released after the next convolution; of the two operators per step, the first makes the constant.
    assert [result.first for result in allocations] == list(range(1, 101, 2))
    assert {result.end - result.first for result in allocations[:-1]} == {3}


def test_views_and_inputs_take_no_memory() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.view(2, 3, 16)  # of the input
            x = (x + 1).transpose(1, 2)  # a result, and a view of it that keeps it in use
            return x.relu_().mean()

    add, mean = trace_model(ModelIndex.of(Views()), torch.randn(2, 3, 4, 4)).allocations
    assert (add.size, add.first, add.end) == (2 * 3 * 16 * 4, 1, 5)
    assert (mean.size, mean.first) == (4, 4)
