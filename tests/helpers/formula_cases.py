"""Weights and formulas for the tests of all scoring backends, and the largest error that a backend may make on them."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fec_fast.scoring import reference
from fec_fast.scoring.formula import Formula


def tolerance(weight: Tensor, formula: Formula, axis: int, groups: int) -> float:
    """Returns the largest error that a kernel may make, in nats.

    An entropy is a smooth function of the distances in units of tau, with slopes of at most one or (Shannon entropies)
    a logarithm. A distance of two points of magnitude ``m`` is known to ``2 eps * m * sqrt(K)`` for ``K`` coordinates,
    so the condition number is ``2 sqrt(K) max|w| / tau`` (half of it is seen, in coordinates that are all alike, whose
    squares round alike in chains of 16). Sums and scans over ``M`` points add ``eps * sqrt(M)`` at worst (half of it is
    seen, in weights of few bits, whose equal gaps round alike), the exponential a few ``eps``.
    """
    eps = torch.finfo(torch.float64 if weight.dtype == torch.float64 else torch.float32).eps
    d = reference.distances(weight, formula, axis=axis, groups=groups)
    uses_tau = formula.tau is not None and formula.entropy != "distance"
    tau = (formula.tau if uses_tau else float(d.mean())) * (formula.tau_scale if formula.entropy != "distance" else 1)
    if tau == 0:
        return 0.0
    points = d.shape[-1]
    coordinates = weight.numel() / max(1, d.shape[0] * points if formula.axis == "channels" else points)
    condition = 2 * math.sqrt(coordinates) * float(weight.double().abs().max()) / tau
    slope = 1 if formula.entropy == "similarity" else 1 + math.log(points) - math.log(eps)
    return eps * slope * (4 + math.sqrt(points) / 2 + condition)


def sortable(weight: Tensor, formula: Formula) -> bool:
    one = formula.compress != "none" or weight.shape[2:].numel() == 1
    return formula.axis == "channels" and one


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Draws a weight, the axis of its filters, and its groups."""
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3), (2,), (1, 3), (2, 1, 2)]))
    groups, axis = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([0, 1]))
    shape = (groups * draw(st.integers(1, 24)), draw(st.integers(1, 40)), *kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "few values", "equal channels", "equal filters", "offset", "sparse"]))
    if kind == "few values":
        values = values.round()
    elif kind == "equal channels":
        values = values[:, :1].expand(shape)
    elif kind == "equal filters":
        values = values[:1].expand(shape)
    elif kind == "offset":
        values = values + 100
    elif kind == "sparse":
        values = values * (values > 1)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    scales = {torch.float16: [0, -8, 6], torch.float64: [0, -300, 300]}.get(dtype, [0, -40, -110, 40, 115])
    weight = (values * 2.0 ** draw(st.sampled_from(scales))).to(dtype).clone()
    layout = draw(st.sampled_from(["contiguous", "channels first in memory", "reversed dimensions", "cut out"]))
    if layout == "channels first in memory":
        weight = weight.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "reversed dimensions":
        order = tuple(reversed(range(weight.dim())))
        weight = weight.permute(order).contiguous().permute(order)
    elif layout == "cut out":
        larger = torch.full([size + 3 for size in weight.shape], math.nan, dtype=dtype)
        inside = larger[tuple(slice(1, 1 + size) for size in weight.shape)]
        weight = inside.copy_(weight)
    return weight, axis, groups


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, int, Formula]:
    """Draws a weight, the axis of its filters, its groups, and a formula whose tau, if any, fits the weight's size."""
    weight, on, groups = draw(weights())
    compress: Any = draw(st.sampled_from(["rms", "absmean", "mean", "none"]))
    entropy: Any = draw(st.sampled_from(["similarity", "softmax", "distance"]))
    axis: Any = draw(st.sampled_from(["channels", "filters"]))
    tau, tau_scale = draw(st.sampled_from([None, None, 0.3, 2.0])), draw(st.sampled_from([1.0, 0.5]))
    if tau is not None:
        tau *= float(weight.double().abs().max()) or 1.0
    return weight, on, groups, Formula(compress, entropy, axis, tau, tau_scale)
