"""Large networks with random weights: many parameters, many layers, many channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


class _Residual(nn.Module):
    """Two convolutions around a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second_norm(self.second(self.first_norm(self.first(x)).relu()))).relu()


class _Dense(nn.Module):
    """Every convolution reads the results of all before it, and adds two channels."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 2 * number, 2, 3, padding=1) for number in range(layers - 2))
        self.head = nn.Conv2d(8 + 2 * (layers - 2), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return self.head(x)


def chain(layers: int) -> nn.Module:
    """Convolutions of 8 filters, one after the other, with batch norms.

    Args:
        layers: The number of convolutions.
    """
    middle = [
        layer for _ in range(layers - 2) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(8, 4, 1))


def residual(layers: int) -> nn.Module:
    """Residual blocks of two convolutions each.

    Args:
        layers: The number of convolutions.
    """
    blocks = [_Residual(8) for _ in range((layers - 2) // 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.Conv2d(8, 4, 1))


def dense(layers: int) -> nn.Module:
    """As many concatenations as convolutions; the weights grow with the square of the layers.

    Args:
        layers: The number of convolutions.
    """
    return _Dense(layers)


def wide(channels: int) -> nn.Module:
    """Three convolutions; the one in the middle has ``channels`` filters of as many channels.

    Args:
        channels: The width.
    """
    layers = [nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 4, 1))


def _regnet() -> nn.Module:
    from torchvision.models import regnet_y_128gf

    return regnet_y_128gf()


@dataclass(frozen=True)
class Case:
    """A network and what it is run on.

    Attributes:
        build: Makes it.
        image: The shape of the example input.
        calibration: How many images of this shape it is recovered on; 0 for no recovery.
    """

    build: Callable[[], nn.Module]
    image: tuple[int, ...]
    calibration: int = 0


_SMALL = (2, 3, 8, 8)
CASES = {
    "regnet_y_128gf": Case(_regnet, (1, 3, 64, 64)),
    **{f"chain of {n} layers": Case(partial(chain, n), _SMALL) for n in (250, 500, 1000)},
    **{f"{n} layers with residual sums": Case(partial(residual, n), _SMALL) for n in (250, 500, 1000)},
    **{f"{n} layers with concatenations": Case(partial(dense, n), _SMALL) for n in (100, 200, 400)},
    "10,000 channels": Case(partial(wide, 10_000), (2, 3, 4, 4), 64),
}
