"""Policies as objects: the constants that a benchmark varies, without a global that is patched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fec_fast
from fec_fast import Budget
from fec_fast.pruning.allocation.policies import EntropyPolicy, GlobalPolicy
from fec_fast.vision import networks

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def plan(ratios: str | EntropyPolicy | GlobalPolicy) -> fec_fast.Plan:
    torch.manual_seed(0)
    model = networks.resnet_digits().eval()
    return fec_fast.prune(model, IMAGE, budget=Budget(params=0.7), ratios=ratios, verify=False).plan


@pytest.mark.parametrize(
    ("name", "policy", "changes"),
    [
        ("entropy", EntropyPolicy(), ({"tau_scale": 1.0}, {"price_power": 0.0})),
        ("global", GlobalPolicy(), ({"price_power": 0.0},)),
    ],
)
def test_a_name_is_the_policy_with_its_default_constants(name, policy, changes) -> None:
    by_name = plan(name)
    assert plan(policy).to_json() == by_name.to_json()
    for change in changes:
        assert plan(dataclasses.replace(policy, **change)).keep != by_name.keep
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.price_power = 1.0


def test_a_policy_needs_a_budget() -> None:
    with pytest.raises(fec_fast.RatioError, match="EntropyPolicy.*add a budget"):
        fec_fast.prune(networks.resnet_digits(), IMAGE, ratios=EntropyPolicy())
