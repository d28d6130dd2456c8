"""What is said of a pruning that is not finished, and of loops that count in the other unit than the schedule."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import fec_fast
from fec_fast import PruningSchedule
from helpers.training_loops import Loop

LATE = PruningSchedule.linear([2, 500, 600, 700, 800])


@pytest.mark.filterwarnings("ignore:.*early or narrow layer")
def test_saving_before_the_last_round_names_the_rounds_that_are_missing(tmp_path: Path) -> None:
    loop = Loop(schedule=LATE)
    with (
        pytest.warns(fec_fast.FecWarning, match=r"0 of 5 rounds made, .* no call of step\(\) has counted any; train"),
        pytest.raises(fec_fast.ArgumentError, match="result.plan=None"),
    ):
        fec_fast.save(loop.pruner, tmp_path / "none")
    loop.run(0, 3)
    missing = "1 of 5 rounds made, missing those after 500 steps, 600 steps, 700 steps and 1 more"
    assert loop.pruner.missing_rounds.endswith(missing)
    with pytest.warns(fec_fast.FecWarning, match=f"saved before the last round.*: macs .* after 3 .*{missing}"):
        fec_fast.save(loop.pruner, tmp_path / "saved")
    finished = Loop(schedule=PruningSchedule.one_shot(1))
    finished.run(0, 1)
    assert finished.pruner.missing_rounds is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fec_fast.save(finished.pruner, tmp_path / "saved")


def test_epochs_alone_with_a_schedule_in_steps_are_warned_of() -> None:
    loop = Loop(schedule=LATE)
    loop.update(0)
    loop.pruner.end_epoch()
    with pytest.warns(fec_fast.FecWarning, match=r"twice and step\(\) not once, but the schedule counts steps"):
        loop.pruner.end_epoch()


def test_steps_alone_with_a_schedule_in_epochs_are_warned_of() -> None:
    loop = Loop(schedule=PruningSchedule.one_shot(50, unit="epochs"))
    state = {**loop.pruner.state_dict(), "steps": 9_998}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.pruner.load_state_dict({**state, "epochs": 1})
        loop.run(0, 3)
        loop.pruner.load_state_dict(state)
        loop.run(3, 4)
    with pytest.warns(fec_fast.FecWarning, match=r"10000 steps and end_epoch\(\) was not called once.* epochs"):
        loop.run(4, 5)


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_loop_that_calls_both_hears_nothing(unit: str) -> None:
    loop = Loop(schedule=PruningSchedule.one_shot(50, unit=unit))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            loop.run(2 * epoch, 2 * epoch + 2)
            loop.pruner.end_epoch()
