"""Latency budgets: a forecast of latency from tables measured here, and a search that measures real pruned networks.

Latency is not a sum over units, and differs between machines and runtimes, so it is measured in two ways. Every
convolution and linear layer is timed alone on a grid of input and output widths
(:mod:`fec_fast.pruning.allocation.layer_times`), on the device and in the dtype it has; :class:`LatencyForecast` adds
these times up, and treats everything else in a call (activations, norms, Python) as a remainder that shrinks with the
bytes that operators write. The forecast is cheap and only steers the search. What counts is the pruned network itself,
measured as a whole in the runtime: where it misses the target, the forecast is asked for a smaller or a larger network.

Which widths the runtime likes is measured too: networks whose widths are multiples of several numbers are compared by
the work that they do per second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from ...graph.size_model import SizeModel
from ...utils.errors import BudgetError, InputError
from ...utils.model_index import ModelIndex
from ...utils.progress import progress_bar
from ...utils.runtimes import TORCH, deployed
from ...utils.timing import Timing, fastest_call, time_model, warn_if_busy
from ...utils.user_warnings import warn_user
from ..context import PruningContext
from .layer_times import LayerShape, LayerTables, LayerTimes, layer_shapes
from .solver import smallest_removal

# The number of pruned networks that one approach to the target measures at most.
_MAX_MEASURED = 10
# Widths are tried in multiples of these, besides those that the caller asks for.
_STEPS = (8, 16)
# Coarser widths must do so much more work per second to be worth what they are off the target by.
_LIKED = 1.03
# Each further request of a search that only goes down, as a share of the one before.
_DESCENT = 0.8
# A network of liked widths that is no nearer to the target than this is not enough: all widths are tried.
_NEAR = 0.05
# How long a network that is too slow is given to be as fast as the budget asks for once.
_SECONDS_TO_REACH = 2.0
# How long the network that was found and the dense one are timed in turns at the end, each time.
_SECONDS_AT_END = 1.0


@dataclass
class LatencyMeasurements:
    """Everything that was measured on one model, so that nothing is measured twice when :func:`fec_fast.prune` retries.

    Attributes:
        runtime: What the latency is measured in.
        layer_shapes: For every call of a convolution or linear layer the name of its weight and its shape; ``None``
            before the model was run.
        layer_times: The times of each distinct layer.
        networks: The times of whole networks, by the labels of the units they have lost, rising; ``()`` is the model.
    """

    runtime: str = TORCH
    layer_shapes: list[tuple[str, LayerShape]] | None = None
    layer_times: dict[LayerShape, LayerTimes] = field(default_factory=dict)
    networks: dict[tuple[int, ...], Timing] = field(default_factory=dict)
    _tables: LayerTables | None = None
    _dense: nn.Module | ModelIndex | None = None
    _at_end: dict[tuple[int, ...], tuple[Timing, Timing]] = field(default_factory=dict)

    def times_of(self, shape: LayerShape) -> LayerTimes:
        """The times of a layer, read or measured at the first request.

        Args:
            shape: The layer.

        Returns:
            Its times.
        """
        if self._tables is None:
            self._tables = LayerTables(self.runtime)
        if shape not in self.layer_times:
            self.layer_times[shape] = self._tables.times_of(shape)
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
            network = self._deployed(context, counts)
            self.networks[removed] = time_model(network, context.example_inputs, precision)
        return self.networks[removed]

    def time_at_end(self, context: PruningContext, counts: Sequence[int], precision: float) -> tuple[Timing, Timing]:
        """The time of one call of the model and of a pruned network, measured in turns, each twice.

        Args:
            context: The traced and scored model.
            counts: For each coupled set the number of units that are removed.
            precision: As for :meth:`time_network`.

        Returns:
            Of both the faster of the two timings: what else ran meanwhile has slowed down the other.
        """
        removed = context.removed_labels(counts)
        if removed not in self._at_end:
            networks = [self._deployed(context, [0] * len(counts)), self._deployed(context, counts)]
            turns = [
                [time_model(network, context.example_inputs, precision, _SECONDS_AT_END) for network in networks]
                for _ in range(2)
            ]
            dense, pruned = (min((turn[place] for turn in turns), key=lambda each: each.seconds) for place in (0, 1))
            self._at_end[removed] = dense, pruned
            warn_if_busy("the dense network", [self.networks[()].seconds, dense.seconds])
            warn_if_busy("the pruned network", [self.networks[removed].seconds, pruned.seconds])
        return self._at_end[removed]

    def _deployed(self, context: PruningContext, counts: Sequence[int]) -> nn.Module | ModelIndex:
        if any(counts):
            return deployed(ModelIndex.of(context.pruned_copy(counts)), context.example_inputs, self.runtime)
        if self._dense is None:
            self._dense = deployed(context.index, context.example_inputs, self.runtime)
        return self._dense


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
            measurements.layer_shapes = layer_shapes(context)
        self._sizes, self._scale = sizes, 1.0
        self._layers = []
        with progress_bar("latency: layers", len(measurements.layer_shapes), shown=True) as done:
            for weight, shape in measurements.layer_shapes:
                self._layers.append((measurements.times_of(shape), *sizes.channel_rows[weight]))
                done()
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


def check_reachable(
    context: PruningContext, target: float, allowed_counts: Sequence[np.ndarray], runtime: str = TORCH
) -> None:
    """Checks that the smallest network is fast enough, before layers are timed and sensitivities measured.

    Args:
        context: The traced and scored model.
        target: Seconds that a call may take.
        allowed_counts: For each set the numbers of units that may be removed, int64, rising from 0.
        runtime: What the latency is measured in.

    Raises:
        BudgetError: It is not; the message has its time.
    """
    smallest = ModelIndex.of(context.pruned_copy([int(counts[-1]) for counts in allowed_counts]))
    try:
        with progress_bar("latency: smallest network", 1, shown=True) as done:
            network = deployed(smallest, context.example_inputs, runtime)
            seconds = fastest_call(network, context.example_inputs, target, _SECONDS_TO_REACH)
            done()
    except InputError:  # it removes more than the model's code allows; the search meets smaller removals first
        return
    if seconds > target:
        raise BudgetError(
            f"{_budget(target, runtime)} cannot be met: with everything removed that may be removed, the "
            f"fastest call took {1e3 * seconds:.4g} ms; the nearest that can be met is about "
            f"{_budget(1.1 * seconds, runtime)}"
        )


@dataclass
class _Search:
    """A search for the network that loses least within a target, see :func:`search_latency`."""

    context: PruningContext
    forecast: LatencyForecast
    thresholds: Sequence[np.ndarray]
    measurements: LatencyMeasurements
    target: float
    tolerance: float
    done: Callable[[], None]  # called for every network that was measured
    slowest_met: tuple[np.ndarray, Timing] | None = None  # the network to return: it loses the least
    fastest_missed: Timing | None = None

    def network(self, request: float, allowed_counts: Sequence[np.ndarray]) -> tuple[np.ndarray, Timing]:
        """Measures a network of a predicted latency, and remembers it if it is the best so far."""
        near = request * (1 - self.tolerance / 2)
        counts = smallest_removal(self.forecast, request, near, self.thresholds, allowed_counts)
        measured = self.measurements.time_network(self.context, counts.tolist(), self.tolerance / 2)
        self.done()
        if measured.seconds <= self.target:
            if self.slowest_met is None or measured.seconds > self.slowest_met[1].seconds:
                self.slowest_met = counts, measured
        elif self.fastest_missed is None or measured.seconds < self.fastest_missed.seconds:
            self.fastest_missed = measured
        return counts, measured

    def is_met_within(self, share: float) -> bool:
        """Whether a network was found that meets the target and is no further from it than a share of it."""
        return self.slowest_met is not None and self.slowest_met[1].seconds >= self.target * (1 - share)

    def approach(self, allowed_counts: Sequence[np.ndarray]) -> None:
        """Measures networks, each requested by what the one before has shown, until one is within the tolerance."""
        # Requests aim at the middle of the tolerance, so that the noise of a measurement leads to neither side.
        aim = self.target * (1 - self.tolerance / 2)
        request = aim
        highest_met, lowest_missed = 0.0, math.inf  # the bracket, in predicted seconds
        whole = self.measurements.networks[()]
        for _ in range(_MAX_MEASURED):
            counts, measured = self.network(request, allowed_counts)
            predicted = float(self.forecast(counts))
            if measured.seconds <= self.target:
                if measured.seconds >= self.target * (1 - self.tolerance):
                    return
                highest_met = max(highest_met, request)
            else:
                # On an unsteady machine the same network may miss the target or meet it: aim lower by what is
                # uncertain.
                aim = max(self.target / 2, self.target * (1 - self.tolerance / 2) - measured.half_width)
                lowest_missed = min(lowest_missed, predicted)
            request = predicted * aim / measured.seconds
            if not highest_met < request < lowest_missed:
                request = (highest_met + min(lowest_missed, whole.seconds)) / 2

    def descend(self, allowed_counts: Sequence[np.ndarray]) -> None:
        """Asks for ever smaller networks, until one meets the target: times were too unsteady to aim at it."""
        request = self.target
        for _ in range(_MAX_MEASURED):
            request *= _DESCENT
            self.network(request, allowed_counts)
            if self.slowest_met is not None:
                return


def search_latency(
    context: PruningContext,
    sizes: SizeModel,
    target: float,
    tolerance: float,
    thresholds: Sequence[np.ndarray],
    allowed_of: Callable[[int], Sequence[np.ndarray]],
    measurements: LatencyMeasurements,
) -> tuple[np.ndarray, str]:
    """Finds how many units of each set are removed for a call to take a target time at most.

    Each turn asks the forecast for a network of some predicted latency (``request``), measures that network, and
    corrects the request by the ratio of measured to predicted time. The requests that met and that missed the target
    bracket the right one. Where a correction leaves the bracket, the middle of the bracket is taken: on GPUs latency
    changes in steps (a tile of channels more or less), and corrections alone would go back and forth over a step.

    First, networks of one predicted latency and of finer and coarser widths are compared, and the widths that do the
    most work per second are searched. At the end, the network that was found and the dense one are measured in turns.

    Args:
        context: The traced and scored model.
        sizes: Its sizes.
        target: Seconds that a call may take.
        tolerance: The share of the target by which a network may be faster and still end the search.
        thresholds: For each set float64 ``[units]``, rising: the policy's order of removal.
        allowed_of: From a number that widths become multiples of (1: any width that the caller allows), for each set
            the numbers of units that may be removed, int64, rising from 0.
        measurements: What was measured before; new measurements are added.

    Returns:
        The removal counts, int64 ``[sets]``, and a note on what was measured.

    Raises:
        BudgetError: No measured network meets the target, or the one that did is not faster than the dense one; the
            message has the times.
    """
    runtime = measurements.runtime
    finest = allowed_of(1)
    no_removal = np.zeros(len(finest), dtype=np.int64)
    whole = measurements.time_network(context, no_removal.tolist(), tolerance / 2)
    if whole.seconds <= target:
        warn_user(
            f"{_budget(target, runtime)}: the model takes {1e3 * whole.seconds:.4g} ms as it is, so nothing was removed"
        )
        already = ["the model is that fast already, nothing was removed", *_doubt(whole, tolerance)]
        return no_removal, _note(target, runtime, whole, already)
    forecast = LatencyForecast(context, sizes, whole.seconds, measurements)
    most = 1 + len(_STEPS) + 3 * _MAX_MEASURED
    with progress_bar("latency: networks, at most", most, shown=True) as done:
        search = _Search(context, forecast, thresholds, measurements, target, tolerance, done)
        step = _liked_step(search, sizes, allowed_of)
        if step > 1:
            search.approach(allowed_of(step))
        if step == 1 or not search.is_met_within(_NEAR):
            search.approach(finest)
        if search.slowest_met is None:
            search.descend(finest)
    if search.slowest_met is None:
        missed = search.fastest_missed
        assert missed is not None
        raise BudgetError(
            f"{_budget(target, runtime)} was not reached: the fastest network that was measured takes "
            f"{1e3 * missed.seconds:.4g} ms, though a single call of the smallest one was fast enough: measure on an "
            f"idle machine, or ask for {_budget(missed.seconds + missed.half_width, runtime)}"
        )
    counts, measured = search.slowest_met
    dense, pruned = measurements.time_at_end(context, counts.tolist(), tolerance / 2)
    if pruned.seconds - pruned.half_width > dense.seconds + dense.half_width:
        raise BudgetError(
            f"{_budget(target, runtime)} cannot be met: the network that was found takes {1e3 * pruned.seconds:.4g} "
            f"ms and the dense one {1e3 * dense.seconds:.4g} ms, measured in turns; the target is no longer faster "
            "than the dense network: measure on an idle machine, or give a lower target"
        )
    if pruned.seconds - pruned.half_width > target * (1 + tolerance):
        warn_user(
            f"{_budget(target, runtime)}: the network that was found took {1e3 * measured.seconds:.4g} ms, and "
            f"{1e3 * pruned.seconds:.4g} ms afterwards: the machine is unsteady; search again on an idle one"
        )
    remarks: list[str] = []
    if step > 1:
        remarks.append(f"widths in multiples of {step} were the fastest")
    if not search.is_met_within(tolerance):
        remarks.append("no nearer network was found")
        if search.fastest_missed is not None:
            remarks[-1] += f": the next one measured takes {1e3 * search.fastest_missed.seconds:.4g} ms"
    remarks += _doubt(measured, tolerance)
    remarks.append(
        f"in turns with the dense network: {1e3 * pruned.seconds:.4g} ms, dense {1e3 * dense.seconds:.4g} ms"
    )
    return counts, _note(target, runtime, measured, remarks)


def _liked_step(search: _Search, sizes: SizeModel, allowed_of: Callable[[int], Sequence[np.ndarray]]) -> int:
    """The number whose multiples the runtime computes fastest: by networks of one predicted latency, measured."""
    request = search.target * (1 - search.tolerance / 2)
    finest, best_step, best_rate = allowed_of(1), 1, 0.0
    for step in (1, *_STEPS):
        allowed = allowed_of(step)
        if step > 1 and all(map(np.array_equal, allowed, finest)):
            continue  # the caller asked for such widths, or no width is a multiple
        counts, measured = search.network(request, allowed)
        rate = float(sizes.macs(counts)) / measured.seconds
        if rate > _LIKED * best_rate:
            best_step, best_rate = step, rate
    return best_step


def _doubt(timing: Timing, tolerance: float) -> list[str]:
    """A remark on a time that is not certain enough."""
    unsteady = timing.half_width > tolerance * timing.seconds
    return [f"the machine is too unsteady to tell {100 * tolerance:g} %"] if unsteady else []


def _budget(seconds: float, runtime: str) -> str:
    """A budget as its user writes it."""
    return f"Budget(latency_ms={1e3 * seconds:.4g}{'' if runtime == TORCH else f', runtime={runtime!r}'})"


def _note(target: float, runtime: str, timing: Timing, remarks: Sequence[str]) -> str:
    where = "" if runtime == TORCH else f"@{runtime}"
    measured = f"{1e3 * timing.seconds:.4g} ms +- {1e3 * timing.half_width:.2g} measured (95 % confidence)"
    first = f"budget latency_ms={1e3 * target:g}{where}: {measured}"
    return first + (f", {'; '.join(remarks)}" if remarks else "")
