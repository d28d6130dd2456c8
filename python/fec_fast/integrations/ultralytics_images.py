"""Images of a data set, through ultralytics' own loading and preprocessing, as batches of tensors.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..utils.arguments import check_number, check_path
from ..utils.errors import ArgumentError, InputError
from ..utils.modules import device_of
from ..utils.reading import MEGABYTE, read_bytes
from .ultralytics_training import network_of

_MOST_LIST_BYTES = 16 * MEGABYTE


class CalibrationImages:
    """Images of a data set as batches of tensors, prepared as ``yolo.predict`` prepares them; iterable again and again.

    Attributes:
        files: The images, in the order in which they are read.
    """

    def __init__(self, predictor: Any, files: list[str]) -> None:
        """Stores the arguments.

        Args:
            predictor: Ultralytics' predictor of the task, with its network.
            files: The images.
        """
        self._predictor, self.files = predictor, files

    def __len__(self) -> int:
        """The number of batches."""
        batch: int = self._predictor.args.batch
        return -(-len(self.files) // batch)

    def __iter__(self) -> Iterator[Tensor]:
        """Reads the images: float32 ``[B, channels, imgsz, imgsz]`` in RGB order, on the network's device."""
        from ultralytics.data.loaders import LoadImagesAndVideos

        predictor = self._predictor
        predictor.setup_source(self.files[0])  # sets sizes; from a list it would hold all images at once
        for _, pictures, _ in LoadImagesAndVideos(
            self.files, batch=predictor.args.batch, channels=getattr(predictor.model, "channels", 3)
        ):
            yield predictor.preprocess(pictures)


def calibration_images(
    yolo: Any, data: str | os.PathLike[str], *, imgsz: int | None = None, images: int = 256, batch: int = 16
) -> CalibrationImages:
    """Images of a data set, through ultralytics' own loading and preprocessing, for :func:`fec_fast.compensate` too.

    Args:
        yolo: The object whose preprocessing is used.
        data: The YAML file of a data set, whose training images are used; or a folder, whose images are used (those of
            its folder ``train``, if it has one).
        imgsz: Height and width in pixels; ``None``: what the network was trained with.
        images: How many images, taken evenly from all; at least one.
        batch: How many images are in a batch.

    Returns:
        The batches.

    Raises:
        InputError: No such file or folder, or no images in it.
        ArgumentError: Not a ``YOLO`` object, or an argument of the wrong kind.
    """
    model, size = network_of(yolo), image_size(yolo, imgsz)
    for name, number in ("images", images), ("batch", batch):
        check_number(name, number, "a whole number of at least 1", least=1)
    return prepared_images(yolo, model, _image_files(check_path("data", data)), size, images, batch)


def training_images(yolo: Any, model: nn.Module, train: Any, imgsz: int, images: int = 256) -> CalibrationImages:
    """Images of a training that is running.

    Args:
        yolo: The object that trains; its task decides how images are prepared.
        model: The network that is trained; it is copied.
        train: What ultralytics holds as the training part of the data: a path, or a list of paths.
        imgsz: Height and width in pixels.
        images: How many images, taken evenly from all.

    Returns:
        The batches.

    Raises:
        InputError: No images there.
    """
    sources = [Path(each) for each in (train if isinstance(train, list) else [train])]
    return prepared_images(yolo, model, _files_of(sources, f"the training images {str(train)!r:.200}"), imgsz, images)


def prepared_images(
    yolo: Any, model: nn.Module, found: list[str], size: int, images: int, batch: int = 16
) -> CalibrationImages:
    """Some of many files as batches.

    Args:
        yolo: The object whose task decides how images are prepared.
        model: Its network; it is copied.
        found: All files.
        size: Height and width in pixels.
        images: How many of them, taken evenly.
        batch: How many images are in a batch.

    Returns:
        The batches.
    """
    files = [found[index * len(found) // images] for index in range(images)] if len(found) > images else found
    settings = {"imgsz": size, "batch": int(batch), "rect": False, "verbose": False, "save": False}
    overrides = {**yolo.overrides, **settings, "mode": "predict", "device": str(device_of(model))}
    predictor = yolo.task_map[yolo.task]["predictor"](overrides=overrides)
    predictor.setup_model(model=model, verbose=False)
    return CalibrationImages(predictor, files)


def image_size(yolo: Any, imgsz: int | None) -> int:
    """The size of the example image, a multiple of the network's largest stride.

    Args:
        yolo: The object with the network.
        imgsz: The size that was given; ``None``: what the network was trained with.

    Returns:
        Height and width in pixels.

    Raises:
        ArgumentError: Not such a multiple.
    """
    if imgsz is None:
        args = yolo.model.args
        given = args.get("imgsz") if isinstance(args, dict) else args.imgsz
        imgsz = max(given) if isinstance(given, list | tuple) else int(given or 640)
    return checked_size(imgsz)


def checked_size(imgsz: Any) -> int:
    """Checks the size of the example image.

    Args:
        imgsz: The size.

    Returns:
        Height and width in pixels.

    Raises:
        ArgumentError: Not a multiple of 32 pixels.
    """
    check_number("imgsz", imgsz, "one number for height and width, a multiple of 32 pixels", least=32)
    if imgsz % 32:
        raise ArgumentError(f"imgsz={imgsz}: give a multiple of 32 pixels")
    return int(imgsz)


def _image_files(data: Path) -> list[str]:
    """The images of a data set, sorted."""
    from ultralytics.data.utils import check_det_dataset

    sources: list[Path] = []
    if data.suffix.lower() in (".yaml", ".yml"):
        if not data.is_file():
            raise InputError(f"data: {data} does not exist")
        try:
            train = check_det_dataset(str(data), autodownload=False)["train"]
        except Exception as error:  # ultralytics raises many kinds
            raise InputError(f"data: {data} is no data set of ultralytics: {error}") from error
        sources = [Path(each) for each in (train if isinstance(train, list) else [train])]
    else:
        sources = [data / "train" if (data / "train").is_dir() else data]
    return _files_of(sources, f"data={str(data)!r}")


def _files_of(sources: Iterable[Path], what: str) -> list[str]:
    """The images in folders and lists, sorted."""
    from ultralytics.data.utils import IMG_FORMATS

    files: list[Path] = []
    looked_at = [*sources]
    for source in looked_at:
        if source.is_file() and source.suffix == ".txt":  # a list of images, relative to itself
            lines = read_bytes(source, _MOST_LIST_BYTES, InputError).decode(errors="replace").split("\n")
            files += [source.parent / line.strip() for line in lines if line.strip()]
        else:
            files += source.rglob("*")
    formats = {f".{each}" for each in IMG_FORMATS}
    images = sorted(str(each) for each in files if each.suffix.lower() in formats)
    if not images:
        places = ", ".join(map(str, looked_at))
        raise InputError(f"{what}: no images in {places:.300}; give a folder of images or the YAML file of a data set")
    return images
