"""Images with boxes in the format of COCO: a JSON file of instances per part, and folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, InputError, list_some
from .box_images import BoxOptions, box_loaders
from .coco_annotations import Instances
from .data_root import DataRoot
from .held_out import refuse_share, take_share
from .loaders import Loader, are_headers_read

# COCO's own names, and those of tools that write one folder per part.
_TRAIN = re.compile(r"annotations/instances_train\w*\.json|train/_annotations\.coco\.json")
_HELD_OUT = tuple(
    re.compile(rf"annotations/instances_{part}\w*\.json|{part}/_annotations\.coco\.json")
    for part in ("val", "valid", "test")
)


def load_coco(
    path: str | Path,
    batch_size: int = 16,
    seed: int = 0,
    *,
    annotations: str | Sequence[str] | None = None,
    images: str | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    held_out: float | None = None,
    augment: str = "ssd",
    limit: int | None = None,
    workers: int = 0,
    check: bool | None = None,
) -> tuple[Loader, Loader]:
    """Loads images with boxes that are annotated in the format of COCO's instances.

    Labels are 1, 2, ... in the order of the categories' ids, which may have gaps. Images without boxes are kept. Boxes
    of crowds are left out of training; held-out images keep them, marked as ``iscrowd``, and average precision treats
    them as COCO's own evaluation does. Outlines (``segmentation``) are not read.

    Args:
        path: A folder or a zip. Found by themselves are ``annotations/instances_train*.json`` and
            ``annotations/instances_val*.json``, ``train/_annotations.coco.json`` and ``valid/_annotations.coco.json``,
            or else the only JSON file in the folder or in ``annotations``.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        annotations: The JSON files below ``path``: one, or one to train on and one to hold out.
        images: The folders of pictures below ``path``, likewise. ``None`` looks where COCO has them, and beside the
            JSON file.
        image_size: As for :func:`fec_fast.vision.voc.load_voc`.
        classes: Names of the classes in the order of their labels; ``None`` takes all categories of the training file.
        held_out: The share of the images that is held out where there is one JSON file. ``None`` for 0.2.
        augment: As for :func:`fec_fast.vision.voc.load_voc`.
        limit: Uses only the first ``limit`` images of both parts. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.
        check: Whether the header of every picture is read before training. ``None`` does so for up to 100,000
            pictures, and warns where there are more. A picture that is not checked is compared with the size in its
            annotation when it is read.

    Returns:
        The training and the held-out loader. A batch is a list of images and a list of targets, see
        :class:`fec_fast.vision.box_images.BoxImages`.

    Raises:
        InputError: Something is missing, empty, damaged or contradictory.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: torchvision or Pillow is not installed.

    Warns:
        UserWarning: A share is held out, or boxes were dropped or clipped.
    """
    folder = check_path("path", path)
    options = BoxOptions(image_size, classes, augment, limit, workers, held_out)
    options.check(batch_size, seed, f"data 'coco:{path}'")
    if check is not None and not isinstance(check, bool):
        raise ArgumentError(f"check={check!r:.80}: give True, False or None")
    files = _names("annotations", annotations)
    folders = _names("images", images)
    root = DataRoot(folder, "coco")
    files = files or _found_files(root)
    instances = [Instances(root, file) for file in files]
    if len(instances) == 1:
        (only,) = instances
        names = [image.file_name for image in only.images]
        instances = [only, only]
        parts = take_share(only.images, names, held_out, root.where, f"has one file of annotations, {only.file}")
    else:
        refuse_share(held_out, root.where, files[1])
        parts = (instances[0].images, instances[1].images)
    places = folders * 2 if len(folders) == 1 else folders
    places = places or [_picture_folder(root, part.file, part.images[0].file_name) for part in instances]
    chosen = [part[:limit] for part in parts]
    check_headers = are_headers_read(check, sum(map(len, chosen)), root.where)
    labels = ("the training images", "the held-out images")
    examples = [
        part.annotated(
            root,
            place,
            some,
            label,
            crowds=label == labels[1],
            check_headers=check_headers,
        )
        for part, place, some, label in zip(instances, places, chosen, labels, strict=True)
    ]
    names = instances[0].categories if classes is None else list(classes)
    return box_loaders(root, (examples[0], examples[1]), labels, names, options, batch_size, seed)


def _names(argument: str, value: Any) -> list[str]:
    """One or two names below the root; none for ``None``."""
    if value is None:
        return []
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{argument}={value!r:.80}: give one name below the data set's folder, or two")
    return [name.strip("/").removeprefix("./") for name in names]


def _found_files(root: DataRoot) -> list[str]:
    """The JSON files: one to train on and one to hold out, or one to divide."""
    train = sorted(file for file in root.files if _TRAIN.fullmatch(file))
    held_out: list[str] = []
    for pattern in _HELD_OUT:
        held_out = held_out or sorted(file for file in root.files if pattern.fullmatch(file))
    if len(train) == 1 and len(held_out) <= 1:
        return train + held_out
    alone = sorted(
        file for file in root.files if file.endswith(".json") and file.rpartition("/")[0] in ("", "annotations")
    )
    if not train and not held_out and len(alone) == 1:
        return alone
    found = train + held_out or alone
    raise InputError(
        f"{root.where}: which JSON files are the annotations? Give annotations=('TRAIN.json', 'VAL.json')"
        + (f"; there are {list_some(found)}" if found else "; there is none in the folder, nor in annotations/")
    )


def _picture_folder(root: DataRoot, file: str, picture: str) -> str:
    """The folder below which a picture that a JSON file names is found."""
    beside, _, name = file.rpartition("/")
    part = name.removeprefix("instances_").removesuffix(".json")
    for folder in (part, f"images/{part}", "images", beside, ""):
        if root.exists(f"{folder}/{picture}" if folder else picture):
            return folder
    raise InputError(
        f"{root.where}: {picture}, named in {file}, cannot be found; images=FOLDER says where the pictures are"
    )
