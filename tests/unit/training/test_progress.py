"""Progress of a training: by the count of steps, by the clock where that is ahead, and never backwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fec_fast.training.progress import TrainingProgress
from fec_fast.training.settings import TrainingSettings

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1)


def test_without_a_limit_the_clock_has_no_effect() -> None:
    progress = TrainingProgress(TrainingSettings(epochs=4), 5, None, ALONE)
    progress.begin_step(7, 2, 1e6, 1e6)
    assert progress.share == 7 / 20
    progress.end_epoch(2)
    assert progress.share == 0.5


def test_the_tighter_of_steps_and_clock_counts() -> None:
    progress = TrainingProgress(TrainingSettings(epochs=4, max_minutes=1.0), 5, None, ALONE)
    progress.begin_step(10, 0, 12.0, 3.0)  # half of the steps in a quarter of the minute
    assert progress.share == 0.5
    progress.begin_step(11, 1, 12.0, 30.0)  # 42 s of 60 s
    assert progress.share == pytest.approx(0.7)
    progress.end_epoch(3)
    assert progress.share == pytest.approx(0.7)  # not 3/4: the clock decides when it is time to stop


def test_time_for_the_evaluation_is_reserved_and_progress_never_falls() -> None:
    held_out = [None] * 30
    progress = TrainingProgress(TrainingSettings(epochs=100, max_minutes=1.0), 5, held_out, ALONE)
    progress.begin_step(2, 2, 0.0, 2.0)  # a second per step: 30 batches without a backward pass take about 10 s
    assert progress.share == pytest.approx(2 / 50)
    progress.evaluation_seconds = 40.0
    progress.begin_step(5, 0, 10.0, 0.0)
    assert progress.share == pytest.approx(10 / 20)
    progress.evaluation_seconds = 4.0
    progress.begin_step(6, 1, 10.0, 1.0)
    assert progress.share == pytest.approx(10 / 20)
    progress.begin_step(7, 2, 60.0, 5.0)
    assert progress.share == 1.0
