"""The kernels against the float64 reference: every algorithm, every instruction set, every kind of weight."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.backends import cpu
from fec_fast.scoring.formula import Formula
from helpers.formula_cases import cases, sortable, tolerance

SETS = list(cpu.instruction_sets())


class Case(NamedTuple):
    """A weight, its entropies in float64, and the largest error that is allowed."""

    weight: Tensor
    want: Tensor
    allowed: float


def case_of(weight: Tensor, formula: Formula, axis: int = 0, groups: int = 1) -> Case:
    want = reference.entropy(weight, formula, axis=axis, groups=groups)
    return Case(weight, want, tolerance(weight, formula, axis, groups))


def compare(case: Case, formula: Formula, *, axis: int = 0, groups: int = 1, **choice: Any) -> Tensor:
    (got,), bad = cpu.entropies([case.weight], formula, axes=[axis], groups=[groups], **choice)
    want, allowed = case.want, case.allowed
    assert bad == -1
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert float((got - want).abs().max()) <= allowed, (formula, axis, groups, choice, got, want, allowed)
    assert float(got.min()) >= 0
    return got


def skip_if_unusable(instruction_set: str) -> None:
    if not cpu.instruction_sets()[instruction_set]:
        pytest.skip(f"this processor has no {instruction_set}")


@pytest.mark.parametrize("instruction_set", SETS)
@settings(max_examples=100)
@given(cases())
def test_every_kind_of_weight(instruction_set: str, drawn: tuple[Tensor, int, int, Formula]) -> None:
    skip_if_unusable(instruction_set)
    weight, on, groups, formula = drawn
    case = case_of(weight, formula, on, groups)
    for algorithm in ("sorted", "pairwise") if sortable(weight, formula) else ("pairwise",):
        compare(case, formula, axis=on, groups=groups, algorithm=algorithm, instruction_set=instruction_set)


@functools.cache
def large_case(shape: tuple[int, ...], dtype: torch.dtype, formula: Formula) -> Case:
    """Cached: the reference takes longer than all instruction sets together."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return case_of(weight, formula)


# More rows than the first-level cache holds (sorted), more points than a tile (pairwise), more coordinates than are
# taken at a time, and lengths that no block divides.
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "compress", "axis"),
    [
        ((2, 2300), "rms", "channels"),
        ((2, 2300), "mean", "channels"),
        ((19, 1031), "none", "channels"),
        ((2, 601, 3, 3), "none", "channels"),
        ((601, 33, 3, 3), "none", "filters"),
        ((530, 7, 3, 3), "rms", "filters"),
        ((129, 1600), "none", "filters"),
    ],
)
def test_beyond_one_block(instruction_set: str, dtype: torch.dtype, shape: Any, compress: Any, axis: Any) -> None:
    skip_if_unusable(instruction_set)
    formula = Formula(compress=compress, axis=axis)
    case = large_case(shape, dtype, formula)
    for algorithm in ("sorted", "pairwise") if sortable(case.weight, formula) else ("pairwise",):
        compare(case, formula, algorithm=algorithm, instruction_set=instruction_set)


@functools.cache
def uneven_case(kind: str, dtype: torch.dtype, formula: Formula) -> Case:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(20, 700, generator=generator, dtype=torch.float64)
    if kind == "outlier":
        weight[:, 0] = 1e4
    elif kind == "clusters":
        weight = weight * 1e-3 + torch.randint(0, 2, weight.shape, generator=generator)
    elif kind == "ties":
        weight = weight.round()
    else:
        weight *= 10 ** torch.linspace(-12, 0, 20, dtype=torch.float64)[:, None]
    return case_of(weight.to(dtype), formula)


# What a sum of exponentials could lose: one channel far from all others, clusters of similar ones, ties, and filters of
# very different sizes in neighbouring lanes of a vector.
@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entropy", ["similarity", "softmax", "distance"])
@pytest.mark.parametrize("kind", ["outlier", "clusters", "ties", "sizes"])
def test_uneven_channels(instruction_set: str, dtype: torch.dtype, entropy: Any, kind: str) -> None:
    skip_if_unusable(instruction_set)
    formula = Formula("mean", entropy, "channels")
    compare(uneven_case(kind, dtype, formula), formula, algorithm="sorted", instruction_set=instruction_set)


# The documented rule, on weights of the size of networks' weights.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("compress", ["rms", "absmean", "mean", "none"])
@pytest.mark.parametrize("entropy", ["similarity", "softmax", "distance"])
@pytest.mark.parametrize("axis", ["channels", "filters"])
def test_the_promised_tolerance(dtype: torch.dtype, compress: Any, entropy: Any, axis: Any) -> None:
    generator = torch.Generator().manual_seed(6)
    formula = Formula(compress, entropy, axis)
    for shape in ((40, 3, 7, 7), (96, 200, 3, 3), (300, 130, 1, 1)):
        weight = (torch.randn(shape, generator=generator) * 0.05).to(dtype)
        (got,), _ = cpu.entropies([weight], formula, axes=[0], groups=[1])
        error = float((got - reference.entropy(weight, formula)).abs().max())
        assert error <= reference.tolerance(dtype, shape[1] if axis == "channels" else shape[0])


# Terms that are all alike round in one direction: one chain of additions would lose a digit per thousand coordinates.
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("axis", ["channels", "filters"])
@pytest.mark.parametrize("coordinates", [24, 100, 512, 2304, 10000])
def test_coordinates_that_are_all_alike(instruction_set: str, axis: Any, coordinates: int) -> None:
    skip_if_unusable(instruction_set)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        points = torch.randn(6, 1, generator=generator).expand(6, coordinates).contiguous()
        weight = points if axis == "filters" else points[None]
        formula = Formula(axis=axis)
        (got,), _ = cpu.entropies([weight], formula, axes=[0], groups=[1], instruction_set=instruction_set)
        error = float((got - reference.entropy(weight, formula)).abs().max())
        assert error <= reference.tolerance(torch.float32, 6)


# Above 12 MiB (kKeep) nothing is kept between the two passes: the other branch of `sorted` and of the filters' pairs.
def test_too_large_to_keep() -> None:
    generator = torch.Generator().manual_seed(2)
    wide = torch.randn(2600, 1700, generator=generator)
    got, bad = cpu.entropies([wide], Formula("rms", axis="channels"), axes=[0], groups=[1])
    small = reference.entropy(wide[:4], Formula("rms", axis="channels", tau=mean_distance(wide)))
    assert bad == -1
    assert torch.allclose(got[0][:4], small, rtol=0, atol=tolerance(wide[:4], Formula("rms", axis="channels"), 0, 1))
    for entropy, coordinates in (("similarity", 30), ("softmax", 9), ("distance", 9)):  # products, and differences
        formula = Formula("none", entropy, "filters")
        compare(case_of(wide[:2400, :coordinates], formula), formula)


def mean_distance(weight: Tensor) -> float:
    """Returns the mean distance between the magnitudes of a row, over all rows and pairs, from sorted rows."""
    x = weight.abs().double().sort(-1).values
    c = x.shape[-1]
    return float((x * torch.arange(1 - c, c, 2)).sum() * 2 / (c * c * x.shape[0]))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("algorithm", ["sorted", "pairwise"])
def test_equal_channels_have_entropy_exactly_zero(instruction_set: str, algorithm: str) -> None:
    skip_if_unusable(instruction_set)
    weight = torch.randn(20, 49, 3, 3, generator=torch.Generator().manual_seed(3))
    weight[7] = weight[7, :1]
    (got,), _ = cpu.entropies(
        [weight],
        Formula("rms", axis="channels"),
        axes=[0],
        groups=[1],
        algorithm=algorithm,
        instruction_set=instruction_set,
    )
    assert got[7] == 0
    assert int(got.argmin()) == 7 and float(got[:7].min()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", ["channels", "filters"])
def test_entropy_does_not_depend_on_scale(dtype: torch.dtype, axis: Any) -> None:
    weight = torch.randn(24, 30, 3, 3, generator=torch.Generator().manual_seed(4)).to(dtype)
    for compress in ("rms", "mean", "none"):
        formula = Formula(compress, axis=axis)
        for power in (-6, 6) if dtype == torch.float16 else (-100, 100):
            scaled = weight * 2.0**power
            if dtype == torch.float16 and power < 0:
                weight = scaled * 2.0**-power  # the part that subnormals can hold
            first, _ = cpu.entropies([weight], formula, axes=[0], groups=[1])
            second, _ = cpu.entropies([scaled], formula, axes=[0], groups=[1])
            assert torch.equal(first[0], second[0])


def test_entropy_does_not_depend_on_the_number_of_threads() -> None:
    weight = torch.randn(300, 70, 3, 3, generator=torch.Generator().manual_seed(5))
    formulas = [Formula("rms", axis="channels"), Formula("none", axis="channels"), Formula("none", axis="filters")]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([cpu.entropies([weight], formula, axes=[0], groups=[1])[0][0] for formula in formulas])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_known_value() -> None:
    """Two channels at distance 2 and tau 1 (the mean of 0, 2, 2, 0): H = -ln((1 + e^-2) / 2)."""
    weight = torch.tensor([[[[1.0]], [[3.0]]]])
    want = -math.log((1 + math.exp(-2)) / 2)
    assert float(reference.entropy(weight, Formula("rms", axis="channels"))) == pytest.approx(want, abs=1e-15)
    (got,), _ = cpu.entropies([weight], Formula("rms", axis="channels"), axes=[0], groups=[1])
    assert float(got) == pytest.approx(want, abs=1e-6)


def test_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="mmx"):
        cpu.entropies([torch.ones(2, 2)], Formula(), axes=[0], groups=[1], instruction_set="mmx")
