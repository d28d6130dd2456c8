"""Training of the dense networks that other benchmarks do not have: a DenseNet and a U-Net, in one thread.

    pip install '.[bench,train,vision,demo]' && python -m benchmarks.defaults.train --data FOLDER

An interrupted training continues after its last epoch. The weights are written to benchmarks/results/dense in float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.defaults.segmentation import Segmentation, SegmentationImages, UNet
from benchmarks.study import data
from benchmarks.study.run import DENSE, halved

TRAINING = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 0.5}
SIZES = (16,) * 5 + (24,) * 2 + (32,)  # height and width of the DenseNet's training images in each epoch
DENSENET_STEPS = 390  # per epoch, of 128 images
UNET_EPOCHS, UNET_STEPS = 16, 150


def densenet() -> nn.Module:
    """torchvision's DenseNet for 32 x 32 pixels: three blocks of six layers that add 12 channels each."""
    from torchvision.models import DenseNet

    model = DenseNet(growth_rate=12, block_config=(6, 6, 6), num_init_features=24, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


def trained(name: str, model: nn.Module, loader: Any, epochs: int, work: Path, task: Any = None) -> None:
    """Trains a network and writes its weights, unless they are there."""
    weights = DENSE / f"{name}.safetensors"
    if weights.is_file():
        return
    model.to(memory_format=torch.channels_last)
    state = {"checkpoint": work / name, "resume": (work / name).is_dir()}
    result = fec_fast.finetune(model, loader, task=task, epochs=epochs, **state, **TRAINING)
    for epoch in result.history:
        print(epoch)
    model.to(memory_format=torch.contiguous_format)
    DENSE.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in halved(model.state_dict()).items()}, weights)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="the folder of images and weights")
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for images and states")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cifar, digits = data.cifar(arguments.data / "cifar10-jpeg.zip", arguments.work), data.handwritten()
    normalise = data.normaliser("vgg16")
    torch.manual_seed(0)
    unet_images = SegmentationImages(cifar, digits, normalise, UNET_STEPS)
    trained("unet", UNet(), unet_images, UNET_EPOCHS, arguments.work, Segmentation())
    growing = data.GrowingImages(cifar, normalise, SIZES, DENSENET_STEPS)
    torch.manual_seed(0)
    trained("densenet", densenet(), growing, len(SIZES), arguments.work)


if __name__ == "__main__":
    main()
