"""Images with boxes in the format of PASCAL VOC, from a folder or from a zip archive, which is not unpacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, InputError, list_some, missing_extra, nearest
from .loaders import Loader, check_positive, check_seed, check_unscaled, ends_with_single_image
from .picture_files import LONGEST_SIDE, in_rgb
from .voc_annotations import AnnotatedImage, VocRoot, read_split

AUGMENTATIONS = ("ssd", "microscope", "none")


def load_voc(
    path: str | Path,
    batch_size: int = 16,
    seed: int = 0,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    splits: tuple[str, str] = ("train", "val"),
    augment: str = "ssd",
    limit: int | None = None,
    workers: int = 0,
) -> tuple[Loader, Loader]:
    """Loads images with boxes that are annotated in the format of PASCAL VOC.

    All annotations and the headers of all images are read at once, so that an error is reported here and not in the
    middle of training.

    Args:
        path: A folder or a zip with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main/{train,val,test}.txt``.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        image_size: The size that images are resized to before augmentation, in pixels: one number, or height and
            width. ``None`` keeps their size (torchvision's detectors resize them anyway, but more slowly).
        classes: Names of the classes, in the order of their labels 1, 2, ...; ``None`` takes those of the training
            images in alphabetical order.
        splits: The split to train on and the split to hold out.
        augment: Augmentation of the training images. ``"ssd"``: colours, zooming out, cropping by overlap and
            mirroring, as in the paper of SSD (Liu et al., 2016). ``"microscope"``, for images without up and down, and
            cheaper: brightness and contrast, crops of 40 to 100 % of the area, mirroring on both axes. ``"none"``.
        limit: Uses only the first ``limit`` images of both splits. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.

    Returns:
        The training and the held-out loader. A batch is a list of images and a list of targets, see
        :class:`VocImages`.

    Raises:
        InputError: Something is missing, empty, damaged or contradictory.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: torchvision, Pillow or defusedxml is not installed.

    Warns:
        UserWarning: Boxes without an area were dropped, or boxes that reach beyond their image were clipped; the
            message names them.
    """
    file = check_path("path", path)
    check_positive("batch_size", batch_size)
    check_seed(seed)
    if type(workers) is not int or workers != 0:
        check_positive("workers", workers)
    if classes is not None and not (_are_names(classes) and classes):
        raise ArgumentError(f"classes={classes!r:.80}: give a list of names")
    if not _are_names(splits) or len(splits) != 2:
        raise ArgumentError(f"splits={splits!r:.80}: give the names of two splits, such as ('train', 'val')")
    check_positive("limit", 1 if limit is None else limit)
    size = _width_and_height(image_size)
    if augment not in AUGMENTATIONS:
        raise InputError(f"augment={augment!r}: {nearest(augment, AUGMENTATIONS)}")
    try:
        import defusedxml  # noqa: F401 (imported only to see that they are there)
        import PIL  # noqa: F401
        from torchvision.transforms import v2  # noqa: F401
    except ImportError as error:
        raise missing_extra("torchvision, pillow and defusedxml", "detection", f"data 'voc:{path}'") from error
    root = VocRoot(file)
    parts = []
    for split in splits:
        parts.append(read_split(root, split, limit))
    for example in (*parts[0], *parts[1]) if size is None else ():
        check_unscaled(example.size, f"data 'voc:{path}': {example.file}")
    names = _class_names(root, splits, parts, classes)
    train, held_out = (
        VocImages(root, part, names, size, _make_transform(augmentation, size))
        for part, augmentation in zip(parts, (augment, "none"), strict=True)
    )
    return (
        DataLoader(
            train,
            batch_size,
            shuffle=True,
            drop_last=ends_with_single_image(train, batch_size),
            generator=torch.Generator().manual_seed(seed),
            collate_fn=collate_lists,
            num_workers=workers,
        ),
        DataLoader(held_out, batch_size, collate_fn=collate_lists, num_workers=workers),
    )


class VocImages(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The images of one split with their boxes.

    An item is an image float32 ``[3, H, W]`` in [0, 1] and a dictionary of ``boxes`` float32 ``[N, 4]`` (left, top,
    right, bottom, in pixels of this image), ``labels`` int64 ``[N]`` (1 is the first class; 0 is the background) and
    ``difficult`` bool ``[N]``.

    Attributes:
        classes: The names of the classes.
        examples: The annotations, one per image.
    """

    def __init__(
        self,
        root: VocRoot,
        examples: Sequence[AnnotatedImage],
        classes: Sequence[str],
        image_size: tuple[int, int] | None,
        transform: Callable[..., Any],
    ) -> None:
        """Stores annotations and transforms; nothing is read.

        Args:
            root: The data set.
            examples: The annotations, one per image.
            classes: The names of the classes.
            image_size: Width and height to resize images to; ``None`` keeps their size.
            transform: A function from an image and its target to both, transformed.
        """
        self.classes, self.examples = tuple(classes), tuple(examples)
        self._root, self._size, self._transform = root, image_size, transform

    def __len__(self) -> int:
        """The number of images."""
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads, resizes and transforms an image with its boxes.

        Raises:
            InputError: The image cannot be decoded.
        """
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional

        example = self.examples[index]
        pixels = functional.pil_to_tensor(self._decode(example))
        height, width = pixels.shape[1:]
        scale = torch.tensor([width / example.size[0], height / example.size[1]]).repeat(2)
        boxes = torch.tensor(example.boxes).reshape(-1, 4) * scale
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([self.classes.index(name) + 1 for name in example.classes], dtype=torch.int64),
            "difficult": torch.tensor(example.difficult, dtype=torch.bool),
        }
        image, target = self._transform(tv_tensors.Image(pixels), target)
        return image, target

    def _decode(self, example: AnnotatedImage) -> Any:
        """Returns a PIL image in RGB, resized."""
        from PIL import Image

        with self._root.picture(example.file) as opened:
            if self._size is None:
                return in_rgb(opened)
            # Lets JPEG decode at 1/2, 1/4 or 1/8 of its size, if that is not smaller than the size wanted.
            opened.draft("RGB", self._size)
            return in_rgb(opened).resize(self._size, Image.Resampling.BILINEAR)


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


def _are_names(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(name, str) for name in values)


def _class_names(
    root: VocRoot, splits: tuple[str, str], parts: Sequence[list[AnnotatedImage]], classes: Sequence[str] | None
) -> list[str]:
    """The names of the classes in the order of their labels.

    Raises:
        InputError: An image is in both splits, there is no class, or a box has a class that is not among them.
    """
    where = f"data 'voc:{root.path}'"
    in_both = {example.name for example in parts[0]} & {example.name for example in parts[1]}
    if in_both:
        raise InputError(f"{where}: {list_some(sorted(in_both))} in {splits[0]} and in {splits[1]}")
    names = sorted({name for example in parts[0] for name in example.classes}) if classes is None else list(classes)
    if not names:
        raise InputError(f"{where}: no image of {splits[0]} has a box")
    if len(set(names)) != len(names):
        raise InputError(f"classes={names}: a name is given twice")
    for example in [*parts[0], *parts[1]]:
        unknown = sorted(set(example.classes) - set(names))
        if unknown:
            origin = f"the classes of {splits[0]}" if classes is None else "the classes that were given"
            raise InputError(f"{where}: {unknown[0]!r} in {example.name} is none of {origin}, {list_some(names)}")
    return names


def _width_and_height(image_size: Any) -> tuple[int, int] | None:
    """The size in the order of Pillow."""
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ArgumentError(f"image_size={image_size!r:.80}: give one integer, or height and width")
    if not 1 <= min(sides) <= max(sides) <= LONGEST_SIDE:
        raise InputError(f"image_size={image_size!r:.80}: give numbers from 1 to {LONGEST_SIDE:,}")
    return sides[1], sides[0]


def _make_transform(augment: str, size: tuple[int, int] | None) -> Callable[..., Any]:
    from torchvision.transforms import v2

    steps: list[Any] = []
    if augment == "ssd":
        fill = [124, 116, 104]  # ImageNet's mean colour, as in the paper of SSD
        steps += [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=fill), v2.RandomIoUCrop()]
        steps += [v2.RandomHorizontalFlip()]
        if size is not None:
            steps.append(v2.Resize(size[::-1]))
    if augment == "microscope":
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)]
        steps.append(_ScaledCrop(size))
    if steps:
        steps.append(v2.SanitizeBoundingBoxes(min_size=4, labels_getter=_labels_and_flags))
    transform: Callable[..., Any] = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    return transform


class _ScaledCrop:
    """A random crop of 40 to 100 % of the area, scaled to the size of the whole image."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Any, target: Any) -> Any:
        from torchvision.transforms import v2

        size = list(image.shape[-2:]) if self.size is None else self.size[::-1]
        aspect = size[1] / size[0]
        return v2.RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(0.8 * aspect, 1.25 * aspect))(image, target)


def _labels_and_flags(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The values that SanitizeBoundingBoxes removes together with a box."""
    return sample[1]["labels"], sample[1]["difficult"]
