"""Which results of a run's operators take memory, and from when to when."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ..utils.compat import storage_id
from . import labels as lb


@dataclass(slots=True, eq=False)
class Allocation:
    """Memory that an operator's result takes.

    Attributes:
        size: In bytes.
        line: The labels along which it can become narrower; ``None`` where it cannot.
        born: The number of the operator that made it.
        died: The number of the first operator for which it was no longer there.
    """

    size: int
    line: np.ndarray | None
    born: int
    died: int


class Allocations:
    """Follows the memory of a run, operator by operator.

    A view takes no memory of its own: memory lives as long as the last tensor that shows it. What the model owns and
    the inputs of the run are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        """Learns which memory is the model's.

        Args:
            model: The model that will be run.
        """
        self.all: list[Allocation] = []
        self.operators = 0
        self._owned = {storage_id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        # The memory by its place, with how many tensors show it.
        self._alive: dict[int, tuple[Allocation, set[int]]] = {}
        self._hold: dict[int, weakref.ref[Tensor]] = {}

    def follow(
        self, results: Iterable[Tensor], operands: Sequence[Tensor], plane: Callable[[Tensor], lb.Plane]
    ) -> None:
        """Takes down what an operator returned.

        Args:
            results: What it returned.
            operands: What went into it.
            plane: Tells the labels of a result.
        """
        number, self.operators = self.operators, self.operators + 1
        for tensor in results:
            place = storage_id(tensor)
            if place in self._owned:
                continue
            known = self._alive.get(place)
            if known is None:
                if any(storage_id(operand) == place for operand in operands):  # a view of an input of the run
                    self._owned.add(place)
                    continue
                of = plane(tensor)
                line = None if of.dim is None else of.line
                known = Allocation(tensor.untyped_storage().nbytes(), line, number, -1), set()
                self.all.append(known[0])
                self._alive[place] = known
            if id(tensor) not in known[1]:
                known[1].add(id(tensor))
                self._hold[id(tensor)] = weakref.ref(tensor, self._forgetter(place, id(tensor)))

    def end(self) -> list[Allocation]:
        """All of them; what is still alive dies with the run.

        Returns:
            In the order in which they were made.
        """
        for allocation, _ in self._alive.values():
            allocation.died = self.operators
        self._alive.clear()
        self._hold.clear()
        return self.all

    def _forgetter(self, place: int, number: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self._hold.pop(number, None)
            known = self._alive.get(place)
            if known is not None:
                known[1].discard(number)
                if not known[1]:
                    known[0].died = self.operators
                    del self._alive[place]

        return forget
