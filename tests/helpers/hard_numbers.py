"""Weights that are hard to compute with: subnormal, the largest, near-duplicates, minus zero, single filters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.formula import Formula
from helpers import formula_cases

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Powers of two that a weight's values are multiplied by. The reference squares float64 numbers: not up to their ends.
POWERS = {
    torch.float32: (0, 0, -30, -126, -132, -140, -149, 60, 127),
    torch.bfloat16: (0, 0, -30, -126, -130, -133, 60, 127),
    torch.float16: (0, 0, -10, -14, -17, -24, 8, 15),
    torch.float64: (0, 0, -400, 400),
}


class Case(NamedTuple):
    """A weight and a formula.

    Attributes:
        weight: ``[N, C/groups, *kernel]``.
        axis: The axis of its filters.
        groups: The groups of its layer.
        formula: Of one axis.
    """

    weight: Tensor
    axis: int
    groups: int
    formula: Formula

    @property
    def points(self) -> int:
        """The number of points that are compared."""
        filters = reference.filters_of(self.weight, axis=self.axis, groups=self.groups)
        return filters.shape[1 if self.formula.axis == "channels" else 0]

    def allowed(self, dtype: torch.dtype | None = None) -> float:
        """The largest error: by the documented rule, and what weights much larger than their distances add."""
        weight = self.weight if dtype is None else self.weight.to(dtype)
        worst = formula_cases.tolerance(weight, self.formula, self.axis, self.groups)
        return max(worst, reference.tolerance(weight.dtype, self.points))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws a case with few filters and channels."""
    dtype = draw(st.sampled_from(DTYPES))
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3), (2,), (1, 2, 2)]))
    groups, axis = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.sampled_from([0, 1]))
    shape = (groups * draw(st.integers(1, 12)), draw(st.integers(1, 20)), *kernel)
    values = _values(draw, shape) * 2.0 ** draw(st.sampled_from(POWERS[dtype]))
    most = torch.finfo(dtype).max
    weight = values.clamp(-most, most).to(dtype)
    if draw(st.booleans()):
        weight = torch.where(weight == 0, torch.tensor(-0.0, dtype=dtype), weight)
    words: Any = [
        draw(st.sampled_from(["rms", "absmean", "mean", "none"])),
        draw(st.sampled_from(["similarity", "softmax", "distance"])),
        draw(st.sampled_from(["channels", "filters"])),
    ]
    tau, tau_scale = draw(st.sampled_from([None, None, 0.3, 2.0])), draw(st.sampled_from([1.0, 0.5]))
    if tau is not None:
        tau *= float(weight.double().abs().max()) or 1.0
    return Case(weight, axis, groups, Formula(*words, tau, tau_scale))


def _values(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(
        st.sampled_from(
            ["normal", "few values", "equal", "equal but one", "copies", "near copies", "offset", "sizes", "zeros"]
        )
    )
    if kind == "few values":
        return values.round()
    if kind == "equal":
        return torch.full_like(values, float(values.flatten()[0]))
    if kind == "equal but one":
        alike = torch.full_like(values, 1.0)
        alike.view(-1)[draw(st.integers(0, values.numel() - 1))] += 2.0 ** -draw(st.integers(0, 23))
        return alike
    if kind in ("copies", "near copies"):
        rows = torch.randint(0, max(1, len(values) // 3), (len(values),), generator=generator)
        return values[rows] + (0 if kind == "copies" else 1e-6 * values)
    if kind == "offset":
        return values + draw(st.sampled_from([10.0, 1000.0]))
    if kind == "sizes":
        return values * 10.0 ** torch.linspace(-9, 0, len(values), dtype=values.dtype).view(-1, *[1] * (len(shape) - 1))
    if kind == "zeros":
        return values * (values > 1.5)
    return values


def is_normal(weight: Tensor) -> bool:
    """Whether the largest weight is no subnormal number of float32; the kernels then scale it to the order of 1."""
    return float(weight.double().abs().max()) >= 2.0**-126 or weight.dtype == torch.float64


def maximum(points: int) -> float:
    """The largest entropy of some points, in nats."""
    return math.log(max(1, points))
