"""Cuts: operators that divide channels at numbers from the model's code, and how such a number is made up for.

``chunk``, ``split``, a slice and a reshape reach the trace as operators with plain numbers: behind ``split(x, 16)`` may
be ``x.chunk(2, 1)``, ``x.split(x.shape[1] // 2, 1)``, ``x.split(self.width, 1)`` or a 16 in the code. So the rules
assume that the numbers follow the width, and leave a :class:`Cut`. It says at which numbers the pruned network must
cut, and :mod:`fec_fast.graph.trial` compares them with those at which its code does cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .labels import LabelMap
from .operator_call import OperatorCall

# From a vector of labels to how many of its channels are kept.
CountKept = Callable[[np.ndarray], int]
# What a cut is made at: for each part its first channel and the one behind its last, or sizes of dimensions.
Numbers = tuple[tuple[int, int], ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cut(ABC):
    """An operator of the run that divides channels, or that shapes a tensor with channels.

    Attributes:
        number: Its position among the operators of the run.
        layer: The module in whose code it ran.
        operator: The ATen operator.
        source: The labels of the tensor that is cut; they vary along a dimension.
    """

    number: int
    layer: str
    operator: Any
    source: LabelMap

    @property
    def channels(self) -> np.ndarray:
        """The labels of the channels that are cut."""
        return self.source.labels

    @property
    @abstractmethod
    def divides(self) -> bool:
        """Whether channels of several places were united because they are removed together."""

    @abstractmethod
    def is_like(self, other: Cut) -> bool:
        """Whether another cut divides in the same way at the same place of the code."""

    @abstractmethod
    def requested(self, args: Sequence[Any]) -> Numbers:
        """The numbers that the model's code asks for.

        Args:
            args: The arguments of the operator, in the pruned network.
        """

    @abstractmethod
    def planned(self, count: CountKept) -> Numbers:
        """The numbers that the pruned network must be cut at.

        Args:
            count: How many of some channels are kept.
        """

    @abstractmethod
    def make(self, args: Sequence[Any], planned: Numbers) -> Any:
        """Makes the cut at the planned numbers.

        Args:
            args: The arguments of the operator, in the pruned network.
            planned: What :meth:`planned` returned.

        Returns:
            What the operator returns where the code asks for these numbers.
        """

    @abstractmethod
    def replacement(self, tensor: Tensor, planned: Numbers) -> Tensor | None:
        """Makes the cut at the planned numbers, for a function that returns one result.

        Args:
            tensor: What is cut.
            planned: What :meth:`planned` returned.

        Returns:
            The result; ``None`` if it is not this cut that a function may have refused.
        """

    def refused(self, tensor: Tensor, numbers: Sequence[Any]) -> tuple[Any, ...]:
        """The numbers that a function has refused, which differ where the model's code asks for others.

        Args:
            tensor: What is cut.
            numbers: The further arguments of the function.
        """
        return tuple(numbers)

    @abstractmethod
    def widths(self) -> list[np.ndarray]:
        """The channels whose number the code may hold, each as a vector of labels; the likelier ones come first."""

    @abstractmethod
    def sequence(self) -> list[tuple[int, np.ndarray | None]]:
        """The numbers as the code lists them: each with the channels that it counts; ``None`` for one that stays."""


@dataclass(frozen=True, slots=True, eq=False)
class PartsCut(Cut):
    """A split or a slice.

    Attributes:
        parts: For each result its first channel and the one behind its last.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def divides(self) -> bool:
        """See :attr:`Cut.divides`."""
        return bool(self.borders)

    @property
    def borders(self) -> list[int]:
        """Where parts begin or end inside the tensor, rising."""
        return sorted({border for part in self.parts for border in part} - {0, len(self.channels)})

    def is_like(self, other: Cut) -> bool:
        """See :meth:`Cut.is_like`."""
        same_place = (self.layer, self.operator, self.source.shape) == (other.layer, other.operator, other.source.shape)
        return same_place and isinstance(other, PartsCut) and self.parts == other.parts

    def requested(self, args: Sequence[Any]) -> Numbers:
        """See :meth:`Cut.requested`; a split may ask for more channels than there are."""
        width = args[0].shape[self.source.dim]
        if self.operator is torch.ops.aten.slice.Tensor:
            return (slice_bounds(args, width),)
        sizes = args[1]
        if isinstance(sizes, int):
            sizes = [min(sizes, width - start) for start in range(0, width, max(1, sizes))]
        return parts_of(sizes)

    def planned(self, count: CountKept) -> Numbers:
        """See :meth:`Cut.planned`."""
        return tuple((count(self.channels[:start]), count(self.channels[:end])) for start, end in self.parts)

    def make(self, args: Sequence[Any], planned: Numbers) -> Any:
        """See :meth:`Cut.make`."""
        if self.operator is torch.ops.aten.slice.Tensor:
            return self.operator(args[0], self.source.dim, *planned[0])  # type: ignore[misc]
        sizes = [end - start for start, end in planned]  # type: ignore[misc]
        return torch.ops.aten.split_with_sizes.default(args[0], sizes, self.source.dim)

    def replacement(self, tensor: Tensor, planned: Numbers) -> Tensor:
        """See :meth:`Cut.replacement`; the first part."""
        assert self.source.dim is not None
        start, end = planned[0]  # type: ignore[misc]
        return tensor.narrow(self.source.dim, start, end - start)

    def widths(self) -> list[np.ndarray]:
        """The sizes of the parts, the whole width, and where the parts begin and end from either side."""
        parts = [self.channels[start:end] for start, end in self.parts]
        beside = [side for border in self.borders for side in (self.channels[:border], self.channels[border:])]
        return [*parts, self.channels, *beside]

    def sequence(self) -> list[tuple[int, np.ndarray | None]]:
        """The sizes of the parts."""
        return [(end - start, self.channels[start:end]) for start, end in self.parts]


@dataclass(frozen=True, slots=True, eq=False)
class ShapeCut(Cut):
    """A reshape.

    Attributes:
        result: The labels of the result; they vary along a dimension.
        first: The first dimension of the result that the channels are spread over.
        end: The dimension behind the last.
        inputs: The channels of what the module was called with, whose number its code may take.
    """

    result: LabelMap
    first: int
    end: int
    inputs: tuple[np.ndarray, ...] = ()

    @property
    def divides(self) -> bool:
        """See :attr:`Cut.divides`."""
        return self.end - self.first > 1

    def is_like(self, other: Cut) -> bool:
        """See :meth:`Cut.is_like`."""
        same_place = (self.layer, self.operator, self.source.shape) == (other.layer, other.operator, other.source.shape)
        return same_place and isinstance(other, ShapeCut) and self.result.shape == other.result.shape

    def requested(self, args: Sequence[Any]) -> Numbers:
        """The sizes of the dimensions that the channels are spread over."""
        shape = list(args[1])
        if -1 in shape:
            known = -int(np.prod(shape))
            shape[shape.index(-1)] = args[0].numel() // known if known > 0 else 0
        return tuple(shape[self.first : self.end])

    def planned(self, count: CountKept) -> Numbers:
        """See :meth:`Cut.planned`."""
        shape = list(self.result.shape)
        shape[self._dim] = count(self.result.labels)
        return tuple(shape[self.first : self.end])

    def make(self, args: Sequence[Any], planned: Numbers) -> Any:
        """Reshapes; the sizes of the other dimensions are those that the code asks for, if they fit."""
        shape = list(args[1])
        shape[self.first : self.end] = planned
        if -1 not in shape and np.prod(shape) != args[0].numel():  # one that the code left open was made to fit
            return self.replacement(args[0], planned)
        return torch.reshape(args[0], shape)

    def replacement(self, tensor: Tensor, planned: Numbers) -> Tensor:
        """See :meth:`Cut.replacement`."""
        return tensor.reshape(*self.result.shape[: self.first], *planned, *self.result.shape[self.end :])

    def widths(self) -> list[np.ndarray]:
        """The size of the dimension that the labels vary along, the whole width, and the size for one image of many."""
        return [self.result.labels, self.channels, np.unique(self.result.labels)]

    def sequence(self) -> list[tuple[int, np.ndarray | None]]:
        """The shape of the result."""
        return [(size, self.result.labels if dim == self._dim else None) for dim, size in enumerate(self.result.shape)]

    def refused(self, tensor: Tensor, numbers: Sequence[Any]) -> tuple[Any, ...]:
        """See :meth:`Cut.refused`; of a reshape those of :meth:`requested`."""
        shape = numbers[0] if len(numbers) == 1 and isinstance(numbers[0], list | tuple) else numbers
        if len(shape) != len(self.result.shape) or not all(isinstance(size, int) for size in shape):
            return tuple(numbers)
        return self.requested((tensor, shape))

    def tie(self, requested: Numbers, count: CountKept) -> tuple[np.ndarray, np.ndarray] | None:
        """The channels of an input of the module that the channels here must go with, if the code takes their number.

        Args:
            requested: The numbers that the code asks for in a network where both have lost other numbers of channels.
            count: How many of some channels are kept there.

        Returns:
            Two vectors of labels, to be united index by index; ``None`` if the code does not follow an input.
        """
        at, own = self._dim - self.first, self.result.labels
        for given in self.inputs:
            parts, rest = divmod(len(given), len(own))
            # The code asks for all of the input's channels, or for an equal part of them.
            if (
                rest == 0
                and len(requested) > at
                and requested[at] == count(given) // parts
                and count(own) != requested[at] != len(own)
            ):
                return np.tile(own, parts), given
        return None

    @property
    def _dim(self) -> int:
        assert self.result.dim is not None
        return self.result.dim


def parts_of(sizes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Where parts of given sizes begin and end, one behind the other."""
    return tuple(pairwise([0, *np.cumsum(list(sizes)).tolist()]))


def slice_bounds(args: Sequence[Any], width: int) -> tuple[int, int]:
    """Where a slice begins and ends.

    Args:
        args: The arguments of ``aten.slice.Tensor``: tensor, dimension, start, end; those behind may be missing.
        width: The size of the dimension.

    Returns:
        The first index and the one behind the last, within the dimension.
    """
    start, end = (args[position] if position < len(args) else None for position in (2, 3))
    first, behind, _ = slice(start, end).indices(width)
    return first, max(first, behind)


def place_of(operation: Cut | OperatorCall) -> str:
    """An operator and the module in whose code it ran, for messages."""
    return f"{operation.operator} in {operation.layer}" if operation.layer else str(operation.operator)
