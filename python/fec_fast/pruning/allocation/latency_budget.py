"""Latency budgets: a forecast of latency from tables measured here, and a search that measures real pruned networks.

Latency is not a sum over units, and differs between machines, so it is measured in two ways. Every convolution and
linear layer is timed alone on a grid of input and output widths (:class:`LayerTimes`), on the device and in the dtype
it has; :class:`LatencyForecast` adds these times up, and treats everything else in a call (activations, norms, Python)
as a remainder that shrinks with the bytes that operators write. The forecast is cheap and only steers the search. What
counts is the pruned network itself, measured as a whole: where it misses the target, the forecast is asked for a
smaller or a larger network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...graph.size_model import SizeModel
from ...utils.compat import ConvolutionBase
from ...utils.critical_section import put_back_by
from ...utils.errors import BudgetError, InputError
from ...utils.forward import call_model, copied_inputs, undisturbed
from ...utils.model_index import ModelIndex
from ...utils.timing import Timing, fastest_call, time_call, time_model
from ..context import PruningContext
from .solver import smallest_removal

# The widths that a layer is timed at, as shares of its own width.
GRID = (0.125, 0.25, 0.5, 0.75, 1.0)
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "output_padding", "transposed")
# The number of pruned networks that a search measures at most.
_MAX_MEASURED = 10
# How long a network that is too slow is given to be as fast as the budget asks for once.
_SECONDS_TO_REACH = 2.0
# A convolution by its number of spatial dimensions, and whether it is transposed.
_CONVOLUTIONS: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


@dataclass(frozen=True)
class LayerShape:
    """Everything that the time of a layer depends on, with its widths before pruning. Equal layers share their times.

    Attributes:
        kind: ``nn.Linear``, or ``ConvolutionBase`` for every convolution.
        inputs: Input channels.
        outputs: Output channels.
        groups: Groups of the convolution; 1 for a linear layer.
        whole_groups: Whether pruning removes whole groups (and input channels with them), as in a depthwise layer.
        image: The shape of the input without its channels: batch size and spatial sizes.
        options: Names and values of the convolution's other arguments (kernel size, stride, padding, ...).
        dtype: Of input and weight.
        device: Of input and weight.
    """

    kind: type[nn.Module]
    inputs: int
    outputs: int
    groups: int
    whole_groups: bool
    image: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    device: torch.device


class LayerTimes:
    """Measured seconds of one call of a layer, on a grid of widths, interpolated between them."""

    def __init__(self, shape: LayerShape) -> None:
        """Measures the grid.

        Args:
            shape: The layer.
        """
        self.input_widths, self.output_widths = _grid_widths(shape.inputs, shape), _grid_widths(shape.outputs, shape)
        if shape.whole_groups:  # input channels are removed with their group, so the output width alone decides
            seconds = [
                _time_layer(shape, shape.inputs * outputs // shape.outputs, outputs)
                for outputs in self.output_widths.tolist()
            ]
            self.seconds = np.repeat(np.array(seconds)[None], len(self.input_widths), 0)
        else:
            self.seconds = np.array(
                [
                    [_time_layer(shape, inputs, outputs) for outputs in self.output_widths.tolist()]
                    for inputs in self.input_widths.tolist()
                ]
            )

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Interpolates linearly between the four nearest points of the grid.

        Args:
            inputs: Input channels ``[...]``.
            outputs: Output channels ``[...]``.

        Returns:
            Seconds ``[...]``.
        """
        (row, next_row, row_part) = _grid_position(self.input_widths, inputs)
        (column, next_column, column_part) = _grid_position(self.output_widths, outputs)
        lower = self.seconds[row, column] * (1 - column_part) + self.seconds[row, next_column] * column_part
        upper = self.seconds[next_row, column] * (1 - column_part) + self.seconds[next_row, next_column] * column_part
        return np.asarray(lower * (1 - row_part) + upper * row_part)


@dataclass
class LatencyMeasurements:
    """Everything that was measured on one model, so that nothing is measured twice when :func:`fec_fast.prune` retries.

    Attributes:
        layer_shapes: For every call of a convolution or linear layer the name of its weight and its shape; ``None``
            before the model was run.
        layer_times: The times of each distinct layer.
        networks: The times of whole networks, by the labels of the units they have lost, rising; ``()`` is the model.
    """

    layer_shapes: list[tuple[str, LayerShape]] | None = None
    layer_times: dict[LayerShape, LayerTimes] = field(default_factory=dict)
    networks: dict[tuple[int, ...], Timing] = field(default_factory=dict)

    def times_of(self, shape: LayerShape) -> LayerTimes:
        """The times of a layer, measured at the first request.

        Args:
            shape: The layer.

        Returns:
            Its times.
        """
        if shape not in self.layer_times:
            self.layer_times[shape] = LayerTimes(shape)
        return self.layer_times[shape]

    def time_network(self, context: PruningContext, counts: Sequence[int], precision: float) -> Timing:
        """The time of one call of a pruned network, measured at the first request.

        Args:
            context: The traced and scored model.
            counts: For each coupled set the number of units that are removed; all 0 is the model itself.
            precision: The half-width of the 95 % confidence interval to aim at, as a share of the median.

        Returns:
            The timing.
        """
        removed = context.removed_labels(counts)
        if removed not in self.networks:
            network = ModelIndex.of(context.pruned_copy(counts)) if removed else context.index
            self.networks[removed] = time_model(network, context.example_inputs, precision)
        return self.networks[removed]


class LatencyForecast:
    """Predicted seconds of one call, as a function of the numbers of removed units."""

    def __init__(
        self, context: PruningContext, sizes: SizeModel, whole_seconds: float, measurements: LatencyMeasurements
    ) -> None:
        """Measures the layers that were not measured before.

        Args:
            context: The traced model.
            sizes: Its sizes.
            whole_seconds: Measured seconds of one call before pruning; the forecast for it is exact.
            measurements: What was measured before; new measurements are added.
        """
        if measurements.layer_shapes is None:
            measurements.layer_shapes = _layer_shapes(context)
        self._sizes, self._scale = sizes, 1.0
        self._layers = [
            (measurements.times_of(shape), *sizes.channel_rows[weight]) for weight, shape in measurements.layer_shapes
        ]
        no_removal = np.zeros(len(context.coupling.sets))
        self._bytes_before = float(sizes.results(no_removal).sum()) or 1.0
        self._remainder = 0.0
        layer_seconds = float(self(no_removal))
        if layer_seconds > whole_seconds:
            # A layer timed alone may be slower than within the network, where its input is still in the cache. There
            # is no remainder then, and all layers are scaled alike.
            self._scale = whole_seconds / layer_seconds
        else:
            self._remainder = whole_seconds - layer_seconds

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Predicts the latency.

        Args:
            counts: The number of units removed from each set, ``[..., sets]``.

        Returns:
            Seconds ``[...]``.
        """
        lengths = self._sizes.lengths(counts)
        seconds = self._remainder * self._sizes.results(counts).sum(-1) / self._bytes_before
        for times, inputs, outputs in self._layers:
            seconds = seconds + times(lengths[..., inputs], lengths[..., outputs])
        return np.asarray(self._scale * seconds)


def check_reachable(context: PruningContext, target: float, allowed_counts: Sequence[np.ndarray]) -> None:
    """Checks that the smallest network is fast enough, before layers are timed and sensitivities measured.

    Args:
        context: The traced and scored model.
        target: Seconds that a call may take.
        allowed_counts: For each set the numbers of units that may be removed, int64, rising from 0.

    Raises:
        BudgetError: It is not; the message has its time.
    """
    smallest = ModelIndex.of(context.pruned_copy([int(counts[-1]) for counts in allowed_counts]))
    try:
        seconds = fastest_call(smallest, context.example_inputs, target, _SECONDS_TO_REACH)
    except InputError:  # it removes more than the model's code allows; the search meets smaller removals first
        return
    if seconds > target:
        raise BudgetError(
            f"Budget(latency_ms={1e3 * target:g}) cannot be met: with everything removed that may be removed, the "
            f"fastest call took {1e3 * seconds:.4g} ms; the nearest that can be met is about "
            f"Budget(latency_ms={1e3 * 1.1 * seconds:.4g})"
        )


def search_latency(
    context: PruningContext,
    sizes: SizeModel,
    target: float,
    tolerance: float,
    thresholds: Sequence[np.ndarray],
    allowed_counts: Sequence[np.ndarray],
    measurements: LatencyMeasurements,
) -> tuple[np.ndarray, str]:
    """Finds how many units of each set are removed for a call to take a target time at most.

    Each turn asks the forecast for a network of some predicted latency (``request``), measures that network, and
    corrects the request by the ratio of measured to predicted time. The requests that met and that missed the target
    bracket the right one. Where a correction leaves the bracket, the middle of the bracket is taken: on GPUs latency
    changes in steps (a tile of channels more or less), and corrections alone would go back and forth over a step.

    Args:
        context: The traced and scored model.
        sizes: Its sizes.
        target: Seconds that a call may take.
        tolerance: The share of the target by which a network may be faster and still end the search.
        thresholds: For each set float64 ``[units]``, rising: the policy's order of removal.
        allowed_counts: For each set the numbers of units that may be removed, int64, rising from 0.
        measurements: What was measured before; new measurements are added.

    Returns:
        The removal counts, int64 ``[sets]``, and a note on what was measured.

    Raises:
        BudgetError: No measured network meets the target; the message has the time of the fastest.
    """
    precision = tolerance / 2
    no_removal = np.zeros(len(allowed_counts), dtype=np.int64)
    whole = measurements.time_network(context, no_removal.tolist(), precision)
    if whole.seconds <= target:
        return no_removal, _note(target, whole, "the model is that fast already, nothing was removed")
    forecast = LatencyForecast(context, sizes, whole.seconds, measurements)
    slowest_met: tuple[np.ndarray, Timing] | None = None  # the network to return: it loses the least
    fastest_missed: Timing | None = None
    # Requests aim at the middle of the tolerance, so that the noise of a measurement leads to neither side.
    aim = target * (1 - tolerance / 2)
    request = aim
    highest_met, lowest_missed = 0.0, math.inf  # the bracket, in predicted seconds
    for _ in range(_MAX_MEASURED):
        counts = smallest_removal(forecast, request, request * (1 - tolerance / 2), thresholds, allowed_counts)
        measured = measurements.time_network(context, counts.tolist(), precision)
        predicted = float(forecast(counts))
        if measured.seconds <= target:
            if slowest_met is None or measured.seconds > slowest_met[1].seconds:
                slowest_met = counts, measured
            if measured.seconds >= target * (1 - tolerance):
                break
            highest_met = max(highest_met, request)
        else:
            if fastest_missed is None or measured.seconds < fastest_missed.seconds:
                fastest_missed = measured
            # On an unsteady machine the same network may miss the target or meet it: aim lower by what is uncertain.
            aim = max(target / 2, target * (1 - tolerance / 2) - measured.half_width)
            lowest_missed = min(lowest_missed, predicted)
        request = predicted * aim / measured.seconds
        if not highest_met < request < lowest_missed:
            request = (highest_met + min(lowest_missed, whole.seconds)) / 2
    if slowest_met is None:
        assert fastest_missed is not None
        raise BudgetError(
            f"Budget(latency_ms={1e3 * target:g}) cannot be met: the fastest network that was found takes "
            f"{1e3 * fastest_missed.seconds:.4g} ms; the nearest that can be met is about "
            f"Budget(latency_ms={1e3 * (fastest_missed.seconds + fastest_missed.half_width):.4g})"
        )
    counts, measured = slowest_met
    remarks = []
    if measured.seconds < target * (1 - tolerance):
        remarks.append("no nearer network was found")
        if fastest_missed is not None:
            remarks[0] += f": the next one measured takes {1e3 * fastest_missed.seconds:.4g} ms"
    if measured.half_width > tolerance * measured.seconds:
        remarks.append(f"the machine is too unsteady to tell {100 * tolerance:g} %")
    return counts, _note(target, measured, "; ".join(remarks))


def _note(target: float, timing: Timing, remark: str) -> str:
    measured = f"{1e3 * timing.seconds:.4g} ms +- {1e3 * timing.half_width:.2g} measured (95 % confidence)"
    return f"budget latency_ms={1e3 * target:g}: {measured}{', ' if remark else ''}{remark}"


def _layer_shapes(context: PruningContext) -> list[tuple[str, LayerShape]]:
    """Runs the model: for every call of a convolution or linear layer, the name of its weight and its shape."""
    shapes: list[tuple[str, LayerShape]] = []
    handles: list[Any] = []

    def remove_hooks() -> None:
        for handle in handles:
            handle.remove()

    with put_back_by(remove_hooks):
        for weight, use in context.trace.weight_uses.items():
            module = context.index.modules[use.layer]
            if not isinstance(module, nn.Linear | ConvolutionBase):
                continue

            def hook(module: Any, inputs: Any, *, weight: str = weight, use: Any = use) -> None:
                source = inputs[0]
                is_linear = isinstance(module, nn.Linear)
                shape = LayerShape(
                    kind=nn.Linear if is_linear else ConvolutionBase,
                    inputs=len(use.inputs),
                    outputs=len(use.outputs),
                    groups=use.groups,
                    whole_groups=use.whole_groups,
                    image=tuple(source.shape[:-1]) if is_linear else (source.shape[0], *source.shape[2:]),
                    options=() if is_linear else tuple((name, getattr(module, name)) for name in _OPTIONS),
                    dtype=source.dtype,
                    device=source.device,
                )
                shapes.append((weight, shape))

            handles.append(module.register_forward_pre_hook(hook))

        with undisturbed(context.index):
            call_model(context.model, copied_inputs(context.example_inputs))
    return shapes


def _grid_widths(width: int, shape: LayerShape) -> np.ndarray:
    """The widths to time, int64, rising: shares of a width that the layer's groups allow, and the width itself."""
    step = shape.outputs // shape.groups if shape.whole_groups else shape.groups
    step = step if width % step == 0 else 1
    return np.unique([max(step, round(share * width / step) * step) for share in GRID] + [width])


def _time_layer(shape: LayerShape, inputs: int, outputs: int) -> float:
    """Measured seconds of one call of a layer with other widths, on random numbers."""
    generator = torch.Generator(shape.device).manual_seed(0)  # the process's own is the user's
    factory: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device, "generator": generator}
    if shape.kind is nn.Linear:
        source, weight = torch.randn(*shape.image, inputs, **factory), torch.randn(outputs, inputs, **factory)
        with torch.no_grad():
            return time_call(lambda: F.linear(source, weight), 0.02, 0.1).seconds
    options = dict(shape.options)
    kernel, transposed = options.pop("kernel_size"), options.pop("transposed")
    output_padding = options.pop("output_padding")
    if transposed:
        options["output_padding"] = output_padding
    groups = max(1, shape.groups * outputs // shape.outputs) if shape.whole_groups else shape.groups
    widths = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    source = torch.randn(shape.image[0], inputs, *shape.image[1:], **factory)
    weight = torch.randn(*widths, *kernel, **factory)
    convolution = _CONVOLUTIONS[len(kernel), transposed]
    with torch.no_grad():
        return time_call(lambda: convolution(source, weight, groups=groups, **options), 0.02, 0.1).seconds


def _grid_position(grid: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two points of the grid around each width, and the width's position between them, from 0 to 1.

    Beyond the ends of the grid the line through the last two points is continued: the position is below 0 or above 1.
    """
    if len(grid) == 1:
        only = np.zeros(np.shape(width), dtype=np.int64)
        return only, only, only.astype(np.float64)
    at = np.clip(np.searchsorted(grid, width, side="right") - 1, 0, len(grid) - 2)
    return at, at + 1, (width - grid[at]) / (grid[at + 1] - grid[at])
