"""Training of the dense MobileNetV2 on the JPEG images of CIFAR-10, in one thread.

    pip install '.[bench,train,vision]' && python -m benchmarks.recovery.train_mobilenet --data FOLDER

The images grow from 24 to 32 pixels with the epochs. The state after every epoch is kept in the folder ``--work``; an
interrupted training continues. The weights are written to benchmarks/results/dense in float16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.study import data
from benchmarks.study.run import DENSE, halved
from fec_fast.vision import networks

SIZES = (24,) * 4 + (32,) * 8  # height and width of the training images in each epoch
BATCH, STEPS = 64, 780  # per epoch: 49,920 of the 50,000 images


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="the folder of images and weights")
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for images and states")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = data.cifar(arguments.data / "cifar10-jpeg.zip", arguments.work)
    images.batch = BATCH
    normalise = data.normaliser("vgg16")
    model = networks.mobilenetv2_cifar().to(memory_format=torch.channels_last)
    state = arguments.work / "mobilenetv2"
    result = fec_fast.finetune(
        model,
        data.GrowingImages(images, normalise, SIZES, STEPS),
        epochs=len(SIZES),
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.05,
        warmup_epochs=0.5,
        val_loader=data.tested(images.choice, normalise, data.CHOICE_COUNT),
        checkpoint=state,
        resume=state.is_dir(),
    )
    for epoch in result.history:
        print(epoch)
    model.to(memory_format=torch.contiguous_format)
    DENSE.mkdir(exist_ok=True)
    save_file(halved(model.state_dict()), DENSE / "mobilenetv2.safetensors")


if __name__ == "__main__":
    main()
