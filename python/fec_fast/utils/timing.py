"""Timing of calls and models: medians with their confidence intervals, and latency before and after pruning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import check_number
from .errors import ArgumentError
from .forward import call_model, undisturbed
from .model_index import ModelIndex


@dataclass(frozen=True)
class Timing:
    """The time that a call takes.

    Attributes:
        seconds: The median, in seconds.
        half_width: Half the width of the 95 % confidence interval of the median, in seconds.
    """

    seconds: float
    half_width: float


def time_call(call: Callable[[], Any], precision: float, max_seconds: float) -> Timing:
    """Times a call, until the confidence interval of its median is narrow enough.

    Args:
        call: The function to time.
        precision: The half-width of the 95 % confidence interval that is aimed at, as a share of the median.
        max_seconds: The time after which measuring ends in any case, once there are enough calls for an interval.

    Returns:
        The median of blocks of calls, and the half-width that was reached. It comes from order statistics, so no
        distribution is assumed.
    """
    # Imported when used: it imports torch's compiler support, which logs a warning where CUDA is half installed.
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    start = time.perf_counter()
    times: list[float] = []
    while True:
        times = sorted([*times, *timer.blocked_autorange(min_run_time=max_seconds / 10).times])
        # The ranks of the interval's ends: n/2 -+ 1.96 sqrt(n)/2, by the normal approximation of the binomial.
        middle, reach = len(times) / 2, 0.98 * math.sqrt(len(times))
        low, high = times[max(0, math.floor(middle - reach))], times[min(len(times) - 1, math.ceil(middle + reach))]
        median = times[len(times) // 2]
        enough = high - low <= 2 * precision * median or time.perf_counter() - start > max_seconds
        if enough and len(times) >= _FEWEST:
            return Timing(median, (high - low) / 2)


def time_model(
    model: nn.Module | ModelIndex, example_inputs: Any, precision: float = 0.005, max_seconds: float = 10.0
) -> Timing:
    """Times a model in evaluation mode, without gradients. The model is left unchanged.

    Args:
        model: The model, or its index if there is one.
        example_inputs: Its inputs, as for :func:`fec_fast.count`.
        precision: The half-width of the 95 % confidence interval that is aimed at, as a share of the median.
            Default: half a per cent.
        max_seconds: The time after which measuring ends in any case. Default: 10 s.

    Returns:
        The timing of one call.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    with undisturbed(model):
        network = model.model if isinstance(model, ModelIndex) else model
        call_model(network, example_inputs)
        return time_call(lambda: call_model(network, example_inputs), precision, max_seconds)


# The median of fewer times lies outside their whole range in more than one case of twenty.
_FEWEST = 6


def measure_latency(model: nn.Module, example_inputs: Any, min_run_time: float = 1.0) -> float:
    """Measures the time of one call in evaluation mode, without gradients, on as many threads as torch is set to.

    Args:
        model: The model. It is left unchanged.
        example_inputs: Its inputs, as for :func:`fec_fast.count`.
        min_run_time: The time to measure for, in seconds. Default: 1 s.

    Returns:
        The median, in seconds.

    Raises:
        ArgumentError: min_run_time is not positive.
        InputError: The model cannot be run on the example inputs.
    """
    check_number("min_run_time", min_run_time, "a positive number of seconds, at most a day", exclusive=True)
    if min_run_time > 86_400:
        raise ArgumentError(f"min_run_time={min_run_time!r}: give at most a day, 86400 seconds")
    return time_model(model, example_inputs, precision=0.0, max_seconds=min_run_time).seconds


@dataclass(frozen=True)
class Latency:
    """The time of one call before and after pruning.

    Attributes:
        before: The median for the original, in seconds.
        after: The median for the pruned model, in seconds.
        device: The device of both: the name of the GPU, or ``"cpu"``.
        threads: The number of threads that torch uses on the CPU.
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
    """Measures two models one after the other by :func:`measure_latency`.

    Args:
        original: The model before pruning. It is left unchanged.
        pruned: The model after pruning. It is left unchanged.
        example_inputs: The inputs of both, as for :func:`fec_fast.count`; the latency is that of this batch size.
        min_run_time: The time to measure each for, in seconds. Default: 1 s.

    Returns:
        Both medians, the device and the number of threads.

    Raises:
        ArgumentError: The models lie on different devices, or min_run_time is not positive.
        InputError: A model cannot be run on the example inputs.
    """
    devices = [{tensor.device for tensor in [*model.parameters(), *model.buffers()]} for model in (original, pruned)]
    if devices[0] != devices[1]:
        names = [", ".join(sorted(map(str, devices_of_one))) for devices_of_one in devices]
        raise ArgumentError(f"original is on {names[0]}, the pruned model on {names[1]}: move them to one device")
    device = ", ".join(
        torch.cuda.get_device_name(used) if used.type == "cuda" else str(used) for used in sorted(devices[0], key=str)
    )
    before = measure_latency(original, example_inputs, min_run_time)
    after = measure_latency(pruned, example_inputs, min_run_time)
    return Latency(before, after, device, torch.get_num_threads())
