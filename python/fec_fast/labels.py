"""Channel labels: which elements of which tensors stand or fall together.

Next to each tensor of a traced run goes a *plane*: an integer tensor of the same shape that names the channel each
element belongs to. A plane costs almost nothing, because it is broadcast (stride 0) along every dimension but the
one on which its labels vary. Two values are special: ``FIXED`` marks elements of an extent that cannot shrink,
``FREE`` marks elements without a channel of their own whose extent follows whatever it meets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

FIXED = 0
FREE = -1


class LabelSets:
    """A union-find over labels, with the reason for which a set may not be removed."""

    def __init__(self) -> None:
        """Starts with the one label that every fixed width has."""
        self._parent: list[int] = [FIXED]
        self._reason: dict[int, str] = {FIXED: "its width is fixed"}

    def fresh(self, count: int) -> list[int]:
        """Makes new labels.

        Args:
            count: How many.

        Returns:
            The labels, each a set of its own.
        """
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def find(self, label: int) -> int:
        """The representative of a label's set.

        Args:
            label: A label, not ``FREE``.

        Returns:
            The representative label.
        """
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def roots(self) -> np.ndarray:
        """The representative of every label at once.

        Returns:
            Int64 ``[labels]``.
        """
        parents = np.asarray(self._parent)
        while True:
            higher = parents[parents]
            if np.array_equal(higher, parents):
                return parents
            parents = higher

    def pinned(self) -> np.ndarray:
        """Which representatives may not be removed.

        Returns:
            Bool ``[labels]``, true at such representatives.
        """
        mask = np.zeros(len(self._parent), dtype=bool)
        mask[list(self._reason)] = True
        return mask

    def unite(self, left: int, right: int, reason: str) -> None:
        """Makes two labels stand or fall together; with ``FIXED``, neither may fall.

        Args:
            left: A label or ``FREE`` (then nothing happens).
            right: A label or ``FREE``.
            reason: Why, in case one of them is ``FIXED``.
        """
        if left == right or FREE in (left, right):
            return
        if FIXED in (left, right):
            self.pin((left, right), reason)
            return
        a, b = self.find(left), self.find(right)
        if a == b:
            return
        first, second = min(a, b), max(a, b)
        self._parent[second] = first
        if second in self._reason:
            self._reason.setdefault(first, self._reason.pop(second))

    def unite_all(self, left: Sequence[int], right: Sequence[int], reason: str) -> None:
        """Unites the labels of two lines, index by index.

        Args:
            left: Labels.
            right: As many.
            reason: See :meth:`unite`.
        """
        if left == right:
            return
        for one, other in zip(left, right, strict=True):
            if one != other:
                self.unite(one, other, reason)

    def pin(self, labels: Iterable[int], reason: str) -> bool:
        """Forbids the removal of labels; the first reason of a set is kept.

        Args:
            labels: Labels, of which ``FREE`` and ``FIXED`` are passed over.
            reason: Why they must stay, for the report.

        Returns:
            Whether any of them could have been removed before.
        """
        changed = False
        for label in labels:
            if label in (FREE, FIXED):
                continue
            root = self.find(label)
            if root not in self._reason:
                self._reason[root] = reason
                changed = True
        return changed

    def reason(self, label: int) -> str | None:
        """Why a label may not be removed.

        Args:
            label: A label.

        Returns:
            The reason, or ``None`` when it may be removed.
        """
        return self._reason.get(self.find(label)) if label != FREE else self._reason[FIXED]


def constant(label: int, shape: Sequence[int]) -> Tensor:
    """A plane with one label everywhere.

    Args:
        label: The label.
        shape: The shape of the tensor it belongs to.

    Returns:
        An int64 plane that occupies one number.
    """
    return torch.tensor(label).expand(tuple(shape))


def spread(labels: Sequence[int], dim: int, shape: Sequence[int]) -> Tensor:
    """A plane whose labels vary along one dimension.

    Args:
        labels: One label an index of ``dim``.
        dim: The dimension.
        shape: The shape of the tensor it belongs to.

    Returns:
        An int64 plane that occupies ``len(labels)`` numbers.
    """
    line = torch.tensor(labels, dtype=torch.int64)
    return line.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(tuple(shape))


def canonical(plane: Tensor) -> Tensor:
    """Broadcasts a plane along every dimension on which its labels do not vary.

    Args:
        plane: Any int64 plane.

    Returns:
        An equal plane in which the varying dimensions are those of a stride other than 0.
    """
    if plane.numel() == 0:
        return constant(FREE, plane.shape)
    for dim, (size, stride) in enumerate(zip(plane.shape, plane.stride(), strict=True)):
        if size > 1 and stride != 0:
            first = plane.narrow(dim, 0, 1)
            if bool((plane == first).all()):
                plane = first.expand(plane.shape)
    numbers = math.prod(plane.shape[dim] for dim in varying(plane))
    if plane.untyped_storage().nbytes() > 8 * numbers:  # of a plane that was written out in full: let go of the rest
        core = plane[tuple(slice(None) if stride else slice(0, 1) for stride in plane.stride())]
        plane = core.clone(memory_format=torch.contiguous_format).expand(plane.shape)
    return plane


def varying(plane: Tensor) -> list[int]:
    """The dimensions on which the labels of a canonical plane vary.

    Args:
        plane: A canonical plane.

    Returns:
        The dimensions in order.
    """
    return [d for d, (n, s) in enumerate(zip(plane.shape, plane.stride(), strict=True)) if n > 1 and s != 0]


def along(plane: Tensor, dim: int) -> list[int]:
    """The labels met when walking along one dimension, the others held at index 0.

    Args:
        plane: A plane.
        dim: The dimension.

    Returns:
        One label an index.
    """
    if plane.numel() == 0:
        return [FREE] * plane.shape[dim]
    return plane[tuple(slice(None) if d == dim else 0 for d in range(plane.dim()))].tolist()


def distinct(plane: Tensor) -> list[int]:
    """All labels of a canonical plane.

    Args:
        plane: A canonical plane.

    Returns:
        The labels, each once.
    """
    dims = varying(plane)
    core = plane[tuple(slice(None) if d in dims else 0 for d in range(plane.dim()))] if plane.numel() else plane
    return [int(label) for label in torch.unique(core)]
