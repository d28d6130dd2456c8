"""Backward elimination: in which order columns of linear systems are left out, so that the rest makes up for most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A removal changes the inverse by a product of few columns. Products of this many columns are applied at once.
_PANEL = 96


class LinearSystem:
    """The part of a layer that units share: the inverse covariance of their columns, and the weights on them.

    Attributes:
        units: Int64 ``[n]``: the units that have columns here.
    """

    def __init__(self, covariance: Tensor, weight: Tensor, units: Sequence[int], columns: Tensor) -> None:
        """Inverts the covariance.

        Args:
            covariance: float64 ``[columns, columns]``, positive definite.
            weight: float64 ``[columns, outputs]``.
            units: The numbers of the units that have columns here.
            columns: Int64 ``[n, b]``: the columns of each of these units; ``-1`` where a unit has fewer than ``b``.
        """
        self.units = torch.as_tensor(units)
        count, self._width = columns.shape
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        flat = columns.flatten()
        self._inverse = inverse[flat][:, flat]
        outputs = weight[flat]
        missing = (flat < 0).nonzero().flatten()
        if len(missing):  # a column that nothing depends on
            outputs[missing] = 0
            self._inverse[missing] = 0
            self._inverse[:, missing] = 0
            self._inverse[missing, missing] = 1
        if outputs.shape[1] > len(outputs):  # only the products of the rows matter
            outputs = torch.linalg.qr(outputs.T, mode="r").R.T
        self._weight = outputs.reshape(count, self._width, -1).contiguous()
        by_unit = self._inverse.view(count, self._width, count, self._width)
        self._blocks = by_unit.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        self._where = torch.arange(count)  # the rows of the inverse that each unit has
        self._panel: list[Tensor] = []

    def errors(self) -> Tensor:
        """What leaving out each unit adds to the squared error when all others make up for it: float64 ``[n]``.

        ``tr(W' [(S^-1)_uu]^-1 W)`` with the weights ``W`` of the unit and the inverse covariance ``S^-1``: the optimal
        brain surgeon (Hassibi & Stork, 1993) for a group of weights.
        """
        if self._width == 1:
            return self._weight.square().sum((1, 2)) / self._blocks[:, 0, 0]
        factor = torch.linalg.cholesky_ex(self._blocks).L
        scaled: Tensor = torch.linalg.solve_triangular(factor, self._weight, upper=False)
        return scaled.square().sum((1, 2))

    def remove(self, position: int) -> None:
        """Leaves out a unit; the others take over.

        Args:
            position: Its position in :attr:`units`.
        """
        rows = slice(int(self._where[position]) * self._width, (int(self._where[position]) + 1) * self._width)
        column = self._inverse[:, rows].clone()
        for earlier in self._panel:
            column -= earlier @ earlier[rows].mT
        block = self._blocks[position]
        # column @ block^-1 @ column' as a product of one matrix with itself
        factor = torch.linalg.cholesky_ex(block).L
        step = torch.linalg.solve_triangular(factor, column.mT, upper=False).mT.contiguous()
        scaled = torch.linalg.solve_triangular(factor, self._weight[position], upper=False)
        kept = torch.arange(len(self.units)) != position
        self.units, self._where = self.units[kept], self._where[kept]
        steps = step.view(-1, self._width, self._width)[self._where]
        self._weight = self._weight[kept] - steps @ scaled
        self._blocks = self._blocks[kept] - steps @ steps.mT
        self._panel.append(step)
        if len(self._panel) * self._width >= _PANEL:
            self._apply_panel()

    def _apply_panel(self) -> None:
        """Brings the inverse up to date, and drops the rows of units that were left out."""
        rows = (self._where[:, None] * self._width + torch.arange(self._width)).flatten()
        panel = torch.cat(self._panel, 1)[rows]
        self._inverse = self._inverse[rows][:, rows].addmm_(panel, panel.mT, alpha=-1)
        self._where = torch.arange(len(self.units))
        self._panel = []


def eliminate(systems: Sequence[LinearSystem], units: int, order: Sequence[int] | None = None) -> Tensor:
    """Leaves out units one after the other: next is the one that adds the least to the squared errors of all systems.

    Args:
        systems: The systems, which are used up. A unit that has no columns in a system costs nothing there.
        units: The number of units.
        order: Another order, a permutation of all units; ``None``: the cheapest first.

    Returns:
        float64 ``[units]``: the sum of the errors when the unit, and those before it, are left out. It rises strictly
        in the order.
    """
    total = torch.zeros(units, dtype=torch.float64)
    left = torch.ones(units, dtype=torch.bool)
    error = 0.0
    for step in range(units):
        added = torch.zeros(units, dtype=torch.float64)
        for system in systems:
            added[system.units] += system.errors()
        unit = int(added.masked_fill(~left, math.inf).argmin()) if order is None else order[step]
        error = max(error + float(added[unit]), math.nextafter(error, math.inf))
        total[unit] = error
        left[unit] = False
        for system in systems:
            position = (system.units == unit).nonzero()
            if len(position):
                system.remove(int(position))
    return total
