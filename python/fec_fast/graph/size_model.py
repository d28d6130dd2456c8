"""The size model: what a network's size becomes when units are removed, without cutting or running anything.

The units of a set hold as many indices on each axis as one another. So the length of every axis, and with it every
size, depends on how many units are removed, not on which: each length is a linear function of the counts, and each size
is a sum of products of lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..utils.compat import own_parameters
from ..utils.model_index import ModelIndex
from .groups import Coupling
from .trace import Trace, add_up_by_layer


class SizeModel:
    """Parameters, multiply-accumulates and memory as functions of the numbers of units that are removed.

    The methods take counts ``[..., sets]``: for each set of the coupling, how many of its units are removed. Leading
    dimensions are alternatives that are evaluated at once. What they return is float64 of shape ``[...]``; the numbers
    are whole and exact.

    Attributes:
        channel_rows: For each weight in :attr:`Trace.weight_uses`, where :meth:`lengths` has the numbers of its input
            and output channels.
    """

    channel_rows: Mapping[str, tuple[int, int]]

    def __init__(self, index: ModelIndex, trace: Trace, coupling: Coupling) -> None:
        """Gathers the vectors of labels that lengths depend on.

        Args:
            index: The index of the model before pruning.
            trace: Its trace.
            coupling: Its coupled channels.
        """
        self._roots = trace.partition.roots
        self._set_of = np.full(len(self._roots), -1)
        self._units = np.array([len(coupled.units) for coupled in coupling.sets])
        for number, coupled in enumerate(coupling.sets):
            self._set_of[list(coupled.units)] = number
        # One row for each vector of labels, with its full length. Row 0 has the length 1 whatever is removed: a factor
        # for what depends on fewer lengths than others.
        self._rows: dict[int, int] = {0: 0}
        self._full_lengths = [1.0]
        # For each row with units on it: the sets they belong to, and how many indices a unit holds.
        self._sets_of_rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._add_tensors(index, trace)
        self._add_costs(trace)
        self._add_results(trace)
        self._lengths = np.array(self._full_lengths)
        # The same as one list of (row, set, indices per unit): a matrix would grow with the square of the layers.
        self._narrowed_rows = np.array(list(self._sets_of_rows), dtype=np.int64)
        sets, indices = zip(*self._sets_of_rows.values(), strict=True) if self._sets_of_rows else ((), ())
        self._sets = np.concatenate([np.zeros(0, dtype=np.int64), *sets])
        self._indices_per_unit = np.concatenate([np.zeros(0), *indices])
        self._first_of_row = np.cumsum([0, *map(len, sets)])[:-1]

    def _add_tensors(self, index: ModelIndex, trace: Trace) -> None:
        """The elements of a tensor: the product of its labelled lengths, times a factor for its other dimensions."""
        parameters = {id(tensor) for module in index.modules.values() for tensor in own_parameters(module).values()}
        factors, rows, is_parameter, element_sizes = [], [], [], []
        for identity, name in index.first_names.items():
            tensor = index.tensors[name]
            vectors = [trace.axes.get((name, axis)) for axis in range(tensor.dim())]
            factors.append(
                math.prod(size for size, labels in zip(tensor.shape, vectors, strict=True) if labels is None)
            )
            rows.append([self._row(labels) for labels in vectors if labels is not None])
            is_parameter.append(identity in parameters)
            element_sizes.append(tensor.element_size())
        self._tensor_rows, self._tensor_factors = _filled_up(rows), np.array(factors, dtype=np.float64)
        self._is_parameter = np.array(is_parameter)
        self._element_sizes = np.array(element_sizes, dtype=np.float64)

    def _add_costs(self, trace: Trace) -> None:
        """The costs of layers grow with their widths, those of products with their channels; others are constant."""
        self.channel_rows = {
            name: (self._row(use.inputs), self._row(use.outputs)) for name, use in trace.weight_uses.items()
        }
        rows = []
        for cost in trace.costs:
            of_product = [*map(self._row, cost.channels), 0, 0]
            inputs, outputs = of_product[:2] if cost.weight is None else self.channel_rows[cost.weight]
            if cost.weight is not None and trace.weight_uses[cost.weight].whole_groups:
                inputs = 0  # each output channel reads one group, which keeps its size: its cost is constant
            rows.append((inputs, outputs))
        self._cost_rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
        self._cost_layers = [cost.layer for cost in trace.costs]
        self._macs = np.array([cost.macs for cost in trace.costs], dtype=np.float64)

    def _add_results(self, trace: Trace) -> None:
        """The memory of an operator's result is proportional to its number of channels."""
        allocations = trace.allocations
        self._first = np.array([result.first for result in allocations], dtype=np.int64)
        self._end = np.array([result.end for result in allocations], dtype=np.int64)
        self._operators = max((result.end for result in allocations), default=0)
        self._result_bytes = np.array([result.size for result in allocations], dtype=np.float64)
        self._result_rows = np.array(
            [0 if result.labels is None else self._row(result.labels) for result in allocations], dtype=np.int64
        )

    def _row(self, labels: np.ndarray) -> int:
        """The row of a vector of labels, made when it is first asked for."""
        row = self._rows.get(id(labels))
        if row is None:
            sets = self._set_of[self._roots[labels[labels > 0]]]
            numbers, indices = np.unique(sets[sets >= 0], return_counts=True)
            row = self._rows[id(labels)] = len(self._full_lengths)
            self._full_lengths.append(float(len(labels)))
            if len(numbers):
                self._sets_of_rows[row] = numbers, indices / self._units[numbers]
        return row

    def lengths(self, counts: np.ndarray) -> np.ndarray:
        """The lengths of all vectors of labels.

        Args:
            counts: ``[..., sets]``.

        Returns:
            Float64 ``[..., rows]``; see :attr:`channel_rows` for what a row is.
        """
        counts = np.asarray(counts, dtype=np.float64)
        lengths = np.broadcast_to(self._lengths, (*counts.shape[:-1], len(self._lengths))).copy()
        if len(self._narrowed_rows):
            removed = counts[..., self._sets] * self._indices_per_unit
            lengths[..., self._narrowed_rows] -= np.add.reduceat(removed, self._first_of_row, axis=-1)
        return lengths

    def params(self, counts: np.ndarray) -> np.ndarray:
        """Elements of all parameters; a parameter shared by several layers counts once."""
        return np.asarray((self._elements(counts) * self._is_parameter).sum(-1))

    def macs(self, counts: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of the traced run.

        Exact where the run does not depend on values; a detector is counted with the proposals it had before pruning.
        """
        return np.asarray(self._operator_macs(counts).sum(-1))

    def macs_by_layer(self, counts: Sequence[int] | np.ndarray) -> dict[str, int]:
        """The same numbers as :meth:`macs`, layer by layer.

        Args:
            counts: ``[sets]``.

        Returns:
            For each layer in which an operator with a cost ran, its multiply-accumulates.
        """
        macs = map(int, self._operator_macs(np.asarray(counts)).tolist())
        return add_up_by_layer(zip(self._cost_layers, macs, strict=True))

    def memory(self, counts: np.ndarray) -> np.ndarray:
        """Bytes: parameters, buffers and the largest sum of results that are in use at one time."""
        results = self.results(counts)
        # A result adds its bytes at its first operator and removes them at its end: the running sum is what is in use.
        changes = np.zeros((self._operators + 1, *results.shape[:-1]))
        for operators, sign in ((self._first, 1), (self._end, -1)):
            np.add.at(changes, operators, sign * np.moveaxis(results, -1, 0))
        peak = changes.cumsum(0).max(0, initial=0)
        return np.asarray((self._elements(counts) * self._element_sizes).sum(-1) + peak)

    def results(self, counts: np.ndarray) -> np.ndarray:
        """Bytes of each operator's result that takes memory of its own, ``[..., results]``."""
        after = self.lengths(counts)[..., self._result_rows]
        return np.asarray(self._result_bytes * after / np.maximum(self._lengths[self._result_rows], 1))

    def _operator_macs(self, counts: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of each operator, ``[..., operators]``."""
        before, after = self._lengths[self._cost_rows], self.lengths(counts)[..., self._cost_rows]
        # The true value is whole; rint undoes the rounding of the quotient, as long as the value is below 2**50.
        # Some layers have no filters at all: they cost nothing.
        return np.asarray(np.rint(self._macs * after.prod(-1) / np.maximum(before.prod(-1), 1)))

    def _elements(self, counts: np.ndarray) -> np.ndarray:
        """Elements of each parameter and buffer, ``[..., tensors]``."""
        return np.asarray(self._tensor_factors * self.lengths(counts)[..., self._tensor_rows].prod(-1))


def _filled_up(rows: list[list[int]]) -> np.ndarray:
    """Lists of rows as one array, int64; shorter lists are filled up with row 0, whose length is 1."""
    width = max(map(len, rows), default=0)
    return np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64).reshape(-1, width)
