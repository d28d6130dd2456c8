"""Images of one class a folder, on the disk or straight from a zip archive."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..utils.errors import InputError, nearest
from .sources import Archive, Folder, Source

AUGMENTATIONS = ("cifar", "imagenet", "none")

# What torchvision's ImageFolder takes for an image.
_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images of a source.

    Attributes:
        files: Their names.
        targets: Their labels.
        classes: The names of the classes, in alphabetical order.
        transform: From a PIL image in RGB to a tensor.
    """

    def __init__(self, source: Source, files: Sequence[str], targets: Sequence[int], classes: Sequence[str]) -> None:
        """Remembers what belongs to it; nothing is read."""
        self.source, self.files, self.targets, self.classes = source, list(files), list(targets), list(classes)
        self.transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, transformed, and its label.

        Raises:
            InputError: The file cannot be decoded.
        """
        image = self.image(index)
        return image if self.transform is None else self.transform(image), self.targets[index]

    def image(self, index: int) -> Any:
        """An image as PIL decodes it, in RGB.

        Raises:
            InputError: The file cannot be decoded.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.source.read(self.files[index]))) as image:
                return image.convert("RGB")
        except Exception as error:  # a decoder of damaged bytes may raise anything
            raise self.unreadable(index, error) from error

    def check_headers(self) -> None:
        """Looks at every file without decoding it (for PNG, its checksums too).

        Raises:
            InputError: The first that is no image.
        """
        from PIL import Image

        for index, name in enumerate(self.files):
            try:
                with Image.open(io.BytesIO(self.source.read(name))) as image:
                    image.verify()
            except Exception as error:
                raise self.unreadable(index, error) from error

    def unreadable(self, index: int, error: Exception) -> InputError:
        """The error for a damaged file."""
        where = self.source.where(self.files[index])
        return InputError(f"image {where} cannot be read ({type(error).__name__}: {error}): remove or replace it")


def open_parts(path: Path, limit: int | None, what: str) -> tuple[Images, Images]:
    """Finds the training and the held-out images of a folder or an archive.

    Args:
        path: A folder or a ``.zip`` with ``train/CLASS/*`` and ``val/CLASS/*`` or ``test/CLASS/*``.
        limit: Takes the first so many of each class, by name; ``None`` takes all.
        what: What is opened, for messages.

    Returns:
        Both, without transforms.

    Raises:
        InputError: A part is missing or empty, or the classes differ.
    """
    if path.suffix.lower() == ".zip":
        if not path.is_file():
            raise InputError(f"{what}: there is no file {path}")
        source: Source = Archive(path)
    else:
        if not path.is_dir():
            raise InputError(f"{what}: there is no folder {path}; it must hold a folder train and a folder val or test")
        source = Folder(path)
    classes: dict[str, dict[str, list[str]]] = {}
    for name in source.names():
        part, _, below = name.partition("/")
        label, inside, file = below.partition("/")
        if inside:
            found = classes.setdefault(part, {}).setdefault(label, [])
            if file.lower().endswith(_ENDINGS):
                found.append(name)
    held_out_part = next((part for part in ("val", "test") if part in classes), None)
    if "train" not in classes or held_out_part is None:
        raise InputError(
            f"{what}: {path} must hold a folder train and a folder val or test, each with a folder a class"
        )
    train, held_out = classes["train"], classes[held_out_part]
    if set(train) != set(held_out):
        odd = sorted(set(train) ^ set(held_out))
        raise InputError(f"{what}: classes {odd[:5]} are in only one of train and {held_out_part}")
    for part, of in (("train", train), (held_out_part, held_out)):
        for name, files in sorted(of.items()):
            if not files:
                raise InputError(f"{what}: {path}/{part}/{name} has no images ({', '.join(_ENDINGS)})")
    return _images(source, train, limit), _images(source, held_out, limit)


def _images(source: Source, classes: dict[str, list[str]], limit: int | None) -> Images:
    names = sorted(classes)
    labelled = [(file, label) for label, name in enumerate(names) for file in classes[name][:limit]]
    return Images(source, [file for file, _ in labelled], [label for _, label in labelled], names)


def transforms(
    augment: str, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """What is done to training images and to held-out ones, from PIL images to float32 tensors ``[3, H, W]``.

    Args:
        augment: ``"cifar"``: the whole image at the given size, mirrored at random and shifted by up to an eighth;
            ``"imagenet"``: a random part of 8 to 100 % of the area, mirrored at random, and held-out images scaled
            by 256/224 of the size on the shorter side and cropped in the middle; ``"none"``: the whole image.
        size: Height and width.
        mean: Subtracted from each of the three colours, after scaling to [0, 1].
        std: Each colour is divided by it.

    Returns:
        The two transforms.

    Raises:
        InputError: An unknown augmentation.
    """
    from torchvision.transforms import v2

    if augment not in AUGMENTATIONS:
        raise InputError(f"augment={augment!r}: {nearest(str(augment), AUGMENTATIONS)}")
    whole = [v2.Resize(size)]
    training: dict[str, list[Any]] = {
        "cifar": [*whole, v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8])],
        "imagenet": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
        "none": whole,
    }
    held_out: list[Any] = whole
    if augment == "imagenet":
        held_out = [v2.Resize(round(min(size) * 256 / 224)), v2.CenterCrop(size)]
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    return v2.Compose([*training[augment], *finish]), v2.Compose([*held_out, *finish])
