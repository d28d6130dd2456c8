"""Which steps of an optimizer are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import PruningSchedule
from fec_fast.pruning.during_training.optimizer_steps import OptimizerSteps
from helpers.training_loops import BUDGET, EXAMPLE, Loop


class Fails(Exception):
    pass


class Nested(torch.optim.SGD):
    """A step that calls its parent's, and may fail before, between or behind."""

    fails = ""

    def step(self, closure: Any = None) -> Any:
        self.fail_at("before")
        result = super().step(closure)
        self.fail_at("behind")
        return result

    def fail_at(self, place: str) -> None:
        if self.fails == place:
            raise Fails


def optimizer_of(kind: type[torch.optim.SGD], **options: Any) -> torch.optim.SGD:
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    return kind(layer.parameters(), lr=0.1, **options)


def test_a_step_that_calls_its_parents_counts_once() -> None:
    plain, nested = optimizer_of(torch.optim.SGD), optimizer_of(Nested)  # torch hooks both classes' steps
    steps = OptimizerSteps([nested])
    for number in range(1, 4):
        nested.step()
        plain.step()
        assert steps.taken == number
    for place in ("before", "behind"):
        nested.fails = place
        with pytest.raises(Fails):
            nested.step()
    nested.fails = ""
    nested.step()
    assert steps.taken == 4


def test_a_step_that_a_fused_optimizer_skips_is_not_counted() -> None:
    optimizer = optimizer_of(torch.optim.SGD, fused=True)
    steps = OptimizerSteps([optimizer])
    for skipped, taken in ((1.0, 0), (0.0, 1)):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(skipped)  # as a GradScaler does
        optimizer.step()
        assert steps.taken == taken


def test_a_second_pruner_of_one_model_is_refused() -> None:
    loop = Loop(schedule=PruningSchedule.one_shot(1))
    options = {"budget": BUDGET, "schedule": PruningSchedule.one_shot(2), "copies": [loop.average]}
    second = fec_fast.TrainingPruner(loop.model, loop.optimizer, EXAMPLE, **options)
    loop.run(0, 1)
    assert loop.rounds
    with pytest.raises(fec_fast.PlanError, match="has other shapes than this pruner left: another pruner"):
        second.step()
