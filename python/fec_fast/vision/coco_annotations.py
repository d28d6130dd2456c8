"""Annotations of COCO: the JSON file of instances, read within bounds and checked."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import msgspec

from ..utils.errors import InputError, list_some
from ..utils.reading import MEGABYTE, decode_json
from .box_images import is_turned
from .boxes import LARGEST_CORNER, LONGEST_NAME, MOST_OBJECTS, AnnotatedImage, Box, BoxCheck
from .data_root import DataRoot

# COCO's own file of training instances has 428 MB and 990,000 objects of JSON. Of these, what is kept takes some 350
# bytes each; outlines are skipped.
_MOST_BYTES, _MOST_PACKED_BYTES = 512 * MEGABYTE, 128 * MEGABYTE  # in a folder, in a zip
_MOST_OBJECTS_OF_JSON = 1_500_000

_Side = Annotated[int, msgspec.Meta(ge=1, le=int(LARGEST_CORNER))]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4 * LONGEST_NAME)]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: _Text
    width: _Side
    height: _Side


class _Category(msgspec.Struct, gc=False):
    id: int
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool = 0


class _Document(msgspec.Struct, gc=False):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class Instances:
    """The instances of one JSON file.

    Attributes:
        file: Its name below the root.
        categories: The names of the categories, in the order of their ids.
        images: The images, with their boxes.
    """

    def __init__(self, root: DataRoot, file: str) -> None:
        """Reads the file.

        Args:
            root: The data set.
            file: The name of the file below it.

        Raises:
            InputError: The file is missing, too large or damaged, or its entries contradict one another.
        """
        self.file, self._where = file, f"{root.where}: {file}"
        if not root.exists(file):
            raise InputError(f"{root.where}: there is no {file}")
        content = root.read(file, _MOST_BYTES if root.path.is_dir() else _MOST_PACKED_BYTES)
        count = content.count(b"{")
        if count > _MOST_OBJECTS_OF_JSON:
            raise InputError(
                f"{self._where} has {count:,} objects; at most {_MOST_OBJECTS_OF_JSON:,} are read: divide the data set"
            )
        document = decode_json(content, _Document, self._where, InputError)
        self.images = document.images
        for what, entries in (("images", document.images), ("categories", document.categories)):
            self._check_unique(what, [entry.id for entry in entries])
        self._check_unique("files", [image.file_name for image in document.images])
        by_id = sorted(document.categories, key=lambda category: category.id)
        self.categories = [category.name for category in by_id]
        self._check_unique("category names", self.categories)
        if not self.images:
            raise InputError(f"{self._where} names no image")
        names = {category.id: category.name for category in by_id}
        self._annotations: dict[int, list[tuple[Box, str, bool]]] = {image.id: [] for image in document.images}
        for number, entry in enumerate(document.annotations):
            self._add(number, entry, names)

    def _check_unique(self, what: str, values: list[int] | list[str]) -> None:
        if len(set(values)) < len(values):
            repeated = [str(value) for value, count in Counter(values).items() if count > 1]
            raise InputError(
                f"{self._where} has {what} more than once: {list_some(repeated)}; give each an id of its own"
            )

    def _add(self, number: int, entry: _Annotation, names: dict[int, str]) -> None:
        """Adds an annotation to its image."""
        where = f"{self._where}: annotations[{number}]"
        if entry.image_id not in self._annotations:
            raise InputError(f"{where}: there is no image of id {entry.image_id}")
        if entry.category_id not in names:
            raise InputError(f"{where}: there is no category of id {entry.category_id}")
        if not all(abs(value) <= LARGEST_CORNER for value in entry.bbox):
            raise InputError(f"{where}: bbox is {list(entry.bbox)}: give left, top, width and height in pixels")
        if entry.iscrowd not in (0, 1):
            raise InputError(f"{where}: iscrowd is {entry.iscrowd}; expected 0 or 1")
        boxes = self._annotations[entry.image_id]
        if len(boxes) == MOST_OBJECTS:
            raise InputError(f"{where}: its image has more than {MOST_OBJECTS:,} objects")
        left, top, width, height = entry.bbox
        boxes.append(((left, top, left + width, top + height), names[entry.category_id], bool(entry.iscrowd)))

    def annotated(
        self,
        root: DataRoot,
        folder: str,
        images: list[_Image],
        part: str,
        *,
        crowds: bool,
        check_headers: bool,
    ) -> list[AnnotatedImage]:
        """The images with their boxes in the form that all formats have.

        Args:
            root: The data set.
            folder: The folder of the pictures below it; ``""`` is the root.
            images: Some of :attr:`images`.
            part: What they are, for the warnings.
            crowds: Whether boxes of crowds are kept. Evaluation wants them, a training does not.
            check_headers: Whether the headers of the pictures are read, and compared with the sizes in the file.
                Otherwise that is done when a picture is read.

        Returns:
            One annotation per image; those without boxes too.

        Raises:
            InputError: A picture is missing or damaged, or has another size.

        Warns:
            UserWarning: Boxes were dropped or clipped.
        """
        files = [f"{folder}/{image.file_name}" if folder else image.file_name for image in images]
        missing = [file for file in files if not root.exists(file)]
        if missing:
            raise InputError(
                f"{root.where}: {list_some(missing)}, named in {self.file}, cannot be found; images=FOLDER says where "
                "the pictures are"
            )
        check, found = BoxCheck(), []
        for image, file in zip(images, files, strict=True):
            size, upright = (image.width, image.height), None
            if check_headers:
                with root.picture(file) as opened:
                    upright = is_turned(opened, size, f"{root.where}: {file}", self.file)
            boxes, classes, flags = [], [], []
            for box, name, crowd in self._annotations[image.id]:
                if crowd and not crowds:
                    continue
                description = f"{name} {[round(edge) for edge in box]} in {image.file_name}"
                inside = check.clip(box, size, description, slack=1.0)
                if inside is not None:
                    boxes.append(inside)
                    classes.append(name)
                    flags.append(crowd)
            found.append(
                AnnotatedImage(
                    image.file_name, file, size, tuple(boxes), tuple(classes), crowd=tuple(flags), upright=upright
                )
            )
        check.report(root.where, part)
        return found
