"""Latency as a function of the numbers of units that go: tables measured here, by layer shape, interpolated.

Each convolution and linear layer is timed alone on a grid of input and output widths, with torch's benchmark timer, on
the device and in the dtype it has. What a call takes beyond its layers (activations, norms, Python) is measured as the
difference and scaled by the bytes that operators write. The tables only steer: what counts is the pruned network
itself, measured as a whole, and where it differs from the forecast, another forecast is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...graph.size_model import SizeModel
from ...utils.compat import ConvolutionBase
from ...utils.errors import BudgetError
from ...utils.forward import call_model, undisturbed
from ...utils.timing import Timing, timed, timed_model
from ..context import Problem
from .solver import solve

# Widths that are timed, as shares of a layer's own.
GRID = (0.125, 0.25, 0.5, 0.75, 1.0)
_ROUNDS = 10
_CALLS: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


@dataclass(frozen=True)
class _Shape:
    """All that the time of a layer depends on but its widths."""

    kind: type[nn.Module]
    inputs: int
    outputs: int
    groups: int
    whole_groups: bool
    image: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    device: torch.device


class Table:
    """Seconds of a layer on a grid of widths."""

    def __init__(self, shape: _Shape) -> None:
        """Measures them."""
        self.rows, self.columns = _widths(shape.inputs, shape), _widths(shape.outputs, shape)
        if shape.whole_groups:  # with the outputs go groups and their inputs
            values = [_seconds(shape, shape.inputs * n // shape.outputs, n) for n in self.columns.tolist()]
            self.seconds = np.repeat(np.array(values)[None], len(self.rows), 0)
        else:
            self.seconds = np.array(
                [[_seconds(shape, i, o) for o in self.columns.tolist()] for i in self.rows.tolist()]
            )

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Interpolates between widths, linearly either way.

        Args:
            inputs: Input channels ``[...]``.
            outputs: Output channels ``[...]``.

        Returns:
            Seconds ``[...]``.
        """
        (low, high, part), (left, right, part_out) = _between(self.rows, inputs), _between(self.columns, outputs)
        lower = self.seconds[low, left] * (1 - part_out) + self.seconds[low, right] * part_out
        upper = self.seconds[high, left] * (1 - part_out) + self.seconds[high, right] * part_out
        return np.asarray(lower * (1 - part) + upper * part)


class Forecast:
    """Seconds of a call as a function of the numbers of units that go."""

    def __init__(self, problem: Problem, sizes: SizeModel, whole: float) -> None:
        """Measures the tables.

        Args:
            problem: The traced model.
            sizes: Its sizes.
            whole: Seconds of a call before pruning.
        """
        self._sizes, self.factor = sizes, 1.0
        tables: dict[_Shape, Table] = {}
        self._layers: list[tuple[Table, int, int]] = []
        for weight, shape in _shapes(problem):
            if shape not in tables:
                tables[shape] = Table(shape)
            self._layers.append((tables[shape], *sizes.channel_rows[weight]))
        nothing = np.zeros(len(problem.coupling.sets))
        self._written = float(sizes.results(nothing).sum()) or 1.0
        self._rest = 0.0
        layers = float(self(nothing))
        if layers > whole:  # alone, with its input cold or a cache to itself, a layer is not what it is among others
            self.factor = whole / layers
        else:
            self._rest = whole - layers

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Forecasts.

        Args:
            counts: ``[..., sets]``.

        Returns:
            Seconds ``[...]``.
        """
        lengths = self._sizes.lengths(counts)
        seconds = self._rest * self._sizes.results(counts).sum(-1) / self._written
        for table, inputs, outputs in self._layers:
            seconds = seconds + table(lengths[..., inputs], lengths[..., outputs])
        return np.asarray(self.factor * seconds)


def meet(
    problem: Problem,
    sizes: SizeModel,
    target: float,
    near: float,
    pressures: Sequence[np.ndarray],
    allowed: Sequence[np.ndarray],
) -> tuple[np.ndarray, str]:
    """Finds how many units of each set go for a call to take so long and no longer.

    Args:
        problem: The traced model.
        sizes: Its sizes.
        target: Seconds that a call may take.
        near: The share of the target by which it may come out faster and still count as met.
        pressures: See :func:`fec_fast.pruning.allocation.solver.solve`.
        allowed: See there.

    Returns:
        The counts, and a note on what was measured.

    Raises:
        BudgetError: The smallest network is slower; the message tells how long it takes.
    """
    nothing = np.zeros(len(allowed), dtype=np.int64)
    whole = timed_model(problem.model, problem.example_inputs, near / 2)
    if whole.seconds <= target:
        return nothing, _told(target, whole, "the model is that fast already, nothing was removed")
    forecast = Forecast(problem, sizes, whole.seconds)
    best: tuple[np.ndarray, Timing] | None = None
    missed: Timing | None = None
    aim = target * (1 - near / 2)
    level, met, slow = aim, 0.0, math.inf  # of the forecast: asked for now, and the bracket of those that were measured
    known: dict[tuple[int, ...], Timing] = {}
    for _ in range(_ROUNDS):
        counts = solve(forecast, level, level * (1 - near / 2), pressures, allowed)
        gone = tuple(counts.tolist())
        if gone not in known:
            known[gone] = timed_model(problem.pruned(list(gone)), problem.example_inputs, near / 2)
        found = known[gone]
        reached = float(forecast(counts))
        if found.seconds <= target:
            if best is None or found.seconds > best[1].seconds:
                best = counts, found
            if found.seconds >= target * (1 - near):
                break
            met = max(met, level)
        else:
            missed = found if missed is None or found.seconds < missed.seconds else missed
            aim = max(target / 2, target * (1 - near / 2) - found.half_width)  # on an unsteady machine, with a margin
            slow = min(slow, reached)
        level = reached * aim / found.seconds
        if not met < level < slow:  # times in steps, as GPUs have them, send a correction to and fro
            level = (met + min(slow, whole.seconds)) / 2
    if best is None:
        assert missed is not None
        raise BudgetError(
            f"Budget(latency_ms={1e3 * target:g}) cannot be met: the fastest network that was found takes "
            f"{1e3 * missed.seconds:.4g} ms; the nearest that can be met is about "
            f"Budget(latency_ms={1e3 * (missed.seconds + missed.half_width):.4g})"
        )
    counts, found = best
    words = ""
    if found.seconds < target * (1 - near):
        words = "no nearer network was found"
        if missed is not None:
            words += f": the next one measured takes {1e3 * missed.seconds:.4g} ms"
    if found.half_width > near * found.seconds:
        words += f"{'; ' if words else ''}the machine is too unsteady to tell {100 * near:g} %"
    return counts, _told(target, found, words)


def _told(target: float, found: Timing, words: str) -> str:
    measured = f"{1e3 * found.seconds:.4g} ms +- {1e3 * found.half_width:.2g} measured (95 % confidence)"
    return f"budget latency_ms={1e3 * target:g}: {measured}{', ' if words else ''}{words}"


def _shapes(problem: Problem) -> list[tuple[str, _Shape]]:
    """For every call of a convolution or linear layer the name of its weight and its shape."""
    found: list[tuple[str, _Shape]] = []
    handles = []
    for weight, use in problem.traced.weight_uses.items():
        module = problem.model.get_submodule(use.layer)
        if not isinstance(module, nn.Linear | ConvolutionBase):
            continue

        def hook(module: Any, inputs: Any, *, weight: str = weight, use: Any = use) -> None:
            source = inputs[0]
            plain = isinstance(module, nn.Linear)
            names = () if plain else ("kernel_size", "stride", "padding", "dilation", "output_padding", "transposed")
            options = tuple((name, getattr(module, name)) for name in names)
            image = tuple(source.shape[:-1]) if plain else (source.shape[0], *source.shape[2:])
            ends = len(use.inputs), len(use.outputs)
            kind = nn.Linear if plain else ConvolutionBase
            place = source.dtype, source.device
            found.append((weight, _Shape(kind, *ends, use.groups, use.whole_groups, image, options, *place)))

        handles.append(module.register_forward_pre_hook(hook))
    try:
        with undisturbed(problem.model):
            call_model(problem.model, problem.example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _widths(full: int, shape: _Shape) -> np.ndarray:
    step = shape.outputs // shape.groups if shape.whole_groups else shape.groups
    step = step if full % step == 0 else 1
    return np.unique([max(step, round(share * full / step) * step) for share in GRID] + [full])


def _seconds(shape: _Shape, inputs: int, outputs: int) -> float:
    place: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device}
    if shape.kind is nn.Linear:
        source, weight = torch.randn(*shape.image, inputs, **place), torch.randn(outputs, inputs, **place)
        with torch.no_grad():
            return timed(lambda: F.linear(source, weight), 0.02, 0.1).seconds
    options = dict(shape.options)
    kernel, transposed = options.pop("kernel_size"), options.pop("transposed")
    output_padding = options.pop("output_padding")
    if transposed:
        options["output_padding"] = output_padding
    groups = max(1, shape.groups * outputs // shape.outputs) if shape.whole_groups else shape.groups
    ends = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    source = torch.randn(shape.image[0], inputs, *shape.image[1:], **place)
    weight = torch.randn(*ends, *kernel, **place)
    call = _CALLS[len(kernel), transposed]
    with torch.no_grad():
        return timed(lambda: call(source, weight, groups=groups, **options), 0.02, 0.1).seconds


def _between(grid: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two points of the grid that a width lies between, and how far; beyond the ends, the last line goes on."""
    if len(grid) == 1:
        only = np.zeros(np.shape(width), dtype=np.int64)
        return only, only, only.astype(np.float64)
    at = np.clip(np.searchsorted(grid, width, side="right") - 1, 0, len(grid) - 2)
    return at, at + 1, (width - grid[at]) / (grid[at + 1] - grid[at])
