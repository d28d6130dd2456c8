"""Small networks that faults are planted in: every kind of coupling, and what hides faults."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Residual sums, a depthwise and a grouped convolution, a gate, a transposed convolution, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.depthwise, self.outer = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.grouped, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.act = nn.LeakyReLU(0.1)
        self.head = nn.Linear((8 + 6) * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.depthwise(self.inner_norm(self.inner(x)).relu()))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        up = self.act(self.up(self.grouped(x)))
        pooled = [nn.functional.adaptive_avg_pool2d(each, 2) for each in (x, up)]
        return self.head(torch.cat(pooled, 1).flatten(1))


class Plain(nn.Module):
    """A plain network with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.head(self.norm2(self.conv2(x)).relu().mean((2, 3)))


class Argmax(Plain):
    """Its output is a class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class TrainingOnly(Plain):
    """In evaluation mode it calls no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x.mean((2, 3))


def _zero_head() -> nn.Module:
    model = Plain()
    nn.init.zeros_(model.head.weight)
    return model


def _dead() -> nn.Module:
    """The second ReLU gives zeros for any image."""
    model = Plain()
    nn.init.zeros_(model.norm2.weight)
    nn.init.constant_(model.norm2.bias, -1.0)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "plain": Plain,
    "class as output": Argmax,
    "training mode alone": TrainingOnly,
    "head of zeros": _zero_head,
    "dead ReLU": _dead,
}


def built(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with batch norms as if it were trained, and images."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            with torch.no_grad():  # a weight of zeros stays one
                module.weight *= torch.rand_like(module.weight) + 0.5
                module.bias += 0.1 * torch.randn_like(module.bias)
    return model.eval(), torch.randn(2, 3, 8, 8)
