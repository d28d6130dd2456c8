"""Backward elimination: in which order columns of linear systems are left out, so that the least error is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# A removal changes the inverse by a product of few columns. Products of about this many columns are applied at once.
_PANEL = 64
# Where many units are left, one in this many is left out at a time, if they hardly depend on one another.
_AT_ONCE = 64
_DEPENDENT = 0.1
# What others can make up for counts as much as this, times the odds that the units left out so far have spoilt the
# layers: of 3, 10 and 30 the best after batch norm was re-estimated, on four networks. The odds are e / (1 - e).
_MADE_UP = 30.0


class System(Protocol):
    """The part of a layer that units share.

    Attributes:
        units: Int64 ``[n]``: the units that have columns here, rising, among them some that were left out.
    """

    units: Tensor

    def errors(self) -> Tensor:
        """What leaving out each unit adds to the squared error, float64 ``[n]``; 0 for units that were left out."""

    def find(self, units: Tensor) -> Tensor:
        """The positions in :attr:`units` of those of some units that have columns here, int64."""

    def dependence(self, positions: Tensor) -> Tensor:
        """How much leaving out units changes what that of others costs: float64 ``[m, m]``, from 0 to 1."""

    def remove(self, positions: Tensor) -> float:
        """Leaves out units; returns what this adds to the squared error."""


class AblatedSystem:
    """The part of a layer that units share, when nothing makes up for those that are left out.

    The squared error is ``tr(W_R' S_RR W_R)`` with the columns ``R`` of the units that are left out.

    Attributes:
        units: Int64 ``[n]``: the units that have columns here, rising.
        whole: The squared error when all of them are left out.
    """

    def __init__(self, covariance: Tensor, products: Tensor, units: Sequence[int], columns: Tensor) -> None:
        """Adds up what pairs of units have in common.

        Args:
            covariance: float64 ``[columns, columns]``: ``S``, of the layer's inputs.
            products: float64 ``[columns, columns]``: ``W W'``, of the weights ``W`` ``[columns, outputs]``.
            units: The numbers of the units that have columns here.
            columns: Int64 ``[n, b]``: the columns of each of these units; ``-1`` where a unit has fewer than ``b``.
        """
        self.units = torch.as_tensor(units)
        flat = columns.flatten()
        shared = covariance[flat][:, flat] * products[flat][:, flat]
        missing = flat < 0
        shared[missing] = 0
        shared[:, missing] = 0
        number, width = columns.shape
        self._shared = shared.view(number, width, number, width).sum((1, 3))
        self._errors = self._shared.diagonal().clone()
        self.whole = float(self._shared.sum())

    def errors(self) -> Tensor:
        """What leaving out each unit adds to the squared error: float64 ``[n]``; 0 for units that were left out.

        It is negative where a unit is of the opposite sign as those that were left out, in the mean.
        """
        return self._errors

    def find(self, units: Tensor) -> Tensor:
        """The positions in :attr:`units` of those of some units that have columns here, int64."""
        return _find(self.units, units)

    def dependence(self, positions: Tensor) -> Tensor:
        """How much leaving out units changes what that of others costs: float64 ``[m, m]``, from 0 to 1.

        Args:
            positions: Int64 ``[m]``: their positions in :attr:`units`.
        """
        block = self._shared[positions][:, positions]
        own = block.diagonal()
        return torch.nan_to_num(block.square() / (own[:, None] * own), nan=0.0, posinf=1.0)

    def remove(self, positions: Tensor) -> float:
        """Leaves out units.

        Args:
            positions: Int64 ``[m]``: their positions in :attr:`units`, each for the first time.

        Returns:
            What this adds to the squared error.
        """
        among = self._shared[positions][:, positions]
        added = self._errors[positions].sum() + among.sum() - among.diagonal().sum()
        self._errors += 2 * self._shared[:, positions].sum(1)
        self._errors[positions] = 0
        self._shared[positions] = 0  # what is left out stays without cost
        return float(added)


class LinearSystem:
    """The part of a layer that units share: the inverse covariance of their columns, and the weights on them.

    Attributes:
        units: Int64 ``[n]``: the units that have columns here, among them some that were left out.
    """

    def __init__(self, inverse: Tensor, products: Tensor, units: Sequence[int], columns: Tensor) -> None:
        """Takes the rows and columns that belong to the units.

        Args:
            inverse: float64 ``[columns, columns]``: the inverse of the covariance ``S`` of the layer's inputs.
            products: float64 ``[columns, columns]``: ``W W'``, of the weights ``W`` ``[columns, outputs]``.
            units: The numbers of the units that have columns here.
            columns: Int64 ``[n, b]``: the columns of each of these units; ``-1`` where a unit has fewer than ``b``.
        """
        self.units = torch.as_tensor(units)
        self._width = columns.shape[1]
        flat = columns.flatten()
        self._inverse, self._products = inverse[flat][:, flat], products[flat][:, flat]
        missing = (flat < 0).nonzero().flatten()
        if len(missing):  # a column that nothing depends on
            for matrix in (self._inverse, self._products):
                matrix[missing] = 0
                matrix[:, missing] = 0
            self._inverse[missing, missing] = 1
        self._inverse_blocks, self._product_blocks = self._blocks(self._inverse), self._blocks(self._products)
        self._begin_panel()

    def errors(self) -> Tensor:
        """What leaving out each unit adds to the squared error when all others make up for it: float64 ``[n]``.

        ``tr(W_u' [(S^-1)_uu]^-1 W_u)`` with the weights ``W_u`` of the unit: the optimal brain surgeon (Hassibi &
        Stork, 1993) for a group of weights. Units that were left out have 0.
        """
        if self._width == 1:
            return (self._product_blocks / self._inverse_blocks)[:, 0, 0]
        ratios: Tensor = torch.linalg.solve(self._inverse_blocks, self._product_blocks)
        return ratios.diagonal(dim1=1, dim2=2).sum(1)

    def find(self, units: Tensor) -> Tensor:
        """The positions in :attr:`units` of those of some units that have columns here, int64."""
        return _find(self.units, units)

    def dependence(self, positions: Tensor) -> Tensor:
        """How much the removal of units changes what that of others costs: float64 ``[m, m]``, from 0 to 1.

        The squared partial correlation of two units given all others; of several columns
        ``|H_ij|^2 / (|H_ii| |H_jj|)`` with the blocks ``H`` of the inverse and Frobenius norms.

        Args:
            positions: Int64 ``[m]``: their positions in :attr:`units`.
        """
        rows, width = self._rows(positions), self._width
        block = self._inverse_block(rows).view(len(positions), width, len(positions), width)
        squares = block.square().sum((1, 3))
        own = squares.diagonal().sqrt()
        return squares / (own[:, None] * own)

    def remove(self, positions: Tensor) -> float:
        """Leaves out units; the others take over.

        With ``c = S^-1[:, u] [(S^-1)_uu]^-1``, the weights become ``(I - c e_u') W``, and the inverse
        ``(I - c e_u') S^-1 (I - c e_u')'``.

        Args:
            positions: Int64 ``[m]``: their positions in :attr:`units`.

        Returns:
            What this adds to the squared error.
        """
        rows = self._rows(positions)
        # The matrices as they are by now are those of the panel's begin minus products of few columns.
        steps, moves, halves = (panel[:, : self._used] for panel in (self._steps, self._moves, self._halves))
        column = self._inverse[rows].addmm_(steps[rows], steps.mT, alpha=-1)
        product = self._products[rows].addmm_(moves[rows], halves.mT, alpha=-1)
        product = product.addmm_(halves[rows], moves.mT, alpha=-1).mT
        factor = torch.linalg.cholesky_ex(column[:, rows]).L
        step = torch.linalg.solve_triangular(factor, column, upper=False)
        move = torch.linalg.solve_triangular(factor.mT, step, upper=True).mT
        own = product[rows]
        error = float(torch.cholesky_inverse(factor).mul_(own).sum())
        half = product - move @ own / 2
        used = slice(self._used, self._used + len(rows))
        if used.stop > self._steps.shape[1]:  # units of other systems too are left out at a time, more than expected
            self._widen_panel()
        self._steps[:, used], self._moves[:, used], self._halves[:, used] = step.mT, move, half
        self._used += len(rows)
        shape = len(self.units), self._width, len(rows)
        step, move, half = (part.reshape(shape) for part in (step.mT, move, half))
        self._inverse_blocks.baddbmm_(step, step.mT, alpha=-1)
        self._product_blocks.baddbmm_(move, half.mT, alpha=-1).baddbmm_(half, move.mT, alpha=-1)
        self._inverse_blocks[positions] = torch.eye(self._width, dtype=torch.float64)
        self._product_blocks[positions] = 0
        self._is_left[positions] = False
        if self._used >= _PANEL:
            self._end_panel()
        return error

    def _rows(self, positions: Tensor) -> Tensor:
        return (positions[:, None] * self._width + torch.arange(self._width)).flatten()

    def _inverse_block(self, rows: Tensor) -> Tensor:
        steps = self._steps[rows, : self._used]
        return self._inverse[rows][:, rows].addmm_(steps, steps.mT, alpha=-1)

    def _blocks(self, matrix: Tensor) -> Tensor:
        """The part of a matrix that belongs to each unit, ``[n, b, b]``."""
        by_unit = matrix.view(len(self.units), self._width, len(self.units), self._width)
        return by_unit.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()

    def _begin_panel(self) -> None:
        most = _PANEL + self._width * -(-len(self.units) // _AT_ONCE)
        self._steps, self._moves, self._halves = (self._inverse.new_empty(len(self._inverse), most) for _ in range(3))
        self._used = 0
        self._is_left = torch.ones(len(self.units), dtype=torch.bool)

    def _widen_panel(self) -> None:
        panels = (self._steps, self._moves, self._halves)
        self._steps, self._moves, self._halves = (torch.cat([panel, torch.empty_like(panel)], 1) for panel in panels)

    def _end_panel(self) -> None:
        """Brings the matrices up to date, and drops the units that were left out."""
        rows = self._is_left.repeat_interleave(self._width).nonzero().flatten()
        steps, moves, halves = (panel[rows, : self._used] for panel in (self._steps, self._moves, self._halves))
        self._inverse = self._inverse[rows][:, rows].addmm_(steps, steps.mT, alpha=-1)
        self._products = self._products[rows][:, rows].addmm_(moves, halves.mT, alpha=-1)
        self._products.addmm_(halves, moves.mT, alpha=-1)
        self.units = self.units[self._is_left]
        self._inverse_blocks = self._inverse_blocks[self._is_left]
        self._product_blocks = self._product_blocks[self._is_left]
        self._begin_panel()


def _find(present: Tensor, units: Tensor) -> Tensor:
    """The positions of those of some units that are among rising units."""
    if not len(present):  # all of a system's units were left out before those of the others
        return units.new_empty(0)
    positions = torch.searchsorted(present, units).clamp(max=len(present) - 1)
    return positions[present[positions] == units]


def eliminate(
    systems: Sequence[System],
    units: int,
    order: Sequence[int] | None = None,
    made_up_for: Sequence[System] = (),
) -> Tensor:
    """Leaves out units one after the other: next is the one that adds the least to the squared errors of all systems.

    Args:
        systems: The systems, which are used up. A unit that has no columns in a system costs nothing there.
        units: The number of units.
        order: Another order, a permutation of all units; ``None``: the cheapest first.
        made_up_for: The layers of :class:`AblatedSystem` as :class:`LinearSystem`, to decide the order. While little is
            lost, the layers behind go on as they are, and what a unit adds to their error decides. Layers that have
            lost much are trained or fitted anew, and then it decides what others can make up for. So what a unit adds
            to the error that is made up for is added to its cost, times ``30 e / (1 - e)`` with the error ``e`` so far
            as a share of the whole.

    Returns:
        float64 ``[units]``: the sum of the errors when the unit, and those before it, are left out; or the highest so
        far, where that is higher. It rises strictly in the order.
    """
    total = torch.zeros(units, dtype=torch.float64)
    left = torch.ones(units, dtype=torch.bool)
    error, removed = 0.0, 0
    both = [*systems, *made_up_for]
    whole = sum(system.whole for system in systems if isinstance(system, AblatedSystem))
    while removed < units:
        added = _added(systems, units)
        most = max(1, (units - removed) // _AT_ONCE)
        if order is None:
            share = min(max(error / whole, 0.0), 0.999) if whole > 0 else 0.0
            cost = added + _MADE_UP * share / (1 - share) * _added(made_up_for, units)
            next_units = cost.masked_fill(~left, math.inf).topk(most, largest=False).indices
            next_units = next_units[: _independent(both, next_units)]
        else:
            next_units = torch.as_tensor(order[removed : removed + most])
        single = added[next_units].clamp(min=0)
        joint = sum(system.remove(found) for system in systems if len(found := system.find(next_units)))
        for system in made_up_for:
            if len(found := system.find(next_units)):
                system.remove(found)
        shares = single.cumsum(0) / single.sum() if float(single.sum()) > 0 else torch.ones(len(single))
        for unit, part in zip(next_units.tolist(), shares.tolist(), strict=True):
            total[unit] = max(error + joint * part, math.nextafter(float(total.max()), math.inf))
        error += joint
        left[next_units] = False
        removed += len(next_units)
    return total


def _added(systems: Sequence[System], units: int) -> Tensor:
    """What leaving out each unit adds to the squared errors of all systems: float64 ``[units]``."""
    added = torch.zeros(units, dtype=torch.float64)
    for system in systems:
        added[system.units] += system.errors()
    return added


def _independent(systems: Sequence[System], units: Tensor) -> int:
    """How many of the first of some units hardly change what each other's removal costs, in any system."""
    number = len(units)
    for system in systems:
        found = system.find(units[:number])
        if number > 1 and len(found) > 1:
            dependent = (system.dependence(found).tril(-1) > _DEPENDENT).any(1).nonzero()
            if len(dependent):
                first = system.units[found[int(dependent[0])]]
                number = int((units == first).nonzero())
    return number
