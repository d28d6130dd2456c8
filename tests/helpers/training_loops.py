"""A training loop with all that a round of pruning has to narrow: optimizer, averaged weights, schedule of rates."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fec_fast
from helpers.networks import SharedWeight

EXAMPLE = torch.zeros(2, 3, 8, 8)
SCHEDULE = fec_fast.PruningSchedule.cubic([3, 5, 8])
BUDGET = fec_fast.Budget(macs=0.5)
_DRAWN = torch.Generator().manual_seed(3)
IMAGES = torch.randn(16, 6, 3, 8, 8, generator=_DRAWN)
LABELS = torch.randint(0, 5, (16, 6), generator=_DRAWN)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SharedWeight()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Two groups of parameters, as trainers make them."""
    groups = [{"params": [], "weight_decay": 0.05}, {"params": [], "weight_decay": 0.0}]
    for parameter in model.parameters():
        groups[parameter.ndim == 1]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=0.01)


class Loop:
    """A training that can be stopped and resumed.

    Attributes:
        rounds: The rounds so far.
    """

    def __init__(
        self,
        seed: int = 0,
        make: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
        model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        self.model = network(seed) if model is None else model
        self.optimizer = make(self.model)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 16)
        options = {"budget": BUDGET, "schedule": SCHEDULE, "copies": [self.average], **options}
        self.pruner = fec_fast.TrainingPruner(self.model, self.optimizer, EXAMPLE, **options)
        self.rounds: list[fec_fast.PruningRound] = []

    def loss(self, number: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(IMAGES[number]), LABELS[number])

    def update(self, number: int) -> None:
        """A step of the optimizer and what follows it, without the pruner."""
        self.optimizer.zero_grad()
        self.loss(number).backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.rates.step()

    def run(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.update(number)
            made = self.pruner.step()
            if made is not None:
                self.rounds.append(made)

    def stored(self) -> bytes:
        """A checkpoint as users write it."""
        states = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "average", "rates")}
        stream = io.BytesIO()
        torch.save({**states, "pruner": self.pruner.state_dict()}, stream)
        return stream.getvalue()

    def resume(self, checkpoint: bytes) -> None:
        states = torch.load(io.BytesIO(checkpoint), weights_only=True)
        for name in ("pruner", "model", "optimizer", "average", "rates"):
            getattr(self, name).load_state_dict(states[name])

    def everything(self) -> list[Any]:
        """All that a round may change, as plain values."""
        values: list[Any] = []
        for module in (self.model, self.average):
            for name, tensor in module.state_dict(keep_vars=True).items():
                gradient = None if tensor.grad is None else tensor.grad.tolist()
                values.append((name, tensor.tolist(), gradient))
            for name, each in module.named_modules():
                held = {key: value for key, value in vars(each).items() if isinstance(value, int | str)}
                values.append((name, held))
        for state in self.optimizer.state.values():
            values.append({key: value.tolist() if isinstance(value, Tensor) else value for key, value in state.items()})
        groups = [
            {key: value for key, value in each.items() if key != "params"} for each in self.optimizer.param_groups
        ]
        return [*values, groups, self.rates.state_dict(), self.pruner.plan, self.pruner.rounds, repr(self.pruner)]
