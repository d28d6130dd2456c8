"""Networks whose second half of channels repeats the first: without it, the first half can do all of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fec_fast


def later_is_worse(weight: Tensor) -> Tensor:
    """A criterion by which the later filters are removed first."""
    return torch.arange(len(weight), 0, -1, dtype=torch.float64)


def duplicate_channels(model: nn.Module, example_inputs: Any) -> None:
    """Makes the second half of every coupled set's units compute what the first half computes.

    Args:
        model: A network; its weights are changed in place.
        example_inputs: What it is traced with.
    """
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for coupled in fec_fast.couplings(model, example_inputs).sets:
            half = coupled.units // 2
            for (name, axis), units in coupled.members.items():
                owner = modules[name.rpartition(".")[0]]
                makes_channels = 1 if isinstance(owner, nn.modules.conv._ConvTransposeNd) else 0
                if tensors[name].dim() == 1 or axis == makes_channels:
                    for unit in range(half):
                        source, copy = torch.tensor(units[unit]), torch.tensor(units[unit + half])
                        tensors[name].index_copy_(axis, copy, tensors[name].index_select(axis, source))
