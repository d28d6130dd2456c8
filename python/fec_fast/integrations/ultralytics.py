"""Ultralytics: prunes the network in a ``YOLO`` or ``RTDETR`` object, which then validates, trains and exports it.

Ultralytics is licensed under AGPL-3.0, or a licence that its makers sell; this package does not contain it. Read that
licence before you give away what you make with ultralytics.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..plan.checkpoint import load as load_weights
from ..plan.checkpoint import read_plan
from ..plan.checkpoint import save as save_weights
from ..plan.checkpoint_files import check_can_be_replaced
from ..plan.composition import compose
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.data_use import AUTO
from ..pruning.pruner import PruneResult
from ..pruning.pruner import prune as prune_network
from ..recovery.calibration import DATA_FREE
from ..utils.arguments import check_path
from ..utils.errors import ArgumentError, CheckpointError
from ..utils.files import atomic_folder, check_writable, write_text
from ..utils.frameworks import keeps_widths
from ..utils.modules import device_of, in_evaluation
from .bounded_building import BoundedBuilding
from .ultralytics_files import checked_yaml, yaml_file
from .ultralytics_images import CalibrationImages as CalibrationImages
from .ultralytics_images import calibration_images as calibration_images
from .ultralytics_images import image_size
from .ultralytics_pruning import PruningCallback as PruningCallback
from .ultralytics_training import (
    PRUNED,
    RTDETR,
    YOLO,
    adopt,
    as_pruned,
    full_widths,
    network_of,
    stored_plan,
    stored_rounds,
)

_RTDETR_HEAD = "RTDETRDecoder"


def prune(
    yolo: Any,
    *,
    budget: Budget,
    imgsz: int | None = None,
    recover: Any = AUTO,
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
        recover: ``"auto"`` (the default), ``"data-free"`` or ``None``, as for :func:`fec_fast.prune`; or the path of a
            data set (see :func:`calibration_images`), of which images are taken through ultralytics' own loading and
            preprocessing; or a tensor or a loader of images ``[N, 3, imgsz, imgsz]`` in [0, 1].
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
    size = image_size(yolo, imgsz)
    if isinstance(recover, str | os.PathLike) and recover not in (AUTO, DATA_FREE):
        recover = calibration_images(yolo, recover, imgsz=size, images=images)
    channels = model.yaml.get("channels", 3)
    drawn = torch.Generator().manual_seed(0)
    example = torch.rand(1, channels, size, size, generator=drawn).to(device_of(model))
    with keeps_widths():
        result = prune_network(model, example, budget=budget, recover=recover, **options)
    earlier = stored_plan(model)
    adopt(yolo, result.model, result.plan if earlier is None else compose(earlier, result.plan))
    return result


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
        ArgumentError: Not such an object, its network was not pruned, or the folder is named like a file (``.pt``).
        CheckpointError: The folder holds something else, or cannot be replaced: a symbolic link, a mounted file
            system, the working folder.
        OSError: The folder cannot be written to. After any error an older one is whole.
    """
    import yaml

    model, plan = network_of(yolo), plan_of(yolo)
    if plan is None:
        raise ArgumentError("yolo: its network was not pruned; call prune of fec_fast.integrations.ultralytics first")
    target = Path(os.path.abspath(check_path("folder", folder)))
    if target.suffix == ".pt":
        raise ArgumentError(f"folder={str(folder)!r:.200}: a folder is written, which YOLO cannot open: leave out .pt")
    check_can_be_replaced(target)
    foreign = [each.name for each in target.iterdir()] if target.is_dir() else [target.name] * target.exists()
    if foreign and not (len(foreign) == 2 and PRUNED in foreign and yaml_file(target)):
        raise CheckpointError(f"{folder} holds something other than a pruned YOLO; name a new folder")
    content = {name: value for name, value in full_widths(model).items() if name not in ("yaml_file", "scale")}
    scale = model.yaml.get("scale")
    if scale and "scales" in content:  # only the one that was built: a file's name alone may not tell
        content["scales"] = {scale: content["scales"][scale]}
    content |= {"names": {int(number): str(name) for number, name in model.names.items()}, "task": yolo.task}
    check_writable(target.parent)
    with atomic_folder(target) as temporary:
        name = Path(model.yaml.get("yaml_file") or "network.yaml").with_suffix(".yaml").name
        write_text(temporary / name, yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
        save_weights(model, plan, temporary / PRUNED)
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
    if path.suffix == ".pt":
        raise CheckpointError(f"{folder} is no folder that save wrote: open files of ultralytics with from_checkpoint")
    if file is None or not (path / PRUNED).is_dir():
        raise CheckpointError(f"{folder} has no YAML file or no folder {PRUNED!r}: give what save wrote")
    content, plan = checked_yaml(file), read_plan(path / PRUNED)
    is_rtdetr = content["head"][-1][2] == _RTDETR_HEAD
    try:
        with BoundedBuilding(file, plan, path / PRUNED):
            yolo = RTDETR(str(file)) if is_rtdetr else YOLO(str(file), task=content["task"])
    except CheckpointError:
        raise
    except Exception as error:  # ultralytics raises many kinds for what is no network
        kind = type(error).__name__
        raise CheckpointError(f"{file}: ultralytics cannot build its network ({kind}: {error})") from error
    model = in_evaluation(load_weights(yolo.model, path / PRUNED))
    model.names = content["names"]
    yolo.model = None
    adopt(yolo, model, plan)
    return yolo


def from_checkpoint(file: str | os.PathLike[str]) -> Any:
    """Opens a ``best.pt`` or ``last.pt`` of a training of a pruned network, so that ``train`` keeps its widths.

    ``from_checkpoint("last.pt").train(resume=True)`` goes on with an interrupted training; if it was pruned in rounds,
    attach a :class:`PruningCallback` before. ``YOLO("last.pt")`` alone predicts and exports the pruned network; its
    ``train`` ends with a ``KeyError`` that names this function.

    Args:
        file: The file. It is a pickle: open those alone that you trust.

    Returns:
        The ``YOLO`` or ``RTDETR`` object.

    Raises:
        CheckpointError: No such file, or its network was not pruned.
        PlanError: Its plan is damaged.
    """
    path = check_path("file", file)
    if (path / PRUNED).is_dir():
        raise CheckpointError(f"{file} is a folder that save wrote: open it with load")
    if not path.is_file():
        raise CheckpointError(f"{file}: no such file; give the last.pt or best.pt of a training")
    try:
        yolo = YOLO(str(path))
    except TypeError as error:
        raise CheckpointError(
            f"{file} holds no network, perhaps weights alone, which do not say how to narrow one: give the last.pt or "
            f"best.pt of a training ({error})"
        ) from error
    plan = plan_of(yolo)
    if plan is not None:
        adopt(yolo, yolo.model, plan)
    elif stored_rounds(yolo.model) is None:
        raise CheckpointError(f"{file}: its network was not pruned: open it with ultralytics.YOLO")
    else:  # before the first round
        yolo.__class__ = as_pruned(yolo)
    return yolo
