"""A measurement of sensitivity in two processes: the program that a test starts, and what both share.

``python -m helpers.distributed_sensitivity FOLDER`` in each process.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

import fec_fast

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Three convolutions with 20 filters each, and a linear layer for four classes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4)).eval()


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


def first_matters(model: nn.Module) -> float:
    """Loses 0.01 for each channel of the first layer, a tenth of that for the second, nothing for the third."""
    first, second, _ = widths(model)
    return 1 - 0.01 * (20 - first) - 0.001 * (20 - second)


def main(cache: Path) -> None:
    """Measures, writes what this process got, and at its end whether it has left the process group."""
    rank = os.environ["RANK"]
    # Registered before the measurement, so called after its own exit functions.
    atexit.register(lambda: (cache / f"left-{rank}").write_text(str(not torch.distributed.is_initialized())))
    options = {"at": (0.2, 0.5), "cache": cache, "progress": False}
    measured = fec_fast.measure_sensitivity(network(), IMAGE, first_matters, **options)
    (cache / f"found-{rank}").write_text(json.dumps([measured.whole, measured.values]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
