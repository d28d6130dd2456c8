"""Channel labels: which elements of which tensors stand or fall together.

Beside each tensor of a traced run goes a :class:`Plane` that names the channel each element belongs to. Labels vary
along one dimension at most, so a plane is that dimension and one line of labels. Two labels are special: ``FIXED``
marks elements of an extent that cannot shrink, ``FREE`` marks elements without a channel of their own whose extent
follows whatever it meets.

A line is an int64 array that nobody writes to: operators that leave the channels alone hand on the same object, so that
most comparisons of lines are comparisons of objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FIXED = 0
FREE = -1
_NO_REASON = np.iinfo(np.int64).max


class LabelSets:
    """Sets of labels that stand or fall together, with the reason for which a set may not be removed.

    Unions are collected and carried out together when somebody asks: a root is the least label of its set.
    """

    def __init__(self) -> None:
        """Starts with the one label that every fixed width has."""
        self._count = 1
        self._parent = np.zeros(1, dtype=np.int64)
        self._why = np.zeros(1, dtype=np.int64)  # at a root, and at some of its labels: the number of a reason
        self._reasons = ["its width is fixed"]
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def fresh(self, count: int) -> np.ndarray:
        """Makes new labels.

        Args:
            count: How many.

        Returns:
            The labels, each a set of its own.
        """
        start = self._count
        self._count += count
        return np.arange(start, self._count)

    def find(self, label: int) -> int:
        """The representative of a label's set.

        Args:
            label: A label, not ``FREE``.

        Returns:
            The least label of the set.
        """
        return int(self.roots()[label])

    def roots(self) -> np.ndarray:
        """The representative of every label.

        Returns:
            Int64 ``[labels]``.
        """
        self._settle()
        return self._parent[: self._count]

    def pinned(self) -> np.ndarray:
        """Which representatives may not be removed.

        Returns:
            Bool ``[labels]``, true at such representatives.
        """
        is_root = self.roots() == np.arange(self._count)
        return np.asarray((self._why[: self._count] != _NO_REASON) & is_root)

    def unite(self, left: np.ndarray, right: np.ndarray, reason: str) -> None:
        """Makes the labels of two lines stand or fall together, index by index; with ``FIXED``, neither may fall.

        Args:
            left: Labels; ``FREE`` is united with nothing.
            right: As many.
            reason: Why, in case one of two is ``FIXED``.
        """
        if left is right:
            return
        apart = (left != right) & (left != FREE) & (right != FREE)
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        fixed = (left == FIXED) | (right == FIXED)
        if fixed.any():
            self.pin(np.maximum(left, right)[fixed], reason)
            left, right = left[~fixed], right[~fixed]
        self._pending.append((left, right))

    def pin(self, labels: np.ndarray, reason: str) -> bool:
        """Forbids the removal of labels; the first reason of a set is kept.

        Args:
            labels: Labels, of which ``FREE`` and ``FIXED`` are passed over.
            reason: Why they must stay, for the report.

        Returns:
            Whether any of them could have been removed before.
        """
        self._grow()
        labels = labels[labels > FIXED]
        labels = labels[self._why[labels] == _NO_REASON]
        if not len(labels):
            return False
        self._settle()
        roots = self._parent[labels]
        news = roots[self._why[roots] == _NO_REASON]
        if len(news):
            self._why[news] = len(self._reasons)
            self._reasons.append(reason)
        self._why[labels] = self._why[roots]  # so that the next time they need not be looked for
        return bool(len(news))

    def reason(self, label: int) -> str | None:
        """Why a label may not be removed.

        Args:
            label: A label.

        Returns:
            The reason, or ``None`` when it may be removed.
        """
        why = int(self._why[self.find(label)]) if label != FREE else FIXED
        return None if why == _NO_REASON else self._reasons[why]

    def _grow(self) -> None:
        """Makes room for the labels that were made since."""
        size = len(self._parent)
        if size < self._count:
            more = max(self._count, 2 * size) - size
            self._parent = np.concatenate([self._parent, np.arange(size, size + more)])
            self._why = np.concatenate([self._why, np.full(more, _NO_REASON)])

    def _settle(self) -> None:
        """Carries out the unions that are pending."""
        self._grow()
        if not self._pending:
            return
        left, right = (np.concatenate(side) for side in zip(*self._pending, strict=True))
        self._pending = []
        parent = self._parent
        while True:
            one, other = parent[left], parent[right]
            apart = one != other
            if not apart.any():
                break
            left, right, one, other = left[apart], right[apart], one[apart], other[apart]
            np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
            while not np.array_equal(higher := parent[parent], parent):
                parent = higher
        self._parent = parent
        known = np.flatnonzero(self._why != _NO_REASON)
        np.minimum.at(self._why, parent[known], self._why[known])


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """The labels of a tensor's elements.

    Attributes:
        shape: The tensor's shape.
        dim: The dimension along which the labels vary; ``None`` where all elements have the same one.
        line: One label an index of ``dim``, or the one label.
    """

    shape: tuple[int, ...]
    dim: int | None
    line: np.ndarray

    def along(self, dim: int) -> np.ndarray:
        """The labels met when walking along a dimension, the others held at index 0.

        Args:
            dim: The dimension.

        Returns:
            One label an index.
        """
        return self.line if dim == self.dim else np.full(self.shape[dim], self.line[0])

    def tensor(self) -> Tensor:
        """The labels as an int64 tensor of the plane's shape that occupies as many numbers as the line has."""
        line = torch.from_numpy(self.line)
        return line.view([-1 if d == self.dim else 1 for d in range(len(self.shape))]).expand(self.shape)


_LINES = {label: np.array([label]) for label in (FIXED, FREE)}


def constant(label: int, shape: Sequence[int]) -> Plane:
    """A plane with one label everywhere.

    Args:
        label: The label.
        shape: The shape of the tensor it belongs to.

    Returns:
        The plane.
    """
    line = _LINES.get(label)
    return Plane(tuple(shape), None, np.array([label]) if line is None else line)


def spread(line: np.ndarray, dim: int, shape: Sequence[int]) -> Plane:
    """A plane whose labels vary along one dimension.

    Args:
        line: One label an index of ``dim``.
        dim: The dimension.
        shape: The shape of the tensor it belongs to.

    Returns:
        The plane.
    """
    return Plane(tuple(shape), dim if len(line) > 1 else None, line if len(line) else _LINES[FREE])


def folded(line: np.ndarray, dim: int, shape: Sequence[int]) -> Plane:
    """The same as :func:`spread`; a line of equal labels becomes one label.

    Args:
        line: One label an index of ``dim``.
        dim: The dimension.
        shape: The shape of the tensor it belongs to.

    Returns:
        The plane.
    """
    if len(line) > 1 and (line == line[0]).all():
        line = line[:1]
    return spread(line, dim, shape)


def plane_of(labels: Tensor) -> Plane | list[int]:
    """The plane of labels that an operator has moved about.

    Args:
        labels: Int64, any shape.

    Returns:
        The plane; where the labels vary along several dimensions there is none, and those dimensions are returned.
    """
    shape = tuple(labels.shape)
    if math.prod(shape) == 0:
        return constant(FREE, shape)
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
        return constant(int(labels[(0,) * labels.dim()]), shape)
    line = labels[tuple(slice(None) if d == dims[0] else 0 for d in range(labels.dim()))]
    return Plane(shape, dims[0], line.clone(memory_format=torch.contiguous_format).numpy())


def solid(line: np.ndarray) -> np.ndarray:
    """A line for the axis of a weight, whose extent follows nothing else.

    Args:
        line: Labels.

    Returns:
        The same with ``FIXED`` in place of ``FREE``; the very object where it has none.
    """
    return np.maximum(line, FIXED) if (line < FIXED).any() else line
