"""Targets: what is kept of a run of the original, and what is not."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.recovery.layer_calls import LayerCall
from fec_fast.recovery.targets import TargetMode
from fec_fast.utils.model_index import ModelIndex
from helpers.networks import chain

BEHIND = {"ReLU": (nn.ReLU(),), "batch norm": (nn.BatchNorm2d(8), nn.ReLU()), "SiLU": (nn.SiLU(),)}


class InputsSeen(TargetMode):
    """Remembers the inputs of layers without holding them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.inputs: list[weakref.ref[Tensor]] = []

    def before_layer(self, call: LayerCall) -> None:
        super().before_layer(call)
        self.inputs.append(weakref.ref(call.input))


@pytest.mark.parametrize("behind", BEHIND)
def test_no_input_of_a_layer_is_kept(behind: str) -> None:
    torch.manual_seed(0)
    layers = [layer for width in (3, 8, 8, 8) for layer in (nn.Conv2d(width, 8, 3), *BEHIND[behind])]
    model, images = chain(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 5))().eval(), torch.randn(4, 3, 12, 12)
    plan = fec_fast.prune(model, images, ratio=0.5, recover=None).plan
    mode = InputsSeen(ModelIndex.of(model), plan, 2**30)
    mode.begin(0, 100, 1.0, torch.zeros(0, dtype=torch.int64))
    with mode, torch.no_grad():
        mode.end(model(images))
    gc.collect()
    assert len(mode.targets) == 4 and len(mode.inputs) == 5
    assert [of_layer() is None for of_layer in mode.inputs] == [False, True, True, True, True]  # the first is ours
