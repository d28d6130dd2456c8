"""Timing of calls and models: medians with their confidence intervals, and latency before and after pruning."""

from __future__ import annotations

import math
import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import check_number
from .errors import ArgumentError
from .forward import call_model, copied_inputs, undisturbed
from .model_index import ModelIndex
from .modules import device_of
from .public_call import interruptible
from .runtimes import TORCH, check_runtime, deployed, require_runtime
from .user_warnings import warn_user


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
    # Not torch.utils.benchmark, which imports torch's support for compilers: that logs where there is nvcc and no GPU.
    timer = timeit.Timer(call, timer=_clock)
    share = max_seconds / 10
    number = _calls_per_block(timer, share)
    start = time.perf_counter()
    times: list[float] = []
    while True:
        begin = time.perf_counter()
        while not times or time.perf_counter() - begin < share:
            times.append(timer.timeit(number) / number)
        times.sort()
        # The ranks of the interval's ends: n/2 -+ 1.96 sqrt(n)/2, by the normal approximation of the binomial.
        middle, reach = len(times) / 2, 0.98 * math.sqrt(len(times))
        low, high = times[max(0, math.floor(middle - reach))], times[min(len(times) - 1, math.ceil(middle + reach))]
        median = times[len(times) // 2]
        enough = high - low <= 2 * precision * median or time.perf_counter() - start > max_seconds
        if enough and len(times) >= _FEWEST:
            return Timing(median, (high - low) / 2)


def _clock() -> float:
    """Seconds, read when the GPU has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _calls_per_block(timer: timeit.Timer, seconds: float) -> int:
    """How many calls are timed at once, so that reading the clock does not count. The calls meanwhile warm up.

    Args:
        timer: Of the call.
        seconds: What is measured before the result is looked at; a block is longer than a thousandth of it.

    Returns:
        A power of ten.
    """
    reading = statistics.median(timer.timeit(0) for _ in range(5))
    number = 1
    while (taken := timer.timeit(number)) <= seconds and (reading > 1e-4 * taken or taken < seconds / 1000):
        number *= 10
    return number


def time_model(
    model: nn.Module | ModelIndex, example_inputs: Any, precision: float = 0.005, max_seconds: float = 10.0
) -> Timing:
    """Times a model in evaluation mode, without gradients. The model is left unchanged.

    Args:
        model: The model, or its index if there is one.
        example_inputs: Its inputs, as for :func:`fec_fast.prune`; a model that writes to them is given a copy.
        precision: The half-width of the 95 % confidence interval that is aimed at, as a share of the median.
            Default: half a per cent.
        max_seconds: The time after which measuring ends in any case. Default: 10 s.

    Returns:
        The timing of one call.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    with undisturbed(model):
        network, inputs = model.model if isinstance(model, ModelIndex) else model, copied_inputs(example_inputs)
        call_model(network, inputs)
        return time_call(lambda: call_model(network, inputs), precision, max_seconds)


def fastest_call(model: nn.Module | ModelIndex, example_inputs: Any, enough: float, max_seconds: float) -> float:
    """Times a few calls of a model: whether it can be as fast as that at all. The model is left unchanged.

    Args:
        model: The model, or its index if there is one.
        example_inputs: Its inputs, as for :func:`fec_fast.prune`.
        enough: Seconds: the first call that is as fast ends the search.
        max_seconds: The time after which no further call is begun.

    Returns:
        The time of the fastest of the calls, in seconds; the first call, which may be slow, does not count.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    with undisturbed(model):
        network, inputs = model.model if isinstance(model, ModelIndex) else model, copied_inputs(example_inputs)
        device = device_of(network)
        call_model(network, inputs)
        start, fastest = time.perf_counter(), math.inf
        while fastest > enough and (fastest == math.inf or time.perf_counter() - start < max_seconds):
            begin = time.perf_counter()
            call_model(network, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest = min(fastest, time.perf_counter() - begin)
        return fastest


# The median of fewer times lies outside their whole range in more than one case of twenty.
_FEWEST = 6
# Medians of one model on an idle machine differ by a few per cent.
BUSY = 1.2
# A pruned model may be a little slower on the hardware's less liked widths; by this factor something is wrong.
_SLOWER = 1.2


@interruptible
def measure_latency(model: nn.Module | ModelIndex, example_inputs: Any, min_run_time: float = 1.0) -> float:
    """Measures the time of one call in evaluation mode, without gradients, on as many threads as torch is set to.

    Args:
        model: The model. It is left unchanged.
        example_inputs: Its inputs, as for :func:`fec_fast.prune`; a model that writes to them is given a copy.
        min_run_time: The time to measure for, in seconds. Default: 1 s.

    Returns:
        The median, in seconds.

    Raises:
        ArgumentError: min_run_time is not positive.
        InputError: The model cannot be run on the example inputs.
    """
    _check_run_time(min_run_time)
    return time_model(model, example_inputs, precision=0.0, max_seconds=min_run_time).seconds


@dataclass(frozen=True)
class Latency:
    """The time of one call before and after pruning.

    Attributes:
        before: The median for the original, in seconds.
        after: The median for the pruned model, in seconds.
        device: The device of both: the name of the GPU, or ``"cpu"``.
        threads: The number of threads that torch uses on the CPU.
        disagreement: By how many times repeated medians of one of the models differ: about 1 on an idle machine.
        runtime: What ran them: one of :data:`fec_fast.utils.runtimes.RUNTIMES`.
    """

    before: float
    after: float
    device: str
    threads: int
    disagreement: float = 1.0
    runtime: str = TORCH

    def __str__(self) -> str:
        """One line, in milliseconds. It says so if the machine was busy."""
        busy = ""
        if self.disagreement > BUSY:
            busy = f"; the machine was busy: repeated medians differ by a factor of {self.disagreement:.2g}"
        where = self.device if self.runtime == TORCH else f"{self.device} in {self.runtime}"
        return (
            f"latency: {1e3 * self.before:.3g} ms before, {1e3 * self.after:.3g} ms after "
            f"({self.before / self.after:.2f} times as fast) on {where}, {self.threads} thread(s){busy}"
        )


def compare_latency(
    original: nn.Module, pruned: nn.Module, example_inputs: Any, min_run_time: float = 1.0, runtime: str = TORCH
) -> Latency:
    """Measures two models in turns by :func:`measure_latency`, each twice.

    A warning is given if the two medians of a model disagree, or if the pruned model is slower than the original.

    Args:
        original: The model before pruning. It is left unchanged.
        pruned: The model after pruning. It is left unchanged.
        example_inputs: The inputs of both, as for :func:`fec_fast.prune`; the latency is that of this batch size.
        min_run_time: The time to measure each for, in seconds. Default: 1 s.
        runtime: Where they run, one of :data:`fec_fast.utils.runtimes.RUNTIMES`; ``"torch"`` by default.

    Returns:
        The smaller medians of both, the device and the number of threads.

    Raises:
        ArgumentError: The models lie on different devices, min_run_time is not positive, or an unknown runtime.
        MissingExtraError: The runtime is not installed.
        InputError: A model cannot be run on the example inputs, or not in the runtime.
        FecError: The runtime computes other outputs than torch.
    """
    _check_run_time(min_run_time)
    require_runtime(check_runtime(runtime))
    devices = [{tensor.device for tensor in [*model.parameters(), *model.buffers()]} for model in (original, pruned)]
    if devices[0] != devices[1]:
        names = [", ".join(sorted(map(str, devices_of_one))) for devices_of_one in devices]
        raise ArgumentError(f"original is on {names[0]}, the pruned model on {names[1]}: move them to one device")
    device = ", ".join(
        torch.cuda.get_device_name(used) if used.type == "cuda" else str(used) for used in sorted(devices[0], key=str)
    )
    # In turns: what disturbs one of them for a while is seen, because the other half of its time was undisturbed.
    networks = [deployed(model, example_inputs, runtime) for model in (original, pruned)]
    halves = [[measure_latency(network, example_inputs, min_run_time / 2) for network in networks] for _ in "12"]
    before, after = ([half[place] for half in halves] for place in (0, 1))
    warn_if_busy("the original", before)
    warn_if_busy("the pruned model", after)
    if min(after) > _SLOWER * min(before):
        warn_user(
            f"the pruned model takes {min(after) / min(before):.1f} times as long as the original: measure on an idle "
            "machine, check torch.set_num_threads, and prune to widths that the hardware computes fast (round_to=8)"
        )
    disagreement = max(map(_disagreement, (before, after)))
    return Latency(min(before), min(after), device, torch.get_num_threads(), disagreement, runtime)


def warn_if_busy(what: str, medians: Sequence[float]) -> None:
    """Warns if repeated measurements of one model disagree: something else was running.

    Args:
        what: What was measured, for the message.
        medians: Seconds; at least one.
    """
    if _disagreement(medians) > BUSY:
        listed = " and ".join(f"{1e3 * median:.3g} ms" for median in medians)
        warn_user(
            f"the machine was busy while latency was measured: repeated medians of {what} are {listed}; let nothing "
            "else run, and measure again"
        )


def _check_run_time(min_run_time: float) -> None:
    check_number("min_run_time", min_run_time, "a positive number of seconds, at most a day", exclusive=True)
    if min_run_time > 86_400:
        raise ArgumentError(f"min_run_time={min_run_time!r}: give at most a day, 86400 seconds")


def _disagreement(medians: Sequence[float]) -> float:
    return max(medians) / min(medians)
