"""timm's conventions with TrainingPruner: layer decay, Lookahead, ModelEmaV2 and V3, its schedulers and its scaler."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm", reason="needs the extra 'timm': pip install 'fec_fast[timm]'")

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402
from timm.utils import ModelEmaV2, ModelEmaV3  # noqa: E402

import fec_fast  # noqa: E402
from fec_fast import Budget, PruningSchedule  # noqa: E402
from helpers.states import assert_same_state, state  # noqa: E402

EXAMPLE = torch.zeros(2, 3, 32, 32)
_DRAWN = torch.Generator().manual_seed(3)
IMAGES = torch.randn(10, 4, 3, 32, 32, generator=_DRAWN)
LABELS = torch.randint(0, 5, (10, 4), generator=_DRAWN)


class Training:
    """What timm's train.py sets up."""

    def __init__(self, optimizer: str, averaging: Any, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = timm.create_model("resnet10t", num_classes=5)
        self.optimizer = create_optimizer_v2(
            self.model, opt=optimizer, lr=0.01, weight_decay=0.05, layer_decay=0.75, filter_bias_and_bn=True
        )
        self.average = averaging(self.model, decay=0.9)
        self.rates = CosineLRScheduler(self.optimizer, t_initial=10, warmup_t=2, t_in_epochs=False)
        self.pruner = fec_fast.TrainingPruner(
            *(self.model, self.optimizer, EXAMPLE),
            budget=Budget(macs=0.4),
            criterion="l1",
            schedule=PruningSchedule.cubic([3, 5]),
            copies=[self.average],
        )

    def run(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(IMAGES[number]), LABELS[number]).backward()
            timm.utils.dispatch_clip_grad(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.average.update(self.model)
            self.rates.step_update(number + 1)
            self.pruner.step()


@pytest.mark.parametrize(
    ("optimizer", "averaging"), [("adamw", ModelEmaV3), ("lookahead_sgd", ModelEmaV2), ("lamb", ModelEmaV3)]
)
def test_a_training_by_timms_conventions_is_pruned_and_resumed(optimizer: str, averaging: Any) -> None:
    whole, first, second = (Training(optimizer, averaging, seed) for seed in (0, 0, 5))
    groups = [{**group, "params": len(group["params"])} for group in whole.optimizer.param_groups]
    rates = [group["lr_scale"] for group in groups]
    assert len(set(rates)) > 3  # layer decay
    whole.run(0, 9)
    assert [made.steps for made in whole.pruner.rounds] == [3, 5] and whole.pruner.is_finished
    assert [group["lr_scale"] for group in whole.optimizer.param_groups] == rates
    assert [len(group["params"]) for group in whole.optimizer.param_groups] == [group["params"] for group in groups]
    assert whole.pruner.rounds[1].size_after <= 0.6 * whole.pruner.rounds[0].size_before
    assert_same_shapes(whole.average.module, whole.model)
    first.run(0, 4)
    states = copy.deepcopy([getattr(first, name).state_dict() for name in ("pruner", "model", "optimizer", "average")])
    for name, stored in zip(("pruner", "model", "optimizer", "average"), states, strict=True):
        getattr(second, name).load_state_dict(stored)
    second.rates.step_update(4)
    second.run(4, 9)
    assert_same_state(second.model, state(whole.model))
    assert_same_state(second.average, state(whole.average))


def assert_same_shapes(one: nn.Module, other: nn.Module) -> None:
    assert {name: t.shape for name, t in one.state_dict().items()} == {
        name: t.shape for name, t in other.state_dict().items()
    }


def test_optimizers_with_factored_states_are_refused_after_their_first_step() -> None:
    training = Training("adafactor", ModelEmaV3)
    with pytest.raises(fec_fast.PlanError, match=r"exp_avg_sq_row has shape .*make a new optimizer after pruning"):
        training.run(0, 1)
