"""Classified images for tests: folders of small images, and all batches of a loader as two tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def all_batches(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The images and the labels of a loader."""
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def write_images(
    root: Path, part: str, classes: tuple[str, ...], size: tuple[int, int] = (12, 16), count: int = 3
) -> None:
    """Writes ``count`` images per class to ``root/part/CLASS``: red tells the class, blue the number of the image.

    Args:
        root: The folder of the data set.
        part: ``"train"``, ``"val"`` or ``"test"``.
        classes: The names of the classes.
        size: Height and width in pixels.
        count: Images per class.
    """
    from PIL import Image

    for number, name in enumerate(classes):
        folder = root / part / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (size[1], size[0]), (40 * number, 90, 10 * index)).save(folder / f"{index}.png")
