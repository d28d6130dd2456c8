"""Exponential moving average (EMA) of a model's weights, on top of torch's ``AveragedModel``."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from ..utils.copying import copied_model
from ..utils.model_index import ModelIndex


class ModelEma:
    """Keeps an exponential moving average of a model's weights.

    The running means and variances of batch norm are averaged with the same decay as the weights, because they have to
    match the averaged weights, not the current ones. Integer buffers (``num_batches_tracked``) and extra states
    (``get_extra_state``) are copied. The averages of tensors in half precision are kept in float32, because a small
    share of a difference would be rounded away; the averaged network has them rounded.
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
        self._unrounded: dict[str, Tensor] = {}
        self._infinite = [
            name
            for name, tensor in _tensors(source).items()
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
        unrounded = self._unrounded_averages()
        self.averaged.update_parameters(self.source)
        with torch.no_grad():
            for averaged, current in zip(self.model.buffers(), self.source.buffers(), strict=True):
                if not averaged.is_floating_point():
                    averaged.copy_(current)
            own, given = _tensors(self.model), _tensors(self.source)
            for name, average in unrounded.items():
                average.lerp_(given[name].float(), 1 - decay if steps else 1.0)
            # The average with an infinite entry is infinite or NaN (inf - inf), whichever of the two has it.
            for name in self._infinite:
                average = unrounded.get(name, own[name])
                average.copy_(torch.where(average.isfinite(), average, given[name]))
            for name, average in unrounded.items():
                own[name].copy_(average)
        for averaging, trained in zip(self.model.modules(), self.source.modules(), strict=True):
            if type(trained).get_extra_state is not nn.Module.get_extra_state:
                averaging.set_extra_state(copy.deepcopy(trained.get_extra_state()))

    def _unrounded_averages(self) -> dict[str, Tensor]:
        """The averages of the tensors in half precision, in float32, by name."""
        # Made here, not at the start: FSDP2 has replaced the parameters since.
        for name, rounded in _tensors(self.model).items():
            if rounded.is_floating_point() and rounded.element_size() < torch.float32.itemsize:
                average, current = self._unrounded.get(name), rounded.detach().float()
                if average is not None:  # other values were written to the network: channels of a plan that fade
                    current = torch.where(average.to(rounded.dtype) == rounded, average, current)
                self._unrounded[name] = current
        return self._unrounded

    def state_dict(self) -> dict[str, Any]:
        """Returns the averaged weights, those in half precision in float32, and the number of updates."""
        state = self.averaged.state_dict()
        averages = {f"module.{name}": average for name, average in self._unrounded_averages().items()}
        return {name: averages.get(name, value) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the average from what :meth:`state_dict` returned."""
        self.averaged.load_state_dict(state)
        for name, rounded in _tensors(self.model).items():
            stored = state.get(f"module.{name}")
            if stored is not None and stored.dtype != rounded.dtype:
                self._unrounded[name] = stored.to(rounded.device, copy=True)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))
