"""What a network comes to once so many units of each coupled set are gone, without anything being cut or run.

The units of a set hold as many indices on each axis as one another, so the length of every axis, and with it every
size, depends on how many units go, not on which.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from ..utils.modules import named_tensors
from .groups import Coupling
from .trace import Trace


class Sizes:
    """Parameters, multiply-accumulates and memory as functions of the numbers of units that go.

    All methods take counts ``[..., sets]`` and return float64 of shape ``[...]``; the numbers are whole and exact.
    """

    def __init__(self, model: nn.Module, traced: Trace, coupling: Coupling) -> None:
        """Gathers the lines of labels that lengths depend on.

        Args:
            model: The model before pruning, not wrapped.
            traced: Its trace.
            coupling: Its coupled sets.
        """
        self._coupling = coupling
        self._roots = traced.sets.roots()
        self._set_of = np.full(len(self._roots), -1)
        self._units = np.array([len(one.units) for one in coupling.sets])
        for number, one in enumerate(coupling.sets):
            self._set_of[list(one.units)] = number
        # The first line has the length 1 whatever goes: it fills up what has fewer lines than others.
        self._rows: dict[int, int] = {0: 0}
        self._held = [np.zeros(len(coupling.sets))]
        self._full = [1.0]

        tensors = {id(tensor): (name, tensor) for name, tensor in reversed(named_tensors(model).items())}
        own = set(map(id, model.parameters()))
        factors, rows, weights = [], [], []
        for number, (name, tensor) in reversed(tensors.items()):
            lines = [traced.axes.get((name, axis)) for axis in range(tensor.dim())]
            factors.append(math.prod(size for size, line in zip(tensor.shape, lines, strict=True) if line is None))
            rows.append([self._row(line) for line in lines if line is not None])
            weights.append((number in own, tensor.element_size()))
        self._tensor_rows, self._tensor_factors = _rectangle(rows), np.array(factors, dtype=np.float64)
        self._is_parameter = np.array([is_own for is_own, _ in weights])
        self._bytes = np.array([size for _, size in weights], dtype=np.float64)

        pairs, macs = [], []
        self.uses = {}
        for name, use in traced.uses.items():
            self.uses[name] = self._row(use.inputs), self._row(use.outputs)
        for cost in traced.costs:
            inputs, outputs = (0, 0) if cost.weight is None else self.uses[cost.weight]
            if cost.weight is not None and traced.uses[cost.weight].whole_groups:
                inputs = 0  # with every input channel that goes, a group goes: the rest costs what it did
            pairs.append((inputs, outputs))
            macs.append(cost.macs)
        self._cost_rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        self._macs = np.array(macs, dtype=np.float64)

        found = traced.allocations
        self._born = np.array([one.born for one in found], dtype=np.int64)
        self._died = np.array([one.died for one in found], dtype=np.int64)
        self._moments = max((one.died for one in found), default=0)
        self._result_bytes = np.array([one.size for one in found], dtype=np.float64)
        self._result_rows = np.array([0 if one.line is None else self._row(one.line) for one in found], dtype=np.int64)
        self._matrix, self._lengths = np.stack(self._held), np.array(self._full)

    def lengths(self, counts: np.ndarray) -> np.ndarray:
        """The lengths of all lines.

        Args:
            counts: ``[..., sets]``.

        Returns:
            ``[..., lines]``, float64.
        """
        return np.asarray(self._lengths - np.asarray(counts, dtype=np.float64) @ self._matrix.T)

    def params(self, counts: np.ndarray) -> np.ndarray:
        """Numbers in parameters; one shared by several layers counts once."""
        return np.asarray((self._numbers(counts) * self._is_parameter).sum(-1))

    def macs(self, counts: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of the traced run, as :func:`fec_fast.pruning.plan_builder.costs_after` has them."""
        before, after = self._lengths[self._cost_rows], self.lengths(counts)[..., self._cost_rows]
        return np.asarray(np.rint(self._macs * after.prod(-1) / before.prod(-1)).sum(-1))

    def memory(self, counts: np.ndarray) -> np.ndarray:
        """Bytes: parameters, buffers and the largest sum of results that are in use at one time."""
        results = self.results(counts)
        changes = np.zeros((self._moments + 1, *results.shape[:-1]))
        for moments, sign in ((self._born, 1), (self._died, -1)):
            np.add.at(changes, moments, sign * np.moveaxis(results, -1, 0))
        most = changes.cumsum(0).max(0, initial=0)
        return np.asarray((self._numbers(counts) * self._bytes).sum(-1) + most)

    def results(self, counts: np.ndarray) -> np.ndarray:
        """Bytes of each operator's result that takes memory of its own, ``[..., results]``."""
        after = self.lengths(counts)[..., self._result_rows]
        return np.asarray(self._result_bytes * after / self._lengths[self._result_rows])

    def _numbers(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(self._tensor_factors * self.lengths(counts)[..., self._tensor_rows].prod(-1))

    def _row(self, line: np.ndarray) -> int:
        row = self._rows.get(id(line))
        if row is None:
            sets = self._set_of[self._roots[line[line > 0]]]
            held = np.bincount(sets[sets >= 0], minlength=len(self._units)) / self._units
            row = self._rows[id(line)] = len(self._full)
            self._held.append(held)
            self._full.append(float(len(line)))
        return row


def _rectangle(rows: list[list[int]]) -> np.ndarray:
    width = max(map(len, rows), default=0)
    return np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64).reshape(-1, width)
