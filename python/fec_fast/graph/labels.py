"""Channel labels: which elements of which tensors are removed together.

Every channel of a traced model has a label, an integer. All elements of all tensors that belong to a channel carry its
label. Where an operator combines two channels (an addition, say), their labels are united into one set, because one
cannot be removed without the other; :mod:`fec_fast.graph.label_sets` keeps the sets. Two labels are special: ``FIXED``
marks elements of an extent that cannot shrink, ``FREE`` marks elements without a channel of their own, whose extent
follows whatever they are combined with.

A :class:`LabelMap` stands beside each tensor of the run. The labels of a tensor vary along one dimension at most (that
of its channels), so one vector of labels describes all elements.

A vector of labels is an int64 array that nobody writes to. Operators that leave the channels alone hand on the same
object, so that most comparisons of vectors are comparisons of identities, and unions of equal vectors cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.compat import without_dispatch_modes

FIXED = 0
FREE = -1


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """The labels of a tensor's elements.

    Attributes:
        shape: The tensor's shape.
        dim: The dimension along which the labels vary; ``None`` where all elements have the same label.
        labels: One label per index of ``dim``, or the one label; int64.
    """

    shape: tuple[int, ...]
    dim: int | None
    labels: np.ndarray

    @classmethod
    def constant(cls, label: int, shape: Sequence[int]) -> LabelMap:
        """The same label everywhere.

        Args:
            label: The label.
            shape: The shape of the tensor.

        Returns:
            The map.
        """
        labels = _SPECIAL.get(label)
        return cls(tuple(shape), None, np.array([label]) if labels is None else labels)

    @classmethod
    def varying(cls, labels: np.ndarray, dim: int, shape: Sequence[int]) -> LabelMap:
        """Labels that vary along one dimension.

        Args:
            labels: One label per index of ``dim``.
            dim: The dimension.
            shape: The shape of the tensor.

        Returns:
            The map.
        """
        return cls(tuple(shape), dim if len(labels) > 1 else None, labels if len(labels) else _SPECIAL[FREE])

    @classmethod
    def compact(cls, labels: np.ndarray, dim: int, shape: Sequence[int]) -> LabelMap:
        """Like :meth:`varying`; a vector of equal labels becomes one label.

        Args:
            labels: One label per index of ``dim``.
            dim: The dimension.
            shape: The shape of the tensor.

        Returns:
            The map.
        """
        if len(labels) > 1 and (labels == labels[0]).all():
            labels = labels[:1]
        return cls.varying(labels, dim, shape)

    @classmethod
    def from_tensor(cls, labels: Tensor) -> LabelMap | list[int]:
        """The map of labels that an operator was applied to, see :meth:`tensor`.

        Args:
            labels: Int64, any shape.

        Returns:
            The map; where the labels vary along several dimensions there is none, and those dimensions are returned.
        """
        shape = tuple(labels.shape)
        if math.prod(shape) == 0:
            return cls.constant(FREE, shape)
        dims = []
        for dim, (size, stride) in enumerate(zip(shape, labels.stride(), strict=True)):
            if size > 1 and stride != 0:
                first = labels.narrow(dim, 0, 1)
                if bool((labels == first).all()):
                    labels = first.expand(shape)
                else:
                    dims.append(dim)
        if len(dims) > 1:
            return dims
        if not dims:
            return cls.constant(int(labels[(0,) * labels.dim()]), shape)
        vector = labels[tuple(slice(None) if d == dims[0] else 0 for d in range(labels.dim()))]
        return cls(shape, dims[0], vector.clone(memory_format=torch.contiguous_format).numpy())

    def along(self, dim: int) -> np.ndarray:
        """The labels along a dimension, the others held at index 0.

        Args:
            dim: The dimension.

        Returns:
            One label per index.
        """
        return self.labels if dim == self.dim else np.full(self.shape[dim], self.labels[0])

    def moved_by(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> LabelMap | list[int]:
        """Applies to the labels what an operator does to the elements.

        Args:
            function: Moves the elements of its first argument and changes none.
            args: Its further arguments.
            kwargs: Its keyword arguments.

        Returns:
            See :meth:`from_tensor`.
        """
        with without_dispatch_modes():
            return LabelMap.from_tensor(function(self.tensor(), *args, **kwargs))

    def tensor(self) -> Tensor:
        """The labels as an int64 tensor of the map's shape, expanded from one vector without a copy."""
        labels = torch.from_numpy(self.labels)
        return labels.view([-1 if d == self.dim else 1 for d in range(len(self.shape))]).expand(self.shape)


_SPECIAL = {label: np.array([label]) for label in (FIXED, FREE)}


def free_as_fixed(labels: np.ndarray) -> np.ndarray:
    """The labels for an axis of a weight, whose extent follows nothing else: ``FREE`` becomes ``FIXED``.

    Args:
        labels: Labels.

    Returns:
        The labels; the same object where it has no ``FREE``.
    """
    return np.maximum(labels, FIXED) if (labels < FIXED).any() else labels
