"""Exponential moving average (EMA) of a model's weights, on top of torch's ``AveragedModel``."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from ..utils.copying import copied_model
from ..utils.model_index import ModelIndex


class ModelEma:
    """Keeps an exponential moving average of a model's weights.

    The running means and variances of batch norm are averaged with the same decay as the weights, because they have to
    match the averaged weights, not the current ones. Integer buffers (``num_batches_tracked``) are copied.
    In tensors that are not finite at the start, such as a mask with ``-inf``, an entry that is not finite in the model
    or in the average takes the model's value.

    Attributes:
        model: The averaged network: a copy of the source, on the same device.
    """

    def __init__(self, source: nn.Module, decay: float, *, per_tensor: bool = False) -> None:
        """Copies the weights that the average starts from.

        Args:
            source: The model whose weights are averaged, without wrappers.
            decay: Share of the old average that is kept in one update, in [0, 1).
            per_tensor: Updates each tensor separately instead of all tensors in one fused operation. FSDP2 needs this:
                its parameters are DTensors and its buffers are plain tensors, and torch's fused operation does not
                accept both in one list.
        """
        self.source, self.decay, self.per_tensor = source, decay, per_tensor
        self.averaged = AveragedModel(nn.Identity(), use_buffers=True)  # it would make a deep copy, which may fail
        self.averaged.module = copied_model(ModelIndex.of(source))
        self.model: nn.Module = self.averaged.module
        self._infinite = [
            name
            for name, tensor in chain(source.named_parameters(), source.named_buffers())
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())
        ]

    def update(self) -> None:
        """Updates the average with the source's weights. To be called after each optimizer step."""
        steps = int(self.averaged.n_averaged)
        # A fixed decay of 0.999 would keep the initial weights dominant for about 1,000 steps. The decay therefore
        # starts small and grows, as in TensorFlow's ExponentialMovingAverage.
        decay = min(self.decay, (1 + steps) / (10 + steps))
        if self.per_tensor:
            self.averaged.avg_fn = get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        else:
            self.averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged.update_parameters(self.source)
        with torch.no_grad():
            for averaged, current in zip(self.model.buffers(), self.source.buffers(), strict=True):
                if not averaged.is_floating_point():
                    averaged.copy_(current)
            # The average with an infinite entry is infinite or NaN (inf - inf), whichever of the two has it.
            own, given = (
                dict(chain(each.named_parameters(), each.named_buffers())) for each in (self.model, self.source)
            )
            for name in self._infinite:
                own[name].copy_(torch.where(own[name].isfinite(), own[name], given[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged weights and the number of updates."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the average from what :meth:`state_dict` returned."""
        self.averaged.load_state_dict(state)
