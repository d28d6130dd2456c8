"""Images from dictionaries: Hugging Face ``datasets``, lists, and anything else that gives a dictionary per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..utils.errors import ArgumentError, FecError, InputError, list_some, nearest
from .box_images import BoxOptions, loaders_of, transformed
from .box_transforms import make_box_transform
from .boxes import LARGEST_CORNER, AnnotatedImage, Box, BoxCheck
from .held_out import check_share, refuse_share, take_share
from .loaders import (
    DataOptions,
    Loader,
    check_classes,
    check_positive,
    check_seed,
    check_torchvision,
    check_unscaled,
    make_loaders,
    transforms_for,
)
from .record_fields import (
    LABEL_KEYS,
    OBJECT_KEYS,
    WHERE,
    category_names,
    class_number,
    image_key,
    key_of,
    label_names,
    objects_of,
    record_at,
    value_of,
)
from .record_pictures import picture_of

_HELD_OUT_PARTS = ("validation", "valid", "val", "test")
BOX_FORMATS = ("xywh", "xyxy")
# Arguments of load_records, and options that data in memory have no use for.
_NO_OPTIONS = ("classes", "held_out", "check", "download")

Records = Iterable[Mapping[str, Any]]


def load_records(
    source: Records | Mapping[str, Records] | Sequence[Records],
    batch_size: int = 64,
    seed: int = 0,
    *,
    image: str | None = None,
    label: str | None = None,
    objects: str | None = None,
    box_format: str = "xywh",
    classes: Sequence[str] | None = None,
    held_out: float | None = None,
    **options: Any,
) -> tuple[Loader, Loader]:
    """Makes loaders of data that give one dictionary per image.

    For classification a dictionary has an image and a label; for detection an image and ``objects``, with as many boxes
    as categories, as data sets of the Hugging Face Hub have them. Labels and categories are numbers from 0, or names of
    classes. A detector's labels count from 1: category 0 becomes label 1.

    Args:
        source: The data: an object with ``len()`` and positions, such as a Hugging Face ``Dataset`` or a list, or any
            iterable of dictionaries, which is gone through once and kept in memory. Two of them in a tuple are the data
            to train on and to hold out; in a dictionary (``DatasetDict``), ``train`` and ``validation`` or ``test``.
            Of one alone, a share is held out.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        image: The key of the image: what :func:`fec_fast.vision.record_pictures.picture_of` takes. ``None`` finds it.
        label: The key of the label. ``None`` finds it.
        objects: The key of the objects: a dictionary of two lists, ``bbox`` and ``category``, or a list of dictionaries
            of both. ``None`` finds it; where there is one, the data are for detection.
        box_format: ``"xywh"``: left, top, width and height in pixels, as in COCO. ``"xyxy"``: left, top, right, bottom.
        classes: Names of the classes. ``None`` takes those that a Hugging Face data set lists.
        held_out: The share that is held out of one data set, between 0 and 1. ``None`` for 0.2.
        **options: ``limit`` uses the first records of both parts only. For classification also ``image_size``,
            ``augment``, ``workers``, ``mean`` and ``std`` of :class:`fec_fast.vision.loaders.DataOptions`; for
            detection ``image_size``, ``augment`` and ``workers`` as for :func:`fec_fast.vision.voc.load_voc`.

    Returns:
        The training and the held-out loader, with batches as the other data sets have them.

    Raises:
        InputError: The data are empty, lack a key, or hold what is no image, label or box.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: torchvision or Pillow is not installed.

    Warns:
        UserWarning: A share is held out.
    """
    check_positive("batch_size", batch_size)
    check_seed(seed)
    check_classes(classes)
    check_share(held_out)
    if box_format not in BOX_FORMATS:
        raise InputError(f"box_format={box_format!r}: {nearest(str(box_format), BOX_FORMATS)}")
    check_torchvision(WHERE)
    parts = _parts(source, held_out)
    first = record_at(parts[0], 0)
    image = image_key(first, image)
    if objects is not None or (label is None and any(key in first for key in OBJECT_KEYS)):
        objects = key_of(first, "objects", objects, OBJECT_KEYS)
        _refuse_others(options, BoxOptions)
        box_options = BoxOptions(classes=classes, **options)
        box_options.check(batch_size, seed, WHERE)
        names = category_names(parts[0], objects) if classes is None else list(classes)
        if names is None:
            raise InputError(f"{WHERE}: they do not list the names of their categories: give classes=[...]")
        boxed = [
            RecordBoxes(part, image, objects, box_format, names, box_options.width_and_height, augment)
            for part, augment in zip(_limited(parts, box_options.limit), (box_options.augment, "none"), strict=True)
        ]
        return loaders_of(boxed[0], boxed[1], batch_size, seed, box_options.workers)
    label = key_of(first, "label", label, LABEL_KEYS)
    _refuse_others(options, DataOptions)
    parsed = DataOptions.of(options)
    names = label_names(parts[0], label) if classes is None else list(classes)
    train, test = (RecordImages(part, image, label, names) for part in _limited(parts, parsed.limit))
    train.transform, test.transform = transforms_for(parsed, train.picture(0))
    return make_loaders(train, test, batch_size, seed, parsed.workers)


class RecordImages(Dataset[tuple[Tensor, int]]):
    """Images with labels.

    Attributes:
        classes: The names of the classes; ``()`` where they are not known.
        transform: A function from a PIL image in RGB to a tensor; ``None`` returns the PIL image.
    """

    def __init__(self, records: Any, image: str, label: str, classes: Sequence[str] | None) -> None:
        """Stores the records; none is read.

        Args:
            records: The records, with ``len()`` and positions.
            image: The key of the image.
            label: The key of the label.
            classes: The names of the classes, if they are known.
        """
        self.classes = tuple(classes or ())
        self.transform: Callable[[Any], Any] | None = None
        self._records, self._image, self._label = records, image, label

    def __len__(self) -> int:
        """The number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns an image, transformed, and its label.

        Raises:
            InputError: The record has no such image or label.
        """
        record = record_at(self._records, index)
        picture = picture_of(value_of(record, self._image, index), f"{WHERE}: {self._image} of record {index}")
        value, where = value_of(record, self._label, index), f"{WHERE}: {self._label} of record {index}"
        return picture if self.transform is None else self.transform(picture), class_number(value, self.classes, where)

    def picture(self, index: int) -> Any:
        """The PIL image of a record, not transformed."""
        record = record_at(self._records, index)
        return picture_of(value_of(record, self._image, index), f"{WHERE}: {self._image} of record {index}")


class RecordBoxes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with boxes; items are those of :class:`fec_fast.vision.box_images.BoxImages`.

    Attributes:
        classes: The names of the classes.
    """

    def __init__(
        self,
        records: Any,
        image: str,
        objects: str,
        box_format: str,
        classes: Sequence[str],
        size: tuple[int, int] | None,
        augment: str,
    ) -> None:
        """Stores the records; none is read.

        Args:
            records: The records, with ``len()`` and positions.
            image: The key of the image.
            objects: The key of the objects.
            box_format: One of :data:`BOX_FORMATS`.
            classes: The names of the classes.
            size: Width and height to resize images to; ``None`` keeps their size.
            augment: The augmentation.
        """
        self.classes = tuple(classes)
        self._records, self._image, self._objects = records, image, objects
        self._corners, self._size = box_format == "xyxy", size
        self._transform = make_box_transform(augment, size)
        self._labels = {name: number for number, name in enumerate(self.classes, start=1)}

    def __len__(self) -> int:
        """The number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns an image with its boxes, transformed. Boxes without an area in the image are left out.

        Raises:
            InputError: The record has no such image or objects, or the image is too large to be taken without
                ``image_size``.
        """
        from PIL import Image

        record = record_at(self._records, index)
        picture_name = f"{WHERE}: {self._image} of record {index}"
        picture = picture_of(value_of(record, self._image, index), picture_name)
        if self._size is None:
            check_unscaled(picture.size, picture_name)
        where = f"{WHERE}: {self._objects} of record {index}"
        check, boxes, names = BoxCheck(), [], []
        for box, category in objects_of(value_of(record, self._objects, index), where):
            inside = check.clip(self._box(box, where), picture.size, "")
            if inside is not None:
                boxes.append(inside)
                names.append(self.classes[class_number(category, self.classes, where)])
        example = AnnotatedImage(str(index), str(index), picture.size, tuple(boxes), tuple(names))
        if self._size is not None:
            picture = picture.resize(self._size, Image.Resampling.BILINEAR)
        return transformed(picture, example, self._labels, self._transform)

    def _box(self, value: Any, where: str) -> Box:
        try:
            first, second, third, fourth = (float(number) for number in value)
        except (TypeError, ValueError):
            first = second = third = fourth = math.nan
        if not all(abs(number) <= LARGEST_CORNER for number in (first, second, third, fourth)):
            raise InputError(f"{where}: a box is {value!r:.80}: give four numbers, in pixels")
        return (first, second, third, fourth) if self._corners else (first, second, first + third, second + fourth)


class _Part:
    """Some records of a data set, by position."""

    def __init__(self, records: Any, positions: Sequence[int]) -> None:
        self.records, self.positions = records, positions
        self.features = getattr(records, "features", None)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        return self.records[self.positions[index]]


def _refuse_others(options: Mapping[str, Any], kind: type[DataOptions | BoxOptions]) -> None:
    """Raises if there is an option that the data do not have."""
    allowed = [entry.name for entry in fields(kind) if entry.name not in _NO_OPTIONS]
    for name in options:
        if name not in allowed:
            raise ArgumentError(f"{WHERE} have no option {name!r}; {nearest(name, allowed)}")


def _parts(source: Any, held_out: float | None) -> tuple[Any, Any]:
    """The data to train on and to hold out, each with ``len()`` and positions."""
    if isinstance(source, Mapping):
        names = [str(name) for name in source]
        part = next((name for name in _HELD_OUT_PARTS if name in source), None)
        if "train" not in source:
            raise InputError(f"{WHERE}: there is no part 'train', only {list_some(names) if names else 'none'}")
        if part is not None:
            refuse_share(held_out, WHERE, f"the part {part!r}")
            return _positions(source["train"]), _positions(source[part])
        source = source["train"]
    elif isinstance(source, tuple) and len(source) == 2 and not any(isinstance(part, Mapping) for part in source):
        refuse_share(held_out, WHERE, "the second data set")
        return _positions(source[0]), _positions(source[1])
    whole = _positions(source)
    numbers = range(len(whole))
    train, rest = take_share(
        numbers, [str(number) for number in numbers], held_out, WHERE, "have one part, no second to hold out"
    )
    return _Part(whole, train), _Part(whole, rest)


def _positions(source: Any) -> Any:
    """Data with ``len()`` and positions: the source itself, or what it gives, in a list."""
    if isinstance(source, str | bytes | Mapping | type):
        raise ArgumentError(f"{WHERE}: a {type(source).__name__} is no data set: give dictionaries")
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        if not hasattr(source, "__iter__"):
            raise ArgumentError(f"{WHERE}: a {type(source).__name__} gives no dictionaries: give a list or a data set")
        try:
            source = list(source)
        except (FecError, OSError):
            raise
        except Exception as error:
            raise InputError(f"{WHERE}: reading them raised {type(error).__name__}: {error}") from error
    if not len(source):
        raise InputError(f"{WHERE}: a part is empty")
    return source


def _limited(parts: tuple[Any, Any], limit: int | None) -> list[Any]:
    """The first records of both parts."""
    return [part if limit is None or limit >= len(part) else _Part(part, range(limit)) for part in parts]
