"""The rows: networks, budgets, and how they are trained further."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.common.precision import quick_precision
from fec_fast import Budget

DENSE, RECOVERED, RE_ESTIMATED = "dense", "recovered", "re-estimated"
# Torch-Pruning's group norm pruner: the cut before all epochs, or after sparse training in half of them.
GROUP_NORM, SPARSE = "Torch-Pruning", "Torch-Pruning, sparse training"
BATCH, WARMUP_EPOCHS = 128, 0.25


@dataclass(frozen=True)
class Training:
    """How dense and pruned networks are trained further.

    Attributes:
        sizes: Height and width of the images in each epoch of 50,000 images.
        lr: The learning rate that the cosine begins with.
        teacher: Whether the dense network as it was is imitated, by dense and pruned networks alike.
    """

    sizes: tuple[int, ...]
    lr: float
    teacher: bool


TRAININGS = {
    "four epochs, teacher": Training((24, 24, 32, 32), 0.05, teacher=True),
    "two epochs, teacher": Training((24, 32), 0.05, teacher=True),
    "four epochs": Training((24, 24, 32, 32), 0.02, teacher=False),
    "three epochs on smaller images, teacher": Training((16, 16, 24), 0.05, teacher=True),
}
WHOLE, HALF, ALONE, SMALLER = TRAININGS


@dataclass(frozen=True)
class Row:
    """A pruned network.

    Attributes:
        network: Its name, as :class:`benchmarks.recovery.networks.Bench` takes it.
        budget: What it loses.
        aim: The most percentage points that it may be behind the dense network.
        training: The name of the training of the first table.
    """

    network: str
    budget: Budget
    aim: float
    training: str = WHOLE


ROWS = {
    "MobileNetV2, -50 % of MACs": Row("mobilenetv2", Budget(macs=0.5), 0.5),
    "ResNet-56, -50 % of parameters": Row("resnet56", Budget(params=0.5), 0.0),
    "ResNet-56, -70 % of parameters": Row("resnet56", Budget(params=0.7), 0.4),
    "ResNet-34, -70 % of parameters": Row("resnet34", Budget(params=0.7), 0.3, SMALLER),
    "VGG-16, -90 % of parameters": Row("vgg16", Budget(params=0.9), 0.0),
    "VGG-16, -94 % of parameters": Row("vgg16", Budget(params=0.94), 0.2),
}
_BFLOAT16 = ("resnet34", "resnet56", "vgg16")  # depthwise layers are slower in it on CPUs


def precision(network: str) -> str:
    """What a network is trained in, as ``finetune(mixed_precision=...)`` takes it: bfloat16 where it is quick."""
    return quick_precision() if network in _BFLOAT16 else "no"


Key = tuple[str, str, str, int]  # network or row, start, training, seed


def keys(rows: list[str], seeds: int) -> Iterator[Key]:
    """The keys of all trainings, those of the first table first: network or row, start, training, seed."""
    for seed in range(seeds):
        for row in rows:
            yield ROWS[row].network, DENSE, ROWS[row].training, seed
            yield row, RECOVERED, ROWS[row].training, seed
    rows = [row for row in rows if ROWS[row].training == WHOLE]  # the other tables are of one training
    for seed in range(seeds):
        for start, training in ((RE_ESTIMATED, WHOLE), (RECOVERED, HALF), (RE_ESTIMATED, HALF)):
            for row in rows:
                yield row, start, training, seed
        for start in (GROUP_NORM, SPARSE):
            for row in rows:
                yield row, start, WHOLE, seed
    for seed in range(seeds):
        for row in rows:
            yield ROWS[row].network, DENSE, ALONE, seed
            yield row, RECOVERED, ALONE, seed
