"""Segmentation: handwritten digits on photographs, and a small U-Net that finds their pixels.

The data set needs no download of its own: scikit-learn's digits, doubled in size and tinted, are put on the JPEG images
of CIFAR-10 at random places. A pixel has the class of its digit, 1 to 10, or 0 where the photograph is. Test images
have other digits and other photographs than training images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.study import data
from fec_fast.training.tasks.base import BatchLoss

CLASSES = 11  # the background and ten digits
INK = 0.35  # from this brightness on, of 1, a pixel of a digit has its class
DIGITS_PER_IMAGE = 2
SIDE = 32


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions with batch norms."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) of three resolutions, with batch norm; images ``[B, 3, H, W]``."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down1, self.down2 = DoubleConvolution(3, width), DoubleConvolution(width, 2 * width)
        self.bottom = DoubleConvolution(2 * width, 4 * width)
        self.raise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = DoubleConvolution(4 * width, 2 * width)
        self.raise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = DoubleConvolution(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, 3, H, W]``, sides divisible by 4, to scores ``[B, 11, H, W]``."""
        first = self.down1(x)
        second = self.down2(self.pool(first))
        bottom = self.bottom(self.pool(second))
        second = self.up2(torch.cat((self.raise2(bottom), second), 1))
        return self.head(self.up1(torch.cat((self.raise1(second), first), 1)))


def composed(
    photographs: Tensor, digits: tuple[Tensor, Tensor], generator: torch.Generator, normalise: data.Normalise
) -> tuple[Tensor, Tensor]:
    """Puts digits on photographs.

    Args:
        photographs: uint8 ``[N, 32, 32, 3]``.
        digits: Images float32 ``[D, 1, 8, 8]`` in [0, 1], and labels int64 ``[D]``.
        generator: Draws digits, places and tints.
        normalise: From photographs to inputs.

    Returns:
        Inputs float32 ``[N, 3, 32, 32]`` and classes int64 ``[N, 32, 32]``.
    """
    pixels = photographs.float()
    classes = torch.zeros(pixels.shape[:3], dtype=torch.int64)
    ink = interpolate(digits[0], scale_factor=2, mode="bilinear").squeeze(1)
    for index in range(len(pixels)):
        for _ in range(DIGITS_PER_IMAGE):
            chosen = int(torch.randint(len(ink), (), generator=generator))
            top, left = torch.randint(SIDE - 15, (2,), generator=generator).tolist()
            tint = torch.randint(256, (3,), generator=generator)
            window = slice(top, top + 16), slice(left, left + 16)
            alpha = ink[chosen].unsqueeze(-1)
            pixels[index][window] = alpha * tint + (1 - alpha) * pixels[index][window]
            mask = ink[chosen] >= INK
            classes[index][window][mask] = digits[1][chosen] + 1
    return normalise(pixels), classes


class SegmentationImages:
    """Training batches, drawn anew in every epoch.

    Attributes:
        iteration: The epoch, counted from 0; set by ``fec_fast.finetune``.
    """

    def __init__(self, cifar: data.Images, digits: data.Images, normalise: data.Normalise, steps: int) -> None:
        self.cifar, self.digits, self.normalise, self.steps = cifar, digits, normalise, steps
        self.iteration = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.iteration)
        photographs = self.cifar.train[0]
        for _ in range(self.steps):
            chosen = torch.randint(len(photographs), (64,), generator=generator)
            yield composed(photographs[chosen], self.digits.train, generator, self.normalise)


def overlap(scores: Tensor, classes: Tensor) -> Tensor:
    """For every image the intersection over union of the pixels of digits, with their classes.

    Args:
        scores: Float ``[N, 11, H, W]``.
        classes: int64 ``[N, H, W]``.

    Returns:
        float64 ``[N]`` in [0, 1].
    """
    found = scores.argmax(1)
    both = ((found == classes) & (classes > 0)).sum((1, 2))
    either = ((found > 0) | (classes > 0)).sum((1, 2))
    return both.double() / either.clamp(min=1)


class Segmentation:
    """A class per pixel, trained with cross entropy: a task of :func:`fec_fast.finetune`."""

    name, main_metric = "segmentation", "overlap"

    def check(self, *arguments: Any, **options: Any) -> None:
        """Nothing: the data are made here."""

    def objective(self, *arguments: Any, **options: Any) -> _PixelLoss:
        """The loss of a training."""
        return _PixelLoss()

    def evaluate(self, model: nn.Module, loader: Iterable[Any], accelerator: Any = None) -> dict[str, float]:
        """The mean overlap over the images of a loader."""
        training = model.training
        with torch.inference_mode():
            found = torch.cat([overlap(model.eval()(x), y) for x, y in loader])
        model.train(training)
        return {"overlap": float(found.mean())}


class _PixelLoss:
    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        x, y = batch
        return BatchLoss(cross_entropy(network(x), y), len(x))

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass
