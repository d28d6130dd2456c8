"""Runs that leave a network, and what its code keeps outside of it, as they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph.counts import count

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEPT: dict[Any, Tensor] = {}


class Blurred(nn.Module):
    """Blurs with a kernel that is computed once, a product of matrices, and kept in a global variable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in KEPT:
            line = torch.tensor([[1.0], [2.0], [1.0]], dtype=x.dtype)
            KEPT[x.dtype] = (line @ line.T / 16).expand(3, 1, 3, 3)
        x = nn.functional.conv2d(x, KEPT[x.dtype], padding=1, groups=3)
        return self.second(torch.relu(self.first(x)))


def test_what_the_code_keeps_in_a_global_variable_is_never_of_a_run_for_the_shapes() -> None:
    torch.manual_seed(0)
    model = Blurred().eval()
    for call in (
        lambda: fec_fast.prune(model, IMAGES, ratio=0.5, recover=None, verify=False),
        lambda: count(model, IMAGES),
    ):
        KEPT.clear()
        call()
        assert KEPT[torch.float32].sum() == 3
