"""Image classification as a task: loss, checks and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.batches import check_data, check_labels, pair
from ...utils.errors import ArgumentError, InputError, missing_extra
from ...utils.forward import evaluating, undisturbed
from ...utils.modules import device_of
from ..distillation import Imitation, check_features
from ..settings import TrainingSettings
from .base import BatchLoss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


class Classification:
    """One label an image, cross entropy; the model takes images ``[B, ...]`` and returns logits ``[B, classes]``.

    Metrics: ``accuracy`` (main), ``top5`` where there are more than five classes, both in [0, 1], and, on held-out
    data, ``loss``, the mean cross entropy in nats.
    """

    name = "classification"
    main_metric = "accuracy"

    def check(
        self, model: nn.Module, teacher: nn.Module | None, loader: Iterable[Any], settings: TrainingSettings
    ) -> None:
        """See :meth:`Task.check`."""
        if settings.feature_layers and teacher is None:
            raise ArgumentError("feature_layers needs a teacher whose features are imitated: teacher=...")
        if settings.mixup:
            _mixup(settings.mixup, 2)
        check_data(model, teacher, loader)
        if teacher is not None and settings.feature_layers:
            check_features(model, teacher, settings.feature_layers, pair(next(iter(loader)))[0])

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """See :meth:`Task.objective`."""
        return _ClassificationObjective(model, teacher, settings, accelerator)

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """See :meth:`Task.evaluate`."""
        device = device_of(model)
        counted: _Counted | None = None
        with evaluating(model):
            for images, labels in map(pair, loader):
                logits = model(images.to(device)).float()
                labels = labels.to(device)
                if accelerator is not None:
                    logits, labels = accelerator.gather_for_metrics((logits, labels))
                check_labels(labels, logits.shape[1], "the held-out data")
                # Every process has gathered everything: to add up over them would count it again.
                counted = counted or _Counted(logits.shape[1], device, shared=False)
                counted.update(logits, labels, F.cross_entropy(logits, labels, reduction="none"))
        if counted is None:
            raise InputError("the loader to evaluate on is empty")
        return counted.compute()


class _ClassificationObjective:
    """Cross entropy, with mixup and imitation of a teacher where they are asked for."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> None:
        self.model, self.settings, self.device = model, settings, accelerator.device
        self.imitation = None if teacher is None else Imitation(model, teacher, settings, accelerator.autocast)
        self.counted: _Counted | None = None
        self.mix: Any = None

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """See :meth:`Objective.loss`."""
        images, labels = (part.to(self.device) for part in pair(batch))
        target = labels
        if self.settings.mixup:
            if self.mix is None:
                self.mix = _mixup(self.settings.mixup, self.classes(images))
            check_labels(labels, self.mix.num_classes, where)  # before one-hot rows are made of them
            images, target = self.mix(images, labels)
        logits = network(images)
        check_labels(labels, logits.shape[1], where)
        loss = F.cross_entropy(logits, target, label_smoothing=self.settings.label_smoothing)
        if self.imitation is not None:
            loss = self.imitation(images, logits, loss)
        self.counted = self.counted or _Counted(logits.shape[1], self.device, shared=True)
        self.counted.update(logits.detach(), labels)
        return BatchLoss(loss, len(labels))

    def classes(self, images: Tensor) -> int:
        """How many logits the model returns; labels are mixed before they are seen."""
        with undisturbed(self.model):
            return int(self.model(images[:1]).shape[1])

    def metrics(self) -> dict[str, float]:
        """See :meth:`Objective.metrics`."""
        return {} if self.counted is None else self.counted.compute()

    def close(self) -> None:
        """See :meth:`Objective.close`."""
        if self.imitation is not None:
            self.imitation.close()


class _Counted:
    """The metrics of classification, by torchmetrics."""

    def __init__(self, classes: int, device: torch.device, *, shared: bool) -> None:
        from torchmetrics import MeanMetric, Metric
        from torchmetrics.classification import MulticlassAccuracy

        places = {"accuracy": 1, **({"top5": 5} if classes > 5 else {})}
        options: dict[str, Any] = {"sync_on_compute": shared}
        self.by_name: dict[str, Metric] = {
            name: MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False, **options).to(device)
            for name, k in places.items()
        }
        self.loss = MeanMetric(**options).to(device)

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor | None = None) -> None:
        for metric in self.by_name.values():
            metric.update(logits, labels)
        if losses is not None:
            self.loss.update(losses)

    def compute(self) -> dict[str, float]:
        """The values since the last call."""
        metrics = dict(self.by_name)
        if self.loss.update_count:
            metrics["loss"] = self.loss
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


def _mixup(alpha: float, classes: int) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing_extra("torchvision", "vision", "mixup") from error
    return v2.MixUp(alpha=alpha, num_classes=classes)
