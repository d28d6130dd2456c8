"""Weights and biases as operands of convolutions and matrix products: parameters, views of them, computed ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...utils.computed_weights import computation_of, owner_of
from ..label_tracker import LabelTracker
from ..labels import FREE, free_as_fixed
from ..weight_labels import ParameterView, WeightLabels, WeightUse, reason_of


@dataclass(frozen=True, slots=True, eq=False)
class WeightOperand:
    """The weight of a convolution or matrix product.

    Attributes:
        tracker: The labels.
        tensor: The operand.
        view: The parameter that it shows; ``None`` where it is computed.
        computed: Its labels where it is computed.
        name: The name of the parameter, or of one it is computed from.
        layer: The module that owns the parameter.
    """

    tracker: LabelTracker
    tensor: Tensor
    view: ParameterView | None
    computed: WeightLabels | None
    name: str
    layer: str

    @classmethod
    def of(cls, tracker: LabelTracker, tensor: Tensor) -> WeightOperand | None:
        """The operand, if it is a weight of the model.

        Args:
            tracker: The labels.
            tensor: Any operand.

        Returns:
            The weight; ``None`` for what is not computed from parameters alone.
        """
        view = tracker.parameter_view(tensor)
        if view is not None:
            return cls(tracker, tensor, view, None, view.name, owner_of(view.name))
        computed = tracker.weights.get(tensor)
        if computed is None or not computed.source:
            return None
        return cls(tracker, tensor, None, computed, computed.source, owner_of(computed.source))

    def labels(self, dim: int, proposal: np.ndarray | None = None, reason: str = "") -> np.ndarray:
        """The labels along a dimension, united with those that are proposed.

        Args:
            dim: The dimension.
            proposal: The labels of what it meets, int64.
            reason: Why they are kept where they meet a fixed width.

        Returns:
            One label per index, int64.
        """
        if self.view is not None:
            return self.tracker.axis_labels(self.view, self.view.axes[dim], proposal, reason)
        assert self.computed is not None
        labels, sets = self.computed.axes[dim], self.tracker.sets
        if self.tensor.shape[dim] > 1 and (labels is None or sets.any_pinned(labels)):
            computation = computation_of(self.tracker.modules, self.name)
            self.tracker.weights.note_kept(computation)
            reason = reason_of(computation)
        if labels is None:
            labels = sets.new_labels(self.tensor.shape[dim])
            sets.pin(labels, reason or "it is the only one")
        labels = free_as_fixed(labels)
        if proposal is not None:
            sets.unite(labels, free_as_fixed(proposal), reason)
        return labels

    def pin(self, dim: int, reason: str) -> None:
        """Forbids the narrowing of a dimension."""
        if self.view is not None:
            self.tracker.pin_axis(self.view, self.view.axes[dim], reason)
        else:
            self.tracker.sets.pin(self.labels(dim), reason)

    def is_alike(self, dims: Iterable[int]) -> bool:
        """Whether the weight is the same at every index of some dimensions."""
        if all(self.tensor.shape[dim] == 1 for dim in dims):
            return True
        axes = () if self.computed is None else self.computed.axes
        vectors = [axes[dim] if axes else None for dim in dims]
        return all(vector is not None and bool((vector == FREE).all()) for vector in vectors)

    def is_zero(self, dim: int) -> bool:
        """Whether the weight is zero at a removed index of a dimension, once the parameters are masked."""
        return self.computed is None or self.computed.zeros[dim]

    def use(
        self, out_dim: int, in_dim: int, groups: int, whole_groups: bool, inputs: np.ndarray, outputs: np.ndarray
    ) -> WeightUse:
        """The use of this weight.

        Args:
            out_dim: The dimension of the filters.
            in_dim: The dimension of the channels that they read.
            groups: The groups of the convolution.
            whole_groups: Whether whole groups are removed.
            inputs: The label of each input channel.
            outputs: The label of each output channel.

        Returns:
            The use, with the weight's values where they are not those of the parameter as it is.
        """
        axes = self.view.axes if self.view is not None else self.computed.copied_axes if self.computed else None
        if axes is not None and {axes[out_dim], axes[in_dim]} == {0, 1}:
            return WeightUse(self.layer, self.name, axes[out_dim], axes[in_dim], groups, whole_groups, inputs, outputs)
        first = [out_dim, in_dim] if groups == 1 or out_dim < in_dim else [in_dim, out_dim]
        order = [*first, *(dim for dim in range(self.tensor.dim()) if dim not in first)]
        values = self.tensor.detach().permute(order)
        alike = [at for at, dim in enumerate(order) if dim not in first and self.is_alike([dim])]
        for at in reversed(alike):
            values = values.select(at, 0)
        positions = order.index(out_dim), order.index(in_dim)
        return WeightUse(self.layer, self.name, *positions, groups, whole_groups, inputs, outputs, values)


def label_bias(tracker: LabelTracker, use: WeightUse, bias: Tensor) -> None:
    """Labels a bias like the filters.

    Args:
        tracker: The labels.
        use: The use of the weight.
        bias: The bias, ``[out]``.
    """
    reason = f"the bias of {use.layer} is also that of channels of fixed width"
    view = tracker.parameter_view(bias)
    if view is not None and bias.dim() == 1:
        tracker.axis_labels(view, 0, use.outputs, reason)
    elif tracker.is_from_parameters(bias):
        tracker.sets.unite(free_as_fixed(tracker.labels_of(bias).along(bias.dim() - 1)), use.outputs, reason)
    else:
        tracker.sets.pin(use.outputs, f"the bias of {use.layer} is not a parameter of the model")


def is_bias_zero(tracker: LabelTracker, bias: Tensor | None) -> bool:
    """Whether a bias is zero at masked filters; a bias that is not the model's is not masked.

    Args:
        tracker: The labels.
        bias: The bias.
    """
    if bias is None or tracker.parameter_view(bias) is not None:
        return True
    labels = tracker.weights.get(bias)
    return labels is not None and labels.zeros[-1]
