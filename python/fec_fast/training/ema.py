"""An exponential moving average of the weights, by torch's AveragedModel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn


class Average:
    """The average of a model's weights over the steps of a training.

    Running means and variances of batch norm are averaged with the weights, by the same decay: they belong to the
    averaged weights about as well as the model's own belong to its. Whole numbers (batch norm's count of batches) are
    the model's.

    Attributes:
        model: The averaged network, a copy on the same device.
    """

    def __init__(self, model: nn.Module, decay: float, *, one_by_one: bool = False) -> None:
        """Starts from a model's weights.

        Args:
            model: Not wrapped.
            decay: What the average keeps of itself in a step, in [0, 1).
            one_by_one: Whether each tensor is taken in by itself: torch cannot take parameters that are split over
                processes and buffers that are not in one go.
        """
        self.source, self.decay, self.one_by_one = model, decay, one_by_one
        self.averaged = AveragedModel(model, use_buffers=True)
        self.model: nn.Module = self.averaged.module

    def update(self) -> None:
        """Takes the model's weights in, after a step of the optimizer."""
        steps = int(self.averaged.n_averaged)
        # In a short training an average with a long memory would be of the weights that it began with.
        decay = min(self.decay, (1 + steps) / (10 + steps))
        if self.one_by_one:
            self.averaged.avg_fn = get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        else:
            self.averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged.update_parameters(self.source)
        with torch.no_grad():
            for own, source in zip(self.model.buffers(), self.source.buffers(), strict=True):
                if not own.is_floating_point():
                    own.copy_(source)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights and the count of steps, as :meth:`restore` takes them."""
        return self.averaged.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to an earlier state."""
        self.averaged.load_state_dict(state)
