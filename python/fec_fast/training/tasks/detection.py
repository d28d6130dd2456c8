"""Training and measuring detectors that are called as torchvision's are: the second kind of task of ``finetune``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...utils.errors import ArgumentError, InputError, missing_extra, nearest
from ...utils.forward import call_model, describe, evaluating, map_tensors, undisturbed
from ...utils.modules import device_of
from ..distillation import FeatureImitation, check_features
from ..settings import TrainingSettings
from .average_precision import AveragePrecisions, average_precisions
from .base import BatchLoss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

Images = list[Tensor]
Targets = list[dict[str, Tensor]]
# The names of the metrics, and what they are called in AveragePrecisions.
METRICS = {"map": "coco", "map_50": "coco_50", "voc_2007": "voc_2007", "voc": "voc"}


@dataclass(frozen=True)
class Detection:
    """Boxes with labels. In training mode the model takes images and targets, and returns losses, which are summed.

    A batch is a pair of lists: images float ``[3, H, W]``, and targets with ``boxes`` float ``[N, 4]`` (left, top,
    right, bottom) and ``labels`` int64 ``[N]``, 0 being the background; :func:`fec_fast.vision.voc.voc` yields such.
    Mixup and label smoothing have no meaning here and are refused. A teacher is imitated by its features
    (``feature_layers``, such as ``["backbone.features"]``), not by its boxes.

    Metrics, all in [0, 1], see
    :mod:`fec_fast.training.tasks.average_precision`: ``map`` (COCO's), ``map_50``, ``voc_2007`` (eleven
    points), ``voc`` (all points), and ``map/CLASS`` and ``voc/CLASS`` for every class. Of the training images, the
    mean of each loss.

    Attributes:
        main_metric: The first four, whichever is to decide.
    """

    main_metric: str = "map"
    name = "detection"

    def __post_init__(self) -> None:
        """Checks the name of the metric.

        Raises:
            InputError: It is none.
        """
        if self.main_metric not in METRICS:
            raise InputError(f"main_metric={self.main_metric!r}: {nearest(str(self.main_metric), METRICS)}")

    def check(
        self, model: nn.Module, teacher: nn.Module | None, loader: Iterable[Any], settings: TrainingSettings
    ) -> None:
        """See :meth:`fec_fast.training.tasks.base.Task.check`."""
        _check_installed()
        refused = {
            "mixup": bool(settings.mixup),
            "label_smoothing": bool(settings.label_smoothing),
        }
        for name, given in refused.items():
            if given:
                raise ArgumentError(f"{name} has no meaning for detection: leave it out")
        if bool(settings.feature_layers) != (teacher is not None):
            raise ArgumentError("a detector imitates the features of a teacher: give both, teacher and feature_layers")
        images, targets = lists(next(iter(loader)))
        known = len(_names(loader, targets))
        classes = classes_of(model)
        if classes is not None:
            if known >= classes:
                raise InputError(
                    f"the data have {known} classes and the model {classes - 1} beside the background: build it with "
                    f"num_classes={known + 1}"
                )
            _check_labels(targets, classes, "the first batch")
        device = device_of(model)
        with undisturbed(model, training=True):
            _summed(model, call_model(model, (_on(device, images), _on(device, targets))))
        if teacher is not None:
            check_features(model, teacher, settings.feature_layers, images)

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """See :meth:`fec_fast.training.tasks.base.Task.objective`."""
        return _DetectionObjective(model, teacher, settings, accelerator)

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """See :meth:`fec_fast.training.tasks.base.Task.evaluate`."""
        found = measure(model, loader, accelerator)
        whole = asdict(found)
        metrics = {name: whole[field] for name, field in METRICS.items()}
        for name in ("map", "voc"):
            metrics |= {f"{name}/{label}": row[METRICS[name]] for label, row in found.by_class.items()}
        return metrics


def measure(model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None) -> AveragePrecisions:
    """Measures a detector. Its modes are restored and nothing else of it changes.

    Args:
        model: In evaluation mode it takes a list of images and returns ``boxes``, ``labels`` and ``scores`` for each.
        loader: Yields pairs of lists, see :class:`Detection`.
        accelerator: Given when the processes share the loader, which accelerate has prepared.

    Returns:
        The average precisions over all images, by the names of the classes if the data set tells them
        (``loader.dataset.classes``), otherwise by their numbers.

    Raises:
        InputError: The loader is empty, a batch is no such pair, or there is no box to find.
        MissingExtraError: pycocotools is not installed.
    """
    device, found, wanted = device_of(model), [], []
    with evaluating(model):
        for images, targets in map(lists, loader):
            pairs = list(zip(_on("cpu", model(_on(device, images))), _on("cpu", targets), strict=True))
            if accelerator is not None:
                pairs = accelerator.gather_for_metrics(pairs, use_gather_object=True)
            found += [detections for detections, _ in pairs]
            wanted += [target for _, target in pairs]
    if not wanted:
        raise InputError("the loader to evaluate on is empty")
    classes = classes_of(model)
    # A class that the model has and no image shows may still be found, wrongly.
    names = _names(loader, [*wanted, *found], least=0 if classes is None else classes - 1)
    return average_precisions(found, wanted, names)


def lists(batch: Any) -> tuple[Images, Targets]:
    """Takes a batch apart.

    Args:
        batch: What a loader yielded.

    Returns:
        Images and targets, as many of both.

    Raises:
        InputError: It is anything else, or a box has no area or is not finite.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, list | tuple) for part in batch):
        images, targets = list(batch[0]), list(batch[1])
        if images and len(images) == len(targets) and all(map(_is_image, images)) and all(map(_is_target, targets)):
            for number, target in enumerate(targets):
                boxes = target["boxes"]
                sound = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
                if not sound.all():
                    raise InputError(f"image {number} of a batch has the box {boxes[~sound][0].tolist()}: no area")
            return images, targets
    raise InputError(
        "a batch must be a list of images [3, H, W] and a list of targets with boxes [N, 4] and integer labels [N], "
        f"not {describe(batch)}"
    )


def classes_of(model: nn.Module) -> int | None:
    """How many classes a detector of torchvision's has, the background included.

    Args:
        model: Any.

    Returns:
        The number; ``None`` for a model that does not tell.
    """
    for path in (
        "head.classification_head.num_columns",  # SSD
        "head.classification_head.num_classes",  # RetinaNet, FCOS
        "roi_heads.box_predictor.cls_score.out_features",  # R-CNN
    ):
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, int):
            return found
    return None


class _DetectionObjective:
    """The sum of a detector's losses."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> None:
        self.accelerator = accelerator
        self.imitation = None
        if teacher is not None:
            self.imitation = FeatureImitation(model, teacher, settings, accelerator.autocast)
        self.sums: dict[str, float] = {}
        self.images = 0
        self.handles = [] if accelerator.mixed_precision == "no" else _boxes_in_full_precision(model)

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """See :meth:`fec_fast.training.tasks.base.Objective.loss`."""
        images, targets = lists(batch)
        classes = classes_of(self.accelerator.unwrap_model(network))
        if classes is not None:
            _check_labels(targets, classes, where)
        device = self.accelerator.device
        losses = network(_on(device, images), _on(device, targets))
        total = _summed(network, losses)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * len(images)
        self.images += len(images)
        if self.imitation is not None:
            self.imitation.show(_on(device, images))
            total = total + self.imitation.apart()
        return BatchLoss(total, len(images))

    def metrics(self) -> dict[str, float]:
        """See :meth:`fec_fast.training.tasks.base.Objective.metrics`."""
        counts = torch.tensor([*self.sums.values(), float(self.images)], device=self.accelerator.device)
        *sums, images = self.accelerator.reduce(counts, reduction="sum").tolist()
        found = {name: value / images for name, value in zip(self.sums, sums, strict=True)}
        self.sums, self.images = {}, 0
        return found

    def close(self) -> None:
        """See :meth:`fec_fast.training.tasks.base.Objective.close`."""
        for handle in self.handles:
            handle.remove()
        if self.imitation is not None:
            self.imitation.close()


def _boxes_in_full_precision(model: nn.Module) -> list[Any]:
    """Keeps coordinates and losses out of mixed precision.

    Default boxes take the dtype of the feature maps, and boxes are decoded in the dtype of the head's outputs: in
    bfloat16, with its eight bits, they would be off by a pixel in two hundred.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

    def inputs(module: nn.Module, given: Any) -> Any:
        return tuple(map_tensors(_float, part) if isinstance(part, list) else part for part in given)

    def outputs(module: nn.Module, given: Any, returned: Any) -> Any:
        return map_tensors(_float, returned)

    handles: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, AnchorGenerator | DefaultBoxGenerator):
            handles.append(module.register_forward_pre_hook(inputs))
        if name in ("head", "rpn.head", "roi_heads.box_predictor"):
            handles.append(module.register_forward_hook(outputs))
    return handles


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _summed(network: nn.Module, losses: Any) -> Tensor:
    """The sum of what a detector returns in training mode."""
    values = list(losses.values()) if isinstance(losses, dict) else []
    if not values or not all(isinstance(value, Tensor) and value.ndim == 0 for value in values):
        raise InputError(
            f"{type(network).__name__} in training mode returns {describe(losses)}; detection needs a dictionary of "
            "losses, as torchvision's detectors return it"
        )
    return torch.stack([value.float() for value in values]).sum()


def _on(device: Any, parts: Sequence[Any]) -> list[Any]:
    return [map_tensors(lambda tensor: tensor.to(device), part) for part in parts]


def _names(loader: Any, targets: Targets, least: int = 0) -> list[str]:
    """The names of the classes, or their numbers."""
    known = getattr(getattr(loader, "dataset", None), "classes", None)
    names = [str(name) for name in known] if isinstance(known, list | tuple) else []
    highest = max([least, *(int(target["labels"].max()) for target in targets if len(target["labels"]))])
    return names + [str(number) for number in range(len(names) + 1, highest + 1)]


def _check_labels(targets: Targets, classes: int, where: str) -> None:
    for target in targets:
        labels = target["labels"]
        wrong = labels[(labels < 1) | (labels >= classes)]
        if len(wrong):
            raise InputError(
                f"label {int(wrong[0])} in {where} is not one of the model's classes (1 to {classes - 1}; 0 is the "
                "background)"
            )


def _check_installed() -> None:
    try:
        import pycocotools  # noqa: F401 (only to see that they are there)
        import torchvision  # noqa: F401
    except ImportError as error:
        raise missing_extra("torchvision and pycocotools", "detection", "detection") from error


def _is_image(image: Any) -> bool:
    return isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point()


def _is_target(target: Any) -> bool:
    if not isinstance(target, dict) or not all(isinstance(target.get(key), Tensor) for key in ("boxes", "labels")):
        return False
    boxes, labels = target["boxes"], target["labels"]
    return (
        bool(boxes.ndim == 2 and boxes.shape[1] == 4 and labels.shape == boxes.shape[:1])
        and labels.dtype == torch.int64
    )
