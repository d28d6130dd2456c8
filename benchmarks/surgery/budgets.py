"""CPU seconds of ``prune`` with a budget at the size of ImageNet: what the choice of channels and the recovery take."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

import fec_fast
from benchmarks.common.measuring import cpu_seconds

NETWORKS = ("mobilenet_v2", "resnet18", "resnet50")
IMAGE = 224
MACS = 0.5  # the share of the MACs that is removed
# Arguments of prune beside model, example and budget; the first are its defaults.
CALLS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "not recovered": {"recover": None},
    "fec_l1": {"recover": None, "criterion": "fec_l1"},
}
ROUNDS = 2


def measure_budgets(model: nn.Module) -> dict[str, float]:
    """The CPU seconds of each of the calls on a model: the shorter of two, taken in turns."""
    image, budget = torch.randn(1, 3, IMAGE, IMAGE), fec_fast.Budget.remove(macs=MACS)
    seconds: dict[str, list[float]] = {call: [] for call in CALLS}
    for _ in range(ROUNDS):
        for call, options in CALLS.items():
            gc.collect()
            taken = cpu_seconds(lambda given=options: fec_fast.prune(model, image, budget=budget, **given))
            seconds[call].append(taken)
    return {call: round(min(rounds), 1) for call, rounds in seconds.items()}
