"""Latency: what it says of a busy machine."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.utils import timing


def measured(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> tuple[fec_fast.Latency, list[str]]:
    """The comparison of two models whose medians are these: before, after, before, after."""
    medians: Iterator[float] = iter(seconds)

    def measure(model: nn.Module, example_inputs: Any, min_run_time: float) -> float:
        return next(medians)

    monkeypatch.setattr(timing, "measure_latency", measure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latency = timing.compare_latency(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(1, 2))
    assert all(warning.category is fec_fast.FecWarning for warning in caught)
    return latency, [str(warning.message) for warning in caught]


def test_an_idle_machine_is_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    latency, told = measured(monkeypatch, 2e-3, 1e-3, 2.1e-3, 1.1e-3)
    assert (latency.before, latency.after, told) == (2e-3, 1e-3, [])
    assert "busy" not in str(latency) and "2 ms before, 1 ms after (2.00 times as fast)" in str(latency)


def test_medians_that_disagree_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    latency, told = measured(monkeypatch, 0.4e-3, 92e-3, 0.4e-3, 0.3e-3)
    assert (latency.before, latency.after) == (0.4e-3, 0.3e-3)
    assert len(told) == 1 and "repeated medians of the pruned model are 92 ms and 0.3 ms" in told[0]
    assert "the machine was busy: repeated medians differ by a factor of 3.1e+02" in str(latency)


def test_a_pruned_model_that_is_slower_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = measured(monkeypatch, 0.363e-3, 92.2e-3, 0.363e-3, 92.2e-3)
    assert len(told) == 1 and told[0].startswith("the pruned model takes 254.0 times as long as the original")


def test_short_calls_are_timed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, on which a call takes 3 microseconds and a reading takes one."""
    now, calls = [0.0], []

    def clock() -> float:
        now[0] += 1e-6
        return now[0]

    def call() -> None:
        calls.append(now[0])
        now[0] += 3e-6

    monkeypatch.setattr(timing, "_clock", clock)
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    found = timing.time_call(call, precision=0.0, max_seconds=1.0)
    assert found.seconds == pytest.approx(3e-6, rel=1e-4) and found.half_width < 1e-9  # the reading is a thousandth
    assert now[0] == pytest.approx(1.0, rel=0.2) and len(calls) > 100_000


def test_timing_does_not_ask_for_a_gpu_s_compiler() -> None:
    """torch logs a line on machines with nvcc and without a GPU when its support for compilers is imported."""
    script = """
import sys, torch
from fec_fast.utils.timing import measure_latency
assert measure_latency(torch.nn.Linear(2, 2), torch.zeros(1, 2), 0.01) > 0
assert "torch.utils.cpp_extension" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
