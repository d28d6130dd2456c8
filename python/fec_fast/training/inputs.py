"""What a training is started with: networks, data, task, settings and the folder for its state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .settings import TrainingSettings
from .sparsity import Sparsity
from .tasks.base import Task


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that a training is started with, already checked.

    Attributes:
        task: What the network is trained for: its loss and its metrics.
        model: The network that is trained.
        teacher: The network that is imitated, if any.
        train_loader: Training data.
        val_loader: Held-out data, if any.
        settings: How to train.
        state_folder: Folder for the state of the training; ``None`` saves none.
        sparsify: The penalty on coupled channels, if any.
    """

    task: Task
    model: nn.Module
    teacher: nn.Module | None
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    settings: TrainingSettings
    state_folder: Path | None
    sparsify: Sparsity | None

    def conditions(self, batches: int, processes: int) -> dict[str, Any]:
        """Collects what the numbers of the training depend on, apart from data and model.

        A saved state is resumed under equal conditions only.

        Args:
            batches: Number of batches per epoch, over all processes.
            processes: Number of processes.

        Returns:
            The settings and the other conditions by name; JSON can hold the values.
        """
        others: dict[str, Any] = {"task": self.task.name, "steps_per_epoch": batches, "processes": processes}
        others["sparsify"] = None if self.sparsify is None else self.sparsify.describe()
        return {**asdict(self.settings), **others, "distilled": self.teacher is not None}
