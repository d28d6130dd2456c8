"""Least squares: the weight with which a layer comes nearest to its target on given rows, held by a ridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are multiplied at once: the float32 products of a block are added up in float64.
_BLOCK = 8192
_REFINEMENTS = 3

Solver = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Rectifier:
    """What follows a layer: a scale and shift per channel, an addend, then an activation with constant parts.

    Attributes:
        scale: ``[outputs]``, of the batch norm between; ``None`` without one.
        shift: ``[outputs]``, likewise.
        addend: ``[rows, outputs]``: what the original adds then (the shortcut of a residual block); ``None``: nothing.
        present_addend: What the pruned model adds; the fit makes up for the difference.
        low: Below it the activation is constant.
        high: Above it the activation is constant; infinite if it never is.
    """

    scale: Tensor | None
    shift: Tensor | None
    addend: Tensor | None
    present_addend: Tensor | None
    low: float
    high: float

    def wanted(self, targets: Tensor) -> Tensor:
        """What the activation gets in the original, for outputs ``[rows, outputs]`` of its layer."""
        return self._normalised(targets, self.addend)

    def given(self, outputs: Tensor) -> Tensor:
        """What the activation gets in the pruned model, for outputs ``[rows, outputs]`` of its layer."""
        return self._normalised(outputs, self.present_addend)

    def slack(self, target: Tensor, fitted: Tensor | None = None) -> Tensor:
        """The outputs of the layer with which the activation gives what it gives in the original.

        Args:
            target: ``[rows, outputs]``, the outputs of the layer of the original.
            fitted: The same shape: what a fit gives. Where the activation is constant, and the fit lies there too,
                nothing more is asked for. ``None``: the activation is to get what it gets in the original.

        Returns:
            ``[rows, outputs]``.
        """
        wanted = nearest = self.wanted(target)
        if fitted is not None:
            given = self.given(fitted)
            nearest = torch.where(wanted <= self.low, given.clamp(max=self.low), wanted)
            nearest = torch.where(wanted >= self.high, given.clamp(min=self.high), nearest)
        if self.present_addend is not None:
            nearest = nearest - self.present_addend
        if self.scale is None or self.shift is None:
            return nearest
        usable = self.scale.abs() > 1e-6 * self.scale.abs().max()
        return torch.where(usable, (nearest - self.shift) / torch.where(usable, self.scale, 1.0), target)

    def _normalised(self, outputs: Tensor, addend: Tensor | None) -> Tensor:
        if self.scale is not None and self.shift is not None:
            outputs = outputs * self.scale + self.shift
        return outputs if addend is None else outputs + addend


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted layer.

    Attributes:
        weight: float64 ``[groups, unknowns, outputs/groups]``.
        bias: float64 ``[outputs]``; ``None`` if it was fitted without one.
        error_before: Squared error of the present weight, relative to the target's variance (behind the rectifier).
        error: That of the fitted one.
    """

    weight: Tensor
    bias: Tensor | None
    error_before: float
    error: float


class LeastSquares:
    """Rows and targets of one layer.

    Ridge regression: the minimum over W of ``|X W + b - T|^2 / rows + ridge * d * |W - W0|^2``, with ``d`` the mean of
    the inputs' variances. Where there are fewer rows than unknowns, the dual form is solved, which gives the same.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, *, centred: bool) -> None:
        """Takes the rows.

        Args:
            inputs: float32 or float64 ``[groups, rows, unknowns]``; it is centred in place.
            targets: ``[rows, outputs]``.
            centred: Whether the layer has a bias that is fitted too.
        """
        self.centred = centred
        self.rows = inputs.shape[1]
        self.groups, self.unknowns = inputs.shape[0], inputs.shape[2]
        self.mean = torch.zeros(self.groups, 1, self.unknowns, dtype=torch.float64, device=inputs.device)
        if centred:
            self.mean = (
                product_of_rows(inputs.new_ones(1, self.rows, 1).expand(self.groups, -1, -1), inputs) / self.rows
            )
        self.inputs = inputs.sub_(self.mean.to(inputs.dtype)) if centred else inputs
        self.targets = targets

    def fit(self, present: Tensor, present_bias: Tensor, ridge: float, rectifier: Rectifier | None) -> Fit:
        """Fits the weight and the bias.

        Args:
            present: ``[groups, unknowns, outputs/groups]``, the weight W0 that the solution is drawn to.
            present_bias: float64 ``[outputs]``, the bias now; it stays if the fit is not centred.
            ridge: How strongly, relative to the inputs' mean variance.
            rectifier: What follows the layer, if that is known; the fit then need not follow the target where the
                activation is constant.

        Returns:
            The fit.
        """
        fixed = torch.zeros_like(present_bias) if self.centred else present_bias
        base = self.predict(present, fixed)
        before = self.error(base + (present_bias - fixed).to(base.dtype), rectifier)
        solve = self._solver(ridge)

        def fitted(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The change of the weight and the bias for a target, and the outputs that they give."""
            missing = target - base
            mean = missing.mean(0, dtype=torch.float64) if self.centred else torch.zeros_like(fixed)
            missing = (missing - mean.to(missing.dtype)).reshape(self.rows, self.groups, -1).permute(1, 0, 2)
            change = solve(missing)
            # What the mean inputs give is part of the outputs, and the bias takes the rest of the mean.
            bias = fixed + mean - (self.mean @ change).reshape(-1)
            return change, bias, base + self.predict(change, bias - fixed)

        change, bias, outputs = fitted(self.targets if rectifier is None else rectifier.slack(self.targets))
        error = self.error(outputs, rectifier)
        if rectifier is not None:
            refined: Tensor | None = None
            for _ in range(_REFINEMENTS):
                del refined  # a wide layer takes a gigabyte
                refined, refined_bias, outputs = fitted(rectifier.slack(self.targets, outputs))
            refined_error = self.error(outputs, rectifier)
            if refined is not None and refined_error < error:
                change, bias, error = refined, refined_bias, refined_error
        return Fit(change.add_(present), bias if self.centred else None, before, error)

    def predict(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer's outputs on the rows, ``[rows, outputs]``, for a weight in any precision and a bias in float64."""
        shift = bias + (self.mean.to(weight.dtype) @ weight).reshape(-1)
        products = self.inputs @ weight.to(self.inputs.dtype)
        return products.permute(1, 0, 2).reshape(self.rows, -1) + shift.to(self.inputs.dtype)

    def error(self, outputs: Tensor, rectifier: Rectifier | None) -> float:
        """The squared error of outputs ``[rows, outputs]``, relative to the variance of the target."""
        wanted = self.targets
        if rectifier is not None:
            outputs = rectifier.given(outputs).clamp(rectifier.low, rectifier.high)
            wanted = rectifier.wanted(wanted).clamp(rectifier.low, rectifier.high)
        variance = float((wanted - wanted.mean(0)).square().sum(dtype=torch.float64))
        return float((outputs - wanted).square().sum(dtype=torch.float64)) / max(variance, 1e-30)

    def _solver(self, ridge: float) -> Solver:
        """Factors the system; the function returned maps what is missing of the target to a change of the weight."""
        if self.rows >= self.unknowns:
            factor = _factor(product_of_rows(self.inputs, self.inputs) / self.rows, ridge, self.unknowns)
            return lambda missing: torch.cholesky_solve(product_of_rows(self.inputs, missing) / self.rows, factor)
        rows = self.inputs.double()
        factor = _factor(rows @ rows.mT / self.rows, ridge, self.unknowns)
        return lambda missing: rows.mT @ (torch.cholesky_solve(missing.double(), factor) / self.rows)


def product_of_rows(left: Tensor, right: Tensor) -> Tensor:
    """``left' right`` in float64, from products of blocks in the inputs' precision.

    Args:
        left: ``[groups, rows, columns]``, at least one row.
        right: The same rows, with other columns.

    Returns:
        ``[groups, columns of left, columns of right]``.
    """
    total: Tensor | None = None
    for start in range(0, left.shape[1], _BLOCK):
        product = left[:, start : start + _BLOCK].mT @ right[:, start : start + _BLOCK]
        total = product.double() if total is None else total.add_(product)
    assert total is not None
    return total


def _factor(system: Tensor, ridge: float, unknowns: int) -> Tensor:
    """The Cholesky factor of systems ``[groups, n, n]`` with a ridge; with a larger one where rounding needs it.

    Args:
        system: ``X' X / rows`` or ``X X' / rows``, which have the same trace; changed in place.
        ridge: Relative to the mean of the unknowns' variances (squares, if not centred).
        unknowns: Their number.
    """
    trace = system.diagonal(dim1=1, dim2=2).sum(1)[:, None]
    strength = (ridge * trace / unknowns).clamp(min=torch.finfo(torch.float64).tiny)
    while True:
        system.diagonal(dim1=1, dim2=2).add_(strength)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            return factor
        mean = system.diagonal(dim1=1, dim2=2).mean(1)[:, None]
        strength = torch.maximum(strength * 10, mean * 1e-12 + torch.finfo(torch.float64).tiny)
