"""Share of a training that is done, measured in steps, or by the clock if ``max_minutes`` is the tighter limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .batches import length_of
from .settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

# Duration of a batch without the backward pass, as a share of a training step: a backward pass costs about twice the
# forward pass. Used only until an evaluation was timed.
_EVALUATION_SHARE = 1 / 3


class TrainingProgress:
    """How far a training is, which is what the learning-rate schedule depends on.

    Attributes:
        share: Share of the training that is done, in [0, 1]; 1 once the time is used up.
        step: Number of batches before the current optimizer step.
        evaluation_seconds: Duration of the last evaluation on held-out data; ``None`` until there was one.
    """

    def __init__(self, settings: TrainingSettings, batches: int, held_out: Any, accelerator: Accelerator) -> None:
        """Starts at 0.

        Args:
            settings: Gives ``epochs`` and ``max_minutes``.
            batches: Number of batches per epoch in this process.
            held_out: The held-out data, or ``None``.
            accelerator: Connects the processes.
        """
        self.settings, self.batches, self.held_out, self.accelerator = settings, batches, held_out, accelerator
        self.share = 0.0
        self.step = 0
        self.evaluation_seconds: float | None = None

    def begin_step(self, step: int, batch_number: int, earlier_seconds: float, epoch_seconds: float) -> None:
        """Updates the share before an optimizer step.

        Args:
            step: Number of batches since the beginning of the training.
            batch_number: Number of batches since the beginning of the epoch.
            earlier_seconds: Duration of the finished epochs.
            epoch_seconds: Duration of the current epoch so far.
        """
        self.step = step
        share_of_steps = step / (self.settings.epochs * self.batches)
        if self.settings.max_minutes is None:
            self.share = share_of_steps
            return
        spent = earlier_seconds + epoch_seconds
        # The last evaluation has to end within the limit too, so its time is reserved.
        reserved = self.evaluation_seconds
        if reserved is None:
            evaluation_batches = 0 if self.held_out is None else length_of(self.held_out) or 0
            reserved = evaluation_batches * epoch_seconds / max(1, batch_number) * _EVALUATION_SHARE
        available = max(60 * self.settings.max_minutes - reserved, spent, 1e-9)
        share_of_time = torch.tensor(spent / available, device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            # The clocks of the processes differ, and all have to stop at the same step: rank 0's clock decides.
            from accelerate.utils import broadcast

            share_of_time = broadcast(share_of_time)
        # Never backwards, even if the reserve of an evaluation shrinks: a learning rate that fell does not rise again.
        self.share = max(self.share, share_of_steps, float(share_of_time))

    def end_epoch(self, epochs_done: int) -> None:
        """Updates the share after an epoch.

        Args:
            epochs_done: Number of finished epochs.
        """
        if self.settings.max_minutes is None:
            self.share = epochs_done / self.settings.epochs

    def steps_until(self, share: float) -> float:
        """Tells how many optimizer steps are left until a share of the training, if it goes on at its speed.

        Args:
            share: A share of the training, in [0, 1].

        Returns:
            The number, the current step counted; need not be an integer. Not positive if the share has been reached.
        """
        batches = float(self.settings.epochs * self.batches)
        if self.settings.max_minutes is not None and self.share:
            batches = self.step / self.share
        return (share - self.share) * batches / self.settings.accumulate
