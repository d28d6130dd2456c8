"""Backend ``triton``: the Triton kernels, queued on torch's current stream without waiting for the device."""

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
# The most channels that one program sorts in its registers; for longer filters all pairs are compared.
SORTED = 4096
# The block of a program: channels to compress, and rows and columns of a matrix of distances.
_CHANNELS, _ROWS, _COLUMNS = 128, 32, 32

_LOG2E = math.log2(math.e)  # exp(-d / tau) = 2^(-d * _LOG2E / tau), and powers of 2 are what the hardware has


@functools.cache  # it reads the package's metadata from the disk
def installed_version() -> str | None:
    """Returns the version of Triton that is installed; ``None`` if it is not."""
    return version("triton") if importlib.util.find_spec("triton") is not None else None


def installed() -> bool:
    """Tells whether Triton is installed."""
    return installed_version() is not None


def is_too_old() -> bool:
    """Tells whether Triton is a version whose interpreter gives wrong entropies: 3.2 and 3.3, by 0.4 nats."""
    number = installed_version()
    return number is not None and tuple(int(part) for part in number.split(".")[:2]) < OLDEST


def trouble() -> str:
    """Says why the kernels cannot run here; empty if they can."""
    if not installed():
        return "Triton is not installed: pip install triton"
    if is_too_old():
        return f"Triton {installed_version()} computes these kernels wrongly (seen in its interpreter): 3.4 is needed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return ""


def describe() -> str:
    """Describes the device that the kernels run on."""
    return f"Triton {installed_version()} on {torch.cuda.get_device_name(torch.cuda.current_device())}"


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
) -> list[Tensor]:
    """Queues the kernels for all weights on torch's current stream, a few launches per weight.

    Args:
        weights: Tensors ``[N, C/groups, *kernel]`` of a supported dtype, all on one device. They are read in place, not
            copied.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, on the weights' device. All are NaN for a weight with a
        value that is not finite.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        BackendError: The weights are on different devices, there is no memory, or a kernel cannot be compiled or
            launched.
    """
    check_one_device(weights)
    results = []
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        chosen = algorithm_for(algorithm, formula, weight, axis, group, index=i, distance=False, most_channels=SORTED)
        try:
            results.append(_Layer(evenly_strided(weight.detach()), axis, group, formula).entropies(chosen))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"no room on {weight.device} for what the kernels need for weight {i}, {list(weight.shape)}: free "
                f"some, or use backend='cpu'"
            ) from error
        except _failures() as error:
            raise BackendError(
                f"the Triton kernels could not be run for weight {i} on {weight.device}: {error}"
            ) from error
    return results


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions of a kernel that cannot be compiled or launched."""
    from triton.errors import TritonError

    return RuntimeError, TritonError


class _Layer:
    """One weight on its way through the kernels. All its intermediate results stay on the device."""

    def __init__(self, weight: Tensor, axis: int, groups: int, formula: Formula) -> None:
        self.weight, self.formula = weight, formula
        self.filters = filter_count(weight, axis, groups)
        outer, inner, self.channels, self.taps, *strides = filter_layout(weight, axis, groups)
        self.inner, self.strides = inner, strides
        # Half precision is computed in float32: the sums of a large layer need its range and its digits.
        self.type = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if not weight.numel():
            return
        # All weights are multiplied by the power of two that brings the largest one to [1, 2). This is exact, and the
        # squares of large weights cannot overflow, nor those of small models vanish. tau is scaled alike, so the
        # entropy does not change. The power is limited to those that are normal numbers. amax propagates NaN and
        # infinity, so `largest` reports them below.
        self.largest = weight.abs().amax().to(self.type)
        limit = 1022 if self.type == torch.float64 else 126
        exponent = (torch.frexp(self.largest).exponent - 1).clamp(-limit, limit)
        exponent = torch.where(self.largest > 0, exponent, 0)
        self.scale = torch.ldexp(torch.ones_like(self.largest), -exponent)

    def entropies(self, algorithm: Algorithm) -> Tensor:
        """Queues the kernels and returns the entropies ``[filters]``, float64, on the weight's device."""
        formula = self.formula
        inside = formula.axis == "channels"
        one_number = formula.compress != "none" or self.taps == 1
        if not self.weight.numel():
            return torch.zeros(self.filters, dtype=torch.float64, device=self.weight.device)
        if algorithm == "sorted":
            values, tau = self._sorted()
        else:
            # With one number per channel a compressed copy is read, converted and scaled once and not for every pair.
            # Between filters with compress="none" all taps are coordinates, and the weight is read in place.
            compressed = one_number and (inside or formula.compress != "none")
            values, tau = self._pairwise(self._points() if compressed else None)
        points = self.channels if inside else self.filters
        # Rounding may pass the bounds of an entropy. tau = 0 means that all points are equal.
        values = torch.where(tau > 0, values.clamp(0, math.log(points)), 0.0)
        return torch.where(torch.isfinite(self.largest), values, torch.nan)

    def _points(self) -> Tensor:
        """The compressed channels, scaled: ``[filters, channels]``."""
        from .triton_kernels import compress

        points = torch.empty(self.filters, self.channels, dtype=self.type, device=self.weight.device)
        grid = (self.filters, -(-self.channels // _CHANNELS))
        kind = self.formula.compress if self.formula.compress != "none" else "mean"
        sizes = (self.inner, self.channels, self.taps)
        compress[grid](self.weight, points, self.scale, *sizes, *self.strides, KIND=kind, BLOCK=_CHANNELS)
        return points

    def _tau(self, mean: Tensor) -> Tensor:
        """The unit of distances in scaled weights, from the mean distance; for the distance entropy the mean itself."""
        if self.formula.entropy == "distance":
            return mean
        given = self.formula.tau
        tau = mean if given is None else given * self.scale.to(torch.float64)
        return tau * self.formula.tau_scale

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The entropies and tau by sorting: O(C log C) per filter. One program has one filter in its registers."""
        from .triton_kernels import scan_rows, sort_rows

        points = self._points()
        means, values = (torch.empty(self.filters, dtype=torch.float64, device=points.device) for _ in range(2))
        # The block is a power of two of at least 16; there are 8 numbers per thread, up to 8 warps.
        block = 1 << max(self.channels - 1, 15).bit_length()
        warps = min(8, max(1, block // 256))
        sort_rows[(self.filters,)](points, means, self.channels, BLOCK=block, num_warps=warps)
        tau = self._tau(means.mean())
        softmax = self.formula.entropy == "softmax"
        # Not infinite where tau is 0 or tiny: infinity times a distance of 0 would be NaN.
        factor = (_LOG2E / tau).clamp(max=1e30)
        scan_rows[(self.filters,)](points, values, factor, self.channels, SOFTMAX=softmax, BLOCK=block, num_warps=warps)
        return values, tau

    def _pairwise(self, points: Tensor | None) -> tuple[Tensor, Tensor]:
        """The entropies and tau by comparing all pairs, of compressed channels (``points``) or of the weights in place.

        One kernel serves both axes. It is given matrices of points: on the channel axis one matrix per filter, whose
        points are its channels; on the filter axis one matrix, whose points are the filters. A point has coordinates in
        ``runs`` of ``steps``: on the filter axis the channels and their taps, on the channel axis the taps alone.
        """
        inside = self.formula.axis == "channels"
        n, c = self.filters, self.channels
        outer, inner, channel, tap = self.strides if points is None else (0, c, 1, 1)
        width, taps = (self.inner, self.taps) if points is None else (n, 1)
        # geometry: where the matrices are (inner size, outer and inner stride), where the points of one are (the same
        # three), and where the coordinates are (runs, their stride, steps, their stride).
        if inside:
            matrices, count = n, c
            geometry: tuple[int, ...] = (width, outer, inner, c, 0, channel, 1, 0, taps, tap)
        else:
            matrices, count = 1, n
            geometry = (1, 0, 0, width, outer, inner, c, channel, taps, tap)
        data = self.weight if points is None else points
        scale = self.scale if points is None else torch.ones_like(self.scale)
        one_coordinate = geometry[6] * geometry[8] == 1
        mean = torch.zeros((), dtype=torch.float64, device=data.device)
        if self.formula.tau is None or self.formula.entropy == "distance":
            mean = self._rows(data, scale, mean, "distances", matrices, count, geometry, one_coordinate).mean() / count
        tau = self._tau(mean)
        factor = ((1.0 if self.formula.entropy == "distance" else _LOG2E) / tau).clamp(max=1e30)
        rows = self._rows(data, scale, factor, self.formula.entropy, matrices, count, geometry, one_coordinate)
        return (rows.mean(-1) if inside else rows[0]), tau

    @staticmethod
    def _rows(
        data: Tensor,
        scale: Tensor,
        factor: Tensor,
        terms: str,
        matrices: int,
        count: int,
        geometry: tuple[int, ...],
        one_coordinate: bool,
    ) -> Tensor:
        """Reduces every row of every matrix of distances to one number, ``[matrices, count]``, float64."""
        from .triton_kernels import pairs

        rows = torch.empty(matrices, count, dtype=torch.float64, device=data.device)
        grid: Any = (-(-count // _ROWS), matrices)
        pairs[grid](
            data,
            rows,
            scale,
            factor,
            count,
            *geometry,
            TERMS=terms,
            ONE_COORDINATE=one_coordinate,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            num_warps=4,
        )
        return rows
