"""Times on a CUDA device: eager calls, CUDA graphs, the host's part, single kernels."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable

import torch


def milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time of a call in milliseconds, by CUDA events, after two calls that are not timed."""
    times = []
    for run in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if run >= 2:
            times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 4)


def graph_milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time of a call that is replayed as a CUDA graph."""
    return milliseconds(captured(function), runs)


def host_milliseconds(function: Callable[[], object], runs: int) -> float:
    """The median time until a call returns, with an idle device."""
    times = []
    for _ in range(runs + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return round(statistics.median(times[2:]) * 1e3, 4)


def captured(function: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of a call; the call is made before, so that kernels and tables are there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()

    def replay(kept: object = (function, results)) -> None:  # the graph holds addresses alone
        graph.replay()

    return replay


def kernel_microseconds(function: Callable[[], object], calls: int = 5) -> dict[str, float]:
    """The time of each kernel of a call in microseconds, added up over its launches, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_time_total > 0:
            name = short_name(event.key)
            times[name] = times.get(name, 0.0) + event.device_time_total / calls
    return {name: round(time, 1) for name, time in sorted(times.items(), key=lambda item: -item[1])}


def short_name(kernel: str) -> str:
    """The name of a kernel without its result, namespaces and arguments; template arguments are kept."""
    text = re.sub(r"\(anonymous namespace\)::|^void ", "", kernel)
    return re.sub(r"(?:\w+::)+(?=\w)", "", text.split("(")[0]).strip()
