"""Measurement of CPU time and memory: how every benchmark takes them.

CPU seconds of the process rather than wall time, because other work on the machine changes them less; one thread,
because the time of several depends on what else runs; both sides of a ratio in turns in one process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
SHORT = 0.2  # seconds; a call that is shorter is made once more before it is timed, so that its data is in the cache


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Calls a function once: its result, and the CPU seconds of all threads of the process."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of all threads of the process during one call."""
    return timed(function)[1]


def median_cpu_seconds(functions: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The median CPU seconds of each function.

    The functions are called in turns, so that a change of the processor's clock affects all of them alike.

    Args:
        functions: What to time, by name.
        runs: How often each is timed, after one call that is not.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(runs):
        for name, function in functions.items():
            if min(taken[name], default=0) < SHORT:
                function()
            taken[name].append(cpu_seconds(function))
    return {name: statistics.median(times) for name, times in taken.items()}


def two_thread_speedup(function: Callable[[], object], seconds: float = 4.0) -> float:
    """The wall time on one thread divided by that on two: the shortest of many calls each, taken in turns.

    Args:
        function: What to time; it uses torch's number of threads.
        seconds: How long to go on; at least 20 calls are made.
    """
    best = {1: float("inf"), 2: float("inf")}
    end, runs = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or runs < 20:
        for threads in best:
            torch.set_num_threads(threads)
            for _ in range(3):
                start = time.perf_counter()
                function()
                best[threads] = min(best[threads], time.perf_counter() - start)
        runs += 3
    torch.set_num_threads(1)
    return best[1] / best[2]


def resident_bytes() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_extra_mib(function: Callable[[], object]) -> float:
    """MiB by which the process grows at most during one call, sampled every half millisecond (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed before is used again and not counted
    before, peak, done = resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return (peak - before) / 2**20
