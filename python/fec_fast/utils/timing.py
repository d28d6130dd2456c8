"""How long calls take, and how well that is known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .forward import call_model, undisturbed


@dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Attributes:
        seconds: The median.
        half_width: Of the 95 % confidence interval of the median, in seconds.
    """

    seconds: float
    half_width: float


def timed(call: Callable[[], Any], claim: float, longest: float) -> Timing:
    """Times a call until its median is known well enough.

    Args:
        call: What to time.
        claim: How large the half-width of the 95 % confidence interval may be, as a share of the median.
        longest: Seconds after which to stop all the same, once it was called often enough for an interval.

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
        times = sorted([*times, *timer.blocked_autorange(min_run_time=longest / 10).times])
        middle, reach = len(times) / 2, 0.98 * math.sqrt(len(times))
        low, high = times[max(0, math.floor(middle - reach))], times[min(len(times) - 1, math.ceil(middle + reach))]
        median = times[len(times) // 2]
        enough = high - low <= 2 * claim * median or time.perf_counter() - start > longest
        if enough and len(times) >= _FEWEST:
            return Timing(median, (high - low) / 2)


def timed_model(model: nn.Module, example_inputs: Any, claim: float = 0.005, longest: float = 10.0) -> Timing:
    """Times a model in evaluation mode without gradients; it is left as it was.

    Args:
        model: The model.
        example_inputs: What it is called on.
        claim: See :func:`timed`.
        longest: See :func:`timed`.

    Returns:
        The timing of one call.
    """
    with undisturbed(model):
        call_model(model, example_inputs)
        return timed(lambda: call_model(model, example_inputs), claim, longest)


_FEWEST = 6  # the median of fewer lies outside their whole range more often than once in twenty times
