"""Clocks, memory and plain-torch yardsticks that the benchmarks share."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fec_fast.scoring import ops, reference
from fec_fast.scoring.formula import Formula

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def cpu_seconds(functions: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The median CPU time of each function, taken in turns so that a busy neighbour slows all of them alike.

    What is short is called twice in its turn and timed the second time: both sides of a ratio with warm caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            if run > 0 and min(taken[name], default=0) < 0.2:
                function()
            start = time.process_time()
            function()
            if run > 0:  # the first turn warms up
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def thread_ratio(function: Callable[[], object], seconds: float = 4.0) -> float:
    """How many times faster two threads are than one: best wall times, taken in turns."""
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


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_extra_mib(function: Callable[[], object]) -> float:
    """How much the process grows while a function runs, sampled every half millisecond (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory used again would not show
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return (peak - before) / 2**20


def plain_distances(points: Tensor) -> Tensor:
    """Distances between the rows of ``[M, K]`` in plain torch, on its fastest way to them."""
    return (points - points.T).abs() if points.shape[1] == 1 else torch.cdist(points, points)


def plain_rows(d: Tensor, tau: Tensor, entropy: str) -> Tensor:
    """The entropies of the rows of a matrix of distances, in plain torch."""
    if entropy == "similarity":
        return -torch.exp(-d / tau).mean(-1).log()
    p = torch.softmax(-d / tau, dim=-1) if entropy == "softmax" else d / d.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1)


def plain_channel_entropy(weight: Tensor, formula: Formula) -> Tensor:
    """The channel entropies in plain torch as one would first write them: one filter at a time."""
    v = reference.compressed(weight.flatten(2), formula.compress)
    tau = torch.stack([plain_distances(f).mean() for f in v]).mean()
    return torch.stack([plain_rows(plain_distances(f), tau, formula.entropy).mean() for f in v])


def plain_filter_entropy(weight: Tensor) -> Tensor:
    """The similarity entropies between filters in plain torch."""
    d = plain_distances(weight.flatten(1))
    return plain_rows(d, d.mean(), "similarity")


def checked(weight: Tensor, formula: Formula) -> float:
    """The largest error of the kernels on a weight, in nats. Stops the benchmark if it is too large."""
    (got,) = ops.entropies([weight], formula, axes=[0], groups=[1])
    error = float((got - reference.entropy(weight, formula)).abs().max())
    points = weight.shape[1] if formula.axis == "channels" else weight.shape[0]
    if not error <= reference.tolerance(weight.dtype, points):
        sys.exit(f"{formula} on {list(weight.shape)} is {error:.1e} nats from the reference: not timed")
    return error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
