"""A sweep over a small classifier, for tests; and as a program that a test starts in two processes.

``python -m helpers.sweeping FOLDER`` in each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fec_fast

from .training import dot_loader

EXAMPLE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Two convolutions of 12 and 8 filters and a linear layer for three classes, in evaluation mode."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 3)).eval()


def width(model: nn.Module) -> float:
    """A metric that needs no data: the number of filters."""
    return float(sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)))


def quick_sweep(model: nn.Module, **options: Any) -> fec_fast.Sweep:
    """Three budgets by two criteria without recovery, measured by :func:`width`, unless the options say otherwise."""
    budgets = ("macs=0.3", "macs=0.5", "macs=0.7")
    given = {"metric": width, "budgets": budgets, "criteria": ("l1", "fec_l1"), "progress": False, **options}
    return fec_fast.sweep(model, EXAMPLE, given.pop("loader", None), **given)


def train_together(model: nn.Module) -> None:
    """A training that is distributed if there are several processes."""
    fec_fast.finetune(model, dot_loader(shuffle=False), epochs=1, progress=False)


def main(folder: Path) -> None:
    training = {"tune": train_together, "val_loader": dot_loader(shuffle=False), "metric": None}
    for kind, options in (("shared", {}), ("tuned", training)):
        result = quick_sweep(network(), results=folder / kind, **options)
        (folder / f"{kind}-{os.environ['RANK']}").write_text(json.dumps([point.figures() for point in result.points]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
