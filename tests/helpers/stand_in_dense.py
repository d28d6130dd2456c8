"""Small stand-ins for detectors, segmentation, restoration and generation of known packages, in a few lines each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .divided import ConvNorm


class UNet(nn.Module):
    """Two levels, a concatenation for each, and attention gates if wanted; in two or three dimensions."""

    def __init__(self, dims: int = 2, gated: bool = False) -> None:
        super().__init__()
        conv, norm, up = (
            (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d),
            (nn.Conv3d, nn.InstanceNorm3d, nn.ConvTranspose3d),
        )[dims - 2]
        self.pool = (F.max_pool2d, F.max_pool3d)[dims - 2]

        def block(inputs: int, outputs: int) -> nn.Module:
            normed = norm(outputs) if dims == 2 else norm(outputs, affine=True)
            return nn.Sequential(conv(inputs, outputs, 3, padding=1), normed, nn.LeakyReLU(0.1))

        self.one, self.two, self.bottom = block(3, 8), block(8, 16), block(16, 24)
        self.up2, self.up1 = up(24, 16, 2, stride=2), up(16, 8, 2, stride=2)
        self.back2, self.back1, self.head = block(32, 16), block(16, 8), conv(8, 2, 1)
        self.gate = nn.ModuleList([conv(16, 8, 1), conv(16, 8, 1), conv(8, 1, 1)]) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(self.pool(one, 2))
        up = self.up2(self.bottom(self.pool(two, 2)))
        if self.gate is not None:
            two = two * self.gate[2](F.relu(self.gate[0](two) + self.gate[1](up))).sigmoid()
        x = self.back2(torch.cat([two, up], 1))
        return self.head(self.back1(torch.cat([one, self.up1(x)], 1)))


class SPPF(nn.Module):
    """Of YOLO: poolings one behind the other, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (
            ConvNorm(3, 16, 3),
            ConvNorm(16, 8),
            ConvNorm(32, 16),
            nn.Conv2d(16, 6, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        pools = [self.one(self.stem(x))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        return self.head(self.two(torch.cat(pools, 1)))


class BiFPN(nn.Module):
    """Of EfficientDet: learned weights of the inputs of each fusion, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([ConvNorm(3, 12, 3), ConvNorm(12, 20, 3)])
        self.sides = nn.ModuleList([nn.Conv2d(12, 16, 1), nn.Conv2d(20, 16, 1)])
        self.fused = nn.ModuleList([ConvNorm(16, 16, 3, 16), ConvNorm(16, 16, 3, 16)])
        self.weights, self.head = nn.Parameter(torch.rand(2, 2) + 0.1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stems[0](x)
        coarse = self.stems[1](F.max_pool2d(fine, 2))
        fine, coarse = self.sides[0](fine), self.sides[1](coarse)
        weights = self.weights.relu() / (self.weights.relu().sum(1, keepdim=True) + 1e-4)
        down = self.fused[0](weights[0, 0] * fine + weights[0, 1] * F.interpolate(coarse, scale_factor=2.0))
        up = self.fused[1](weights[1, 0] * coarse + weights[1, 1] * F.max_pool2d(down, 2))
        return [self.head(down), self.head(up)]


@dataclass
class Detections:
    scores: list[Tensor]
    boxes: list[Tensor]


class Detector(nn.Module):
    """A feature pyramid, and heads that all levels share (RetinaNet), as a dataclass; or one head per level (SSD)."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.one, self.two = ConvNorm(3, 12, 3), ConvNorm(12, 16, 3)
        self.sides = nn.ModuleList([nn.Conv2d(12, 16, 1), nn.Conv2d(16, 16, 1)])
        heads = 1 if shared else 2
        self.tower = nn.ModuleList(ConvNorm(16, 16, 3) for _ in range(heads))
        self.scores, self.boxes = (nn.ModuleList(nn.Conv2d(16, n, 1) for _ in range(heads)) for n in (6, 8))

    def forward(self, x: Tensor) -> Detections | tuple[Tensor, Tensor]:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        top = self.sides[1](two)
        levels = [self.sides[0](one) + F.interpolate(top, scale_factor=2.0), top]
        found = Detections([], [])
        for number, level in enumerate(levels):
            number = min(number, len(self.tower) - 1)
            level = self.tower[number](level)
            found.scores.append(self.scores[number](level).permute(0, 2, 3, 1).reshape(len(x), -1, 3))
            found.boxes.append(self.boxes[number](level).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return found if len(self.tower) == 1 else (torch.cat(found.scores, 1), torch.cat(found.boxes, 1))


class HRNet(nn.Module):
    """Two resolutions that are exchanged, and joined in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 12, 3)
        self.split, self.fine, self.coarse = nn.Conv2d(12, 20, 3, 2, 1), ConvNorm(12, 12, 3), ConvNorm(20, 20, 3)
        self.down, self.up = nn.Conv2d(12, 20, 3, 2, 1), nn.Conv2d(20, 12, 1)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.split(fine)
        fine, coarse = self.fine(fine), self.coarse(coarse)
        fine, coarse = (
            F.relu(fine + F.interpolate(self.up(coarse), size=fine.shape[2:])),
            F.relu(coarse + self.down(fine)),
        )
        return self.head(torch.cat([fine, F.interpolate(coarse, size=fine.shape[2:], mode="bilinear")], 1))


class ASPP(nn.Module):
    """Of DeepLab: dilated branches, and one of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3)
        self.branches = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 3))
        self.image, self.join, self.head = nn.Conv2d(16, 8, 1), ConvNorm(32, 16), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        image = F.interpolate(self.image(F.adaptive_avg_pool2d(y, 1)), size=y.shape[2:], mode="bilinear")
        return self.head(self.join(torch.cat([*(F.relu(branch(y)) for branch in self.branches), image], 1)))


class EDSR(nn.Module):
    """Residual blocks with a factor, and a pixel shuffle; a dense block inside (RRDB) if wanted."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.stem, self.up, self.head = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 64, 3, padding=1),
            nn.Conv2d(16, 3, 1),
        )
        widths = [16, 24, 32] if dense else [16, 16, 16]
        outputs = [8, 8, 16] if dense else [16, 16, 16]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, outputs, strict=True))
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x - 0.5)
        y = x
        for conv in self.convs[:-1]:
            new = F.leaky_relu(conv(y), 0.2)
            y = torch.cat([y, new], 1) if self.dense else new
        return self.head(F.pixel_shuffle(self.up(x + 0.2 * self.convs[-1](y)), 2)) + 0.5


class ESPCN(nn.Sequential):
    """The pixel shuffle makes the outputs."""

    def __init__(self) -> None:
        layers = (nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 12, 3, padding=1), nn.Tanh())
        super().__init__(*layers, nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2))


class DCGAN(nn.Sequential):
    """A generator of transposed convolutions."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.ConvTranspose2d(8, 24, 4), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()),
        )


class Discriminator(nn.Sequential):
    """With spectral norm, which needs whole matrices."""

    def __init__(self) -> None:
        normed = parametrizations.spectral_norm
        super().__init__(
            *(normed(nn.Conv2d(3, 16, 3, 2, 1)), nn.LeakyReLU(0.2)),
            *(normed(nn.Conv2d(16, 16, 3, 2, 1)), nn.LeakyReLU(0.2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1)),
        )


class StyleTransfer(nn.Module):
    """Instance norms, reflection padding, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.down = nn.ReflectionPad2d(1), nn.Conv2d(3, 16, 3, 2)
        self.norm, self.inner = nn.InstanceNorm2d(16, affine=True), nn.Conv2d(16, 16, 3)
        self.norm2, self.out = nn.InstanceNorm2d(16), nn.Conv2d(16, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.down(self.pad(x))))
        x = x + self.norm2(self.inner(self.pad(x)))
        return self.out(self.pad(F.interpolate(x, scale_factor=2.0))).tanh()


class DiffusionBlock(nn.Module):
    """A group norm, a shift by an embedding of the time, a check of the width, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = inputs
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(16, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class DiffusionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(8, 16)
        self.down, self.middle, self.up = DiffusionBlock(16, 24), DiffusionBlock(24, 24), DiffusionBlock(48, 16)
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        waves = time[:, None].float() * torch.exp(-math.log(100.0) * torch.arange(4) / 4)
        time = self.embed(torch.cat([waves.sin(), waves.cos()], 1))
        down = self.down(self.stem(x), time)
        middle = F.interpolate(self.middle(F.avg_pool2d(down, 2), time), scale_factor=2.0)
        return self.head(F.silu(self.norm(self.up(torch.cat([down, middle], 1), time))))
