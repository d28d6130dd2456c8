"""The labels of weights: parameters, and tensors computed from parameters alone, on several axes at once.

A weight has filters on one axis and the channels they read on another. Casts, masks, views and element-wise operators
keep both apart. What takes several indices of an axis together (a norm, a mean, a matrix product) ties them: none of
them can be removed without changing the others, so that axis keeps its width.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..utils.computed_weights import Computation
from .labels import FREE


@dataclass(slots=True)
class ParameterView:
    """A parameter or buffer of the model, or a permuted view of one.

    Attributes:
        name: Its first name in the model.
        tensor: The parameter or buffer itself.
        axes: For each dimension of the view, the axis of ``tensor`` it shows.
    """

    name: str
    tensor: Tensor
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WeightUse:
    """A convolution or linear operation with a weight of the model.

    Attributes:
        layer: The module that owns the weight.
        weight: The name of the weight.
        out_axis: The weight axis of the filters.
        in_axis: The weight axis of the channels they read.
        groups: The groups of the convolution; 1 for a linear operation.
        whole_groups: Whether whole groups are removed (and ``groups`` shrinks) instead of the same channels of every
            group.
        inputs: The label of each input channel, int64.
        outputs: The label of each output channel, int64.
        values: The weight itself, where it is not a parameter as it is but computed or rearranged; the axes above are
            those of this tensor.
    """

    layer: str
    weight: str
    out_axis: int
    in_axis: int
    groups: int
    whole_groups: bool
    inputs: np.ndarray
    outputs: np.ndarray
    values: Tensor | None = None

    @property
    def way(self) -> tuple[str, int, int, tuple[int, ...] | None]:
        """What two uses of a weight have in common that read the same columns of it."""
        return self.weight, self.in_axis, self.groups, None if self.values is None else tuple(self.values.shape)

    def weight_in(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight that the operation used, detached.

        Args:
            tensors: The model's parameters and buffers by name.
        """
        return (tensors[self.weight] if self.values is None else self.values).detach()


@dataclass(frozen=True, slots=True, eq=False)
class ProductWidths:
    """What the cost of a product of activations with activations grows with.

    Attributes:
        channels: The labels of the channels on at most two of its dimensions, each as a vector.
    """

    channels: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WeightLabels:
    """The labels of a tensor that is computed from parameters alone.

    Attributes:
        axes: For each dimension one label per index, int64; ``FREE`` where it follows what it is combined with, and
            ``None`` where no index can be removed, or there is one.
        zeros: For each dimension whether the tensor is zero at a removed index, once the parameters are masked.
        source: The name of a parameter it is computed from, that of the whole weight where there is one; ``""`` for a
            constant.
        copied_axes: Where its elements are those of this parameter, perhaps in another dtype: for each dimension the
            axis of the parameter; else ``None``.
    """

    axes: tuple[np.ndarray | None, ...]
    zeros: tuple[bool, ...]
    source: str = ""
    copied_axes: tuple[int, ...] | None = None

    @property
    def labelled(self) -> list[int]:
        """The dimensions along which indices may be removed, without those that follow what they are combined with."""
        return [dim for dim, labels in enumerate(self.axes) if labels is not None and bool((labels != FREE).any())]


@dataclass(slots=True, eq=False)
class ComputedWeights:
    """The tensors of a run that are computed from parameters alone, and what keeps the width of weights.

    Attributes:
        kept: For each kind of computation and its remedy the layers whose weight keeps a width because of it.
    """

    kept: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    # By identity, with a weak reference that tells whether the tensor is still the same.
    _labels: dict[int, tuple[weakref.ref[Tensor], WeightLabels]] = field(default_factory=dict)

    def get(self, tensor: Tensor) -> WeightLabels | None:
        """The labels of a tensor; ``None`` if it is not known to be computed from parameters alone."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def set(self, tensor: Tensor, labels: WeightLabels) -> None:
        """Stores the labels of a tensor."""
        self._labels[id(tensor)] = weakref.ref(tensor), labels

    def forget(self, tensor: Tensor) -> None:
        """Forgets a tensor: something else was written to it."""
        self._labels.pop(id(tensor), None)

    def alive(self) -> list[Tensor]:
        """The tensors that something still refers to."""
        return [tensor for entry in self._labels.values() if (tensor := entry[0]()) is not None]

    def note_kept(self, computation: Computation) -> None:
        """Notes that a weight keeps a width because of how it is computed."""
        self.kept.setdefault((computation.kind, computation.remedy), {})[computation.layer] = None

    def notes(self) -> list[str]:
        """One note for each kind of computation: the layers, and the remedy."""
        return [
            f"{kind}: the weights of {', '.join(layer or 'the model itself' for layer in layers)} are computed from "
            f"several of their channels together, which keep their width: {remedy}"
            for (kind, remedy), layers in self.kept.items()
        ]


def reason_of(computation: Computation) -> str:
    """Why channels are kept that a weight takes together.

    Args:
        computation: How the weight is computed.
    """
    return f"a weight is computed from them together, by {computation.kind}: {computation.remedy}"
