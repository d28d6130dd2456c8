"""Arrivals: a run that waits at layers holds no more memory than the model's code does."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fec_fast.recovery.arrivals import ArrivalMode
from fec_fast.recovery.layer_calls import LayerCall
from fec_fast.utils.model_index import ModelIndex


class Stream(nn.Module):
    """Four residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = (block(x) + x).relu()
        return x


def test_addends_are_held_only_as_long_as_the_model_holds_them() -> None:
    index, images = ModelIndex.of(Stream().eval()), torch.randn(2, 4, 5, 5)
    seen: list[weakref.ref[Tensor]] = []
    there: list[int] = []

    class Everything:
        """Every tensor of the run may be an addend."""

        def __contains__(self, path: object) -> bool:
            return True

    def arrive(call: LayerCall, number: int, made: Mapping[int, Tensor]) -> bool:
        assert any(tensor is call.input for tensor in made.values()) or not seen  # the stream, which is added behind
        seen.append(weakref.ref(call.input))
        there.append(sum(reference() is not None for reference in seen[1:]))  # the first is the images, ours
        return False

    with torch.no_grad(), ArrivalMode(index, Everything(), arrive, lambda name: None):
        index.model(images)
    assert there == [0, 1, 1, 1]
