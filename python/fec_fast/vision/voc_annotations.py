"""Annotations of PASCAL VOC: the splits, boxes and image sizes of a folder or zip archive, checked as they are read."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import FecWarning, InputError, list_some
from ..utils.reading import MEGABYTE
from .picture_files import opened_picture
from .sources import Archive, Folder, Source

Box = tuple[float, float, float, float]

_MOST_XML_BYTES, _MOST_LIST_BYTES = MEGABYTE, 16 * MEGABYTE
_MOST_OBJECTS, _LONGEST_NAME = 10_000, 200
_LARGEST_CORNER = 1e6  # pixels; no picture that is decoded is as wide
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")  # float() also takes "1_0" and "nan"


@dataclass(frozen=True)
class AnnotatedImage:
    """The annotation of one image.

    Attributes:
        name: The image's name without an ending.
        file: The image's file, relative to the root of the data set.
        size: Width and height in pixels.
        boxes: One ``(left, top, right, bottom)`` in pixels per object; the left edge of the first pixel is 0.
        classes: One class name per object.
        difficult: One flag per object: whether VOC marks it as difficult to recognise.
    """

    name: str
    file: str
    size: tuple[int, int]
    boxes: tuple[Box, ...]
    classes: tuple[str, ...]
    difficult: tuple[bool, ...]


class VocRoot:
    """The folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``, on the disk or inside a zip archive.

    Attributes:
        path: The folder or the archive.
    """

    def __init__(self, path: Path) -> None:
        """Lists the files.

        Args:
            path: The folder or the archive.

        Raises:
            InputError: There is no such folder or archive, or it holds several data sets.
        """
        self.path, self._prefix = path, ""
        if path.is_dir():
            self._source: Source = Folder(path)
        elif path.is_file():
            self._source = Archive(path)
        else:
            raise InputError(f"data 'voc:{path}': there is no such folder or zip")
        names = self._source.names()
        if path.is_file():
            # VOC's own archives have everything below VOCdevkit/VOC2007/.
            prefixes = sorted({name[: name.index("ImageSets/")] for name in names if "ImageSets/" in name})
            if len(prefixes) > 1:
                raise InputError(
                    f"data 'voc:{path}' holds several data sets ({', '.join(prefixes)}): unpack it and name one"
                )
            self._prefix = prefixes[0] if prefixes else ""
        self._names = frozenset(name.removeprefix(self._prefix) for name in names)

    def exists(self, file: str) -> bool:
        """Whether there is a file of this name."""
        return file in self._names

    def read(self, file: str, most: int) -> bytes:
        """The content of a file of at most this number of bytes; ``InputError`` if it is larger or damaged."""
        return self._source.read(self._prefix + file, most)

    def picture(self, file: str) -> AbstractContextManager[Any]:
        """Opens a picture; see :func:`fec_fast.vision.picture_files.opened_picture`."""
        name = self._prefix + file
        return opened_picture(lambda: self._source.read(name), f"data 'voc:{self.path}': {file}")


def read_split(root: VocRoot, split: str, limit: int | None) -> list[AnnotatedImage]:
    """Reads the annotations of a split and the headers of its images.

    Args:
        root: The data set.
        split: The name of the split, such as ``"train"``.
        limit: Reads only the first ``limit`` images; ``None`` reads all.

    Returns:
        One annotation per image, in the order of the split's list.

    Raises:
        InputError: A file is missing, empty or damaged.

    Warns:
        UserWarning: Boxes without an area were dropped, or boxes that reach beyond their image were clipped.
    """
    where = f"data 'voc:{root.path}'"
    list_file = f"ImageSets/Main/{split}.txt"
    if not root.exists(list_file):
        raise InputError(f"{where}: there is no {list_file}")
    # VOC's lists for one class have a second column.
    try:
        lines = root.read(list_file, _MOST_LIST_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {list_file} is not text in UTF-8: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise InputError(f"{where}: {list_file} names no image")
    names = names[:limit]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{where}: {list_file} names {list_some(repeated)} more than once")
    for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        missing = [name + ending for name in names if not root.exists(f"{folder}/{name}{ending}")]
        if missing:
            raise InputError(f"{where}: {folder} lacks {list_some(missing)}, named in {list_file}")
    images: list[AnnotatedImage] = []
    dropped: list[str] = []
    clipped: list[str] = []
    for name in names:
        file = f"JPEGImages/{name}.jpg"
        with root.picture(file) as image:
            size = image.size
        images.append(_read_annotation(root, name, file, size, dropped, clipped))
    for boxes, fate in (
        (dropped, "have no area inside their image and are dropped"),
        (clipped, "reach beyond their image and are clipped"),
    ):
        if boxes:
            warnings.warn(
                f"{where}: {len(boxes)} of {split}'s boxes {fate}: {list_some(boxes)}", FecWarning, stacklevel=3
            )
    return images


def _read_annotation(
    root: VocRoot, name: str, file: str, size: tuple[int, int], dropped: list[str], clipped: list[str]
) -> AnnotatedImage:
    """Reads one annotation file; descriptions of boxes that are dropped or clipped are added to the two lists."""
    # An ordinary XML parser can be made to use unlimited memory by a file with nested entities.
    from defusedxml import ElementTree

    where = f"data 'voc:{root.path}': Annotations/{name}.xml"
    content = root.read(f"Annotations/{name}.xml", _MOST_XML_BYTES)
    try:
        tree = ElementTree.fromstring(content)
    except Exception as error:  # a parser raises many kinds: on an unknown encoding, on entities, on damaged text
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if sum(1 for _ in tree.iter("object")) > _MOST_OBJECTS:
        raise InputError(f"{where}: it has more than {_MOST_OBJECTS:,} objects")
    objects: list[tuple[Box, str, bool]] = []
    for number, item in enumerate(tree.iter("object"), start=1):
        label = (item.findtext("name") or "").strip()
        if not label or len(label) > _LONGEST_NAME:
            raise InputError(f"{where}: object {number} has no name, or one longer than {_LONGEST_NAME} characters")
        difficult = (item.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise InputError(f"{where}: object {number}, {label!r}: difficult is {difficult!r}; expected 0 or 1")
        texts = [(item.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
        corners = [float(text) if _NUMBER.fullmatch(text) else math.nan for text in texts]
        if not all(abs(corner) <= _LARGEST_CORNER for corner in corners):
            raise InputError(f"{where}: object {number}, {label!r}, has no box of four numbers")
        description = f"{label} {[round(corner) for corner in corners]} in {name}"
        left, top, right, bottom = corners
        # VOC counts pixels from 1 and includes the last. So the left and top edges of the box are one less.
        box = max(left - 1, 0.0), max(top - 1, 0.0), min(right, size[0]), min(bottom, size[1])
        if right <= left or bottom <= top or box[2] <= box[0] or box[3] <= box[1]:
            dropped.append(description)
            continue
        # A left or top edge of 0 is not reported: writers that count from 0 produce it.
        if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
            clipped.append(description)
        objects.append((box, label, difficult == "1"))
    boxes, classes, flags = zip(*objects, strict=True) if objects else ((), (), ())
    return AnnotatedImage(name, file, size, tuple(boxes), tuple(classes), tuple(flags))
