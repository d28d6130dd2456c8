"""Ultralytics: prunes the network in a ``YOLO`` or ``RTDETR`` object, which then validates, trains and exports it.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell; this package does not contain it. Read that
licence before you give away what you make with ultralytics.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..plan.checkpoint import load as load_weights
from ..plan.checkpoint import read_plan
from ..plan.checkpoint import save as save_weights
from ..plan.composition import compose
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.pruner import PruneResult
from ..pruning.pruner import prune as prune_network
from ..recovery.calibration import DATA_FREE
from ..utils.arguments import check_number, check_path
from ..utils.errors import ArgumentError, CheckpointError, InputError
from ..utils.files import atomic_folder, write_text
from ..utils.modules import device_of
from ..utils.reading import MEGABYTE, read_bytes
from .bounded_building import BoundedBuilding
from .ultralytics_files import checked_yaml, yaml_file
from .ultralytics_training import RTDETR, YOLO, adopt, network_of, stored_plan

_PRUNED = "pruned"
_RTDETR_HEAD = "RTDETRDecoder"
_MOST_LIST_BYTES = 16 * MEGABYTE


def prune(
    yolo: Any,
    *,
    budget: Budget,
    imgsz: int | None = None,
    recover: Any = None,
    images: int = 256,
    **options: Any,
) -> PruneResult:
    """Prunes the network in a ``YOLO`` or ``RTDETR`` object; the object then holds the pruned one.

    The outputs of the head keep their widths. ``yolo.val``, ``predict``, ``train`` and ``export`` work on the pruned
    network as before; ``train`` keeps its widths. To prune further, call this again.

    Args:
        yolo: The object, such as ``YOLO("yolo11n.pt")``. Only its network is replaced; after an error it is unchanged.
        budget: The size that the network must reach.
        imgsz: Height and width of the example image, in pixels, for which operations are counted; ``None``: what the
            network was trained with. Smaller ones are faster to prune on.
        recover: ``"data-free"``; the path of a data set (see :func:`calibration_images`), of which images are
            taken through ultralytics' own loading and preprocessing; a tensor or a loader of images
            ``[N, 3, imgsz, imgsz]`` in [0, 1]; or ``None`` (the default): not recovered.
        images: How many images of a data set are used.
        **options: For :func:`fec_fast.prune`, such as ``round_to=8``.

    Returns:
        The result; its ``model`` is ``yolo.model``, its plan that of this pruning. ``summary()`` has the sizes, the
        layers that keep their channels and why.

    Raises:
        ArgumentError: Not such an object, an exported or fused network, or an argument of the wrong kind.
        InputError: No images in the data set.
        FecError: As :func:`fec_fast.prune` says.
    """
    model = network_of(yolo)
    size = _image_size(yolo, imgsz)
    if isinstance(recover, str | os.PathLike) and recover != DATA_FREE:
        recover = calibration_images(yolo, recover, imgsz=size, images=images)
    channels = model.yaml.get("channels", 3)
    drawn = torch.Generator().manual_seed(0)
    example = torch.rand(1, channels, size, size, generator=drawn).to(device_of(model))
    result = prune_network(model, example, budget=budget, recover=recover, **options)
    earlier = stored_plan(model)
    adopt(yolo, result.model, result.plan if earlier is None else compose(earlier, result.plan))
    return result


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
    model, size = network_of(yolo), _image_size(yolo, imgsz)
    for name, number in ("images", images), ("batch", batch):
        check_number(name, number, "a whole number of at least 1", least=1)
    found = _image_files(check_path("data", data))
    files = [found[index * len(found) // images] for index in range(images)] if len(found) > images else found
    settings = {"imgsz": size, "batch": int(batch), "rect": False, "verbose": False, "save": False}
    overrides = {**yolo.overrides, **settings, "mode": "predict", "device": str(device_of(model))}
    predictor = yolo.task_map[yolo.task]["predictor"](overrides=overrides)
    predictor.setup_model(model=model, verbose=False)
    return CalibrationImages(predictor, files)


def plan_of(yolo: Any) -> Plan | None:
    """The plan of the network in a ``YOLO`` or ``RTDETR`` object: all prunings against the network of its YAML file.

    Args:
        yolo: The object. Trainings with ultralytics keep the plan, also in their ``best.pt`` and ``last.pt``.

    Returns:
        The plan; ``None`` for a network that was not pruned.

    Raises:
        ArgumentError: Not such an object.
        PlanError: The plan is damaged.
    """
    return stored_plan(network_of(yolo))


def save(yolo: Any, folder: str | os.PathLike[str]) -> Path:
    """Writes a pruned network: its YAML file, and in ``pruned/`` plan and weights as :func:`fec_fast.save` does.

    No pickle is written; ``yolo.save`` and ultralytics' trainers pickle the whole network.

    Args:
        yolo: The object that :func:`prune` was called on; it may have been trained since.
        folder: The folder; absent, empty, or written by this function before, which replaces it as a whole.

    Returns:
        The absolute path of the folder.

    Raises:
        ArgumentError: Not such an object, or its network was not pruned.
        CheckpointError: The folder holds something else.
        OSError: The folder cannot be written to. After any error an older one is whole.
    """
    import yaml

    model, plan = network_of(yolo), plan_of(yolo)
    if plan is None:
        raise ArgumentError("yolo: its network was not pruned; call prune of fec_fast.integrations.ultralytics first")
    target = Path(os.path.abspath(check_path("folder", folder)))
    foreign = [each.name for each in target.iterdir()] if target.is_dir() else [target.name] * target.exists()
    if foreign and not (len(foreign) == 2 and _PRUNED in foreign and yaml_file(target)):
        raise CheckpointError(f"{folder} holds something other than a pruned YOLO; name a new folder")
    content = {name: value for name, value in model.yaml.items() if name not in ("yaml_file", "scale")}
    scale = model.yaml.get("scale")
    if scale and "scales" in content:  # only the one that was built: a file's name alone may not tell
        content["scales"] = {scale: content["scales"][scale]}
    content |= {"names": {int(number): str(name) for number, name in model.names.items()}, "task": yolo.task}
    with atomic_folder(target) as temporary:
        name = Path(model.yaml.get("yaml_file") or "network.yaml").with_suffix(".yaml").name
        write_text(temporary / name, yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
        save_weights(model, plan, temporary / _PRUNED)
    return target


def load(folder: str | os.PathLike[str]) -> Any:
    """Builds a ``YOLO`` or ``RTDETR`` object from a folder that :func:`save` has written. No pickle is read.

    Ultralytics builds what the YAML file describes and runs it once. Its weights may not be more than those of the
    network before pruning, and its computations not out of proportion to them.

    Args:
        folder: The folder.

    Returns:
        The object, on the CPU in evaluation mode.

    Raises:
        CheckpointError: The folder is missing or damaged, or its YAML file names what is no layer, or a network that is
            larger than the one that was pruned, or that ultralytics cannot build.
        PlanError: The network of the YAML file is not the one that was pruned.
    """
    path = check_path("folder", folder)
    file = yaml_file(path)
    if file is None or not (path / _PRUNED).is_dir():
        raise CheckpointError(f"{folder} has no YAML file or no folder {_PRUNED!r}: give what save wrote")
    content, plan = checked_yaml(file), read_plan(path / _PRUNED)
    is_rtdetr = content["head"][-1][2] == _RTDETR_HEAD
    try:
        with BoundedBuilding(file, plan, path / _PRUNED):
            yolo = RTDETR(str(file)) if is_rtdetr else YOLO(str(file), task=content["task"])
    except CheckpointError:
        raise
    except Exception as error:  # ultralytics raises many kinds for what is no network
        kind = type(error).__name__
        raise CheckpointError(f"{file}: ultralytics cannot build its network ({kind}: {error})") from error
    model = load_weights(yolo.model, path / _PRUNED).eval()
    model.names = content["names"]
    yolo.model = None
    adopt(yolo, model, plan)
    return yolo


def from_checkpoint(file: str | os.PathLike[str]) -> Any:
    """Opens a ``best.pt`` or ``last.pt`` of a training of a pruned network, so that ``train`` keeps its widths.

    ``from_checkpoint("last.pt").train(resume=True)`` goes on with an interrupted training. ``YOLO("last.pt")`` alone
    predicts and exports the pruned network, but its ``train`` builds the full widths of the YAML file.

    Args:
        file: The file. It is a pickle: open those alone that you trust.

    Returns:
        The ``YOLO`` or ``RTDETR`` object.

    Raises:
        CheckpointError: No such file, or its network was not pruned.
        PlanError: Its plan is damaged.
    """
    path = check_path("file", file)
    if not path.is_file():
        raise CheckpointError(f"{file}: no such file; give the last.pt or best.pt of a training")
    yolo = YOLO(str(path))
    plan = plan_of(yolo)
    if plan is None:
        raise CheckpointError(f"{file}: its network was not pruned: open it with ultralytics.YOLO")
    adopt(yolo, yolo.model, plan)
    return yolo


def _image_size(yolo: Any, imgsz: int | None) -> int:
    """The size of the example image, a multiple of the network's largest stride."""
    if imgsz is None:
        args = yolo.model.args
        given = args.get("imgsz") if isinstance(args, dict) else args.imgsz
        imgsz = max(given) if isinstance(given, list | tuple) else int(given or 640)
    check_number("imgsz", imgsz, "a multiple of 32 pixels", least=32)
    if imgsz % 32:
        raise ArgumentError(f"imgsz={imgsz}: give a multiple of 32 pixels")
    return int(imgsz)


def _image_files(data: Path) -> list[str]:
    """The images of a data set, sorted."""
    from ultralytics.data.utils import IMG_FORMATS, check_det_dataset

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
    files: list[Path] = []
    for source in sources:
        if source.is_file() and source.suffix == ".txt":  # a list of images, relative to itself
            lines = read_bytes(source, _MOST_LIST_BYTES, InputError).decode(errors="replace").split("\n")
            files += [source.parent / line.strip() for line in lines if line.strip()]
        else:
            files += source.rglob("*")
    formats = {f".{each}" for each in IMG_FORMATS}
    images = sorted(str(each) for each in files if each.suffix.lower() in formats)
    if not images:
        raise InputError(f"data={str(data)!r}: no images there; give a folder of images or the YAML file of a data set")
    return images
