"""Annotations of PASCAL VOC: the splits, boxes and image sizes of a folder or zip archive, checked as they are read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import InputError, list_some
from ..utils.reading import MEGABYTE
from .boxes import LARGEST_CORNER, LONGEST_NAME, MOST_OBJECTS, AnnotatedImage, Box, BoxCheck
from .data_root import DataRoot

_MOST_XML_BYTES, _MOST_LIST_BYTES = MEGABYTE, 16 * MEGABYTE
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")  # float() also takes "1_0" and "nan"


class VocRoot(DataRoot):
    """The folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``, on the disk or inside a zip archive."""

    def __init__(self, path: Path) -> None:
        """Lists the files.

        Args:
            path: The folder or the archive.

        Raises:
            InputError: There is no such folder or archive, or it holds several data sets.
        """
        super().__init__(path, "voc", "Annotations/")


def split_list(split: str) -> str:
    """The file that lists the images of a split."""
    return f"ImageSets/Main/{split}.txt"


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
    list_file = split_list(split)
    if not root.exists(list_file):
        lists = sorted(name for name in root.files if name.startswith("ImageSets/Main/") and name.endswith(".txt"))
        there = [name[len("ImageSets/Main/") : -len(".txt")] for name in lists if "_" not in name]
        hint = f"; there are {list_some(there)}: name two of them by splits=" if there else ""
        raise InputError(f"{root.where}: there is no {list_file}{hint}")
    lines = root.read_text(list_file, _MOST_LIST_BYTES).splitlines()
    # VOC's lists for one class have a second column.
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise InputError(f"{root.where}: {list_file} names no image")
    names = names[:limit]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{root.where}: {list_file} names {list_some(repeated)} more than once")
    return read_images(root, names, split, f", named in {list_file}")


def annotated_names(root: VocRoot) -> list[str]:
    """The names of all annotations, in alphabetical order.

    Args:
        root: The data set.

    Returns:
        At least one name.

    Raises:
        InputError: There is no annotation.
    """
    files = root.below("Annotations")
    names = [name[len("Annotations/") : -len(".xml")] for name in files if name.endswith(".xml")]
    if not names:
        raise InputError(f"{root.where}: there is neither {split_list('train')} nor a file Annotations/*.xml")
    return names


def read_images(root: VocRoot, names: Sequence[str], part: str, origin: str = "") -> list[AnnotatedImage]:
    """Reads annotations, and the headers of their images.

    Args:
        root: The data set.
        names: The names of the images.
        part: What they are, for the warnings, such as ``"train"``.
        origin: Where the names are from, for the messages.

    Returns:
        One annotation per image.

    Raises:
        InputError: A file is missing or damaged.

    Warns:
        UserWarning: Boxes without an area were dropped, or boxes that reach beyond their image were clipped.
    """
    for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        missing = [name + ending for name in names if not root.exists(f"{folder}/{name}{ending}")]
        if missing:
            raise InputError(f"{root.where}: {folder} lacks {list_some(missing)}{origin}")
    images: list[AnnotatedImage] = []
    check = BoxCheck()
    for name in names:
        file = f"JPEGImages/{name}.jpg"
        with root.picture(file) as image:
            size = image.size
        images.append(_read_annotation(root, name, file, size, check))
    check.report(root.where, part)
    return images


def _read_annotation(root: VocRoot, name: str, file: str, size: tuple[int, int], check: BoxCheck) -> AnnotatedImage:
    """Reads one annotation file."""
    # An ordinary XML parser can be made to use unlimited memory by a file with nested entities.
    from defusedxml import ElementTree

    where = f"{root.where}: Annotations/{name}.xml"
    content = root.read(f"Annotations/{name}.xml", _MOST_XML_BYTES)
    try:
        tree = ElementTree.fromstring(content)
    except Exception as error:  # a parser raises many kinds: on an unknown encoding, on entities, on damaged text
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if sum(1 for _ in tree.iter("object")) > MOST_OBJECTS:
        raise InputError(f"{where}: it has more than {MOST_OBJECTS:,} objects")
    objects: list[tuple[Box, str, bool]] = []
    for number, item in enumerate(tree.iter("object"), start=1):
        label = (item.findtext("name") or "").strip()
        if not label or len(label) > LONGEST_NAME:
            raise InputError(f"{where}: object {number} has no name, or one longer than {LONGEST_NAME} characters")
        difficult = (item.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise InputError(f"{where}: object {number}, {label!r}: difficult is {difficult!r}; expected 0 or 1")
        texts = [(item.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
        corners = [float(text) if _NUMBER.fullmatch(text) else math.nan for text in texts]
        if not all(abs(corner) <= LARGEST_CORNER for corner in corners):
            raise InputError(f"{where}: object {number}, {label!r}, has no box of four numbers")
        description = f"{label} {[round(corner) for corner in corners]} in {name}"
        left, top, right, bottom = corners
        if right <= left or bottom <= top:
            check.dropped.append(description)
            continue
        # VOC counts pixels from 1 and includes the last. So the left and top edges of the box are one less. An edge of
        # 0 is not reported: writers that count from 0 produce it.
        first = [edge - 1 if edge < 0 else max(edge - 1, 0.0) for edge in (left, top)]
        box = check.clip((first[0], first[1], right, bottom), size, description)
        if box is None:
            continue
        objects.append((box, label, difficult == "1"))
    boxes, classes, flags = zip(*objects, strict=True) if objects else ((), (), ())
    return AnnotatedImage(name, file, size, tuple(boxes), tuple(classes), tuple(flags))
