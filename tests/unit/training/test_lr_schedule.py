"""Learning rate schedules: those of torch, and their properties with a warm-up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fec_fast.training.lr_schedule import LRSchedule
from fec_fast.training.settings import TrainingSettings


@given(st.integers(2, 40), st.floats(0.01, 1.0))
@settings(max_examples=30)
def test_cosine_is_torchs(steps: int, lr: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ours = LRSchedule.from_settings(TrainingSettings(epochs=steps, lr=lr))
    for step in range(steps):
        assert ours.lr_at(step / steps) == pytest.approx(peer.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        peer.step()


def test_one_cycle_is_torchs() -> None:
    steps = 4000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, cycle_momentum=False)
    ours = LRSchedule.from_settings(TrainingSettings(epochs=5, lr=0.1, schedule="onecycle"))
    worst = 0.0
    for step in range(steps):
        worst = max(worst, abs(ours.lr_at(step / steps) - peer.get_last_lr()[0]))
        optimizer.step()
        if step < steps - 1:
            peer.step()
    # Torch counts intervals and LRSchedule steps: one step of 4,000, at a slope of at most pi/2/0.3 times 0.1.
    assert worst < 0.1 * math.pi / 2 / 0.3 / steps * 1.5


@given(
    kind=st.sampled_from(["cosine", "onecycle"]),
    warm=st.floats(0.0, 9.9),
    one=st.floats(0.0, 1.0),
    other=st.floats(0.0, 1.0),
)
def test_rates_rise_to_the_peak_and_fall_to_the_end(kind: str, warm: float, one: float, other: float) -> None:
    schedule = LRSchedule.from_settings(TrainingSettings(epochs=10, lr=0.5, schedule=kind, warmup_epochs=warm))
    low, high = sorted((one, other))
    rates = [schedule.lr_at(low), schedule.lr_at(high)]
    assert all(0.0 <= rate <= 0.5 * (1 + 1e-12) for rate in rates)
    if high < schedule.warmup:
        assert rates[0] <= rates[1] * (1 + 1e-12)
    if low >= schedule.warmup:
        assert rates[0] >= rates[1] * (1 - 1e-12)
    assert schedule.lr_at(schedule.warmup) == pytest.approx(0.5) and schedule.lr_at(1.0) < 1e-5
