"""Activation memory: which results of a run's operators take memory of their own, and from when to when."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..utils.compat import storage_id
from .labels import LabelMap


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Memory that an operator's result takes.

    Attributes:
        size: In bytes.
        labels: The labels along which it can become narrower, int64; ``None`` where it cannot.
        first: The number of the operator that made it.
        end: The number of the first operator for which it was no longer there.
    """

    size: int
    labels: np.ndarray | None
    first: int
    end: int


@dataclass(slots=True, eq=False)
class _Storage:
    """A storage of the run, before it is known when it is released.

    Attributes:
        size: In bytes.
        labels: See :class:`Allocation`.
        first: See :class:`Allocation`.
        end: See :class:`Allocation`; ``None`` while a tensor shows it.
        tensors: The identities of the tensors that show it.
    """

    size: int
    labels: np.ndarray | None
    first: int
    end: int | None = None
    tensors: set[int] = field(default_factory=set)


class AllocationTracker:
    """Follows the memory of a run, operator by operator.

    A view takes no memory of its own: a storage is in use until the last tensor that shows it is released. What the
    model owns, the inputs of the run and constants in its code are not counted.
    """

    def __init__(self, model_tensors: Iterable[Tensor]) -> None:
        """Excludes the memory of the model.

        Args:
            model_tensors: The parameters and buffers of the model that will be run.
        """
        self._storages: list[_Storage] = []
        self._operators = 0
        self._of_model = {storage_id(tensor) for tensor in model_tensors}
        # By the identity of the storage, counted or not. The identity of a released storage is given to a new one, and
        # so is that of a released tensor. The callback of the weak reference runs before that, so an identity in
        # _in_use, or in _Storage.tensors, is always that of a living object.
        self._in_use: dict[int, _Storage] = {}
        self._references: dict[int, weakref.ref[Tensor]] = {}

    def record(
        self, results: Iterable[Tensor], operands: Sequence[Tensor], label_map: Callable[[Tensor], LabelMap]
    ) -> None:
        """Records what an operator returned.

        Args:
            results: The tensors it returned.
            operands: The tensors it was called on.
            label_map: Returns the labels of a result.
        """
        number, self._operators = self._operators, self._operators + 1
        for tensor in results:
            identity = storage_id(tensor)
            if identity in self._of_model:
                continue
            storage = self._in_use.get(identity)
            if storage is None:
                labelled = label_map(tensor)
                labels = None if labelled.dim is None else labelled.labels
                storage = self._in_use[identity] = _Storage(tensor.untyped_storage().nbytes(), labels, number)
                # A storage that no operator of the run made is that of an input or a constant.
                if not any(storage_id(operand) == identity for operand in operands):
                    self._storages.append(storage)
            if id(tensor) not in storage.tensors:
                storage.tensors.add(id(tensor))
                self._references[id(tensor)] = weakref.ref(tensor, self._on_release(identity, id(tensor)))

    def finish(self) -> tuple[Allocation, ...]:
        """Ends the recording; what is still in use is in use until the end of the run.

        Returns:
            All allocations in the order in which they were made.
        """
        self._in_use.clear()
        self._references.clear()
        return tuple(
            Allocation(storage.size, storage.labels, storage.first, storage.end or self._operators)
            for storage in self._storages
        )

    def _on_release(self, identity: int, tensor: int) -> Callable[[object], None]:
        def released(_: object) -> None:
            self._references.pop(tensor, None)
            storage = self._in_use.get(identity)
            if storage is not None:
                storage.tensors.discard(tensor)
                if not storage.tensors:
                    storage.end = self._operators
                    del self._in_use[identity]

        return released
