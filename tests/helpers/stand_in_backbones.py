"""Small stand-ins for classification networks of known packages: each has the structure of its kind, in a few lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .divided import ConvNorm


class Classifier(nn.Sequential):
    """A stem of 16 channels, blocks, and a linear head of 5 classes."""

    def __init__(self, *blocks: nn.Module, channels: int = 16) -> None:
        super().__init__(ConvNorm(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    """Of MobileNetV3 and EfficientNet."""

    def __init__(self, channels: int = 16, hidden: int = 32, drop: float = 0.0) -> None:
        super().__init__()
        self.expand, self.depthwise = ConvNorm(channels, hidden), ConvNorm(hidden, hidden, 3, groups=hidden)
        self.gate, self.project, self.drop = SqueezeExcite(hidden), nn.Conv2d(hidden, channels, 1), drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        if self.training and self.drop > 0:  # stochastic depth
            y = y * torch.empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop) / (1 - self.drop)
        return x + y


class Dense(nn.Module):
    """Of DenseNet: every layer reads what all before it have made."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16 + i * growth), nn.ReLU(), nn.Conv2d(16 + i * growth, growth, 3, padding=1))
            for i in range(3)
        )
        self.transition = ConvNorm(16 + 3 * growth, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Ghost(nn.Module):
    """Of GhostNet: cheap depthwise maps beside the plain ones, cut to the width."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap, self.out = ConvNorm(16, 12), ConvNorm(12, 12, 3, groups=12), ConvNorm(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return x + self.out(torch.cat([y, self.cheap(y)], 1))


class ConvNeXt(nn.Module):
    """With a layer norm over channels and a scale of each."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.LayerNorm(16)
        self.up, self.down, self.gamma = nn.Linear(16, 32), nn.Linear(32, 16), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ConvMixer(nn.Module):
    """Spatial and channel mixing by convolutions, as MLP-Mixer does by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial, self.channel = ConvNorm(16, 16, 5, groups=16), ConvNorm(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(x + self.spatial(x))


class RepVGG(nn.Module):
    """Three branches that training adds up; MobileOne has several of each."""

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)) for _ in range(copies)
        )
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.same = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(sum(branch(x) for branch in self.wide) + self.point(x) + self.same(x))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(16, 8),
                nn.Sequential(ConvNorm(16, 8), ConvNorm(8, 12, 3)),
                nn.Sequential(ConvNorm(16, 6), ConvNorm(6, 8, 3), ConvNorm(8, 8, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(16, 4)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Fire(nn.Module):
    """Of SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Cell(nn.Module):
    """Of NASNet and PNASNet: pairs of separable convolutions and poolings of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = ConvNorm(16, 8), ConvNorm(16, 8)
        self.separable = nn.ModuleList(nn.Sequential(ConvNorm(8, 8, 3, groups=8), ConvNorm(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(F.relu(x))
        first = self.separable[0](left) + F.max_pool2d(right, 3, 1, 1)
        second = self.separable[1](right) + F.avg_pool2d(left, 3, 1, 1)
        return torch.cat([first, second, self.separable[2](first) + right], 1)


class BlurPool(nn.Module):
    """Anti-aliased: a fixed filter of each channel, with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvNorm(16, 16, 3)
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (line[:, None] * line / 16)[None, None].repeat(16, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.conv(x), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=x.shape[1])


class Attention(nn.Module):
    """Of CBAM: gates of channels, from both poolings, and of places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mlp = ConvNorm(16, 16, 3), nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.spatial = nn.Conv2d(2, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.spatial(maps).sigmoid()


class NonLocal(nn.Module):
    """Attention between places, with embeddings of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        return x + self.out((value @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:]))


class StandardisedConv(nn.Conv2d):
    """Of BiT: the weight is standardised over each filter."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True, correction=0)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-6).sqrt(), self.bias, padding=self.padding)


class BiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one = nn.GroupNorm(4, 16), StandardisedConv(16, 16, 3, padding=1)
        self.norm2, self.two = nn.GroupNorm(4, 16), StandardisedConv(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.norm2(self.one(F.relu(self.norm(x))))))


class ScalingResNet(nn.Module):
    """A bottleneck with a grouped convolution (ResNeXt, RegNet) and a shortcut by a convolution."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.reduce, self.grouped = ConvNorm(16, 16), ConvNorm(16, 16, 3, groups)
        self.expand, self.shortcut = ConvNorm(16, 24), ConvNorm(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.grouped(self.reduce(x))) + self.shortcut(x))


class Siamese(nn.Module):
    """One network for two images, whose features are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvNorm(3, 16, 3), ConvNorm(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(32, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        one, other = self.features(left), self.features(right)
        return self.head(torch.cat([(one - other).abs(), one * other], 1))


class TemporalBlock(nn.Module):
    """Of TCN: dilated causal convolutions, cut to the length, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(4, 16, 3, padding=4, dilation=2), nn.Conv1d(16, 16, 3, padding=4, dilation=2)
        self.shortcut, self.head = nn.Conv1d(4, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x)[..., :-4])
        y = F.relu(self.two(y)[..., :-4]) + self.shortcut(x)
        return self.head(y[..., -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions, with a sum of skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(4, 12, 1), nn.Conv1d(12, 3, 1)
        self.filters, self.gates, self.residual, self.skip = (
            nn.ModuleList(nn.Conv1d(12, 12, kernel, padding=kernel // 2) for _ in range(2)) for kernel in (3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for filters, gates, residual, skip in zip(self.filters, self.gates, self.residual, self.skip, strict=True):
            y = filters(x).tanh() * gates(x).sigmoid()
            x, total = x + residual(y), total + skip(y)
        return self.head(F.relu(total))


class ConvLSTM(nn.Module):
    """One convolution makes the four gates; the state goes on from frame to frame."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.hidden = ConvNorm(3, 8, 3), 8
        self.gates, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, frames: Tensor) -> Tensor:
        batch, length, _, height, width = frames.shape
        hidden = cell = frames.new_zeros(batch, self.hidden, height, width)
        for step in range(length):
            gates = self.gates(torch.cat([self.encode(frames[:, step]), hidden], 1))
            take, forget, out, new = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return self.head(hidden)
