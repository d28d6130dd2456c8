"""Weights that are trained in a coarse number format: the user is told which steps are lost."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.training.optimizer import warn_of_coarse_weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_step_that_is_named_is_the_largest_that_every_weight_loses(dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with pytest.warns(UserWarning, match="'weight' is trained in") as caught:
        warn_of_coarse_weights(layer)
    found = re.search(r"less than (\S+) of a weight", str(caught[0].message))
    assert found is not None
    share = float(found[1])
    weights = torch.linspace(1, 2, 1000).to(dtype)
    assert torch.equal((weights.double() * (1 - 0.99 * share)).to(dtype), weights)
    assert not torch.equal((weights.double() * (1 - 1.1 * share)).to(dtype), weights)


def test_training_tells_of_them_and_not_of_frozen_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3)).bfloat16()
    loader = [(torch.randn(4, 3, 2, 2).bfloat16(), torch.arange(4) % 3)]
    with pytest.warns(UserWarning, match=r"4 parameters, '1.weight' first, are trained in bfloat16 .* 0.00195 of a"):
        fec_fast.finetune(model, loader, epochs=1, progress=False)
    model[1].requires_grad_(False)
    model[2].float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_coarse_weights(model)
