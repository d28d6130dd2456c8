"""Cycles of pruning, training, saving and loading in one process: ``python -m helpers.cycles FOLDER CYCLES``.

A process of its own, so that what other tests leave behind does not come and go meanwhile.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fec_fast
from helpers.training import dot_loader, dropout_classifier

PROCESS = Path("/proc/self")


def cycle(folder: Path) -> None:
    """Everything that a user does to a network, once."""
    model, loader = dropout_classifier(), dot_loader()
    images = torch.cat([images for images, _ in loader])
    fec_fast.score_model(model)
    result = fec_fast.prune(model, images[:2], remove=0.5, criterion="reconstruction", calibration=images, recover=None)
    fec_fast.verify_equivalence(model, result.model, result.plan, images[:2])
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    fec_fast.recalibrate(result.model, loader)
    fec_fast.finetune(result.model, loader, epochs=1, checkpoint=folder / "state", progress=False)
    fec_fast.save(result, folder / "saved")
    loaded = fec_fast.load(dropout_classifier(), folder / "saved")
    assert torch.equal(loaded.eval()(images[:2]), result.model.eval()(images[:2]))
    try:
        fec_fast.prune(loaded, images[:2], budget=fec_fast.Budget.remove(params=0.9999), recover=None)
    except fec_fast.BudgetError:
        return
    raise AssertionError("the budget was met")


def left(folder: Path) -> dict[str, Any]:
    """What is alive in this process: tensors and modules, threads, open files; and the files in a folder."""
    gc.collect()
    kinds = Counter(
        "tensors" if isinstance(thing, torch.Tensor) else "modules"
        for thing in gc.get_objects()
        if issubclass(type(thing), torch.Tensor | nn.Module)
    )
    return {
        **{kind: kinds[kind] for kind in ("tensors", "modules")},
        "threads": threading.active_count(),
        "open files": len(os.listdir(PROCESS / "fd")),
        "files": len(list(folder.rglob("*"))),
    }


def resident() -> int:
    """Resident memory, in bytes."""
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder: Path, cycles: int) -> None:
    """Prints JSON: what was alive before and after the cycles, and by how many bytes memory has grown."""
    warnings.simplefilter("ignore")
    for _ in range(max(3, cycles // 10)):  # imports, caches and the allocator's pools
        cycle(folder)
    before, memory = left(folder), resident()
    for _ in range(cycles):
        cycle(folder)
    print(json.dumps({"before": before, "after": left(folder), "growth": resident() - memory}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
