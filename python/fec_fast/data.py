"""Images to train and to evaluate on, by name. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from .errors import ArgumentError, InputError, missing_extra, nearest

Loader = DataLoader[Any]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def digits(batch_size: int = 64, seed: int = 0) -> tuple[Loader, Loader]:
    """The 1,797 handwritten digits of 8x8 pixels that come inside scikit-learn.

    A quarter of them, the same share of every class, is held out. The split does not depend on ``seed``, so that
    a network trained with one seed is never evaluated on its own training images with another. Writers are not
    known, so the same hand may be in both parts.

    Args:
        batch_size: Images a batch.
        seed: Of the order of the training images and of their shifts.

    Returns:
        The training loader (1,347 images, shuffled, each shifted by up to one pixel) and the held-out loader
        (450 images). Batches are images float32 ``[B, 1, 8, 8]`` in [0, 1] and labels int64 ``[B]`` in 0..9.

    Raises:
        ArgumentError: ``batch_size`` is not an integer.
        InputError: ``batch_size`` is not positive.
        MissingExtraError: scikit-learn is not installed.
    """
    _check_batch_size(batch_size)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "data 'sklearn:digits'") from error
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=450, stratify=labels, random_state=0)
    train_x, held_out_x = (torch.tensor(part / 16.0, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_y, held_out_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    train = _loader(TensorDataset(train_x, train_y), batch_size, seed, train=True, collate_fn=_shifted)
    return train, _loader(TensorDataset(held_out_x, held_out_y), batch_size, seed, train=False)


def image_folder(
    path: str | Path,
    batch_size: int = 64,
    seed: int = 0,
    *,
    image_size: int | None = None,
    mean: Sequence[float] = _IMAGENET_MEAN,
    std: Sequence[float] = _IMAGENET_STD,
    workers: int = 0,
) -> tuple[Loader, Loader]:
    """Images in folders, one folder a class, below ``train`` and ``val`` (or ``test``).

    Args:
        path: The folder that holds ``train/CLASS/*`` and ``val/CLASS/*`` or ``test/CLASS/*``.
        batch_size: Images a batch.
        seed: Of the order of the training images and of their augmentation.
        image_size: Height and width all images are resized to; ``None`` takes those of the first training image.
        mean: Subtracted from each of the three colours, after scaling to [0, 1]; ImageNet's unless given.
        std: Each colour is divided by it.
        workers: Processes that decode images; 0 decodes in this one.

    Returns:
        The training loader (shuffled; mirrored at random and shifted by up to an eighth) and the held-out loader.
        Batches are images float32 ``[B, 3, H, W]`` and labels int64 ``[B]``, in the alphabetical order of classes.

    Raises:
        InputError: A folder is missing or has no images, the two parts have different classes, or ``batch_size`` is
            not positive.
        ArgumentError: ``batch_size`` is not an integer.
        MissingExtraError: torchvision or Pillow is not installed.
    """
    _check_batch_size(batch_size)
    try:
        from PIL import Image
        from torchvision import datasets, transforms
    except ImportError as error:
        raise missing_extra("torchvision and pillow", "vision", f"data 'imagefolder:{path}'") from error
    root = Path(path)
    held_out_root = next((root / part for part in ("val", "test") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or held_out_root is None:
        raise InputError(f"data 'imagefolder:{path}': {root} must hold a folder train and a folder val or test")
    try:
        train, held_out = datasets.ImageFolder(root / "train"), datasets.ImageFolder(held_out_root)
    except FileNotFoundError as error:
        raise InputError(f"data 'imagefolder:{path}': {error}") from error
    if train.classes != held_out.classes:
        odd = sorted(set(train.classes) ^ set(held_out.classes))
        raise InputError(f"data 'imagefolder:{path}': classes {odd[:5]} are in only one of train and held-out")
    if image_size is None:
        with Image.open(train.samples[0][0]) as first:
            size = (first.height, first.width)
    else:
        size = (image_size, image_size)
    finish = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(size, padding=[size[1] // 8, size[0] // 8]),
    ]
    train.transform = transforms.Compose([transforms.Resize(size), *augment, *finish])
    held_out.transform = transforms.Compose([transforms.Resize(size), *finish])
    return (
        _loader(train, batch_size, seed, train=True, num_workers=workers),
        _loader(held_out, batch_size, seed, train=False, num_workers=workers),
    )


def load(spec: str, batch_size: int = 64, seed: int = 0) -> tuple[Loader, Loader]:
    """Opens a data set by name.

    Args:
        spec: ``"sklearn:digits"`` (see :func:`digits`) or ``"imagefolder:PATH"`` (see :func:`image_folder`).
        batch_size: Images a batch.
        seed: Of shuffling and augmentation.

    Returns:
        The training and the held-out loader.

    Raises:
        InputError: An unknown name, a folder that does not hold what it should, or a ``batch_size`` that is not
            positive.
        ArgumentError: ``batch_size`` is not an integer.
        MissingExtraError: The library behind it is not installed.
    """
    kind, _, rest = spec.partition(":")
    if spec == "sklearn:digits":
        return digits(batch_size, seed)
    if kind == "imagefolder" and rest:
        return image_folder(rest, batch_size, seed)
    known = ("sklearn:digits", "imagefolder:PATH")
    raise InputError(f"data {spec!r}: write sklearn:digits or imagefolder:PATH; {nearest(spec, known)}")


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise ArgumentError(f"batch_size={batch_size!r}: give a positive integer")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give a positive integer")


def _loader(dataset: Dataset[Any], batch_size: int, seed: int, *, train: bool, **options: Any) -> Loader:
    count = len(dataset)  # type: ignore[arg-type]  # every data set of this module has a length
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=train,
        # Batch norm cannot train on a batch of one image whose map has shrunk to 1x1.
        drop_last=train and count % batch_size == 1 and count > 1,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def _shifted(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stacks samples, each image moved by -1, 0 or 1 pixels both ways, zeros moving in."""
    images, labels = default_collate(samples)
    count, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    picked = padded[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]
    return picked, labels
