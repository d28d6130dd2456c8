"""Policies as objects: the constants that a benchmark varies, without a global that is patched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fec_fast
from fec_fast import Budget
from fec_fast.pruning.allocation.policies import EntropyPolicy, GlobalPolicy, ReconstructionPolicy
from fec_fast.vision import networks

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def plan(ratios: str | EntropyPolicy | GlobalPolicy) -> fec_fast.Plan:
    torch.manual_seed(0)
    model = networks.resnet_digits().eval()
    return fec_fast.prune(model, IMAGE, budget=Budget(params=0.7), ratios=ratios, verify=False, recover=None).plan


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
        fec_fast.prune(networks.resnet_digits(), IMAGE, ratios=EntropyPolicy(), recover=None)


@settings(max_examples=30)
@given(
    increments=st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=12), min_size=1, max_size=4),
    price_power=st.sampled_from([0.0, 0.5, 1.0]),
    share_power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_reconstruction_is_the_marginal_error_by_price_and_share(increments, price_power, share_power) -> None:
    errors = [np.cumsum(row) for row in increments]
    prices = np.arange(1.0, len(errors) + 1)
    found = ReconstructionPolicy(price_power, share_power).thresholds(errors, prices)
    for row, error, price in zip(found, errors, prices, strict=True):
        assert bool((np.diff(row) >= 0).all())
        share_left = np.arange(len(row), 0, -1) / len(row)
        below = np.cumsum(row * price**price_power * share_left**share_power)  # the convex hull that was followed
        assert bool((below <= error + 1e-9).all())
        assert below[-1] == pytest.approx(error[-1], abs=1e-9)
        convex = bool((np.diff(error, prepend=0, n=2) >= -1e-12).all()) if len(error) > 1 else True
        if convex:
            assert below == pytest.approx(error, abs=1e-9)
