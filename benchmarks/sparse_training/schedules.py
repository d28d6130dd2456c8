"""Schedules: ways to spend the same number of training steps on a network that is to become smaller."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import fec_fast
from benchmarks.common.group_norm import cut_until, group_norm_pruner, sparse_training
from fec_fast import Budget

CUT, DENSE = "cut, then train", "dense, trained further"
NETWORKS = {"resnet-digits": "ResNet, handwritten digits", "resnet20": "ResNet-20, CIFAR-10 (JPEG)"}
STEPS = {"resnet-digits": 300, "resnet20": 200}
BUDGETS = {"resnet-digits": (0.9, 0.96), "resnet20": (0.5, 0.7)}
LR = 0.01


@dataclass(frozen=True)
class Work:
    """What a schedule works with.

    Attributes:
        dense: The network before pruning; not to be changed.
        batches: Calibration images without labels.
        budget: The parameters that the small network must lose.
        train: Trains a network in place: the network, the share of all steps, the part of the training (from 0), and
            options of :func:`fec_fast.finetune`.
    """

    dense: nn.Module
    batches: list[Tensor]
    budget: Budget
    train: Callable[..., Any]

    @property
    def example(self) -> Tensor:
        """An example input."""
        return self.batches[0][:1]

    def pruned(self, model: nn.Module) -> fec_fast.PruneResult:
        """A network pruned to the budget and recovered on the calibration images."""
        return fec_fast.prune(model, self.example, budget=self.budget, recover=self.batches, verify=False)


def dense_further(work: Work) -> nn.Module:
    """All steps for a copy of the network, which is not pruned."""
    model = copy.deepcopy(work.dense)
    work.train(model, 1.0, 0)
    return model


def cut_first(work: Work, **options: Any) -> nn.Module:
    """The cut, its recovery, and all steps."""
    model = work.pruned(work.dense).model
    work.train(model, 1.0, 0, **options)
    return model


def growing_penalty(work: Work) -> nn.Module:
    """Half of the steps with channels that fade, the cut, and the other half."""
    plan, model = work.pruned(work.dense).plan, copy.deepcopy(work.dense)
    work.train(model, 0.5, 0, sparsify=fec_fast.GrowingPenalty(plan))
    fec_fast.apply_plan(model, plan)
    work.train(model, 0.5, 1)
    return model


def group_lasso(work: Work, strength: float) -> nn.Module:
    """Half of the steps with a group lasso, the cut, its recovery, and the other half."""
    model = copy.deepcopy(work.dense)
    sets = fec_fast.couplings(model, work.example).sets
    work.train(model, 0.5, 0, sparsify=fec_fast.GroupLasso(sets, strength=strength))
    model = work.pruned(model).model
    work.train(model, 0.5, 1)
    return model


def rounds(work: Work, number: int) -> nn.Module:
    """Rounds of a cut, its recovery and a share of the steps."""

    def train(model: nn.Module, round_number: int) -> None:
        work.train(model, 1 / number, round_number)

    options: dict[str, Any] = {"rounds": number, "recover": work.batches, "verify": False}
    return fec_fast.prune_iteratively(work.dense, work.example, budget=work.budget, train=train, **options).model


def torch_pruning(work: Work, *, sparse: bool) -> nn.Module:
    """Torch-Pruning's group norm pruner.

    With its sparse training the steps are divided as in :func:`group_lasso`; else all of them follow the cut.
    """
    model = copy.deepcopy(work.dense)
    target = (1 - work.budget.share_of(1.0)) * parameters(model)
    pruner = group_norm_pruner(model, work.example)
    if sparse:
        with sparse_training(pruner, model):
            work.train(model, 0.5, 0)
    cut_until(pruner, lambda: parameters(model) <= target)
    work.train(model, 0.5 if sparse else 1.0, int(sparse))
    return model


def parameters(model: nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


SCHEDULES: dict[str, Callable[[Work], nn.Module]] = {
    DENSE: dense_further,
    CUT: cut_first,
    "cut, then train with the dense network as teacher": lambda work: cut_first(work, teacher=work.dense),
    "growing penalty, cut, train": growing_penalty,
    "group lasso (0.001), cut, train": lambda work: group_lasso(work, 0.001),
    "group lasso (0.005), cut, train": lambda work: group_lasso(work, 0.005),
    "2 rounds of cut and train": lambda work: rounds(work, 2),
    "4 rounds of cut and train": lambda work: rounds(work, 4),
    "Torch-Pruning, group norm: cut, then train": lambda work: torch_pruning(work, sparse=False),
    "Torch-Pruning, group norm: sparse training, cut, train": lambda work: torch_pruning(work, sparse=True),
}


def keys(seeds: int) -> Iterator[tuple[str, str, float, int]]:
    """The keys of all rows: network, schedule, share of parameters, seed. The dense network's share is 0."""
    for network, seed in itertools.product(NETWORKS, range(seeds)):
        yield network, DENSE, 0.0, seed
        for share, schedule in itertools.product(BUDGETS[network], SCHEDULES):
            if schedule != DENSE:
                yield network, schedule, share, seed
