"""Image classification as a training task: cross entropy, accuracy, and the checks of its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.arguments import batches_of
from ...utils.batches import check_labels, images_and_labels
from ...utils.errors import ArgumentError, InputError, missing_extra
from ...utils.forward import call_model, evaluation_mode, undisturbed
from ...utils.modules import device_of
from ..batches import check_classification_data, split_logits
from ..distillation import Distillation, check_feature_layers
from ..settings import TrainingSettings
from .base import BatchLoss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


_AUXILIARY_WEIGHT = 0.3  # Szegedy et al., Going deeper with convolutions, 2015


class Classification:
    """One label per image, trained with cross entropy. The default task of :func:`fec_fast.finetune`.

    A batch is a pair of images ``[B, ...]`` and integer labels ``[B]``; the model returns logits ``[B, classes]``. In
    training mode it may return a named tuple of ``logits`` and of those of auxiliary classifiers (``aux...``), as
    torchvision's GoogLeNet and Inception do; each of these adds 0.3 times its cross entropy to the loss.

    Metrics: ``accuracy`` (the main one) and, with more than five classes, ``top5``, both in [0, 1]; on held-out data
    also ``loss``, the mean cross entropy in nats.
    """

    name = "classification"
    main_metric = "accuracy"

    def check(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        loader: Iterable[Any],
        settings: TrainingSettings,
        held_out: Iterable[Any] | None = None,
    ) -> None:
        """Checks settings, labels and networks; see :meth:`fec_fast.training.tasks.base.Task.check`."""
        if settings.feature_layers and teacher is None:
            raise ArgumentError("feature_layers needs a teacher whose features are imitated: teacher=...")
        if settings.mixup:
            _make_mixup(settings.mixup, 2)  # only to see whether torchvision is installed
        check_classification_data(model, teacher, loader, held_out)
        if teacher is not None and settings.feature_layers:
            images, _ = images_and_labels(next(iter(loader)))
            check_feature_layers(model, teacher, settings.feature_layers, images)

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """Makes the objective of one training; see :meth:`fec_fast.training.tasks.base.Task.objective`."""
        return _ClassificationObjective(model, teacher, settings, accelerator)

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """Measures accuracy and loss on held-out data; see :meth:`fec_fast.training.tasks.base.Task.evaluate`."""
        device = device_of(model)
        metrics: _ClassificationMetrics | None = None
        with evaluation_mode(model):
            for images, labels in map(images_and_labels, batches_of(loader, "val_loader")):
                if not len(images):
                    raise InputError("val_loader: a batch has no images: leave empty batches out")
                logits = call_model(model, images.to(device, copy=True)).float()  # a model may write to its input
                labels = labels.to(device)
                if accelerator is not None:
                    # A prepared loader repeats images so that all processes have equally many batches. This call
                    # gathers the batches of all processes and drops the repeated images.
                    logits, labels = accelerator.gather_for_metrics((logits, labels))
                check_labels(labels, logits.shape[1], "the held-out data")
                # Not summed over the processes: each of them has gathered the images of all.
                metrics = metrics or _ClassificationMetrics(logits.shape[1], device, sum_over_processes=False)
                metrics.update(logits, labels, F.cross_entropy(logits, labels, reduction="none"))
        if metrics is None:
            raise InputError("val_loader: the loader to evaluate on is empty")
        return metrics.compute()


class _ClassificationObjective:
    """Cross entropy with label smoothing, mixup and distillation, as the settings ask for.

    Attributes:
        classes: The number of the model's logits; ``None`` before the first batch.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> None:
        self.model, self.settings, self.device = model, settings, accelerator.device
        self.distillation = None if teacher is None else Distillation(model, teacher, settings, accelerator.autocast)
        self.epoch_metrics: _ClassificationMetrics | None = None
        self.mixup: Any = None
        self.classes: int | None = None

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """Computes the loss of a batch; see :meth:`fec_fast.training.tasks.base.Objective.loss`."""
        images, labels = images_and_labels(batch)
        if not len(images):
            raise InputError(f"train_loader: a batch has no images at {where}: leave empty batches out")
        images, labels = images.to(self.device, copy=True), labels.to(self.device)  # a model may write to its input
        target = labels
        if self.settings.mixup:
            if self.mixup is None:
                self.mixup = _make_mixup(self.settings.mixup, self._class_count(images))
            # Checked here because mixup turns labels into one-hot rows, which fails unclearly for a wrong label.
            check_labels(labels, self.mixup.num_classes, where)
            images, target = self.mixup(images, labels)
        untouched = images if self.distillation is None else images.clone()
        logits, auxiliary = split_logits(network(images))
        self.classes = logits.shape[1]
        check_labels(labels, self.classes, where)
        loss = F.cross_entropy(logits, target, label_smoothing=self.settings.label_smoothing)
        for other in auxiliary:
            smoothing = self.settings.label_smoothing
            loss = loss + _AUXILIARY_WEIGHT * F.cross_entropy(other, target, label_smoothing=smoothing)
        if self.distillation is not None:
            loss = self.distillation.combined_loss(untouched, logits, loss)
        if self.epoch_metrics is None:
            self.epoch_metrics = _ClassificationMetrics(logits.shape[1], self.device, sum_over_processes=True)
        self.epoch_metrics.update(logits.detach(), labels)
        return BatchLoss(loss, len(labels))

    def _class_count(self, images: Tensor) -> int:
        """Number of the model's logits. Mixup needs it before the forward pass of the training step."""
        with undisturbed(self.model):
            return int(self.model(images[:1]).shape[1])

    def metrics(self) -> dict[str, float]:
        """Returns accuracy (and top5) of the epoch; see :meth:`fec_fast.training.tasks.base.Objective.metrics`."""
        return {} if self.epoch_metrics is None else self.epoch_metrics.compute()

    def close(self) -> None:
        """Removes the hooks of feature distillation."""
        if self.distillation is not None:
            self.distillation.close()


class _ClassificationMetrics:
    """Accuracy, top-5 accuracy and mean loss, counted by torchmetrics.

    torchmetrics keeps sums over images and, with ``sum_over_processes``, adds them up over the processes. A mean of the
    processes' means would be wrong where they have different numbers of images.
    """

    def __init__(self, classes: int, device: torch.device, *, sum_over_processes: bool) -> None:
        from torchmetrics import MeanMetric, Metric
        from torchmetrics.classification import MulticlassAccuracy

        options: dict[str, Any] = {"sync_on_compute": sum_over_processes}
        self.accuracies: dict[str, Metric] = {
            name: MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False, **options).to(device)
            for name, k in (("accuracy", 1), ("top5", 5))
            if k == 1 or classes > k
        }
        self.loss = MeanMetric(**options).to(device)

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor | None = None) -> None:
        """Counts a batch: logits ``[B, classes]``, labels ``[B]`` and, on held-out data, losses ``[B]``."""
        for metric in self.accuracies.values():
            metric.update(logits, labels)
        if losses is not None:
            self.loss.update(losses)

    def compute(self) -> dict[str, float]:
        """Returns the values since the last call and resets the counts."""
        metrics = dict(self.accuracies)
        if self.loss.update_count:
            metrics["loss"] = self.loss
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


def _make_mixup(alpha: float, classes: int) -> Any:
    """Makes torchvision's mixup transform."""
    try:
        from torchvision.transforms import v2
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision", "vision", "mixup", error) from error
    return v2.MixUp(alpha=alpha, num_classes=classes)
