"""Sides of layers: the filters, which make channels, the slices, which read them, and the units they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..graph.labels import FIXED
from ..graph.weight_labels import WeightUse


@dataclass(frozen=True)
class LayerSide:
    """One side of a layer: its filters, or the slices that read its input channels.

    Attributes:
        use: The layer's convolution or linear operation.
        is_consumer: ``False`` for the filters, which make channels; ``True`` for the slices, which read them.
    """

    use: WeightUse
    is_consumer: bool

    @property
    def axis(self) -> int:
        """The weight axis that the filters or slices lie on."""
        return self.use.in_axis if self.is_consumer else self.use.out_axis

    @property
    def labels(self) -> np.ndarray:
        """The channel label of each filter or slice, int64."""
        return self.use.inputs if self.is_consumer else self.use.outputs


def as_filters(weight: Tensor, axis: int, groups: int) -> Tensor:
    """A weight seen as filters of channels, from either side.

    Args:
        weight: ``[N, C/groups, *kernel]``.
        axis: 0 for the filters; 1 for the slices that belong to each input channel of each group.
        groups: Groups of the convolution.

    Returns:
        ``[filters or slices, channels, *kernel]``; a view where that is possible.
    """
    if axis == 0:
        return weight
    if groups == 1:
        return weight.transpose(0, 1)
    rows, columns, *kernel = weight.shape
    grouped = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return grouped.reshape(groups * columns, rows // groups, *kernel)


@dataclass(frozen=True, eq=False)
class UnitsOfSide:
    """The units that the filters or slices of a side belong to. A unit may hold several of them (groups, a flatten).

    Attributes:
        units: The label of each unit, int64 ``[units]``; negative for a filter that belongs to none, and is one alone.
        position: For each filter the position of its unit, int64 ``[filters]``; ``None`` where each filter is a unit.
    """

    units: np.ndarray
    position: np.ndarray | None

    @classmethod
    def of(cls, labels: np.ndarray) -> UnitsOfSide:
        """Finds the units.

        Args:
            labels: For each filter or slice the label of its unit, int64; ``FIXED`` for none.

        Returns:
            The units; in the order of the filters where each filter is a unit, else with rising labels.
        """
        keys = labels if (labels > FIXED).all() else np.where(labels > FIXED, labels, -1 - np.arange(len(labels)))
        if (keys[1:] > keys[:-1]).all():  # the common case
            return cls(keys, None)
        units, position = np.unique(keys, return_inverse=True)
        return cls(keys, None) if len(units) == len(keys) else cls(units, position)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean of each unit's values.

        Args:
            values: One value per filter, float64 ``[filters]``.

        Returns:
            Float64 ``[units]``.
        """
        if self.position is None:
            return values
        return np.bincount(self.position, weights=values) / np.bincount(self.position)
