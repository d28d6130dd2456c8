"""Image folders: one folder per class, on the disk or inside a zip archive, which is not unpacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..utils.arguments import check_path
from ..utils.errors import InputError
from .loaders import (
    DataOptions,
    Loader,
    are_headers_read,
    check_positive,
    check_seed,
    check_torchvision,
    make_loaders,
    transforms_for,
)
from .picture_files import in_rgb, opened_picture
from .sources import Archive, Folder, Source

# The endings that torchvision's ImageFolder accepts.
_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def load_image_folder(path: str | Path, batch_size: int = 64, seed: int = 0, **options: Any) -> tuple[Loader, Loader]:
    """Loads images from folders, one per class, below ``train`` and ``val`` (or ``test``).

    Args:
        path: The folder, or the ``.zip``, that holds ``train/CLASS/*`` and ``val/CLASS/*`` or ``test/CLASS/*``.
        batch_size: Images per batch.
        seed: Seed for the order of the training images and of their augmentation.
        **options: The attributes of :class:`fec_fast.vision.loaders.DataOptions`.

    Returns:
        The training loader (shuffled and augmented) and the held-out loader. Batches are images float32
        ``[B, 3, H, W]`` and labels int64 ``[B]``, in the alphabetical order of the classes.

    Raises:
        InputError: A folder is missing or has no images, the two parts have different classes, a file is not an image,
            or a number is out of its range.
        ArgumentError: There is no such option, or a value has the wrong type.
        MissingExtraError: torchvision or Pillow is not installed.
    """
    file = check_path("path", path)
    check_positive("batch_size", batch_size)
    check_seed(seed)
    parsed = DataOptions.of(options)
    purpose = f"data 'imagefolder:{path}'"
    check_torchvision(purpose)
    train, held_out = _open_parts(file, parsed.limit, purpose)
    if are_headers_read(parsed.check, len(train) + len(held_out), purpose):
        train.check_headers()
        held_out.check_headers()
    train.transform, held_out.transform = transforms_for(parsed, train.image(0))
    return make_loaders(train, held_out, batch_size, seed, parsed.workers)


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images of a folder or an archive with their labels.

    Attributes:
        files: The names of the images in the source.
        targets: Their labels.
        classes: The names of the classes, in alphabetical order.
        transform: A function from a PIL image in RGB to a tensor; ``None`` returns the PIL image.
    """

    def __init__(self, source: Source, files: Sequence[str], targets: Sequence[int], classes: Sequence[str]) -> None:
        """Stores names and labels; nothing is read.

        Args:
            source: The folder or archive.
            files: The names of the images in it.
            targets: One label per image.
            classes: The names of the classes.
        """
        self.source, self.files, self.targets, self.classes = source, list(files), list(targets), list(classes)
        self.transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns an image, transformed, and its label.

        Raises:
            InputError: The file cannot be decoded.
        """
        image = self.image(index)
        return image if self.transform is None else self.transform(image), self.targets[index]

    def image(self, index: int) -> Any:
        """Decodes an image.

        Returns:
            A PIL image in RGB.

        Raises:
            InputError: The file cannot be decoded, or is too large.
        """
        with self._opened(index) as image:
            return in_rgb(image)

    def check_headers(self) -> None:
        """Reads every file without decoding it (PNG: with its checksums).

        Raises:
            InputError: A file is not an image, or is too large; the message names the first.
        """
        for index in range(len(self)):
            with self._opened(index) as image:
                image.verify()

    def _opened(self, index: int) -> AbstractContextManager[Any]:
        name = self.files[index]
        return opened_picture(lambda: self.source.read(name), f"image {self.source.describe(name)}")


def _open_parts(path: Path, limit: int | None, purpose: str) -> tuple[LabelledImages, LabelledImages]:
    """Finds the training and the held-out images of a folder or a zip archive; nothing is decoded.

    Raises:
        InputError: A part is missing or empty, or the classes differ.
    """
    if path.suffix.lower() == ".zip":
        if not path.is_file():
            raise InputError(f"{purpose}: there is no file {path}")
        source: Source = Archive(path)
    else:
        if not path.is_dir():
            raise InputError(
                f"{purpose}: there is no folder {path}; it must hold a folder train and a folder val or test"
            )
        source = Folder(path)
    parts: dict[str, dict[str, list[str]]] = {}  # part -> class -> files
    for name in source.names():
        part, _, below = name.partition("/")
        label, slash, file = below.partition("/")
        if slash:  # the folder of a class, even if it is empty, or something in it
            files = parts.setdefault(part, {}).setdefault(label, [])
            if file.lower().endswith(_ENDINGS):
                files.append(name)
    held_out_part = next((part for part in ("val", "test") if part in parts), None)
    if "train" not in parts or held_out_part is None:
        raise InputError(
            f"{purpose}: {path} must hold a folder train and a folder val or test, each with one folder per class"
        )
    train, held_out = parts["train"], parts[held_out_part]
    if set(train) != set(held_out):
        different = sorted(set(train) ^ set(held_out))
        raise InputError(f"{purpose}: classes {different[:5]} are in only one of train and {held_out_part}")
    for part, classes in (("train", train), (held_out_part, held_out)):
        for name, files in sorted(classes.items()):
            if not files:
                raise InputError(f"{purpose}: {path}/{part}/{name} has no images ({', '.join(_ENDINGS)})")
    return _labelled(source, train, limit), _labelled(source, held_out, limit)


def _labelled(source: Source, classes: dict[str, list[str]], limit: int | None) -> LabelledImages:
    names = sorted(classes)
    pairs = [(file, label) for label, name in enumerate(names) for file in classes[name][:limit]]
    return LabelledImages(source, [file for file, _ in pairs], [label for _, label in pairs], names)
