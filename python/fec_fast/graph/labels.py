"""Channel labels: which elements of which tensors are removed together.

Every channel of a traced model has a label, an integer. All elements of all tensors that belong to a channel carry its
label. Where an operator combines two channels (an addition, say), their labels are united into one set, because one
cannot be removed without the other. Two labels are special: ``FIXED`` marks elements of an extent that cannot shrink,
``FREE`` marks elements without a channel of their own, whose extent follows whatever they are combined with.

A :class:`LabelMap` stands beside each tensor of the run. The labels of a tensor vary along one dimension at most (that
of its channels), so one vector of labels describes all elements.

A vector of labels is an int64 array that nobody writes to. Operators that leave the channels alone hand on the same
object, so that most comparisons of vectors are comparisons of identities, and unions of equal vectors cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.compat import without_dispatch_modes

FIXED = 0
FREE = -1
_NO_REASON = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Pin:
    """Channels that must not be removed.

    Attributes:
        labels: Their labels, int64.
        reason: Why, as reported for the layers that hold them.
        note: A note for the user; ``""`` for none.
    """

    labels: np.ndarray
    reason: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class LabelPartition:
    """The sets of labels that are removed together, and the reasons why some may not be removed.

    It is never changed: :meth:`with_pins` returns another one.

    Attributes:
        roots: The representative of every label, the least label of its set; int64 ``[labels]``.
        reason_numbers: For every label the position in ``reasons`` of the reason why its set must be kept; -1 where the
            set may be removed. Int64 ``[labels]``.
        reasons: The reasons.
    """

    roots: np.ndarray
    reason_numbers: np.ndarray
    reasons: tuple[str, ...]

    @property
    def pinned(self) -> np.ndarray:
        """Which labels may not be removed, bool ``[labels]``."""
        return np.asarray(self.reason_numbers >= 0)

    def reason(self, label: int) -> str | None:
        """Why a label may not be removed.

        Args:
            label: A label.

        Returns:
            The reason, or ``None`` when it may be removed.
        """
        number = int(self.reason_numbers[max(label, FIXED)])  # FREE: an extent of its own that nothing shrinks
        return None if number < 0 else self.reasons[number]

    def with_pins(self, pins: Iterable[Pin]) -> LabelPartition:
        """The same sets, of which more may not be removed.

        Args:
            pins: What must be kept besides. A set keeps the first reason that was given for it.

        Returns:
            A new partition; this one where the pins forbid nothing that was allowed.
        """
        numbers, reasons = self.reason_numbers, list(self.reasons)
        for pin in pins:
            labels = pin.labels[pin.labels > FIXED]
            labels = labels[numbers[labels] < 0]
            if len(labels):
                newly_pinned = np.zeros(len(self.roots), dtype=bool)
                newly_pinned[self.roots[labels]] = True
                numbers = np.where(newly_pinned[self.roots], len(reasons), numbers)
                reasons.append(pin.reason)
        if numbers is self.reason_numbers:
            return self
        numbers.flags.writeable = False
        return LabelPartition(self.roots, numbers, tuple(reasons))


class LabelSets:
    """The sets of labels while a run is traced: a union-find structure on arrays.

    A usual union-find visits one label at a time, which takes too long for layers of thousands of channels. Here
    ``unite`` only collects pairs; they are carried out together, vectorised, when somebody asks for a representative.
    The parent of a label is never greater than the label, so a root is the least label of its set, and label 0
    (``FIXED``) needs no special case: what is united with it is pinned instead.
    """

    def __init__(self) -> None:
        """Starts with the one label that every fixed width has."""
        self._count = 1
        # Both arrays may be longer than there are labels (see _grow).
        self._parent = np.zeros(1, dtype=np.int64)
        # At a root, and at some other labels of its set: the number of the reason. The least number wins when sets are
        # united, so that the first reason given is reported.
        self._reason_numbers = np.zeros(1, dtype=np.int64)
        self._reasons = ["its width is fixed"]
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def new_labels(self, count: int) -> np.ndarray:
        """Makes new labels.

        Args:
            count: How many.

        Returns:
            The labels, each a set of its own; int64 ``[count]``.
        """
        start = self._count
        self._count += count
        return np.arange(start, self._count)

    def unite(self, left: np.ndarray, right: np.ndarray, reason: str) -> None:
        """Unites the labels of two vectors, index by index; a label that meets ``FIXED`` is pinned.

        Args:
            left: Labels; ``FREE`` is united with nothing.
            right: As many.
            reason: Why a label is pinned that meets ``FIXED``.
        """
        if left is right:
            return
        differ = (left != right) & (left != FREE) & (right != FREE)
        if not differ.any():
            return
        left, right = left[differ], right[differ]
        fixed = (left == FIXED) | (right == FIXED)
        if fixed.any():
            self.pin(np.maximum(left, right)[fixed], reason)
            left, right = left[~fixed], right[~fixed]
        self._pending.append((left, right))

    def pin(self, labels: np.ndarray, reason: str) -> bool:
        """Forbids the removal of labels; a set keeps the first reason that was given for it.

        Args:
            labels: Labels; ``FREE`` and ``FIXED`` among them are skipped.
            reason: Why they must be kept, for the report.

        Returns:
            Whether any of them could have been removed before.
        """
        self._grow()
        labels = labels[labels > FIXED]
        labels = labels[self._reason_numbers[labels] == _NO_REASON]
        if not len(labels):
            return False
        self._settle()
        roots = self._parent[labels]
        newly_pinned = roots[self._reason_numbers[roots] == _NO_REASON]
        if len(newly_pinned):
            self._reason_numbers[newly_pinned] = len(self._reasons)
            self._reasons.append(reason)
        # Copied from the roots to these labels, so that the next call with them ends at the second line.
        self._reason_numbers[labels] = self._reason_numbers[roots]
        return bool(len(newly_pinned))

    def partition(self) -> LabelPartition:
        """The sets as they are now.

        Returns:
            A copy that later unions and pins do not change.
        """
        self._settle()
        roots = self._parent[: self._count].copy()
        numbers = self._reason_numbers[roots]
        numbers[numbers == _NO_REASON] = -1
        roots.flags.writeable = numbers.flags.writeable = False
        return LabelPartition(roots, numbers, tuple(self._reasons))

    def _grow(self) -> None:
        """Makes room for new labels, at least twice as much as there was: labels are made layer by layer."""
        size = len(self._parent)
        if size < self._count:
            more = max(self._count, 2 * size) - size
            self._parent = np.concatenate([self._parent, np.arange(size, size + more)])
            self._reason_numbers = np.concatenate([self._reason_numbers, np.full(more, _NO_REASON)])

    def _settle(self) -> None:
        """Carries out the unions that are pending, all pairs at a time.

        In each pass, every pair whose roots still differ hangs the greater root below the lesser. A root that is the
        greater one in several pairs gets the least of their partners (``minimum.at``); its other pairs are still apart
        and are united in the next pass. Between passes the paths are halved until every label points at its root.
        """
        self._grow()
        if not self._pending:
            return
        left, right = (np.concatenate(side) for side in zip(*self._pending, strict=True))
        self._pending = []
        parent = self._parent
        while True:
            left_roots, right_roots = parent[left], parent[right]
            differ = left_roots != right_roots
            if not differ.any():
                break
            left, right = left[differ], right[differ]
            left_roots, right_roots = left_roots[differ], right_roots[differ]
            np.minimum.at(parent, np.maximum(left_roots, right_roots), np.minimum(left_roots, right_roots))
            while not np.array_equal(grandparent := parent[parent], parent):
                parent = grandparent
        self._parent = parent
        pinned = np.flatnonzero(self._reason_numbers != _NO_REASON)
        np.minimum.at(self._reason_numbers, parent[pinned], self._reason_numbers[pinned])


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
