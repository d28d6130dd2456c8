"""Least squares: the solution is that of the float64 reference, in the primal and the dual form, by group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fec_fast.recovery.least_squares import LeastSquares, Rectifier

RIDGE = 0.05


def case(groups: int, rows: int, unknowns: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(groups + rows)
    inputs = torch.randn(groups, rows, unknowns, generator=generator, dtype=torch.float64) + 0.5
    present = torch.randn(groups, unknowns, outputs // groups, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(rows, outputs, generator=generator, dtype=torch.float64), present, bias


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("groups", "rows", "unknowns", "outputs"), [(1, 60, 7, 5), (3, 40, 4, 6), (1, 12, 30, 4)])
def test_the_fit_is_that_of_an_augmented_lstsq(
    groups: int, rows: int, unknowns: int, outputs: int, centred: bool
) -> None:
    inputs, targets, present, bias = case(groups, rows, unknowns, outputs)
    fit = LeastSquares(inputs.clone(), targets, centred=centred).fit(present, bias, RIDGE, None)
    mean = inputs.mean(1, keepdim=True) if centred else torch.zeros(groups, 1, unknowns, dtype=torch.float64)
    target_mean = targets.mean(0) if centred else bias  # a bias that cannot be changed stays
    wanted = (targets - target_mean).reshape(rows, groups, -1).permute(1, 0, 2)
    for group in range(groups):
        x = inputs[group] - mean[group]
        spread = (inputs - mean).square().mean((1, 2))[group]
        strength = (rows * RIDGE * spread).sqrt()
        # The ridge as rows: |X W - T|^2 + rows * ridge * spread * |W - W0|^2.
        system = torch.cat([x, strength * torch.eye(unknowns, dtype=torch.float64)])
        right = torch.cat([wanted[group], strength * present[group]])
        solution = torch.linalg.lstsq(system, right).solution
        torch.testing.assert_close(fit.weight[group], solution)
    if centred:
        expected = target_mean - (mean @ fit.weight).reshape(-1)
        assert fit.bias is not None
        torch.testing.assert_close(fit.bias, expected)
    else:
        assert fit.bias is None


def test_errors_are_relative_to_the_variance_of_the_target() -> None:
    inputs, targets, present, bias = case(1, 50, 6, 4)
    fit = LeastSquares(inputs.clone(), targets, centred=True).fit(present, bias, 1e-9, None)
    assert fit.bias is not None
    for weight, shift, error in ((present, bias, fit.error_before), (fit.weight, fit.bias, fit.error)):
        residual = inputs[0] @ weight[0] + shift - targets
        expected = residual.square().sum() / (targets - targets.mean(0)).square().sum()
        assert error == pytest.approx(float(expected))
    assert fit.error < fit.error_before


@pytest.mark.parametrize("addend", [False, True])
def test_behind_a_relu_the_error_becomes_smaller_still(addend: bool) -> None:
    inputs, targets, present, bias = case(1, 400, 10, 6)
    shortcut = targets.flip(0) if addend else None
    scale, shift = torch.linspace(-1, 2, 6).double(), torch.linspace(-0.5, 0.5, 6).double()
    rectifier = Rectifier(scale, shift, shortcut, shortcut, 0.0, float("inf"))
    plain = LeastSquares(inputs.clone(), targets, centred=True).fit(present, bias, 1e-6, None)
    system = LeastSquares(inputs.clone(), targets, centred=True)
    fit = system.fit(present, bias, 1e-6, rectifier)
    assert plain.bias is not None
    assert fit.error < 0.97 * system.error(system.predict(plain.weight, plain.bias), rectifier)


@pytest.mark.parametrize("low", [-float("inf"), 0.0])
def test_a_fit_makes_up_for_another_addend(low: float) -> None:
    inputs, _, present, bias = case(1, 200, 10, 6)
    scale, shift = torch.linspace(0.5, 2, 6).double(), torch.linspace(-0.5, 0.5, 6).double()
    shortcut, missing = inputs[0, :, :6].square(), inputs[0] @ present[0].flip(0)
    rectifier = Rectifier(scale, shift, shortcut, shortcut - missing, low, float("inf"))
    system = LeastSquares(inputs.clone(), inputs[0] @ present[0] + bias, centred=True)
    fit = system.fit(present, bias, 1e-12, rectifier)
    assert fit.error_before > 0.1 and fit.error < 1e-15
    torch.testing.assert_close(fit.weight[0], present[0] + present[0].flip(0) / scale)


def test_dead_inputs_keep_the_weight_and_give_the_mean() -> None:
    _, targets, present, bias = case(1, 50, 6, 4)
    fit = LeastSquares(torch.zeros(1, 50, 6), targets.float(), centred=True).fit(present, bias, 1e-2, None)
    torch.testing.assert_close(fit.weight, present)
    assert fit.bias is not None
    torch.testing.assert_close(fit.bias, targets.mean(0), atol=1e-6, rtol=0)
