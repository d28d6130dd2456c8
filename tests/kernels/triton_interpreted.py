"""Every Triton kernel in Triton's interpreter, against the float64 reference. Run by test_triton.py in a process of its
own: the interpreter is chosen (TRITON_INTERPRET=1) when a kernel is defined. Prints how many comparisons it made.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.backends import triton
from fec_fast.scoring.formula import Formula
from fec_fast.utils.errors import FormulaError
from helpers.formula_cases import cases, sortable, tolerance

RMS, WHOLE, FILTERS = Formula("rms", axis="channels"), Formula("none", axis="channels"), Formula()
checks = 0


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(w: Tensor, formula: Formula, axis: int = 0, groups: int = 1, algorithm: str = "auto") -> None:
    global checks
    (got,) = triton.entropies([w], formula, axes=[axis], groups=[groups], algorithm=algorithm)
    want = reference.entropy(w, formula, axis=axis, groups=groups)
    points = w.numel() // max(1, w.shape[2:].numel()) // len(want) if formula.axis == "channels" else len(want)
    error, allowed = float((got - want).abs().max()), reference.tolerance(w.dtype, points)
    assert error <= allowed, (list(w.shape), w.dtype, formula, axis, groups, algorithm, error, allowed)
    checks += 1


def every_formula() -> None:
    words: Any = (("rms", "absmean", "mean", "none"), ("similarity", "softmax", "distance"), ("channels", "filters"))
    dtypes = itertools.cycle([torch.float32, torch.bfloat16, torch.float64, torch.float16])
    for compress, entropy, axis in itertools.product(*words):
        formula = Formula(compress, entropy, axis)
        compare(weight(3, 5, 2, 2, dtype=next(dtypes)), formula)
        compare(weight(4, 3, 2, dtype=next(dtypes)), formula, axis=1, groups=2)
        compare(weight(5, 7, 1, 1, dtype=next(dtypes)), Formula(compress, entropy, axis, 0.5, 2.0))
        next(dtypes)


@settings(max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def every_kind_of_weight(drawn: tuple[Tensor, int, int, Formula]) -> None:
    """At the bounds of the CPU's kernels, which are stricter than the tolerance."""
    global checks
    w, axis, groups, formula = drawn
    want, allowed = reference.entropy(w, formula, axis=axis, groups=groups), tolerance(w, formula, axis, groups)
    for algorithm in ("sorted", "pairwise") if sortable(w, formula) and formula.entropy != "distance" else ("auto",):
        (got,) = triton.entropies([w], formula, axes=[axis], groups=[groups], algorithm=algorithm)
        error = float((got - want).abs().max())
        assert error <= allowed, (list(w.shape), w.dtype, formula, axis, groups, algorithm, error, allowed)
        assert float(got.min()) >= 0
        checks += 1


def edges() -> None:
    # A lane has two numbers or more, and a filter is padded to a power of two of at least 64.
    for channels in (1, 2, 33, 63, 64, 65, 129, 300):
        for entropy in ("similarity", "softmax"):
            compare(weight(2, channels), Formula("rms", entropy, "channels"), algorithm="sorted")
    compare(weight(1, 600), RMS, algorithm="sorted")
    compare(weight(2, 130, dtype=torch.float64), Formula("rms", "softmax", "channels"), algorithm="sorted")
    for channels in (31, 33, 65):
        compare(weight(2, channels), RMS, algorithm="pairwise")
        compare(weight(channels, 3, dtype=torch.float64), FILTERS)
    # Tiles have 64 filters here, bands 32; products are summed 64 coordinates at a time.
    for filters, coordinates in ((1, 5), (2, 1), (31, 63), (32, 64), (33, 65), (64, 200), (65, 64), (130, 130)):
        for formula in (FILTERS, Formula("none", "distance", "filters"), Formula("rms", "softmax", "filters")):
            compare(weight(filters, coordinates), formula)
    last = weight(3, 4, 2, 3).to(memory_format=torch.channels_last)
    consumer = weight(66, 70, 3, 3)
    for formula in (FILTERS, RMS, WHOLE):
        compare(last, formula)
    for groups in (1, 2):
        compare(consumer, FILTERS, axis=1, groups=groups)
    # Taps without one stride are copied, at every call.
    odd = weight(5, 4, 3, 6)[..., ::2]
    assert odd.stride()[2:] == (6, 2)
    odd = weight(5, 4, 3, 6)[:, :, :2, :3]
    for formula in (FILTERS, RMS):
        compare(odd, formula)
        odd.mul_(0.5).add_(0.1)
        compare(odd, formula)


def corners() -> None:
    alike = weight(3, 33)
    alike[1] = alike[1, :1]
    for algorithm in ("sorted", "pairwise"):
        (got,) = triton.entropies([alike], RMS, axes=[0], groups=[1], algorithm=algorithm)
        assert got[1] == 0 and got[0] > 0.1
    for formula in (RMS, FILTERS, Formula("none", "softmax", "filters")):
        (got,) = triton.entropies([torch.ones(4, 5, 2, 2)], formula, axes=[0], groups=[1])
        assert torch.equal(got, torch.zeros(4, dtype=torch.float64))
    for power in (-110, 100):
        for formula in (RMS, FILTERS, WHOLE):
            w = weight(4, 6, 3)
            a, b = triton.entropies([w, w * 2.0**power], formula, axes=[0, 0], groups=[1, 1])
            assert torch.equal(a, b), (power, formula, a - b)
    mixed = [torch.empty(0, 3, 3, 3), weight(3, 2), torch.empty(3, 0, 3), weight(5, 4, 2, dtype=torch.float64)]
    for formula in (RMS, FILTERS):
        results = triton.entropies(mixed, formula, axes=[0] * 4, groups=[1] * 4)
        assert results[0].shape == (0,) and torch.equal(results[2], torch.zeros(3, dtype=torch.float64))
        for w, got in zip(mixed[1::2], results[1::2], strict=True):
            assert float((got - reference.entropy(w, formula)).abs().max()) <= reference.tolerance(w.dtype, 5)
    try:
        triton.entropies([weight(3, 4)], FILTERS, axes=[0], groups=[1], algorithm="sorted")
    except FormulaError as error:
        assert "channel axis" in str(error)
    else:
        raise AssertionError("sorted did what it cannot")
    assert triton.entropies([], FILTERS, axes=[], groups=[]) == []


def not_finite() -> None:
    """A NaN or an infinity is seen in the entropies of its own weight alone, in all of them, by all kernels."""
    for formula, dtype, values in (
        (RMS, torch.float32, (math.nan, math.inf)),
        (FILTERS, torch.float32, (math.nan, -math.inf)),
        (WHOLE, torch.float32, (math.nan, math.inf)),
        (FILTERS, torch.float64, (math.nan, math.inf)),
    ):
        # Filter 33 is in the second band of a tile.
        weights = [weight(filters, 4, 3, seed=filters, dtype=dtype) for filters in (3, 35, 5)]
        sound = triton.entropies(weights, formula, axes=[0] * 3, groups=[1] * 3)
        for value in values:
            weights[1][33, 2, 1] = value
            results = triton.entropies(weights, formula, axes=[0] * 3, groups=[1] * 3)
            assert bool(results[1].isnan().all()), (formula, value)
            assert torch.equal(results[0], sound[0]) and torch.equal(results[2], sound[2]), (formula, value)


warnings.simplefilter("ignore")  # numpy's, of infinite padding
every_formula()
every_kind_of_weight()
edges()
corners()
not_finite()
print(checks, "comparisons")
