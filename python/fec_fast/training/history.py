"""Training history: one record per epoch, and the result of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ..utils.text import counted


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean training loss over the images of the epoch.
        metrics: Metrics by name, measured on the training images while training.
        held_out: Metrics by name, measured on the held-out data after the epoch; ``None`` without a ``val_loader``.
        lr: Learning rate of the last optimizer step.
        images: Number of training images, over all processes.
        seconds: Wall-clock time in seconds, evaluation included.
    """

    epoch: int
    loss: float
    metrics: dict[str, float]
    held_out: dict[str, float] | None
    lr: float
    images: int
    seconds: float

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the training images while training, in [0, 1]; ``None`` if the task is not classification."""
        return self.metrics.get("accuracy")

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on the held-out data, in [0, 1]; ``None`` without held-out data or if not classification."""
        return None if self.held_out is None else self.held_out.get("accuracy")


@dataclass(frozen=True)
class FinetuneResult:
    """The result of :func:`fec_fast.finetune`.

    Attributes:
        model: The trained model: the same object that was passed in.
        history: One record per epoch, including the epochs before a resume.
        stopped: What ended the training: ``"epochs"`` (all epochs were done), ``"patience"`` or ``"time"``
            (``max_minutes``).
        best_epoch: Number of the epoch whose weights the model holds, if ``patience`` selected one; otherwise ``None``,
            and the model holds the weights of the last epoch.
    """

    model: nn.Module
    history: list[Epoch]
    stopped: str
    best_epoch: int | None

    def __repr__(self) -> str:
        """One line; ``history`` has the figures of every epoch."""
        name, epochs = type(self.model).__name__, counted(len(self.history), "epoch")
        loss = f", loss {self.history[-1].loss:.4g}" if self.history else ""
        kept = self.history[(self.best_epoch or 0) - 1] if self.history else None
        held_out = {} if kept is None or kept.held_out is None else kept.held_out
        metric = next((f", held-out {name} {value:.4f}" for name, value in held_out.items()), "")
        return f"<FinetuneResult: {name}, {epochs}{loss}{metric}, ended by {self.stopped}>"


def best_epoch_of(history: list[Epoch], metric: str) -> int | None:
    """Finds the epoch with the highest value of a held-out metric.

    Args:
        history: The finished epochs.
        metric: Name of the metric; higher is better.

    Returns:
        The number of the first such epoch; ``None`` if no epoch was evaluated on held-out data.
    """
    evaluated = [(row.epoch, row.held_out[metric]) for row in history if row.held_out is not None]
    evaluated = [pair for pair in evaluated if not math.isnan(pair[1])] or evaluated
    return max(evaluated, key=lambda pair: pair[1])[0] if evaluated else None
