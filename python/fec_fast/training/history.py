"""What a training tells of itself: one row an epoch, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean training loss.
        metrics: Of the training images while training, by name.
        held_out: Of the held-out data after it, by name; ``None`` without a ``val_loader``.
        lr: Learning rate of its last step.
        images: Training images seen, over all processes.
        seconds: Wall-clock time, evaluation included.
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
        """Share of training images classified right while training, in [0, 1]; ``None`` if it is no classifier."""
        return self.metrics.get("accuracy")

    @property
    def val_accuracy(self) -> float | None:
        """Share of held-out images classified right, in [0, 1]; ``None`` without a ``val_loader`` or a classifier."""
        return None if self.held_out is None else self.held_out.get("accuracy")


@dataclass(frozen=True)
class FinetuneResult:
    """A finished training.

    Attributes:
        model: The trained model, the same object that was given.
        history: One row an epoch, those before a resume included.
        stopped: What ended it: ``"epochs"`` (all were done), ``"patience"`` or ``"time"``.
        best_epoch: The epoch whose weights the model has, if ``patience`` chose it; otherwise ``None``.
    """

    model: nn.Module
    history: list[Epoch]
    stopped: str
    best_epoch: int | None


def best_of(history: list[Epoch], metric: str) -> int | None:
    """The first of the epochs with the highest metric on held-out data; ``None`` if there is none."""
    rows = [row for row in history if row.held_out is not None]
    return max(rows, key=lambda row: (row.held_out or {})[metric]).epoch if rows else None
