"""Images with boxes in the format of PASCAL VOC, from a folder or from a zip archive, which is not unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, missing_extra
from .box_images import BoxOptions, box_loaders
from .held_out import refuse_share, take_share
from .loaders import Loader
from .voc_annotations import VocRoot, annotated_names, read_images, read_split, split_list

_USUAL = ("train", "val")


def load_voc(
    path: str | Path,
    batch_size: int = 16,
    seed: int = 0,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    splits: tuple[str, str] | None = None,
    held_out: float | None = None,
    augment: str = "ssd",
    limit: int | None = None,
    workers: int = 0,
) -> tuple[Loader, Loader]:
    """Loads images with boxes that are annotated in the format of PASCAL VOC.

    All annotations and the headers of all images are read at once, so that an error is reported here and not in the
    middle of training.

    Args:
        path: A folder or a zip with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main/{train,val,test}.txt``.
            Without ``train.txt``, a share of all annotated images is held out, always the same ones; a warning says so.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        image_size: The size that images are resized to before augmentation, in pixels: one number, or height and
            width. ``None`` keeps their size (torchvision's detectors resize them anyway, but more slowly).
        classes: Names of the classes, in the order of their labels 1, 2, ...; ``None`` takes those of the training
            images in alphabetical order.
        splits: The split to train on and the split to hold out. ``None`` for train and val.
        held_out: The share that is held out where there is no ``train.txt``, between 0 and 1. ``None`` for 0.2.
        augment: Augmentation of the training images. ``"ssd"``: colours, zooming out, cropping by overlap and
            mirroring, as in the paper of SSD (Liu et al., 2016). ``"microscope"``, for images without up and down, and
            cheaper: brightness and contrast, crops of 40 to 100 % of the area, mirroring on both axes. ``"none"``.
        limit: Uses only the first ``limit`` images of both splits. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.

    Returns:
        The training and the held-out loader. A batch is a list of images and a list of targets, see
        :class:`fec_fast.vision.box_images.BoxImages`.

    Raises:
        InputError: Something is missing, empty, damaged or contradictory.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: torchvision, Pillow or defusedxml is not installed.

    Warns:
        UserWarning: A share is held out, boxes without an area were dropped, or boxes that reach beyond their image
            were clipped; the message names them.
    """
    file = check_path("path", path)
    options = BoxOptions(image_size, classes, augment, limit, workers, held_out)
    options.check(batch_size, seed, f"data 'voc:{path}'")
    try:
        import defusedxml  # noqa: F401 (imported only to see that it is there)
    except (ImportError, AttributeError) as error:
        raise missing_extra("defusedxml", "detection", f"data 'voc:{path}'", error) from error
    if splits is not None and not (
        isinstance(splits, list | tuple) and len(splits) == 2 and all(isinstance(name, str) for name in splits)
    ):
        raise ArgumentError(f"splits={splits!r:.80}: give the names of two splits, such as ('trainval', 'test')")
    root = VocRoot(file)
    if splits is None and not root.exists(split_list(_USUAL[0])):
        names = annotated_names(root)
        chosen = take_share(names, names, held_out, root.where, f"has no {split_list(_USUAL[0])}")
        labels = ("the training images", "the held-out images")
        parts = [read_images(root, part[:limit], label) for part, label in zip(chosen, labels, strict=True)]
    else:
        labels = _USUAL if splits is None else (splits[0], splits[1])
        refuse_share(held_out, root.where, split_list(labels[0]))
        parts = [read_split(root, split, limit) for split in labels]
    if classes is None:
        classes = sorted({name for example in parts[0] for name in example.classes})
    return box_loaders(root, (parts[0], parts[1]), labels, classes, options, batch_size, seed)
