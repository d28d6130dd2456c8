"""The Triton kernels' way in: tensors of one device in, its entropies out, nothing waited for."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import BackendError
from ..formula import Formula
from .layout import Algorithm, algorithm_for, check_one_device, evenly_strided, filter_count, filter_layout

OLDEST = (3, 4)
SORTED = 4096  # the longest filter that one program sorts; longer ones compare all pairs
_CHANNELS, _ROWS, _COLUMNS = 128, 32, 32  # what a program takes at a time

_LOG2E = 1.4426950408889634


@functools.cache  # it reads the package's metadata from the disk
def installed_version() -> str | None:
    """The version of Triton that is installed; ``None`` for none."""
    return version("triton") if importlib.util.find_spec("triton") is not None else None


def installed() -> bool:
    """Whether Triton is installed."""
    return installed_version() is not None


def is_too_old() -> bool:
    """Whether the version of Triton is one whose interpreter gives wrong entropies: 3.2 and 3.3, by 0.4 nats."""
    number = installed_version()
    return number is not None and tuple(int(part) for part in number.split(".")[:2]) < OLDEST


def trouble() -> str:
    """Why the kernels cannot run here; empty if they can."""
    if not installed():
        return "Triton is not installed: pip install triton"
    if is_too_old():
        return f"Triton {installed_version()} computes these kernels wrongly (seen in its interpreter): 3.4 is needed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return ""


def describe() -> str:
    """What the kernels run on, in words."""
    return f"Triton {installed_version()} on {torch.cuda.get_device_name(torch.cuda.current_device())}"


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
) -> list[Tensor]:
    """Queues the kernels for all weights on torch's current stream, a few launches a weight.

    Args:
        weights: Tensors ``[N, C/groups, *kernel]`` of a supported dtype, all on one device, read where they lie.
        formula: What to compute.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        A float64 tensor of nats for each weight, on its device; all NaN for a weight with a value that is not finite.

    Raises:
        FormulaError: ``"sorted"`` for what it cannot do.
        BackendError: Weights on different devices, no memory, or a kernel that could not be compiled or launched.
    """
    check_one_device(weights)
    found = []
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        chosen = algorithm_for(algorithm, formula, weight, axis, group, index=i, distance=False, most_channels=SORTED)
        try:
            found.append(_Layer(evenly_strided(weight.detach()), axis, group, formula).entropies(chosen))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"no room on {weight.device} for what the kernels need for weight {i}, {list(weight.shape)}: free "
                f"some, or use backend='cpu'"
            ) from error
        except _failures() as error:
            raise BackendError(
                f"the Triton kernels could not be run for weight {i} on {weight.device}: {error}"
            ) from error
    return found


def _failures() -> tuple[type[Exception], ...]:
    from triton.errors import TritonError

    return RuntimeError, TritonError


class _Layer:
    """One weight on its way through the kernels."""

    def __init__(self, weight: Tensor, axis: int, groups: int, formula: Formula) -> None:
        self.weight, self.formula = weight, formula
        self.filters = filter_count(weight, axis, groups)
        outer, inner, self.channels, self.taps, *strides = filter_layout(weight, axis, groups)
        self.inner, self.strides = inner, strides
        self.type = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if not weight.numel():
            return
        # The power of two that brings the largest weight to [1, 2); NaN and infinity stay in `largest` to be told.
        self.largest = weight.abs().amax().to(self.type)
        limit = 1022 if self.type == torch.float64 else 126
        exponent = (torch.frexp(self.largest).exponent - 1).clamp(-limit, limit)
        exponent = torch.where(self.largest > 0, exponent, 0)
        self.scale = torch.ldexp(torch.ones_like(self.largest), -exponent)

    def entropies(self, algorithm: Algorithm) -> Tensor:
        """The entropies, on the weight's device."""
        formula = self.formula
        inside, one = formula.axis == "channels", formula.compress != "none" or self.taps == 1
        if not self.weight.numel():
            return torch.zeros(self.filters, dtype=torch.float64, device=self.weight.device)
        if algorithm == "sorted":
            found, tau = self._sorted()
        else:
            found, tau = self._pairwise(self._points() if one and (inside or formula.compress != "none") else None)
        points = self.channels if inside else self.filters
        found = torch.where(tau > 0, found.clamp(0, math.log(points)), 0.0)
        return torch.where(torch.isfinite(self.largest), found, torch.nan)

    def _points(self) -> Tensor:
        from .triton_kernels import compress

        points = torch.empty(self.filters, self.channels, dtype=self.type, device=self.weight.device)
        grid = (self.filters, -(-self.channels // _CHANNELS))
        kind = self.formula.compress if self.formula.compress != "none" else "mean"
        sizes = (self.inner, self.channels, self.taps)
        compress[grid](self.weight, points, self.scale, *sizes, *self.strides, KIND=kind, BLOCK=_CHANNELS)
        return points

    def _tau(self, mean: Tensor) -> Tensor:
        if self.formula.entropy == "distance":
            return mean
        given = self.formula.tau
        tau = mean if given is None else given * self.scale.to(torch.float64)
        return tau * self.formula.tau_scale

    def _sorted(self) -> tuple[Tensor, Tensor]:
        from .triton_kernels import scan_rows, sort_rows

        points = self._points()
        means, found = (torch.empty(self.filters, dtype=torch.float64, device=points.device) for _ in range(2))
        block = 1 << max(self.channels - 1, 15).bit_length()
        warps = min(8, max(1, block // 256))
        sort_rows[(self.filters,)](points, means, self.channels, BLOCK=block, num_warps=warps)
        tau = self._tau(means.mean())
        softmax = self.formula.entropy == "softmax"
        factor = (_LOG2E / tau).clamp(max=1e30)
        scan_rows[(self.filters,)](points, found, factor, self.channels, SOFTMAX=softmax, BLOCK=block, num_warps=warps)
        return found, tau

    def _pairwise(self, points: Tensor | None) -> tuple[Tensor, Tensor]:
        """All pairs, of compressed channels or of the weights themselves."""
        inside = self.formula.axis == "channels"
        n, c = self.filters, self.channels
        outer, inner, channel, tap = self.strides if points is None else (0, c, 1, 1)
        width, taps = (self.inner, self.taps) if points is None else (n, 1)
        # matrices: how many, and how they lie; points: how many, and how they lie; coordinates: runs of steps
        if inside:
            matrices, count = n, c
            places: tuple[int, ...] = (width, outer, inner, c, 0, channel, 1, 0, taps, tap)
        else:
            matrices, count = 1, n
            places = (1, 0, 0, width, outer, inner, c, channel, taps, tap)
        data = self.weight if points is None else points
        scale = self.scale if points is None else torch.ones_like(self.scale)
        line = places[6] * places[8] == 1
        mean = torch.zeros((), dtype=torch.float64, device=data.device)
        if self.formula.tau is None or self.formula.entropy == "distance":
            mean = self._rows(data, scale, mean, "distances", matrices, count, places, line).mean() / count
        tau = self._tau(mean)
        factor = ((1.0 if self.formula.entropy == "distance" else _LOG2E) / tau).clamp(max=1e30)
        rows = self._rows(data, scale, factor, self.formula.entropy, matrices, count, places, line)
        return (rows.mean(-1) if inside else rows[0]), tau

    @staticmethod
    def _rows(
        data: Tensor,
        scale: Tensor,
        factor: Tensor,
        terms: str,
        matrices: int,
        count: int,
        places: tuple[int, ...],
        line: bool,
    ) -> Tensor:
        from .triton_kernels import pairs

        rows = torch.empty(matrices, count, dtype=torch.float64, device=data.device)
        grid: Any = (-(-count // _ROWS), matrices)
        pairs[grid](
            data, rows, scale, factor, count, *places, TERMS=terms, LINE=line, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4
        )
        return rows
