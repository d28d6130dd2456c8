"""Images with boxes in the format of YOLO: ``data.yaml``, and a text file of boxes beside each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..utils.arguments import check_path
from ..utils.errors import missing_extra
from .box_images import BoxOptions, box_loaders
from .data_root import DataRoot
from .held_out import refuse_share, take_share
from .loaders import Loader
from .yolo_annotations import read_yolo_file, read_yolo_images


def load_yolo(
    path: str | Path,
    batch_size: int = 16,
    seed: int = 0,
    *,
    image_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    held_out: float | None = None,
    augment: str = "ssd",
    limit: int | None = None,
    workers: int = 0,
) -> tuple[Loader, Loader]:
    """Loads images with boxes that are annotated in the format of YOLO.

    A line of a text file is a class, counted from 0, and the centre, width and height of a box as shares of the image;
    or a class and the corners of an outline, of which the box is taken. Label 1 is class 0. A picture without a text
    file has no boxes. All text files and the headers of all images are read at once.

    Args:
        path: A folder or a zip with ``data.yaml``, or such a file in the folder. It has ``names``, ``train`` and
            ``val`` (or ``test``): folders of pictures, or text files that list them, below the folder. Boxes are looked
            for under ``labels`` where pictures are under ``images``.
        batch_size: Images per batch.
        seed: Seed for the order of the training images, and for their augmentation in worker processes.
        image_size: As for :func:`fec_fast.vision.voc.load_voc`.
        classes: Names of the classes in the order of their labels; ``None`` takes ``names`` of ``data.yaml``.
        held_out: The share of the images that is held out where ``data.yaml`` has no ``val``. ``None`` for 0.2.
        augment: As for :func:`fec_fast.vision.voc.load_voc`.
        limit: Uses only the first ``limit`` images of both parts. ``None`` uses all.
        workers: Number of processes that decode images. 0 decodes in this process.

    Returns:
        The training and the held-out loader. A batch is a list of images and a list of targets, see
        :class:`fec_fast.vision.box_images.BoxImages`.

    Raises:
        InputError: Something is missing, empty, damaged or contradictory.
        ArgumentError: An argument has the wrong type.
        MissingExtraError: torchvision, Pillow or pyyaml is not installed.

    Warns:
        UserWarning: A share is held out, or boxes were dropped or clipped.
    """
    folder, file = check_path("path", path), None
    options = BoxOptions(image_size, classes, augment, limit, workers, held_out)
    options.check(batch_size, seed, f"data 'yolo:{path}'")
    try:
        import yaml  # noqa: F401 (imported only to see that it is there)
    except (ImportError, AttributeError) as error:
        raise missing_extra("pyyaml", "detection", f"data 'yolo:{path}'", error) from error
    if folder.suffix.lower() in (".yaml", ".yml") and not folder.is_dir():
        folder, file = folder.parent, folder.name
    root = DataRoot(folder, "yolo")
    content = read_yolo_file(root, file)
    if content.held_out is None:
        parts = take_share(content.train, content.train, held_out, root.where, f"names no val in {content.file}")
    else:
        refuse_share(held_out, root.where, content.file)
        parts = (list(content.train), list(content.held_out))
    labels = ("the training images", "the held-out images")
    examples = [
        read_yolo_images(root, part[:limit], content.names, label) for part, label in zip(parts, labels, strict=True)
    ]
    names = content.names if classes is None else list(classes)
    return box_loaders(root, (examples[0], examples[1]), labels, names, options, batch_size, seed)
