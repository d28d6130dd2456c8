"""``round_to``: every width that was a multiple stays one, whatever is coupled, concatenated or grouped."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast


class Mixed(nn.Module):
    """A residual sum, a concatenation with channels that stay, a grouped and a depthwise convolution, a flatten."""

    def __init__(self, width: int, branch: int, group: int, groups: int, extra: int) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, branch, 1)
        self.outer, self.norm = nn.Conv2d(branch, width, 1), nn.BatchNorm2d(width)
        self.side, self.extra = nn.Conv2d(width, branch, 1), nn.Conv2d(3, extra, 1)
        self.join = nn.Conv2d(width + branch + extra, group * groups, 1)
        self.grouped = nn.Conv2d(group * groups, group * groups, 3, padding=1, groups=groups)
        self.depthwise = nn.Conv2d(group * groups, group * groups, 3, padding=1, groups=group * groups)
        self.fc = nn.Linear(group * groups * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.norm(self.outer(torch.relu(self.inner(y))))
        y = torch.cat([self.extra(x), y, self.side(y)], 1)
        y = self.depthwise(torch.relu(self.grouped(torch.relu(self.join(y)))))
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


def widths(model: nn.Module) -> dict[tuple[str, str], int]:
    """Every number that hardware may want to be a multiple."""
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
        result = fec_fast.prune(model, image, criterion="l1", **options)
    assert result.difference is not None
    return widths(model), widths(result.model), result.difference


@settings(max_examples=40, deadline=None)
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
def test_multiples_stay_multiples(width, branch, group, groups, extra, ratio, round_to, ignored) -> None:
    torch.manual_seed(0)
    model = Mixed(width, branch, group, groups, extra).eval()
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
        # Residual and branch widths: 64 - 32 = 32 and 24 - 12 = 12, which becomes 16.
        ((64, 24, 1, 32, 8), 0.5, {("stem", "out"): 32, ("norm", "features"): 32, ("inner", "out"): 16}),
        # 20 is no multiple of 8: 10 becomes 16. So that 24 + 20 + 4 stays a multiple, the side branch keeps 20 - 8.
        ((24, 20, 1, 8, 4), 0.5, {("inner", "out"): 16, ("stem", "out"): 16, ("side", "out"): 12}),
        # Four groups of 16: 16 - 8 stay in each. Four groups of 12: 48 - 24 = 24, with 6 in each group.
        ((8, 8, 16, 4, 8), 0.4, {("grouped", "in per group"): 16, ("grouped", "out per group"): 16}),
        ((8, 8, 16, 4, 8), 0.5, {("grouped", "in per group"): 8, ("grouped", "out per group"): 8, ("join", "out"): 32}),
        ((8, 8, 12, 4, 8), 0.5, {("grouped", "out"): 24, ("grouped", "out per group"): 6, ("join", "out"): 24}),
        # Sixteen groups of 4: whole groups go, two at a time.
        ((8, 8, 4, 16, 8), 0.3, {("grouped", "out"): 48, ("grouped", "out per group"): 4, ("depthwise", "in"): 48}),
    ],
)
def test_by_hand(arguments, ratio, expected) -> None:
    torch.manual_seed(0)
    _, after, _ = pruned_widths(Mixed(*arguments).eval(), ratio=ratio, round_to=8)
    assert {key: after[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenet_v2", "densenet121"])
def test_networks(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    pruned = fec_fast.prune(model, torch.randn(1, 3, 32, 32), criterion="l1", ratio=0.4, round_to=8, verify=False).model
    before, after = widths(model), widths(pruned)
    assert all(number % 8 == 0 for key, number in after.items() if before[key] % 8 == 0)
    assert sum(after.values()) < 0.8 * sum(before.values())
