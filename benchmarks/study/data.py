"""Networks and images of the study: the test images that are reported are not those that settings are chosen on."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fec_fast.vision import networks
from fec_fast.vision.digits import load_digits

Pairs = list[tuple[Tensor, Tensor]]
Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        build: Returns a new instance.
        weights: The name of its file of weights; ``None`` if its training starts from random weights.
        norm: Mean and standard deviation that its images are normalised with; ``None`` for the digits.
        steps: Steps of training before pruning; 0 if the weights were trained on these images.
        lr: The learning rate of that training.
    """

    build: Callable[[], nn.Module]
    weights: str | None
    norm: tuple[tuple[float, ...], tuple[float, ...]] | None
    steps: int
    lr: float


CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NETWORKS = {
    "resnet56": Network(networks.resnet56_cifar, "cifar-resnet56.pth", IMAGENET, 1170, 0.02),
    "vgg16": Network(networks.vgg16_cifar, "cifar-vgg16bn.pth", CIFAR, 0, 0.0),
    "resnet20": Network(networks.resnet20_cifar, None, CIFAR, 3120, 0.1),
    "resnet-digits": Network(networks.resnet_digits, None, None, 420, 0.05),
    "vgg-digits": Network(networks.vgg_digits, None, None, 420, 0.05),
}
# The number of the test images that formulas and policies were chosen on, and the seed that they are drawn by
# (formula_choice.py).
CHOICE_COUNT, CHOICE_SEED = 2000, 1


class Images:
    """Training and test images of one data set, and their augmentation.

    Attributes:
        train: Training images, as stored, and their labels.
        test: Test images and labels, without those of ``choice``.
        choice: Test images and labels that settings may be chosen on.
        batch: Images per training step.
        shift: The largest shift of a training image, in pixels.
        mirror: Whether half of the training images are mirrored.
    """

    def __init__(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], chosen: int, *, digits: bool) -> None:
        """Splits the test images; ``chosen`` of them become ``choice``."""
        seen = set(random.Random(CHOICE_SEED).sample(range(len(test[1])), chosen))
        order = [index for index in range(len(test[1])) if index not in seen]
        random.Random(0).shuffle(order)
        self.train, self.test = train, (test[0][order], test[1][order])
        self.choice = test[0][sorted(seen)], test[1][sorted(seen)]
        self.batch, self.shift, self.mirror = (64, 1, False) if digits else (128, 4, True)


def cifar(file: Path, work: Path) -> Images:
    """CIFAR-10 from a zip file with folders ``train/CLASS`` and ``test/CLASS``; decoded once and kept in ``work``."""
    parts = []
    for part in ("train", "test"):
        kept = work / f"{part}.pt"
        if not kept.is_file():
            with zipfile.ZipFile(file) as archive:
                names = listed(archive, part)
                torch.save(decoded(archive, names, classes_of(names)), kept)
        parts.append(torch.load(kept))
    return Images(parts[0], parts[1], CHOICE_COUNT, digits=False)


def handwritten() -> Images:
    """scikit-learn's digits: 1,347 training and 450 test images."""
    train, test = (loader.dataset.tensors for loader in load_digits())
    return Images(train, test, 0, digits=True)


def normaliser(network: str) -> Normalise:
    """The function from images as stored to the network's inputs, float32 ``[B, C, H, W]``."""
    norm = NETWORKS[network].norm
    if norm is None:
        return lambda pixels: pixels
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in norm)
    return lambda pixels: ((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous()


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Training images, shifted and mirrored at random."""

    def __init__(self, images: Images, normalise: Normalise) -> None:
        self.images, self.normalise = images, normalise

    def __len__(self) -> int:
        return len(self.images.train[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        (pixels, labels), shift = self.images.train, self.images.shift
        x = self.normalise(pixels[index : index + 1])[0]
        height, width = x.shape[1:]
        (top, left), mirrored = torch.randint(2 * shift + 1, (2,)).tolist(), bool(torch.rand(()) < 0.5)
        x = torch.nn.functional.pad(x, (shift, shift, shift, shift))[:, top : top + height, left : left + width]
        return (x.flip(2) if mirrored and self.images.mirror else x), labels[index]


def loader(images: Images, normalise: Normalise, steps: int, seed: int) -> DataLoader[Any]:
    """Augmented training images, ``steps`` batches per epoch."""
    data = Augmented(images, normalise)
    sampler = RandomSampler(data, num_samples=images.batch * steps, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=images.batch, sampler=sampler)


class GrowingImages:
    """Augmented training images; their size grows with the epoch.

    Attributes:
        iteration: The epoch, counted from 0; set by ``fec_fast.finetune``.
    """

    def __init__(self, images: Images, normalise: Normalise, sizes: Sequence[int], steps: int) -> None:
        """Stores what is drawn from.

        Args:
            images: The images; ``batch`` of them make a step.
            normalise: From images as stored to inputs.
            sizes: Height and width in each epoch.
            steps: Steps per epoch.
        """
        self.images, self.normalise, self.sizes, self.steps = images, normalise, sizes, steps
        self.iteration = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.sizes[self.iteration]
        for x, y in loader(self.images, self.normalise, self.steps, seed=self.iteration):
            yield interpolate(x, size, mode="bilinear", antialias=True) if size < x.shape[-1] else x, y


def tested(images: tuple[Tensor, Tensor], normalise: Normalise, count: int) -> Pairs:
    """The first ``count`` images in batches."""
    return list(_batches(images[0][:count], images[1][:count], normalise))


def calibration(images: Images, normalise: Normalise, count: int, seed: int) -> Pairs:
    """``count`` training images in batches, drawn by the seed."""
    pixels, labels = images.train
    drawn = random.Random(seed).sample(range(len(labels)), min(count, len(labels)))
    return list(_batches(pixels[drawn], labels[drawn], normalise))


def _batches(pixels: Tensor, labels: Tensor, normalise: Normalise) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(pixels.split(250), labels.split(250), strict=True):
        yield normalise(x), y


def listed(archive: zipfile.ZipFile, part: str) -> list[str]:
    """The names of the images of ``"train"`` or ``"test"`` in a zip file, sorted."""
    return sorted(name for name in archive.namelist() if f"{part}/" in name and name.endswith(".jpg"))


def decoded(archive: zipfile.ZipFile, names: list[str], classes: list[str]) -> tuple[Tensor, Tensor]:
    """Images of a zip file, uint8 [N, 32, 32, 3], and their labels, int64 [N].

    Args:
        archive: The zip file, with one folder per class.
        names: The names of the images in it.
        classes: The names of the classes, in the order of the labels.
    """
    pixels = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").tobytes() for name in names]
    images = torch.frombuffer(bytearray(b"".join(pixels)), dtype=torch.uint8).view(len(names), 32, 32, 3)
    return images, torch.tensor([classes.index(name.split("/")[-2]) for name in names])


def classes_of(names: list[str]) -> list[str]:
    """The classes of images, sorted: the folders that they are in."""
    return sorted({name.split("/")[-2] for name in names})
