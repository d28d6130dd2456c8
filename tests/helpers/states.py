"""The state of models: whether it changed, and how far the outputs of one model are from another's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fec_fast import Plan
from fec_fast.plan.proof_values import mask


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict."""
    return copy.deepcopy(model.state_dict())


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Asserts that the state dict of a model is bit for bit what it was, in the same order."""
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def masked_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a model whose removed channels are zero, in the layers that write and that read them."""
    copied = copy.deepcopy(model)
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for name in plan.keep.keys() & tensors.keys():
            mask(name, tensors[name], plan.keep[name])
    return copied


def relative_error(wanted: Tensor, given: Tensor) -> float:
    """The squared error of outputs ``[B, ...]``, relative to their variance."""
    return float((given - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
