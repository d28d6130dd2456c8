"""A wrong name of an argument is answered with the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import Budget, Formula, PruningSchedule, TrainingSettings
from fec_fast.utils.public_call import interruptible

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
EXAMPLE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Budget.remove(flops=0.5),
            "Budget.remove: there is no argument 'flops'; known: 'params', 'macs', 'memory'$",
        ),
        (lambda: Budget.keep(mac="1G"), "Budget.keep: there is no argument 'mac'; nearest: 'macs'"),
        (lambda: Budget(param=0.5), "Budget: there is no argument 'param'; nearest: 'params'"),
        (lambda: Formula(compres="rms"), "Formula: there is no argument 'compres'; nearest: 'compress'"),
        (lambda: TrainingSettings(epoch=3), "TrainingSettings: there is no argument 'epoch'; nearest: 'epochs'"),
        (lambda: PruningSchedule.one_shot(2, units="epochs"), "PruningSchedule.one_shot: .*'units'; nearest: 'unit'"),
        (
            lambda: fec_fast.prune(MODEL, EXAMPLE, budjet=3, recover=None),
            "prune: there is no argument 'budjet'; nearest: 'budget'",
        ),
        (
            lambda: fec_fast.score_model(MODEL, formul=3),
            "score_model: there is no argument 'formul'; nearest: 'formula'",
        ),
        (
            lambda: fec_fast.prune_iteratively(
                MODEL, EXAMPLE, budget=Budget.remove(params=0.5), rounds=2, train=print, criterions="l1", recover=None
            ),
            "prune: there is no argument 'criterions'; nearest: 'criterion'",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(fec_fast.ArgumentError, match=f"^{message}"):
        call()


def test_other_type_errors_are_those_that_were_raised() -> None:
    @interruptible
    def adding(number: Any, *, other: Any = 0) -> Any:
        return number + other

    with pytest.raises(TypeError, match="unsupported operand") as told:
        adding(1, other="a")
    assert told.type is TypeError
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'number'"):
        adding(other=1)  # type: ignore[call-arg]
