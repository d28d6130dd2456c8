"""The rows: networks, budgets, and how they are trained further."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fec_fast import Budget

# Height and width of the training images in each epoch of 50,000 images.
SCHEDULES = {"four epochs": (24, 24, 32, 32), "two epochs": (24, 32)}
WHOLE, HALF = SCHEDULES
DENSE, RECOVERED, RE_ESTIMATED = "dense", "recovered", "re-estimated"
BATCH, LR, WARMUP_EPOCHS = 128, 0.02, 0.25


@dataclass(frozen=True)
class Row:
    """A pruned network.

    Attributes:
        network: Its name, as :class:`benchmarks.recovery.networks.Bench` takes it.
        budget: What it loses.
        aim: The most percentage points that it may be behind the dense network.
    """

    network: str
    budget: Budget
    aim: float


ROWS = {
    "MobileNetV2, -50 % of MACs": Row("mobilenetv2", Budget(macs=0.5), 0.5),
    "ResNet-56, -50 % of parameters": Row("resnet56", Budget(params=0.5), 0.0),
    "ResNet-56, -70 % of parameters": Row("resnet56", Budget(params=0.7), 0.4),
    "VGG-16, -90 % of parameters": Row("vgg16", Budget(params=0.9), 0.0),
    "VGG-16, -94 % of parameters": Row("vgg16", Budget(params=0.94), 0.2),
}
PRECISIONS = {"resnet56": "bf16", "vgg16": "bf16"}  # slower than float32 for depthwise layers on CPUs


Key = tuple[str, str, str, int]  # network or row, start, schedule, seed


def keys(rows: list[str], seeds: int) -> Iterator[Key]:
    """The keys of all trainings, those of the first table first: network or row, start, schedule, seed."""
    for seed in range(seeds):
        for row in rows:
            yield ROWS[row].network, DENSE, WHOLE, seed
            yield row, RECOVERED, WHOLE, seed
    for seed in range(seeds):
        for start, schedule in ((RE_ESTIMATED, WHOLE), (RECOVERED, HALF), (RE_ESTIMATED, HALF)):
            for row in rows:
                yield row, start, schedule, seed
