"""How long calls take, and how well that is known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import ArgumentError
from .forward import call_model, undisturbed
from .model_index import ModelIndex


@dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Attributes:
        seconds: The median.
        half_width: Of the 95 % confidence interval of the median, in seconds.
    """

    seconds: float
    half_width: float


def time_call(call: Callable[[], Any], precision: float, max_seconds: float) -> Timing:
    """Times a call until its median is known well enough.

    Args:
        call: What to time.
        precision: How large the half-width of the 95 % confidence interval may be, as a share of the median.
        max_seconds: Seconds after which to stop all the same, once it was called often enough for an interval.

    Returns:
        The median of blocks of calls, and the half-width that was reached (by order statistics, so that it does not
        rest on a distribution).
    """
    # Imported here only: it brings in torch's compiler support, which logs a warning where CUDA is half installed.
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    start = time.perf_counter()
    times: list[float] = []
    while True:
        times = sorted([*times, *timer.blocked_autorange(min_run_time=max_seconds / 10).times])
        middle, reach = len(times) / 2, 0.98 * math.sqrt(len(times))
        low, high = times[max(0, math.floor(middle - reach))], times[min(len(times) - 1, math.ceil(middle + reach))]
        median = times[len(times) // 2]
        enough = high - low <= 2 * precision * median or time.perf_counter() - start > max_seconds
        if enough and len(times) >= _FEWEST:
            return Timing(median, (high - low) / 2)


def time_model(
    model: nn.Module | ModelIndex, example_inputs: Any, precision: float = 0.005, max_seconds: float = 10.0
) -> Timing:
    """Times a model in evaluation mode without gradients; it is left as it was.

    Args:
        model: The model, or its index if there is one.
        example_inputs: What it is called on.
        precision: See :func:`time_call`.
        max_seconds: See :func:`time_call`.

    Returns:
        The timing of one call.
    """
    with undisturbed(model):
        network = model.model if isinstance(model, ModelIndex) else model
        call_model(network, example_inputs)
        return time_call(lambda: call_model(network, example_inputs), precision, max_seconds)


_FEWEST = 6  # the median of fewer lies outside their whole range more often than once in twenty times


def measure_latency(model: nn.Module, example_inputs: Any, min_run_time: float = 1.0) -> float:
    """Measures how long one call takes, in evaluation mode without gradients, with the threads torch is set to.

    Args:
        model: The model; it is left as it was.
        example_inputs: What it is called on, as for :func:`count`.
        min_run_time: How long to measure, in seconds.

    Returns:
        The median, in seconds.

    Raises:
        ArgumentError: min_run_time is not positive.
        InputError: The model cannot be run on the example inputs.
    """
    if not min_run_time > 0:
        raise ArgumentError(f"min_run_time={min_run_time!r}: give a positive number of seconds")
    return time_model(model, example_inputs, precision=0.0, max_seconds=min_run_time).seconds


@dataclass(frozen=True)
class Latency:
    """How long one call takes before and after pruning.

    Attributes:
        before: Seconds for the original, the median of several calls.
        after: Seconds for the pruned model.
        device: Where both ran: the name of the GPU, or ``"cpu"``.
        threads: Torch's threads on the CPU.
    """

    before: float
    after: float
    device: str
    threads: int

    def __str__(self) -> str:
        """One line, in milliseconds."""
        return (
            f"latency: {1e3 * self.before:.3g} ms before, {1e3 * self.after:.3g} ms after "
            f"({self.before / self.after:.2f} times as fast) on {self.device}, {self.threads} thread(s)"
        )


def compare_latency(original: nn.Module, pruned: nn.Module, example_inputs: Any, min_run_time: float = 1.0) -> Latency:
    """Measures two models one after the other, see :func:`measure_latency`.

    Args:
        original: The model before pruning; left as it was.
        pruned: The model after pruning; left as it was.
        example_inputs: What they are called on, as for :func:`count`; its batch size is the one that is measured.
        min_run_time: How long to measure each, in seconds.

    Returns:
        Both medians and where they were taken.

    Raises:
        ArgumentError: The models lie on different devices, or min_run_time is not positive.
        InputError: A model cannot be run on the example inputs.
    """
    places = [{tensor.device for tensor in [*model.parameters(), *model.buffers()]} for model in (original, pruned)]
    if places[0] != places[1]:
        words = [", ".join(sorted(map(str, place))) for place in places]
        raise ArgumentError(f"original is on {words[0]}, the pruned model on {words[1]}: move them to one device")
    device = ", ".join(
        torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
        for place in sorted(places[0], key=str)
    )
    before = measure_latency(original, example_inputs, min_run_time)
    after = measure_latency(pruned, example_inputs, min_run_time)
    return Latency(before, after, device, torch.get_num_threads())
