"""Protocols of a training task: the loss of a batch, the metrics of a network, and the checks before training.

The training loop knows a task only through :class:`Task`. A task itself holds no state; what one training needs (a
teacher's hooks, counts of the epoch) is in the :class:`Objective` that the task makes for it. ``classification.py`` is
the simple implementation, to be read first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from ..settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch.

    Attributes:
        value: The mean loss over the images, a scalar with a gradient.
        images: Number of images in the batch.
    """

    value: Tensor
    images: int


class Objective(Protocol):
    """The loss that one training minimises, with the counts of the current epoch."""

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """Computes the loss of a batch and adds the batch to the counts of the epoch.

        Args:
            network: The model as wrapped by accelerate, in training mode.
            batch: A batch of the loader, on any device.
            where: Step and epoch, for error messages.

        Returns:
            The loss, which may be infinite or NaN: the training loop checks that.

        Raises:
            InputError: The batch does not have the task's form.
        """

    def metrics(self) -> dict[str, float]:
        """Returns the metrics on the training images of the epoch and resets the counts.

        Collective: all processes call it, and all get the metrics over the images of all processes.
        """

    def close(self) -> None:
        """Removes the hooks that the objective has put on the networks."""


class Task(Protocol):
    """What a network is trained for.

    Attributes:
        name: Name of the task; a training can only be resumed with the task of the same name.
        main_metric: Name of the metric of :meth:`evaluate` that ``patience`` watches; higher is better.
    """

    @property
    def name(self) -> str:
        """Name of the task; a training can only be resumed with the task of the same name."""

    @property
    def main_metric(self) -> str:
        """Name of the metric of :meth:`evaluate` that ``patience`` watches; higher is better."""

    def check(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        loader: Iterable[Any],
        settings: TrainingSettings,
        held_out: Iterable[Any] | None = None,
    ) -> None:
        """Checks everything that can be checked before the training. Changes nothing.

        Args:
            model: The network to be trained.
            teacher: The network to be imitated, if any.
            loader: The training data.
            settings: The settings of the training; those that the task does not support are refused by name.
            held_out: The held-out data, if any: so that a mistake in it is reported before the first epoch, not after.

        Raises:
            FecError: The first problem.
        """

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """Makes the objective of one training.

        Args:
            model: The network, without wrappers, on the accelerator's device; :meth:`check` has accepted it.
            teacher: The network to be imitated, if any: on the same device, in evaluation mode; :meth:`check` has
                accepted it.
            settings: The settings of the training.
            accelerator: Gives device, precision and processes.

        Returns:
            The objective. The training loop closes it after the training.
        """

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """Measures a network on held-out data. Restores the modes of its modules and changes nothing else.

        Args:
            model: The network, without wrappers; it is run on the device it is on.
            loader: The held-out data.
            accelerator: Given if ``loader`` was prepared by it, so that each process has a share of the batches. The
                metrics then have to cover all processes' images, each image once.

        Returns:
            Metrics by name, :attr:`main_metric` among them; the same in every process.

        Raises:
            InputError: The loader is empty, or a batch does not have the task's form.
        """
