"""Pruning during a training in two processes: the program that tests/integration/test_pruning_processes.py starts.

``python -m helpers.distributed_pruning FOLDER`` in each process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fec_fast
from fec_fast.pruning.during_training import round_plan
from helpers.training_loops import EXAMPLE, IMAGES, LABELS

SCHEDULE = fec_fast.PruningSchedule.linear([3, 6], recover="batch-norm")
BUDGET = fec_fast.Budget(macs=0.5)


def small() -> nn.Module:
    """In evaluation mode: the means of a batch, which batch norm would take, are not those of half the batch."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12 * 16, 5)).eval()


def train(rank: int, size: int, first: int = 0, last: int = 9, resumed: Any = None) -> tuple[Any, Any, Any]:
    """Trains; each of several processes has its share of every batch."""
    inner = small()
    model: nn.Module = inner
    if size > 1:
        model = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9)
    # What only the first process shall use: the others would estimate other statistics.
    images = [IMAGES[0] + rank]
    pruner = fec_fast.TrainingPruner(model, optimizer, EXAMPLE, budget=BUDGET, schedule=SCHEDULE, images=images)
    if resumed is not None:
        for each, state in zip((pruner, inner, optimizer), resumed, strict=True):
            each.load_state_dict(state)
    for number in range(first, last):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES[number][rank::size]), LABELS[number][rank::size]).backward()
        optimizer.step()
        pruner.step()
    return inner, optimizer, pruner


def refusals(rank: int) -> None:
    """What is refused in all processes, with everything as it was."""
    plain = small()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    options: dict[str, Any] = {"budget": BUDGET, "schedule": fec_fast.PruningSchedule.one_shot(1)}
    with pytest.raises(fec_fast.ArgumentError, match=r"2 processes, but the model is not wrapped.*ddp="):
        fec_fast.TrainingPruner(plain, optimizer, EXAMPLE, **options)
    for who in (0, 1):
        pruner = fec_fast.TrainingPruner(DistributedDataParallel(plain), optimizer, EXAMPLE, **options)
        pruner.model(EXAMPLE).sum().backward()
        optimizer.step()
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        if rank == who:
            # In the first process planning fails, in the second the preparation.
            owner, name = (round_plan, "prune") if who == 0 else (pruner, "_prepared")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, fail)
                with pytest.raises(fec_fast.BudgetError, match="not today"):
                    pruner.step()
        else:
            with pytest.raises(fec_fast.TrainingError, match="no process was pruned.*BudgetError: not today"):
                pruner.step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    pruner = fec_fast.TrainingPruner(DistributedDataParallel(plain), optimizer, EXAMPLE, **options)
    if rank:
        pruner.end_epoch()
    pruner.model(EXAMPLE).sum().backward()
    optimizer.step()
    with pytest.raises(fec_fast.TrainingError, match="the processes disagree on the round"):
        pruner.step()


def fail(*args: Any, **options: Any) -> Any:
    raise fec_fast.BudgetError("not today")


def main(folder: str) -> None:
    """Runs in each process."""
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    out = Path(folder)
    inner, _, pruner = train(rank, size)
    save_file(inner.state_dict(), out / f"whole-{rank}.safetensors")
    (out / f"plan-{rank}.json").write_text(pruner.plan.to_json())
    inner, optimizer, pruner = train(rank, size, last=5)
    states = [each.state_dict() for each in (pruner, inner, optimizer)]
    inner, _, _ = train(rank, size, first=5, resumed=states)
    save_file(inner.state_dict(), out / f"resumed-{rank}.safetensors")
    refusals(rank)
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group


if __name__ == "__main__":
    main(*sys.argv[1:])
