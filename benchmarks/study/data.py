"""The networks of the study and their images, split so that nothing is chosen on what is reported."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fec_fast.vision import networks
from fec_fast.vision.digits import load_digits

Pairs = list[tuple[Tensor, Tensor]]
Normal = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        title: For the page.
        build: Makes it.
        weights: The file that it comes with; ``None`` for one that is trained from nothing here.
        norm: Mean and deviation of its images; ``None`` for the digits.
        steps: Of training before pruning; 0 for one that comes trained on these images.
        lr: Of that.
    """

    title: str
    build: Callable[[], nn.Module]
    weights: str | None
    norm: tuple[tuple[float, ...], tuple[float, ...]] | None
    steps: int
    lr: float


CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NETWORKS = {
    "resnet56": Network("ResNet-56", networks.resnet56_cifar, "cifar-resnet56.pth", IMAGENET, 1170, 0.02),
    "vgg16": Network("VGG-16-BN", networks.vgg16_cifar, "cifar-vgg16bn.pth", CIFAR, 0, 0.0),
    "resnet20": Network("ResNet-20", networks.resnet20_cifar, None, CIFAR, 3120, 0.1),
    "resnet-digits": Network("digits, ResNet", networks.resnet_digits, None, None, 420, 0.05),
    "vgg-digits": Network("digits, VGG", networks.vgg_digits, None, None, 420, 0.05),
}
# The test images that formulas and policies were chosen on are 2,000 drawn so, see choose_formula.py.
CHOSEN_ON = (2000, 1)


class Images:
    """Training and test images of one kind, as they lie in memory, and what makes numbers of them.

    Attributes:
        train: Images and labels.
        test: The same, none of ``choice``.
        choice: Test images that may be chosen on.
        batch: Images a step of training.
        shift: Pixels that a training image is moved by at most.
        mirror: Whether half of them are mirrored.
    """

    def __init__(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], chosen: int, *, digits: bool) -> None:
        """Splits the test images."""
        seen = set(random.Random(CHOSEN_ON[1]).sample(range(len(test[1])), chosen))
        order = [index for index in range(len(test[1])) if index not in seen]
        random.Random(0).shuffle(order)
        self.train, self.test = train, (test[0][order], test[1][order])
        self.choice = test[0][sorted(seen)], test[1][sorted(seen)]
        self.batch, self.shift, self.mirror = (64, 1, False) if digits else (128, 4, True)


def cifar(file: Path, work: Path) -> Images:
    """CIFAR-10 of a zip with folders ``train/CLASS`` and ``test/CLASS``, decoded once and kept as bytes."""
    parts = []
    for part in ("train", "test"):
        kept = work / f"{part}.pt"
        if not kept.is_file():
            with zipfile.ZipFile(file) as archive:
                torch.save(_decoded(archive, part), kept)
        parts.append(torch.load(kept))
    return Images(parts[0], parts[1], CHOSEN_ON[0], digits=False)


def handwritten() -> Images:
    """scikit-learn's digits, 1,347 to train on and 450 to test on."""
    train, test = (loader.dataset.tensors for loader in load_digits())
    return Images(train, test, 0, digits=True)


def normal(network: str) -> Normal:
    """What makes float32 ``[B, C, H, W]`` of images as they lie in memory."""
    norm = NETWORKS[network].norm
    if norm is None:
        return lambda pixels: pixels
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in norm)
    return lambda pixels: ((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous()


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Training images, shifted and mirrored at random."""

    def __init__(self, images: Images, make: Normal) -> None:
        self.images, self.make = images, make

    def __len__(self) -> int:
        return len(self.images.train[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        (pixels, labels), by = self.images.train, self.images.shift
        x = self.make(pixels[index : index + 1])[0]
        height, width = x.shape[1:]
        (top, left), mirrored = torch.randint(2 * by + 1, (2,)).tolist(), bool(torch.rand(()) < 0.5)
        x = torch.nn.functional.pad(x, (by, by, by, by))[:, top : top + height, left : left + width]
        return (x.flip(2) if mirrored and self.images.mirror else x), labels[index]


def loader(images: Images, make: Normal, steps: int, seed: int) -> DataLoader[Any]:
    """So many batches of augmented training images."""
    data = Augmented(images, make)
    sampler = RandomSampler(data, num_samples=images.batch * steps, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=images.batch, sampler=sampler)


def tested(images: tuple[Tensor, Tensor], make: Normal, count: int) -> Pairs:
    """The first so many images in batches."""
    return list(_batches(images[0][:count], images[1][:count], make))


def calibration(images: Images, make: Normal, count: int, seed: int) -> Pairs:
    """Training images in batches, drawn by a seed."""
    pixels, labels = images.train
    drawn = random.Random(seed).sample(range(len(labels)), min(count, len(labels)))
    return list(_batches(pixels[drawn], labels[drawn], make))


def _batches(pixels: Tensor, labels: Tensor, make: Normal) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(pixels.split(250), labels.split(250), strict=True):
        yield make(x), y


def _decoded(archive: zipfile.ZipFile, part: str) -> tuple[Tensor, Tensor]:
    names = sorted(name for name in archive.namelist() if f"{part}/" in name and name.endswith(".jpg"))
    classes = sorted({name.split("/")[-2] for name in names})
    pixels = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").tobytes() for name in names]
    images = torch.frombuffer(bytearray(b"".join(pixels)), dtype=torch.uint8).view(len(names), 32, 32, 3)
    return images, torch.tensor([classes.index(name.split("/")[-2]) for name in names])
