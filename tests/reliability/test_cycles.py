"""A long-lived process: what a cycle of pruning, training, saving and loading leaves behind does not add up.

The fast part makes a few cycles; ``pytest -m sweep -s tests/reliability/test_cycles.py`` 300, and looks at memory too.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from helpers.training import dot_loader, dropout_classifier

CYCLES = [4, pytest.param(300, marks=(pytest.mark.slow, pytest.mark.sweep))]
MOST_GROWTH = 16 << 20  # bytes: a leak of 56 kB per cycle
PROCESS = Path("/proc/self")

pytestmark = pytest.mark.skipif(not PROCESS.exists(), reason="open files and memory are read from Linux's /proc")


def _cycle(folder: Path) -> None:
    """Everything that a user does to a network, once."""
    model, loader = dropout_classifier(), dot_loader()
    images = torch.cat([images for images, _ in loader])
    fec_fast.score_model(model)
    result = fec_fast.prune(model, images[:2], remove=0.5, criterion="reconstruction", calibration=images)
    fec_fast.verify_equivalence(model, result.model, result.plan, images[:2])
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    fec_fast.recalibrate(result.model, loader)
    fec_fast.finetune(result.model, loader, epochs=1, checkpoint=folder / "state", progress=False)
    fec_fast.save(result, folder / "saved")
    loaded = fec_fast.load(dropout_classifier(), folder / "saved")
    assert torch.equal(loaded.eval()(images[:2]), result.model.eval()(images[:2]))
    with pytest.raises(fec_fast.FecError):
        fec_fast.prune(loaded, images[:2], budget=fec_fast.Budget.remove(params=0.9999))


def _left() -> dict[str, Any]:
    """What is alive in this process: tensors and modules, threads, open files."""
    gc.collect()
    kinds = Counter(
        "tensors" if isinstance(thing, torch.Tensor) else "modules"
        for thing in gc.get_objects()
        if issubclass(type(thing), torch.Tensor | nn.Module)
    )
    return {**kinds, "threads": threading.active_count(), "files": len(os.listdir(PROCESS / "fd"))}


def _resident() -> int:
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cycles", CYCLES)
def test_cycles_leave_nothing_behind(tmp_path: Path, cycles: int) -> None:
    for _ in range(max(3, cycles // 10)):  # imports, caches and the allocator's pools
        _cycle(tmp_path)
    before, memory, files = _left(), _resident(), len(list(tmp_path.rglob("*")))
    for _ in range(cycles):
        _cycle(tmp_path)
    assert _left() == before
    assert len(list(tmp_path.rglob("*"))) == files
    growth = _resident() - memory
    print(f"{cycles} cycles: {before} as before, memory grew by {growth / 2**20:.1f} MB")
    if cycles > 100:
        assert growth < MOST_GROWTH
