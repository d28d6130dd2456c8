"""Object detection as a training task, for detectors with the interface of torchvision's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...utils.arguments import batches_of, check_network, first_batch
from ...utils.errors import ArgumentError, InputError, missing_extra, nearest
from ...utils.forward import call_model, describe_tensors, evaluation_mode, map_tensors, undisturbed
from ...utils.modules import check_can_be_changed, device_of
from ..distillation import FeatureDistillation, check_feature_layers
from ..settings import TrainingSettings
from .average_precision import AveragePrecisions, average_precisions
from .base import BatchLoss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

Images = list[Tensor]
Targets = list[dict[str, Tensor]]
# Names of the metrics, and of the fields of AveragePrecisions that hold them.
METRICS = {"map": "coco", "map_50": "coco_50", "voc_2007": "voc_2007", "voc": "voc"}


@dataclass(frozen=True)
class Detection:
    """Boxes with labels, trained with the detector's own losses: ``finetune(..., task=Detection())``.

    In training mode the model takes images and targets and returns a dictionary of losses; their sum is minimised. In
    evaluation mode it takes images and returns ``boxes``, ``labels`` and ``scores`` for each.

    A batch is a pair of lists: images float ``[3, H, W]``, and targets with ``boxes`` float ``[N, 4]`` (left, top,
    right, bottom, in pixels) and ``labels`` int64 ``[N]`` from 1 (0 is the background).
    :func:`fec_fast.vision.voc.load_voc` makes such loaders.

    Mixup and label smoothing do not exist for detection and are refused. A teacher is imitated by its features
    (``feature_layers``, for example ``["backbone.features"]``), not by its boxes.

    Metrics on held-out data, all in [0, 1]: ``map`` (COCO's mean average precision), ``map_50``, ``voc_2007`` (eleven
    points), ``voc`` (all points), and ``map/CLASS`` and ``voc/CLASS`` for every class;
    :mod:`fec_fast.training.tasks.average_precision` defines them. Metrics on the training images: the mean of each
    loss.

    Attributes:
        main_metric: The metric that ``patience`` watches: ``"map"`` (the default), ``"map_50"``, ``"voc_2007"`` or
            ``"voc"``.
    """

    main_metric: str = "map"
    name = "detection"

    def __post_init__(self) -> None:
        """Checks the name of the metric.

        Raises:
            InputError: There is no such metric.
        """
        if not isinstance(self.main_metric, str) or self.main_metric not in METRICS:
            raise InputError(f"main_metric={self.main_metric!r:.80}: {nearest(str(self.main_metric), METRICS)}")

    def check(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        loader: Iterable[Any],
        settings: TrainingSettings,
        held_out: Iterable[Any] | None = None,
    ) -> None:
        """Checks settings, labels and networks; see :meth:`fec_fast.training.tasks.base.Task.check`."""
        _check_installed()
        for name in ("mixup", "label_smoothing"):
            if getattr(settings, name):
                raise ArgumentError(f"{name} has no meaning for detection: leave it out")
        if bool(settings.feature_layers) != (teacher is not None):
            raise ArgumentError("a detector imitates the features of a teacher: give both, teacher and feature_layers")
        images, targets = images_and_targets(first_batch(loader, "train_loader"))
        classes_in_data = len(_class_names(loader, targets))
        num_classes = num_classes_of(model)
        if num_classes is not None:
            if classes_in_data >= num_classes:
                raise InputError(
                    f"the data have {classes_in_data} classes and the model {num_classes - 1} beside the background: "
                    f"build it with num_classes={classes_in_data + 1}"
                )
            _check_labels(targets, num_classes, "the first batch")
        if held_out is not None:
            _, held_out_targets = images_and_targets(first_batch(held_out, "val_loader"))
            if num_classes is not None:
                _check_labels(held_out_targets, num_classes, "the first batch of val_loader")
        device = device_of(model)
        with undisturbed(model, training=True):
            _sum_losses(model, call_model(model, (_to_device(images, device), _to_device(targets, device))))
        if teacher is not None:
            check_feature_layers(model, teacher, settings.feature_layers, images)

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """Makes the objective of one training; see :meth:`fec_fast.training.tasks.base.Task.objective`."""
        return _DetectionObjective(model, teacher, settings, accelerator)

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """Measures average precision on held-out data; see :meth:`fec_fast.training.tasks.base.Task.evaluate`."""
        result = evaluate_detector(model, loader, accelerator)
        values = asdict(result)
        metrics = {name: values[field] for name, field in METRICS.items()}
        for name in ("map", "voc"):
            metrics |= {f"{name}/{label}": row[METRICS[name]] for label, row in result.by_class.items()}
        return metrics


def evaluate_detector(
    model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
) -> AveragePrecisions:
    """Measures a detector's average precision. Restores the modes of its modules and changes nothing else.

    Args:
        model: The detector; in evaluation mode it takes a list of images and returns ``boxes``, ``labels`` and
            ``scores`` for each.
        loader: The data; yields pairs of lists as described at :class:`Detection`.
        accelerator: Given if ``loader`` was prepared by it, so that each process has a share of the batches. The result
            then covers all processes' images, each image once.

    Returns:
        The average precisions over all images. Classes have the names that the data set lists
        (``loader.dataset.classes``), otherwise their numbers.

    Raises:
        InputError: The loader is empty or raises, a batch does not have this form, the data contain no box, or the
            model cannot be run or does not return boxes, labels and scores.
        ArgumentError: Not a module, not a loader, or a module that cannot be set to evaluation mode.
        WeightError: The model has a parameter or buffer without values.
        MissingExtraError: pycocotools is not installed.
    """
    check_network("model", model)
    check_can_be_changed({"": model})
    device = device_of(model)
    detections: Targets = []
    targets: Targets = []
    with evaluation_mode(model):
        for images, batch_targets in map(images_and_targets, batches_of(loader, "val_loader")):
            outputs = call_model(model, (_to_device(images, device),))
            _check_outputs(model, outputs, len(images))
            pairs = list(zip(_to_device(outputs, "cpu"), _to_device(batch_targets, "cpu"), strict=True))
            if accelerator is not None:
                # As objects, because the number of boxes differs between images.
                pairs = accelerator.gather_for_metrics(pairs, use_gather_object=True)
            detections += [output for output, _ in pairs]
            targets += [target for _, target in pairs]
    if not targets:
        raise InputError("loader: the loader to evaluate on is empty")
    num_classes = num_classes_of(model)
    # Also the classes that the model knows and no image shows: the model may detect them, wrongly.
    names = _class_names(loader, [*targets, *detections], least=0 if num_classes is None else num_classes - 1)
    return average_precisions(detections, targets, names)


def images_and_targets(batch: Any) -> tuple[Images, Targets]:
    """Checks a batch and splits it into images and targets.

    Args:
        batch: A batch of the loader.

    Returns:
        The images and, for each of them, its target.

    Raises:
        InputError: The batch is not a pair of lists as described at :class:`Detection`, or a box has no area or is not
            finite.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, list | tuple) for part in batch):
        images, targets = list(batch[0]), list(batch[1])
        if images and len(images) == len(targets) and all(map(_is_image, images)) and all(map(_is_target, targets)):
            for number, target in enumerate(targets):
                boxes = target["boxes"]
                valid = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
                if not valid.all():
                    raise InputError(f"image {number} of a batch has the box {boxes[~valid][0].tolist()}: no area")
            return images, targets
    raise InputError(
        "a batch must be a list of images [3, H, W] and a list of targets with boxes [N, 4] and integer labels [N], "
        f"not {describe_tensors(batch)}"
    )


def num_classes_of(model: nn.Module) -> int | None:
    """Reads the number of classes of a torchvision detector.

    Args:
        model: Any model.

    Returns:
        The number of classes, the background included; ``None`` for a model that has none of the known heads.

    Raises:
        ArgumentError: Not a module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got a {type(model).__name__}")
    for path in (
        "head.classification_head.num_columns",  # SSD
        "head.classification_head.num_classes",  # RetinaNet, FCOS
        "roi_heads.box_predictor.cls_score.out_features",  # R-CNN
    ):
        value: Any = model
        for name in path.split("."):
            value = getattr(value, name, None)
        if isinstance(value, int):
            return value
    return None


class _DetectionObjective:
    """The sum of a detector's losses, plus feature distillation if there is a teacher."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> None:
        self.accelerator = accelerator
        self.distillation = None
        if teacher is not None:
            self.distillation = FeatureDistillation(model, teacher, settings, accelerator.autocast)
        self.loss_sums: dict[str, float] = {}
        self.images = 0
        self.handles = [] if accelerator.mixed_precision == "no" else _keep_boxes_in_float32(model)

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """Computes the loss of a batch; see :meth:`fec_fast.training.tasks.base.Objective.loss`."""
        images, targets = images_and_targets(batch)
        num_classes = num_classes_of(self.accelerator.unwrap_model(network))
        if num_classes is not None:
            _check_labels(targets, num_classes, where)
        device = self.accelerator.device
        losses = network(_to_device(images, device), _to_device(targets, device))
        total = _sum_losses(network, losses)
        for name, value in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + float(value.detach()) * len(images)
        self.images += len(images)
        if self.distillation is not None:
            self.distillation.run_teacher(_to_device(images, device))
            total = total + self.distillation.feature_loss()
        return BatchLoss(total, len(images))

    def metrics(self) -> dict[str, float]:
        """Returns the mean of each loss; see :meth:`fec_fast.training.tasks.base.Objective.metrics`."""
        # Sums over images are reduced, not means: the processes may have different numbers of images.
        sums = torch.tensor([*self.loss_sums.values(), float(self.images)], device=self.accelerator.device)
        *loss_sums, images = self.accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: loss_sum / images for name, loss_sum in zip(self.loss_sums, loss_sums, strict=True)}
        self.loss_sums, self.images = {}, 0
        return means

    def close(self) -> None:
        """Removes the hooks from the networks."""
        for handle in self.handles:
            handle.remove()
        if self.distillation is not None:
            self.distillation.close()


def _keep_boxes_in_float32(model: nn.Module) -> list[Any]:
    """Keeps the coordinates of boxes and the losses out of mixed precision, by hooks; returns their handles.

    Default boxes take the dtype of the feature maps, and boxes are decoded in the dtype of the head's outputs. bfloat16
    has eight bits of precision, so in it coordinates would be wrong by a pixel in two hundred.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

    def cast_inputs(module: nn.Module, inputs: Any) -> Any:
        return tuple(map_tensors(_to_float32, part) if isinstance(part, list) else part for part in inputs)

    def cast_outputs(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        return map_tensors(_to_float32, outputs)

    handles: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, AnchorGenerator | DefaultBoxGenerator):
            handles.append(module.register_forward_pre_hook(cast_inputs))
        if name in ("head", "rpn.head", "roi_heads.box_predictor"):
            handles.append(module.register_forward_hook(cast_outputs))
    return handles


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _sum_losses(network: nn.Module, losses: Any) -> Tensor:
    """Sums the losses that a detector returns in training mode, after checking that they are losses."""
    values = list(losses.values()) if isinstance(losses, dict) else []
    if not values or not all(isinstance(value, Tensor) and value.ndim == 0 for value in values):
        raise InputError(
            f"{type(network).__name__} in training mode returns {describe_tensors(losses)}; detection needs a "
            "dictionary of losses, as torchvision's detectors return it"
        )
    return torch.stack([value.float() for value in values]).sum()


def _to_device(items: Sequence[Any], device: Any) -> list[Any]:
    """Moves the tensors of each item to a device; makes new lists and dictionaries."""
    return [
        map_tensors(lambda tensor: tensor.to(device, copy=True), item) for item in items
    ]  # a model may write to them


def _class_names(loader: Any, labelled: Targets, least: int = 0) -> list[str]:
    """Names of the classes 1, 2, ...: those that the data set lists, then numbers.

    The list is long enough for all ``labels`` in ``labelled``, and has at least ``least`` names.
    """
    listed = getattr(getattr(loader, "dataset", None), "classes", None)
    names = [str(name) for name in listed] if isinstance(listed, list | tuple) else []
    highest = max([least, *(int(target["labels"].max()) for target in labelled if len(target["labels"]))])
    return names + [str(number) for number in range(len(names) + 1, highest + 1)]


def _check_outputs(model: nn.Module, outputs: Any, images: int) -> None:
    """Raises unless a model returned what a detector returns in evaluation mode, for each image."""
    is_list = isinstance(outputs, list | tuple) and len(outputs) == images
    if not is_list or not all(map(_is_detection, outputs)):
        raise InputError(
            f"model: {type(model).__name__} in evaluation mode returns {describe_tensors(outputs)}; detection needs "
            "boxes [N, 4], labels [N] and scores [N] for each image, as torchvision's detectors return them"
        )


def _is_detection(output: Any) -> bool:
    if not isinstance(output, dict):
        return False
    values: list[Any] = [output.get(key) for key in ("boxes", "labels", "scores")]
    if not all(isinstance(value, Tensor) for value in values):
        return False
    boxes, labels, scores = values
    whole = not labels.is_floating_point()
    return bool(whole and labels.ndim == 1 and boxes.shape == (len(labels), 4) and scores.shape == labels.shape)


def _check_labels(targets: Targets, num_classes: int, where: str) -> None:
    """Raises InputError if a label is not in [1, num_classes)."""
    for target in targets:
        labels = target["labels"]
        wrong = labels[(labels < 1) | (labels >= num_classes)]
        if len(wrong):
            raise InputError(
                f"label {int(wrong[0])} in {where} is not one of the model's classes (1 to {num_classes - 1}; 0 is the "
                "background)"
            )


def _check_installed() -> None:
    try:
        import pycocotools  # noqa: F401 (imported only to see whether it is installed)
        import torchvision  # noqa: F401
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision and pycocotools", "detection", "detection", error) from error


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
