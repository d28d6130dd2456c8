"""Toy networks that several test modules prune, with many kinds of coupled channels at once; their norms and widths."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class SharedWeight(nn.Module):
    """A shared weight, residual sums, a depthwise, a grouped and a transposed convolution, a flatten.

    Attributes:
        scale: A buffer that is a view of a larger tensor.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.two.weight = self.one.weight
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6 * 4, 5)
        self.register_buffer("scale", torch.ones(100)[7:8])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        x = self.depthwise(x + self.outer(self.inner(x).tanh()))
        x = nn.functional.adaptive_avg_pool2d(self.up(self.grouped(x)), 2)
        return self.head(x.flatten(1)) * self.scale


class Blocks(nn.Module):
    """Residual sums, a shared weight, a concatenation, a grouped and a depthwise convolution, a flatten, of any widths.

    Args:
        width: Channels of the residual sums.
        branch: Channels of the bottleneck, and of the branch that is concatenated.
        group: Channels per group of the grouped convolution.
        groups: Its groups.
        extra: Channels that a convolution of the image adds to the concatenation; 0 for none.
    """

    def __init__(self, width: int, branch: int, group: int, groups: int, extra: int = 0) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.inner, self.outer = nn.Conv2d(width, branch, 1), nn.Conv2d(branch, width, 1)
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.two.weight = self.one.weight
        self.side = nn.Conv2d(width, branch, 1)
        self.extra = nn.Conv2d(3, extra, 1) if extra else None
        channels = group * groups
        self.join = nn.Conv2d(width + branch + extra, channels, 1)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.hidden, self.fc = nn.Linear(channels * 4, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = (y + self.norm(self.outer(self.inner(y).relu()))).relu()
        y = y + self.two(self.one(y).relu())
        y = torch.cat([y, self.side(y)] if self.extra is None else [self.extra(x), y, self.side(y)], 1)
        y = self.depthwise(self.grouped(self.join(y).relu()).relu())
        return self.fc(self.hidden(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)).relu())


class KindsOfLayers(nn.Module):
    """One layer of each kind that scoring tells apart: plain, depthwise, grouped, transposed, linear. Not to be run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, groups=3))
        self.head = nn.Linear(6, 5)


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    """A function that builds a sequence with weights of its own, drawn when it is called."""

    def build() -> nn.Module:
        network = nn.Sequential(*copy.deepcopy(layers))
        for layer in network:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return network

    return build


def draw_norms(network: nn.Module) -> None:
    """Gives batch norms values as if they were trained: none is the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def widths(model: nn.Module) -> dict[str, int]:
    """The filters of every layer but the head."""
    layers = (nn.Conv2d, nn.Linear)
    return {n: len(m.weight) for n, m in model.named_modules() if isinstance(m, layers) and n != "head"}
