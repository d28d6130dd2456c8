"""Images with boxes as data sets and loaders: shared by the formats with boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.errors import ArgumentError, InputError, list_some, missing_extra, nearest
from .box_transforms import AUGMENTATIONS, make_box_transform
from .boxes import AnnotatedImage
from .held_out import check_share
from .loaders import Loader, check_classes, check_positive, check_seed, check_unscaled, make_loader
from .picture_files import LONGEST_SIDE, in_rgb

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Pictures(Protocol):
    """Where the pictures of a data set are."""

    where: str

    def picture(self, file: str) -> AbstractContextManager[Any]:
        """Opens a picture."""


@dataclass(frozen=True)
class BoxOptions:
    """Options for images with boxes.

    Attributes:
        image_size: The size that images are resized to before augmentation, in pixels: one number, or height and
            width. ``None`` keeps their size (torchvision's detectors resize them anyway, but more slowly).
        classes: Names of the classes, in the order of their labels 1, 2, ...; ``None`` takes those of the data.
        augment: Augmentation of the training images: ``"ssd"``, ``"microscope"`` or ``"none"``, see
            :func:`fec_fast.vision.box_transforms.make_box_transform`.
        limit: Uses only the first ``limit`` images of both parts. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.
        held_out: Share of the images to hold out, where the data do not say it themselves. ``None`` for 0.2.
    """

    image_size: int | tuple[int, int] | None = None
    classes: Sequence[str] | None = None
    augment: str = "ssd"
    limit: int | None = None
    workers: int = 0
    held_out: float | None = None

    def check(self, batch_size: Any, seed: Any, purpose: str) -> None:
        """Checks every value, and that what reads images with boxes is installed.

        Args:
            batch_size: Images per batch.
            seed: Seed for the order of the training images.
            purpose: What needs it, for the message.

        Raises:
            InputError: A value is out of its range.
            ArgumentError: A value has the wrong type.
            MissingExtraError: torchvision or Pillow is not installed.
        """
        check_positive("batch_size", batch_size)
        check_seed(seed)
        if type(self.workers) is not int or self.workers != 0:
            check_positive("workers", self.workers)
        check_positive("limit", 1 if self.limit is None else self.limit)
        check_share(self.held_out)
        _ = self.width_and_height
        if self.augment not in AUGMENTATIONS:
            raise InputError(f"augment={self.augment!r}: {nearest(str(self.augment), AUGMENTATIONS)}")
        check_classes(self.classes)
        try:
            import PIL  # noqa: F401 (imported only to see that they are there)
            from torchvision.transforms import v2  # noqa: F401
        except (ImportError, AttributeError) as error:
            raise missing_extra("torchvision and pillow", "detection", purpose, error) from error

    @property
    def width_and_height(self) -> tuple[int, int] | None:
        """The size in the order of Pillow.

        Raises:
            ArgumentError: Neither one integer nor two.
            InputError: Not positive.
        """
        image_size: Any = self.image_size
        if image_size is None:
            return None
        sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise ArgumentError(f"image_size={image_size!r:.80}: give one integer, or height and width")
        if not 1 <= min(sides) <= max(sides) <= LONGEST_SIDE:
            raise InputError(f"image_size={image_size!r:.80}: give numbers from 1 to {LONGEST_SIDE:,}")
        return sides[1], sides[0]


class BoxImages(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with their boxes.

    An item is an image float32 ``[3, H, W]`` in [0, 1] and a dictionary of ``boxes`` float32 ``[N, 4]`` (left, top,
    right, bottom, in pixels of this image) and ``labels`` int64 ``[N]`` (1 is the first class; 0 is the background).
    VOC adds ``difficult`` bool ``[N]``, COCO ``iscrowd`` bool ``[N]``.

    Attributes:
        classes: The names of the classes.
        examples: The annotations, one per image.
    """

    def __init__(
        self,
        pictures: Pictures,
        examples: Sequence[AnnotatedImage],
        classes: Sequence[str],
        image_size: tuple[int, int] | None,
        transform: Callable[..., Any],
    ) -> None:
        """Stores annotations and transforms; nothing is read.

        Args:
            pictures: Where the pictures are.
            examples: The annotations, one per image.
            classes: The names of the classes.
            image_size: Width and height to resize images to; ``None`` keeps their size.
            transform: A function from an image and its target to both, transformed.
        """
        self.classes, self.examples = tuple(classes), tuple(examples)
        self._pictures, self._size, self._transform = pictures, image_size, transform
        self._labels = {name: number for number, name in enumerate(self.classes, start=1)}

    def __len__(self) -> int:
        """The number of images."""
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads, resizes and transforms an image with its boxes.

        Raises:
            InputError: The image cannot be decoded, has another size than its annotation says, or is too large to be
                taken without ``image_size``.
        """
        example = self.examples[index]
        where = f"{self._pictures.where}: {example.file}"
        with self._pictures.picture(example.file) as opened:
            upright = example.upright
            if upright is None:
                upright = is_turned(opened, example.size, where, "its annotation")
            if self._size is None:
                check_unscaled(opened.size, where)
            picture = decoded(opened, self._size, upright)
        return transformed(picture, example, self._labels, self._transform)


def decoded(opened: Any, size: tuple[int, int] | None, upright: bool) -> Any:
    """Decodes an opened picture, in RGB and resized.

    Args:
        opened: The opened PIL image.
        size: Width and height; ``None`` keeps them.
        upright: Whether it is turned as its EXIF data say.

    Returns:
        A PIL image.
    """
    from PIL import Image, ImageOps

    if size is not None:
        # Lets JPEG decode at 1/2, 1/4 or 1/8 of its size, if that is not smaller than the size wanted.
        opened.draft("RGB", size[::-1] if upright and upright_size(opened) != opened.size else size)
    picture = in_rgb(ImageOps.exif_transpose(opened) if upright else opened)
    return picture if size is None else picture.resize(size, Image.Resampling.BILINEAR)


def upright_size(opened: Any) -> tuple[int, int]:
    """Width and height of an opened picture once it is turned as its EXIF data say."""
    width, height = opened.size
    sideways = opened.getexif().get(0x0112, 1) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def is_turned(opened: Any, size: tuple[int, int], subject: str, origin: str) -> bool:
    """Whether an opened picture has the size of its annotation only once it is turned as its EXIF data say.

    Args:
        opened: The opened PIL image.
        size: Width and height in the annotation.
        subject: The subject of the error message: which picture it is.
        origin: Where the size is from, for the message.

    Returns:
        True or false.

    Raises:
        InputError: It has this size neither as stored nor turned.
    """
    as_stored = opened.size
    if size not in (as_stored, upright_size(opened)):
        raise InputError(
            f"{subject} has {as_stored[0]} x {as_stored[1]} pixels, but {size[0]} x {size[1]} in {origin}: its boxes "
            "would lie elsewhere"
        )
    return bool(size != as_stored)


def transformed(
    picture: Any, example: AnnotatedImage, labels: dict[str, int], transform: Callable[..., Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Transforms a picture with its boxes.

    Args:
        picture: A PIL image in RGB, of any size.
        example: Its annotation, in pixels of ``example.size``.
        labels: The labels of the classes.
        transform: A function from an image and its target to both.

    Returns:
        The image and the target.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    pixels = functional.pil_to_tensor(picture)
    height, width = pixels.shape[1:]
    scale = torch.tensor([width / example.size[0], height / example.size[1]]).repeat(2)
    boxes = torch.tensor(example.boxes).reshape(-1, 4) * scale
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([labels[name] for name in example.classes], dtype=torch.int64),
    }
    for key, flags in (("difficult", example.difficult), ("iscrowd", example.crowd)):
        if flags is not None:
            target[key] = torch.tensor(flags, dtype=torch.bool)
    image, target = transform(tv_tensors.Image(pixels), target)
    return image, target


def collate_lists(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Makes a batch in the form that torchvision's detectors take.

    Args:
        samples: Images with their targets.

    Returns:
        The list of images, of any sizes, and the list of targets.

    Raises:
        ArgumentError: It is not a list of pairs.
    """
    is_list = isinstance(samples, list | tuple)
    if not is_list or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in samples):
        raise ArgumentError(f"samples={samples!r:.80}: give a list of pairs of an image and its target")
    return [image for image, _ in samples], [target for _, target in samples]


def box_loaders(
    pictures: Pictures,
    parts: tuple[Sequence[AnnotatedImage], Sequence[AnnotatedImage]],
    names: tuple[str, str],
    classes: Sequence[str],
    options: BoxOptions,
    batch_size: int,
    seed: int,
) -> tuple[Loader, Loader]:
    """Makes the two loaders of a data set with boxes.

    Args:
        pictures: Where the pictures are.
        parts: The annotations of the images to train on and of those to hold out.
        names: The names of the parts, for messages.
        classes: The names of the classes, in the order of their labels.
        options: The options.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.

    Returns:
        The training and the held-out loader.

    Raises:
        InputError: An image is in both parts, the training images have no box, a box has an unknown class, or an image
            is too large to be taken without ``image_size``.
    """
    _check_parts(pictures.where, parts, names, classes, options.classes is not None)
    size = options.width_and_height
    for example in (*parts[0], *parts[1]) if size is None else ():
        check_unscaled(example.size, f"{pictures.where}: {example.file}")
    train, held_out = (
        BoxImages(pictures, part, classes, size, make_box_transform(augment, size))
        for part, augment in zip(parts, (options.augment, "none"), strict=True)
    )
    return loaders_of(train, held_out, batch_size, seed, options.workers)


def loaders_of(train: Any, held_out: Any, batch_size: int, seed: int, workers: int) -> tuple[Loader, Loader]:
    """Makes loaders whose batches are lists of images and of targets.

    Args:
        train: The training images; shuffled.
        held_out: The held-out images; in their order.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        workers: Number of processes that decode images.

    Returns:
        The training and the held-out loader.
    """
    return (
        make_loader(train, batch_size, seed, train=True, collate_fn=collate_lists, num_workers=workers),
        DataLoader(held_out, batch_size, collate_fn=collate_lists, num_workers=workers),
    )


def _check_parts(
    where: str,
    parts: tuple[Sequence[AnnotatedImage], Sequence[AnnotatedImage]],
    names: tuple[str, str],
    classes: Sequence[str],
    given: bool,
) -> None:
    in_both = {example.file for example in parts[0]} & {example.file for example in parts[1]}
    if in_both:
        some = list_some(sorted(example.name for example in parts[0] if example.file in in_both))
        raise InputError(f"{where}: {some} in {names[0]} and in {names[1]}")
    if not classes:
        raise InputError(f"{where}: no image of {names[0]} has a box")
    known = set(classes)
    for example in [*parts[0], *parts[1]]:
        unknown = sorted(set(example.classes) - known)
        if unknown:
            origin = "the classes that were given" if given else f"the classes of {names[0]}"
            raise InputError(
                f"{where}: {unknown[0]!r} in {example.name} is none of {origin}, {list_some(list(classes))}"
            )
