"""What a network is trained for: the loss of a batch, and how good the network is. The engine knows nothing else.

:class:`Task` is what the engine asks of it, :class:`Classification` the plain case, to be read first. A task holds no
state; what one training needs (a teacher, counts of the epoch) is in the :class:`Objective` that the task makes for it.
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
    """What a batch came to.

    Attributes:
        value: The loss, a scalar that gradients flow from.
        images: How many images it is the mean over.
    """

    value: Tensor
    images: int


class Objective(Protocol):
    """What is minimised in one training."""

    def loss(self, network: nn.Module, batch: Any, where: str) -> BatchLoss:
        """Computes the loss of a batch; the counts of the epoch go on.

        Args:
            network: The model as accelerate wrapped it, in training mode.
            batch: What the loader yielded, on any device.
            where: Words for the place in the training, for messages.

        Returns:
            The loss, not yet looked at.

        Raises:
            InputError: The batch is not what the task is about.
        """

    def metrics(self) -> dict[str, float]:
        """What the training images of the epoch came to, over all processes, which call this together; counts anew."""

    def close(self) -> None:
        """Takes off the model whatever was put on it."""


class Task(Protocol):
    """What a network is trained for.

    Attributes:
        name: A word for it; a training is resumed by the same task only.
        main_metric: Which of the metrics of :meth:`evaluate` decides; higher is better.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def main_metric(self) -> str:
        """See above."""

    def check(
        self, model: nn.Module, teacher: nn.Module | None, loader: Iterable[Any], settings: TrainingSettings
    ) -> None:
        """Looks for everything that can be known to go wrong. Nothing changes.

        Args:
            model: The network to be trained.
            teacher: The network to be imitated, if any.
            loader: The training data.
            settings: How to train; those that have no meaning for the task are refused by name.

        Raises:
            FecError: The first thing found.
        """

    def objective(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, accelerator: Accelerator
    ) -> Objective:
        """Makes what one training needs.

        Args:
            model: The network, not wrapped, on the accelerator's device; checked before.
            teacher: On the same device, in evaluation mode; checked before.
            settings: How to train.
            accelerator: Where to, in which precision and with whom.

        Returns:
            The objective; it is closed after the training.
        """

    def evaluate(
        self, model: nn.Module, loader: Iterable[Any], accelerator: Accelerator | None = None
    ) -> dict[str, float]:
        """Measures how good a network is. Its modes are restored and nothing else of it changes.

        Args:
            model: The network, on the device it is on.
            loader: Held-out data.
            accelerator: Given when the processes share the loader, which accelerate has prepared: every image is then
                to be counted once, over all of them.

        Returns:
            Metrics by name, :attr:`main_metric` among them; the same in every process.

        Raises:
            InputError: The loader is empty, or a batch is not what the task is about.
        """
