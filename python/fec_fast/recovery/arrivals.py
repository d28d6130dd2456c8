"""Arrivals: what the calls of a layer in the pruned model give to its fit, as they happen."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ..utils.errors import InputError
from ..utils.model_index import ModelIndex
from .layer_calls import LayerCall, LayerCallMode
from .lockstep import Pause
from .rows import output_rows
from .targets import CallTarget


@dataclass(frozen=True, eq=False)
class Arrival:
    """What one call of a layer in the pruned model gives to its fit.

    Attributes:
        call: The call.
        inputs: ``[groups, rows, unknowns]``.
        wanted: ``[rows, outputs]``: what the original computes.
        addend: ``[rows, outputs]``: what will be added; ``None`` if that is not known.
    """

    call: LayerCall
    inputs: Tensor
    wanted: Tensor
    addend: Tensor | None


class ArrivalMode(LayerCallMode):
    """Stops the run of one batch at every layer that is to be fitted."""

    def __init__(
        self,
        index: ModelIndex,
        wanted: Container[int],
        arrive: Callable[[LayerCall, int, Mapping[int, Tensor]], bool],
        pause: Pause,
    ) -> None:
        """Starts a run.

        Args:
            index: The index of the pruned model.
            wanted: Where in the run tensors are made that are added to layers' outputs, see ``LayerCallMode.path``.
            arrive: Is called with a layer's call, how many calls of the layer came before, and the wanted tensors that
                are there. It returns whether the run has to wait.
            pause: Waits until the layer was fitted.
        """
        super().__init__(index)
        self._wanted, self._arrive, self._pause = wanted, arrive, pause
        self._calls: dict[str, int] = defaultdict(int)
        # Weak: what is still to be added, the model's code holds; the rest would fill the memory.
        self._made: dict[int, TensorWeakRef] = {}

    def before_layer(self, call: LayerCall) -> None:
        """Waits until the layer was fitted on the inputs of all batches."""
        number = self._calls[call.name]
        self._calls[call.name] += 1
        made = {path: tensor for path, reference in self._made.items() if (tensor := reference()) is not None}
        self._made = {path: self._made[path] for path in made}
        waits = self._arrive(call, number, made)
        del made  # their memory, as far as the model's code does not hold it
        if waits:
            self._pause(call.name)

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Notes the output if it is added to another layer's."""
        if self.path in self._wanted:
            self._made[self.path] = TensorWeakRef(output)

    def after_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Notes a result that is added to a layer's output."""
        if self.path in self._wanted and isinstance(result, Tensor):
            self._made[self.path] = TensorWeakRef(result)


def check_rows(inputs: Tensor, layer: str) -> None:
    """Checks that products of a layer's inputs are finite.

    Args:
        inputs: ``[groups, rows, unknowns]``.
        layer: The name of the layer.

    Raises:
        InputError: They are not.
    """
    largest = float(inputs.abs().amax()) if inputs.numel() else 0.0
    if math.isfinite(largest) and largest < (torch.finfo(inputs.dtype).max / max(1, inputs.shape[1])) ** 0.5:
        return
    what = f"values up to {largest:.1e}, whose products overflow" if math.isfinite(largest) else "NaN or infinity"
    raise InputError(
        f"layer {layer!r} of the pruned model reads {what} on the calibration images: check how they are normalised"
    )


def addend_rows(call: LayerCall, target: CallTarget, made: Mapping[int, Tensor]) -> Tensor | None:
    """What the pruned model will add to a layer's output, if that is there already.

    Args:
        call: The call in the pruned model.
        target: That in the original.
        made: Tensors by where in the run they were made.

    Returns:
        ``[rows, outputs]`` at the target's positions.
    """
    made_at, (items, *places) = target.reader.addend_made_at, target.positions.shape
    tensor = None if made_at is None else made.get(made_at)
    shape = (items, *places, call.out_channels) if call.is_linear else (items, call.out_channels, *places)
    if tensor is None or tensor.shape != shape:
        return None
    return output_rows(tensor, target.positions, is_linear=call.is_linear)
