"""``round_to``: every width that was a multiple remains one, whatever is coupled, concatenated or grouped."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from helpers.networks import Blocks


def widths(model: nn.Module) -> dict[tuple[str, str], int]:
    """Returns every width that hardware may need as a multiple."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            ends = {"in": module.in_channels, "out": module.out_channels}
            for end, width in ends.items():
                found[name, end] = width
                found[name, f"{end} per group"] = width // module.groups
        elif isinstance(module, nn.Linear):
            found |= {(name, "in"): module.in_features, (name, "out"): module.out_features}
        elif isinstance(module, nn.BatchNorm2d):
            found[name, "features"] = module.num_features
    return found


def pruned_widths(model: nn.Module, **options: object) -> tuple[dict, dict, float]:
    image = torch.randn(1, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing may be left to prune
        result = fec_fast.prune(model, image, criterion="l1", **options, recover=None)
    assert result.difference is not None
    return widths(model), widths(result.model), result.difference


@settings(max_examples=40)
@given(
    width=st.integers(1, 40),
    branch=st.integers(1, 40),
    group=st.sampled_from([1, 2, 4, 8, 12, 16]),
    groups=st.integers(1, 8),
    extra=st.integers(1, 12),
    ratio=st.floats(0, 0.95),
    round_to=st.sampled_from([1, 2, 3, 4, 8, 16]),
    ignored=st.sampled_from([(), ("extra",), ("side",), ("join",), ("stem", "extra")]),
)
def test_widths_that_are_multiples_remain_multiples(
    width, branch, group, groups, extra, ratio, round_to, ignored
) -> None:
    torch.manual_seed(0)
    model = Blocks(width, branch, group, groups, extra).eval()
    before, after, difference = pruned_widths(model, ratio=ratio, round_to=round_to, ignore=ignored)
    assert difference < 1e-9
    _, plain, _ = pruned_widths(model, ratio=ratio, ignore=ignored)
    for key, number in after.items():
        if before[key] % round_to == 0:
            assert number % round_to == 0, (key, before[key], number)
        assert plain[key] <= number <= before[key], (key, plain[key], number)


@pytest.mark.parametrize(
    ("arguments", "ratio", "expected"),
    [
        # Residual and branch widths: 64 - 32 = 32 and 24 - 12 = 12, which is rounded up to 16.
        ((64, 24, 1, 32, 8), 0.5, {("stem", "out"): 32, ("norm", "features"): 32, ("inner", "out"): 16}),
        # 20 is no multiple of 8: 10 becomes 16. For 24 + 20 + 4 to remain a multiple, the side branch keeps 20 - 8.
        ((24, 20, 1, 8, 4), 0.5, {("inner", "out"): 16, ("stem", "out"): 16, ("side", "out"): 12}),
        # Four groups of 16: 16 - 8 are kept in each. Four groups of 12: 48 - 24 = 24, with 6 in each group.
        ((8, 8, 16, 4, 8), 0.4, {("grouped", "in per group"): 16, ("grouped", "out per group"): 16}),
        ((8, 8, 16, 4, 8), 0.5, {("grouped", "in per group"): 8, ("grouped", "out per group"): 8, ("join", "out"): 32}),
        ((8, 8, 12, 4, 8), 0.5, {("grouped", "out"): 24, ("grouped", "out per group"): 6, ("join", "out"): 24}),
        # Sixteen groups of 4: whole groups are removed, two at a time.
        ((8, 8, 4, 16, 8), 0.3, {("grouped", "out"): 48, ("grouped", "out per group"): 4, ("depthwise", "in"): 48}),
    ],
)
def test_by_hand(arguments, ratio, expected) -> None:
    torch.manual_seed(0)
    _, after, _ = pruned_widths(Blocks(*arguments).eval(), ratio=ratio, round_to=8)
    assert {key: after[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenet_v2", "densenet121"])
def test_networks(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    pruned = fec_fast.prune(
        model, torch.randn(1, 3, 32, 32), criterion="l1", ratio=0.4, round_to=8, verify=False, recover=None
    ).model
    before, after = widths(model), widths(pruned)
    assert all(number % 8 == 0 for key, number in after.items() if before[key] % 8 == 0)
    assert sum(after.values()) < 0.8 * sum(before.values())
