"""Settings of a test run, and the fixtures that test modules of several rooms use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from fec_fast.pruning.allocation.layer_times import FOLDER_VARIABLE
from fec_fast.utils import timing

# No property is a matter of time: examples that a busy machine computes slowly are no fault.
settings.register_profile(
    "fec_fast", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fec_fast")


def pytest_configure() -> None:
    """Gives each of pytest-xdist's processes its share of the cores: threads that compete for them wait in turns.

    And takes back the size of a terminal: pytest imports readline, and GNU readline writes COLUMNS and LINES to the
    environment that these processes inherit. Tests of the program would see lines of 80 columns.
    """
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    os.environ[FOLDER_VARIABLE] = ""  # no test reads the user's tables of latency, or writes there
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Takes back what a test leaves in the process: accelerate's shared state."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state and state.PartialState().num_processes == 1:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures latencies once instead of for half a second: for tests in which any positive number will do."""
    measure = timing.measure_latency

    def briefly(model: nn.Module, example_inputs: Any, min_run_time: float) -> float:
        return measure(model, example_inputs, min(min_run_time, 0.01))

    monkeypatch.setattr(timing, "measure_latency", briefly)
    monkeypatch.setattr(timing, "_FEWEST", 1)
