"""Annotations of YOLO: ``data.yaml`` and a text file of boxes per image, read within bounds and checked."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.errors import InputError, list_some
from ..utils.reading import MEGABYTE
from ..utils.yaml_text import MOST_YAML_BYTES, parse_yaml
from .box_images import upright_size
from .boxes import LONGEST_NAME, MOST_OBJECTS, AnnotatedImage, Box, BoxCheck
from .data_root import DataRoot

_MOST_LABEL_BYTES, _MOST_LIST_BYTES, _MOST_CLASSES = MEGABYTE, 16 * MEGABYTE, 10_000
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
# Writers round; beyond that a number was not divided by the size of the image.
_ROUNDING = 0.01


@dataclass(frozen=True)
class YoloFile:
    """What ``data.yaml`` says.

    Attributes:
        file: Its name below the root.
        names: The names of the classes 0, 1, ...
        train: The pictures to train on.
        held_out: The pictures to hold out; ``None`` if the file names none.
    """

    file: str
    names: Sequence[str]
    train: Sequence[str]
    held_out: Sequence[str] | None


def read_yolo_file(root: DataRoot, file: str | None) -> YoloFile:
    """Reads ``data.yaml`` and finds the pictures that it names.

    Args:
        root: The data set.
        file: The name of the file below it; ``None`` finds it.

    Returns:
        Names and pictures.

    Raises:
        InputError: The file is missing, damaged or contradictory, or names what is not below the root.
    """
    if file is None:
        found = sorted(name for name in root.files if "/" not in name and name.endswith((".yaml", ".yml")))
        found = ["data.yaml"] if "data.yaml" in found else found
        if len(found) != 1:
            several = f" (there are {list_some(found)})" if found else ""
            raise InputError(
                f"{root.where}: there is no data.yaml{several}; write one with names: [...], train: and val: folders"
            )
        (file,) = found
    where = f"{root.where}: {file}"
    text = root.read_text(file, MOST_YAML_BYTES)
    try:
        content = parse_yaml(text, number_keys=True)
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} must hold keys and values, such as names: [cat, dog]")
    if "kpt_shape" in content:
        raise InputError(f"{where} describes poses (kpt_shape): give a data set of boxes or outlines")
    names = _class_names(content, where)
    base = content.get("path", "")
    bases = [folder for folder in (_inside(base) if isinstance(base, str) else None, "") if folder is not None]
    train = _pictures(root, content.get("train"), "train", bases, where)
    if train is None:
        raise InputError(f"{where}: train is missing: give the folder of the training images, such as images/train")
    held_out = _pictures(root, content.get("val") or content.get("test"), "val", bases, where)
    return YoloFile(file, names, train, held_out)


def _class_names(content: dict[Any, Any], where: str) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise InputError(f"{where}: names must have the keys 0, 1, 2, ...")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{where}: names is missing: give the names of the classes, such as [cat, dog]")
    texts = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]
    if len(texts) > _MOST_CLASSES or not all(isinstance(n, str) and 0 < len(n) <= LONGEST_NAME for n in texts):
        raise InputError(f"{where}: names must be texts of at most {LONGEST_NAME} characters")
    if len(set(texts)) != len(texts):
        raise InputError(f"{where}: names has a name twice")
    if content.get("nc", len(texts)) != len(texts):
        raise InputError(f"{where}: nc is {content['nc']!r}, but there are {len(texts)} names")
    return texts


def _inside(path: str) -> str | None:
    """A path as a name below the root; ``None`` if it leads elsewhere.

    Some tools write paths that begin with ``../`` for what lies beside ``data.yaml``.
    """
    name = posixpath.normpath(path.replace("\\", "/"))
    while name.startswith("../"):
        name = name[3:]
    if name.startswith("/") or name == ".." or ":" in name:
        return None
    return "" if name == "." else name


def _pictures(root: DataRoot, entry: Any, key: str, bases: Sequence[str], where: str) -> list[str] | None:
    """The pictures of a part: those of folders, or of text files that list them."""
    if entry is None:
        return None
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(item, str) and item for item in entries):
        raise InputError(f"{where}: {key} must be a folder, or a list of folders")
    found: list[str] = []
    for item in entries:
        name = _inside(item)
        if name is None:
            raise InputError(
                f"{where}: {key}: {item!r} is outside of the data set: move it below {root.path}, and write its path "
                "from there"
            )
        for base in bases:
            at = posixpath.normpath(f"{base}/{name}").lstrip("/") if base else name
            if at.endswith(".txt") and root.exists(at):
                found += _listed(root, at, base)
                break
            pictures = [file for file in root.below(at) if file.lower().endswith(_PICTURES)]
            if pictures:
                found += pictures
                break
        else:
            raise InputError(f"{where}: {key}: there is no picture in {item!r} below {root.path}")
    repeated = len(found) - len(set(found))
    if repeated:
        raise InputError(f"{where}: {key} names {repeated} picture(s) more than once")
    return found


def _listed(root: DataRoot, file: str, base: str) -> list[str]:
    """The pictures that a text file lists, one per line."""
    where = f"{root.where}: {file}"
    lines = root.read_text(file, _MOST_LIST_BYTES).splitlines()
    pictures = []
    folders = dict.fromkeys([posixpath.dirname(file), base, ""])
    for line in filter(None, map(str.strip, lines)):
        name = _inside(line)
        places = [] if name is None else [posixpath.normpath(f"{folder}/{name}").lstrip("/") for folder in folders]
        picture = next(filter(root.exists, places), None)
        if picture is None:
            raise InputError(f"{where}: there is no picture {line[:200]!r} below {root.path}")
        pictures.append(picture)
    if not pictures:
        raise InputError(f"{where} names no picture")
    return pictures


def label_file(picture: str) -> str:
    """The text file with the boxes of a picture: below ``labels`` where the picture is below ``images``.

    Args:
        picture: The picture's name below the root.

    Returns:
        The name of the text file.
    """
    head, images, tail = f"/{picture}".rpartition("/images/")
    name = f"{head}/labels/{tail}" if images else picture
    return posixpath.splitext(name.lstrip("/"))[0] + ".txt"


def read_yolo_images(root: DataRoot, pictures: Sequence[str], names: Sequence[str], part: str) -> list[AnnotatedImage]:
    """Reads the boxes of pictures, and the headers of the pictures.

    Args:
        root: The data set.
        pictures: The names of the pictures below it.
        names: The names of the classes.
        part: What they are, for the warnings.

    Returns:
        One annotation per picture; a picture without a text file has no boxes.

    Raises:
        InputError: A picture or a text file is damaged.

    Warns:
        UserWarning: Boxes were dropped or clipped.
    """
    check, images = BoxCheck(), []
    for picture in pictures:
        with root.picture(picture) as opened:
            size = upright_size(opened)
        file, objects = label_file(picture), []
        if root.exists(file):
            objects = _read_boxes(root, file, size, names, check)
        boxes, classes = zip(*objects, strict=True) if objects else ((), ())
        images.append(AnnotatedImage(picture, picture, size, tuple(boxes), tuple(classes), upright=True))
    check.report(root.where, part)
    return images


def _read_boxes(
    root: DataRoot, file: str, size: tuple[int, int], names: Sequence[str], check: BoxCheck
) -> list[tuple[Box, str]]:
    """Reads one text file: a class and a box, or an outline, per line."""
    lines = root.read_text(file, _MOST_LABEL_BYTES).splitlines()
    if len(lines) > MOST_OBJECTS:
        raise InputError(f"{root.where}: {file} has more than {MOST_OBJECTS:,} lines")
    objects = []
    for number, line in enumerate(lines, start=1):
        texts, where = line.split(), f"{root.where}: {file}, line {number}"
        if not texts:
            continue
        values = [float(text) if _NUMBER.fullmatch(text) else math.nan for text in texts]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise InputError(
                f"{where} has {len(values)} numbers: give a class, and the centre, width and height of a box, or the "
                "x and y of three or more corners"
            )
        if values[0] not in range(len(names)):
            raise InputError(f"{where}: class {texts[0][:40]} is none of 0 to {len(names) - 1}, which have names")
        if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in values[1:]):
            raise InputError(
                f"{where}: {' '.join(texts[1:5])[:80]} are not shares of the image's width and height, between 0 and 1"
            )
        if len(values) == 5:
            x, y, width, height = values[1:]
            edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            edges = (min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2]))
        name = names[int(values[0])]
        box = (edges[0] * size[0], edges[1] * size[1], edges[2] * size[0], edges[3] * size[1])
        inside = check.clip(box, size, f"{name} in line {number} of {file}", slack=1.0)
        if inside is not None:
            objects.append((inside, name))
    return objects
