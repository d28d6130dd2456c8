"""CIFAR-10 as JPEG for the study: decoded once, kept as bytes, split so that nothing is chosen on what is reported."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

NORMS = {
    "vgg16": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "resnet56": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# The test images that formulas and policies were chosen on are 2,000 drawn so, see choose_formula.py.
CHOSEN_ON = (2000, 1)


class Archive:
    """The images of a zip with folders ``train/CLASS`` and ``test/CLASS``."""

    def __init__(self, file: Path, work: Path) -> None:
        self.parts: dict[str, tuple[Tensor, Tensor]] = {}
        with zipfile.ZipFile(file) as archive:
            for part in ("train", "test"):
                kept = work / f"{part}.pt"
                if not kept.is_file():
                    torch.save(_decoded(archive, part), kept)
                self.parts[part] = torch.load(kept)
        count, seed = CHOSEN_ON
        pixels, labels = self.parts["test"]
        seen = set(random.Random(seed).sample(range(len(labels)), count))
        order = [index for index in range(len(labels)) if index not in seen]
        random.Random(0).shuffle(order)
        self.parts["test"] = pixels[order], labels[order]

    def train(self, network: str) -> tuple[Tensor, Tensor, str]:
        """All training images as bytes, their labels, and whose normalisation they get."""
        return (*self.parts["train"], network)

    def test(self, network: str, count: int) -> list[tuple[Tensor, Tensor]]:
        """Test images in batches, normalised."""
        pixels, labels = self.parts["test"]
        return list(_batches(pixels[:count], labels[:count], network))

    def calibration(self, network: str, count: int, seed: int) -> list[Tensor]:
        """Training images in batches, drawn by a seed, without labels."""
        return [x for x, _ in self.labelled(network, count, seed)]

    def labelled(self, network: str, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """The same with labels."""
        pixels, labels = self.parts["train"]
        drawn = random.Random(seed).sample(range(len(labels)), count)
        return list(_batches(pixels[drawn], labels[drawn], network))


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Training images, mirrored at random and shifted by up to four pixels."""

    def __init__(self, pixels: Tensor, labels: Tensor, network: str) -> None:
        self.pixels, self.targets, self.network = pixels, labels, network

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.nn.functional.pad(normal(self.pixels[index : index + 1], self.network)[0], (4, 4, 4, 4))
        (top, left), mirror = torch.randint(9, (2,)).tolist(), bool(torch.rand(()) < 0.5)
        x = x[:, top : top + 32, left : left + 32]
        return (x.flip(2) if mirror else x), self.targets[index]


def loader(pixels: Tensor, labels: Tensor, network: str, steps: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of 128 augmented images, so many of them."""
    data = Augmented(pixels, labels, network)
    sampler = RandomSampler(data, num_samples=128 * steps, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=128, sampler=sampler)


def normal(pixels: Tensor, network: str) -> Tensor:
    """Bytes ``[B, 32, 32, 3]`` as normalised float32 ``[B, 3, 32, 32]``."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in NORMS[network])
    return ((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous()


def _batches(pixels: Tensor, labels: Tensor, network: str) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(pixels.split(250), labels.split(250), strict=True):
        yield normal(x, network), y


def _decoded(archive: zipfile.ZipFile, part: str) -> tuple[Tensor, Tensor]:
    names = sorted(name for name in archive.namelist() if f"{part}/" in name and name.endswith(".jpg"))
    classes = sorted({name.split("/")[-2] for name in names})
    pixels = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").tobytes() for name in names]
    images = torch.frombuffer(bytearray(b"".join(pixels)), dtype=torch.uint8).view(len(names), 32, 32, 3)
    return images, torch.tensor([classes.index(name.split("/")[-2]) for name in names])
