"""Options and data loaders that the image data sets share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ..utils.errors import ArgumentError, InputError, missing_extra, nearest
from ..utils.user_warnings import warn_user
from .transforms import AUGMENTATIONS, make_transforms

Loader = DataLoader[Any]
_LARGEST = 1 << 53
# The number of files whose headers are read unless the user decides otherwise; it takes some seconds.
_MOST_CHECKED_BY_DEFAULT = 100_000
# Pixels of an image that is not scaled to a size that was asked for: its tensors take 30 bytes each.
_MOST_UNSCALED = 4_000_000

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataOptions:
    """Options for images that come from files.

    Attributes:
        image_size: Height and width in pixels. ``None`` takes those of the first training image, or 224 with
            ``augment="imagenet"``.
        augment: Augmentation of the training images: ``"cifar"``, ``"imagenet"`` or ``"none"``, see
            :func:`fec_fast.vision.transforms.make_transforms`.
        limit: Uses only the first ``limit`` images of each class, for training and held out. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.
        mean: Subtracted from each of the three colours, after scaling to [0, 1]. Default: ImageNet's.
        std: Divisor of each colour. Default: ImageNet's.
        check: Whether the header of every file is read before training. ``None`` does so for up to 100,000 images, and
            warns where there are more.
        download: Whether ``torchvision:`` data sets may be downloaded if they are missing.
    """

    image_size: int | None = None
    augment: str = "cifar"
    limit: int | None = None
    workers: int = 0
    mean: Sequence[float] = _IMAGENET_MEAN
    std: Sequence[float] = _IMAGENET_STD
    check: bool | None = None
    download: bool = False

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            InputError: A value is out of its range.
            ArgumentError: A value has the wrong type.
        """
        for name, minimum in (("image_size", 1), ("limit", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is None and name != "workers":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name}={value!r}: give an integer")
            if not minimum <= value <= _LARGEST:
                raise InputError(f"{name}={value!r:.80}: give at least {minimum}, and at most 2**53")
        for name, types in (("check", bool | None), ("download", bool)):
            if not isinstance(getattr(self, name), types):
                raise ArgumentError(f"{name}={getattr(self, name)!r:.80}: give True or False")
        if self.augment not in AUGMENTATIONS:
            raise InputError(f"augment={self.augment!r}: {nearest(str(self.augment), AUGMENTATIONS)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            are_numbers = isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)
            if not are_numbers or len(value) != 3:
                raise ArgumentError(f"{name}={value!r}: give three numbers, one per colour")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DataOptions:
        """Makes options of keyword arguments.

        Args:
            options: Names of attributes and their values.

        Returns:
            The options.

        Raises:
            ArgumentError: There is no option of a name, or a value has the wrong type.
            InputError: A value is out of its range.
        """
        names = [entry.name for entry in fields(cls)]
        for name in options:
            if name not in names:
                raise ArgumentError(f"data has no option {name!r}; {nearest(name, names)}")
        return cls(**options)


def check_positive(option: str, value: Any) -> None:
    """Checks that an option is a positive integer.

    Args:
        option: The option's name, for the message.
        value: The option's value.

    Raises:
        ArgumentError: It is not an integer.
        InputError: It is not positive.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentError(f"{option}={value!r}: give a positive integer")
    if not 1 <= value <= _LARGEST:
        raise InputError(f"{option}={value!r:.80}: give a positive integer, at most 2**53")


def check_seed(seed: Any) -> None:
    """Checks that a seed is one that torch takes; ``ArgumentError`` otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > _LARGEST:
        raise ArgumentError(f"seed={seed!r:.80}: give an integer, at most 2**53")


def check_classes(classes: Any) -> None:
    """Checks the option ``classes``: names, each of them once, or ``None``.

    Args:
        classes: The option's value.

    Raises:
        ArgumentError: It is no list of names.
        InputError: A name is given twice.
    """
    if classes is None:
        return
    is_list = isinstance(classes, list | tuple)
    if not is_list or not classes or not all(isinstance(name, str) and name for name in classes):
        raise ArgumentError(f"classes={classes!r:.80}: give a list of names")
    if len(set(classes)) != len(classes):
        raise InputError(f"classes={list(classes)}: a name is given twice")


def are_headers_read(check: bool | None, count: int, where: str) -> bool:
    """Whether the headers of all files are read before training; warns if they are too many to do so by default.

    Args:
        check: The user's decision; ``None`` for the default.
        count: The number of files.
        where: The data set, for the warning.

    Returns:
        True or false.
    """
    if check is not None:
        return check
    if count > _MOST_CHECKED_BY_DEFAULT:
        warn_user(
            f"{where}: {count:,} files are not checked before training, and one that cannot be read would end the "
            "training with its name; set check=True to check them"
        )
    return count <= _MOST_CHECKED_BY_DEFAULT


def check_torchvision(purpose: str) -> None:
    """Checks that torchvision and Pillow are installed.

    Args:
        purpose: What needs them, for the message.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    try:
        import PIL  # noqa: F401 (imported only to see that it is there)
        import torchvision  # noqa: F401
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision and pillow", "vision", purpose, error) from error


def transforms_for(options: DataOptions, first_image: Any) -> tuple[Any, Any]:
    """Makes the transforms of the training and of the held-out images.

    Args:
        options: The options.
        first_image: The first training image, from PIL; it gives the size if the options do not.

    Returns:
        Two functions from PIL images to tensors float32 ``[3, H, W]``.

    Raises:
        InputError: The options give no size, and the first image has more than 4 million pixels.
    """
    size = (first_image.height, first_image.width)
    if options.image_size is not None:
        size = (options.image_size, options.image_size)
    elif options.augment == "imagenet":
        size = (224, 224)
    else:
        check_unscaled(first_image.size, "the first training image, whose size all images are scaled to,")
    return make_transforms(options.augment, size, options.mean, options.std)


def check_unscaled(size: tuple[int, int], subject: str) -> None:
    """Checks that an image can be taken in its own size.

    Args:
        size: Width and height in pixels.
        subject: The subject of the error message: which image it is.

    Raises:
        InputError: It is so large that a size must be asked for.
    """
    if size[0] * size[1] > _MOST_UNSCALED:
        raise InputError(
            f"{subject} has {size[0]} x {size[1]} pixels; without image_size= at most {_MOST_UNSCALED:,} are taken: "
            "give image_size="
        )


def first_of_each_class(dataset: Any, limit: int | None) -> Any:
    """Limits a data set to the first images of each class, in their order.

    Args:
        dataset: A ``TensorDataset`` of images and labels, or a data set with ``targets``.
        limit: The number of images per class; ``None`` for all.

    Returns:
        The part of the data set, or the data set itself.
    """
    if limit is None:
        return dataset
    labels = dataset.tensors[1] if isinstance(dataset, TensorDataset) else torch.as_tensor(dataset.targets)
    indices = torch.cat([(labels == label).nonzero()[:limit, 0] for label in torch.unique(labels)])
    return Subset(dataset, indices.sort().values.tolist())


def make_loaders(train: Any, held_out: Any, batch_size: int, seed: int, workers: int) -> tuple[Loader, Loader]:
    """Makes the two loaders of a data set.

    Args:
        train: The training images; shuffled.
        held_out: The held-out images; in their order.
        batch_size: Images per batch.
        seed: Seed for the order of the training images and for their augmentation in worker processes.
        workers: Number of processes that decode images.

    Returns:
        The training and the held-out loader.
    """
    return (
        make_loader(train, batch_size, seed, train=True, num_workers=workers),
        make_loader(held_out, batch_size, seed, train=False, num_workers=workers),
    )


def make_loader(dataset: Dataset[Any], batch_size: int, seed: int, *, train: bool, **options: Any) -> Loader:
    """Makes a loader with a random generator of its own.

    Args:
        dataset: The images.
        batch_size: Images per batch.
        seed: Seed of the generator.
        train: Whether to shuffle, and to leave out a last batch of one image.
        **options: Further arguments of ``DataLoader``.

    Returns:
        The loader.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=train,
        drop_last=train and ends_with_single_image(dataset, batch_size),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def ends_with_single_image(dataset: Dataset[Any], batch_size: int) -> bool:
    """Whether the last batch has one image, after others with more.

    Training leaves such a batch out: batch norm cannot train on one image whose feature map has shrunk to 1x1.

    Args:
        dataset: The images.
        batch_size: Images per batch.

    Returns:
        True or false.
    """
    count = len(dataset)  # type: ignore[arg-type]  # every data set of this package has a length
    return count % batch_size == 1 and count > 1
