"""Training of dense networks that have no weights yet, on the JPEG images of CIFAR-10.

    pip install '.[bench,train,vision]' && python -m benchmarks.recovery.train_dense --data FOLDER NETWORK

The images grow with the epochs. The state after every epoch is kept in the folder ``--work``; an interrupted training
continues. The weights are written in float16: those of MobileNetV2 to benchmarks/results/dense, those of ResNet-34,
42 MB, to ``--work``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.precision import quick_precision
from benchmarks.study import data
from benchmarks.study.run import DENSE, halved
from fec_fast.vision import networks


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from random weights.

    Attributes:
        build: Returns a new instance.
        sizes: Height and width of the images in each epoch.
        batch: Images per step.
        steps: Steps per epoch: these are 49,920 of the 50,000 images.
        options: Arguments of ``fec_fast.finetune``.
        precision: Returns what it is trained in, as ``finetune(mixed_precision=...)`` takes it.
        committed: Whether its weights are small enough for the repository.
    """

    build: Callable[[], nn.Module]
    sizes: tuple[int, ...]
    batch: int
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    precision: Callable[[], str] = lambda: "no"
    committed: bool = True


RECIPES = {
    "mobilenetv2": Recipe(
        networks.mobilenetv2_cifar,
        (24,) * 4 + (32,) * 8,
        64,
        780,
        {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 0.5},
    ),
    "resnet34": Recipe(
        networks.resnet34_cifar,
        (16,) * 7 + (24,) * 3,
        128,
        390,
        {"lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 0.5},
        precision=quick_precision,
        committed=False,
    ),
}


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--data", required=True, type=Path, help="the folder of images and weights")
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for images and states")
    parser.add_argument("--threads", default=1, type=int)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    recipe = RECIPES[arguments.network]
    images = data.cifar(arguments.data / "cifar10-jpeg.zip", arguments.work)
    images.batch = recipe.batch
    model = recipe.build().to(memory_format=torch.channels_last)
    state = arguments.work / arguments.network
    result = fec_fast.finetune(
        model,
        data.GrowingImages(images, data.normaliser("vgg16"), recipe.sizes, recipe.steps),
        epochs=len(recipe.sizes),
        mixed_precision=recipe.precision(),
        checkpoint=state,
        resume=state.is_dir(),
        **recipe.options,
    )
    for epoch in result.history:
        print(epoch)
    model.to(memory_format=torch.contiguous_format)
    folder = DENSE if recipe.committed else arguments.work
    folder.mkdir(exist_ok=True)
    save_file(halved(model.state_dict()), folder / f"{arguments.network}.safetensors")


if __name__ == "__main__":
    main()
