"""Annotations of PASCAL VOC: the splits, boxes and image sizes of a folder or zip archive, checked as they are read."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import FecWarning, InputError, list_some
from .sources import Archive, Folder, Source

Box = tuple[float, float, float, float]


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

    def read(self, file: str) -> bytes:
        """The content of a file."""
        return self._source.read(self._prefix + file)


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
    from PIL import Image, UnidentifiedImageError

    where = f"data 'voc:{root.path}'"
    list_file = f"ImageSets/Main/{split}.txt"
    if not root.exists(list_file):
        raise InputError(f"{where}: there is no {list_file}")
    # VOC's lists for one class have a second column.
    names = [line.split()[0] for line in root.read(list_file).decode("utf-8").splitlines() if line.strip()]
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
        try:
            with Image.open(io.BytesIO(root.read(file))) as image:
                size = image.size
        except (OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise InputError(f"{where}: {file} is not an image that can be read: {error}") from error
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
    from defusedxml import DefusedXmlException, ElementTree

    where = f"data 'voc:{root.path}': Annotations/{name}.xml"
    try:
        tree = ElementTree.fromstring(root.read(f"Annotations/{name}.xml"))
    except (ElementTree.ParseError, DefusedXmlException, zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    objects: list[tuple[Box, str, bool]] = []
    for number, item in enumerate(tree.iter("object"), start=1):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise InputError(f"{where}: object {number} has no name")
        try:
            corners = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = [math.nan]
        if not all(map(math.isfinite, corners)):
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
        objects.append((box, label, (item.findtext("difficult") or "0").strip() == "1"))
    boxes, classes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    return AnnotatedImage(name, file, size, tuple(boxes), tuple(classes), tuple(difficult))
