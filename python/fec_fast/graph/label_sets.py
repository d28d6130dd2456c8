"""Label sets: which labels are united, and which may not be removed.

While a run is traced, :class:`LabelSets` collects unions and pins. The trace holds the result, a
:class:`LabelPartition`, which is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .labels import FIXED, FREE

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

    def all_pinned(self, labels: np.ndarray) -> bool:
        """Whether none of some labels may be removed; ``FREE`` and ``FIXED`` never are."""
        return bool(self.pinned[labels[labels > FIXED]].all())

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
        at_roots, reasons = self.reason_numbers.copy(), list(self.reasons)
        for pin in pins:
            roots = self.roots[pin.labels[pin.labels > FIXED]]
            roots = roots[at_roots[roots] < 0]
            if len(roots):
                at_roots[roots] = len(reasons)
                reasons.append(pin.reason)
        if len(reasons) == len(self.reasons):
            return self
        numbers = at_roots[self.roots]
        numbers.flags.writeable = False
        return LabelPartition(self.roots, numbers, tuple(reasons))

    def with_unions(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]], reason: str) -> LabelPartition:
        """The same labels, of which more are removed together.

        Args:
            pairs: Vectors of labels that are united index by index.
            reason: Why a label is kept that meets a fixed width.

        Returns:
            A new partition.
        """
        sets = LabelSets()
        every = sets.new_labels(len(self.roots) - 1)
        sets.unite(every, self.roots[1:], "")
        for number, why in enumerate(self.reasons):
            sets.pin(every[self.reason_numbers[1:] == number], why)
        for left, right in pairs:
            sets.unite(np.maximum(left, FIXED), np.maximum(right, FIXED), reason)
        return sets.partition()


class LabelSets:
    """The sets of labels while a run is traced: a union-find structure on arrays.

    A usual union-find visits one label at a time, which takes too long for layers of thousands of channels. Here
    ``unite`` only collects pairs; they are carried out together, vectorised, when somebody asks for a representative.
    That takes time for the labels of the pairs, not for all labels: pins and unions may alternate. The parent of a
    label is never greater than the label, so a root is the least label of its set, and label 0 (``FIXED``) needs no
    special case: what is united with it is pinned instead.
    """

    def __init__(self, place: Callable[[], str | None] = lambda: None) -> None:
        """Starts with the one label that every fixed width has.

        Args:
            place: Where the run is, for reasons: a line of the model's code, or ``None``.
        """
        self._place = place
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
        roots = self._roots_of(labels)
        newly_pinned = roots[self._reason_numbers[roots] == _NO_REASON]
        if len(newly_pinned):
            self._reason_numbers[newly_pinned] = len(self._reasons)
            place = self._place()
            self._reasons.append(reason if place is None else f"{reason} ({place})")
        # Copied from the roots to these labels, so that the next call with them ends at the second line.
        self._reason_numbers[labels] = self._reason_numbers[roots]
        return bool(len(newly_pinned))

    def any_pinned(self, labels: np.ndarray) -> bool:
        """Whether some of several labels may not be removed.

        Args:
            labels: Labels; ``FIXED`` is one of those.
        """
        if (labels == FIXED).any():
            return True
        self._settle()
        return bool((self._reason_numbers[self._roots_of(labels[labels > FIXED])] != _NO_REASON).any())

    def partition(self) -> LabelPartition:
        """The sets as they are now.

        Returns:
            A copy that later unions and pins do not change.
        """
        self._settle()
        roots = self._roots_of(np.arange(self._count))
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

    def _roots_of(self, labels: np.ndarray) -> np.ndarray:
        """The roots of some labels, which become their parents."""
        roots = self._parent[labels]
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        self._parent[labels] = roots
        return np.asarray(roots)

    def _settle(self) -> None:
        """Carries out the unions that are pending, all pairs at a time.

        In each pass, every pair whose roots still differ hangs the greater root below the lesser. A root that is the
        greater one in several pairs gets the least of their partners (``minimum.at``); its other pairs are still apart
        and are united in the next pass.
        """
        self._grow()
        if not self._pending:
            return
        left, right = (np.concatenate(side) for side in zip(*self._pending, strict=True))
        self._pending = []
        roots_before = self._roots_of(np.concatenate([left, right]))
        while True:
            left_roots, right_roots = self._roots_of(left), self._roots_of(right)
            differ = left_roots != right_roots
            if not differ.any():
                break
            left, right, left_roots, right_roots = (v[differ] for v in (left, right, left_roots, right_roots))
            np.minimum.at(self._parent, np.maximum(left_roots, right_roots), np.minimum(left_roots, right_roots))
        roots = self._roots_of(roots_before)
        np.minimum.at(self._reason_numbers, roots, self._reason_numbers[roots_before])
