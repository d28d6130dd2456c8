"""Networks and images of the recovery benchmark: those of the study, and a MobileNetV2."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.study import data
from benchmarks.study.run import DENSE
from fec_fast.vision.networks import mobilenetv2_cifar, resnet34_cifar
from fec_fast.vision.weights import load_weights

NAMES = {
    "vgg16": "VGG-16-BN",
    "resnet56": "ResNet-56",
    "resnet20": "ResNet-20",
    "resnet-digits": "ResNet on digits",
    "vgg-digits": "VGG on digits",
    "mobilenetv2": "MobileNetV2",
}
LARGE = {"resnet50": "ResNet-50, 224 x 224", "vgg16_bn": "VGG-16-BN, 224 x 224"}  # for ImageNet, random weights
_TRAINED_HERE = {"mobilenetv2": mobilenetv2_cifar, "resnet34": resnet34_cifar}  # by train_dense.py
_SIZES = {"resnet34": 24}  # height and width of the images that a network was trained on, where smaller than stored
# The study tests the first 4,000 of the 8,000 test images that it does not choose on; here the others are tested.
FIRST_TESTED = 4000


class Bench:
    """The dense networks, and the images that they are calibrated and tested on.

    Attributes:
        folder: The folder of images and weights.
        work: A folder for decoded images, and for weights that are too large for the repository.
        most: The number of test images at most.
        device: Where networks and images are given.
    """

    def __init__(self, folder: Path, work: Path, most: int, device: str = "cpu") -> None:
        """Reads the images.

        Args:
            folder: The folder of images and weights.
            work: A folder for decoded images, and for weights that are too large for the repository.
            most: The number of test images at most.
            device: Where to run: ``"cpu"`` or ``"cuda"``.
        """
        work.mkdir(parents=True, exist_ok=True)
        self.folder, self.work, self.most, self.device = folder, work, most, device
        self.cifar = data.cifar(folder / "cifar10-jpeg.zip", work)
        self.digits = data.handwritten()

    def source(self, name: str) -> tuple[data.Images, data.Normalise]:
        """The images of a network, and the function that normalises them."""
        if name not in data.NETWORKS:  # trained on these images by a command of the benchmarks
            return self.cifar, data.normaliser("vgg16")
        return (self.digits if data.NETWORKS[name].norm is None else self.cifar), data.normaliser(name)

    def dense(self, name: str) -> nn.Module:
        """A network before pruning, with its trained weights."""
        model = _TRAINED_HERE[name]() if name in _TRAINED_HERE else data.NETWORKS[name].build()
        weights = None if name in _TRAINED_HERE else data.NETWORKS[name].weights
        file = DENSE / f"{name}.safetensors"
        if name in _TRAINED_HERE and not file.is_file():
            file = self.work / file.name
        if file.is_file():
            model.load_state_dict(load_file(file))
        elif weights is not None:
            load_weights(model, self.folder / weights)
        else:
            raise SystemExit(f"{file} is missing: python -m benchmarks.recovery.train_dense {name} writes it")
        return model.eval().to(self.device)

    def test(self, name: str) -> data.Pairs:
        """The test images, in batches; nothing was chosen on them."""
        images, normalise = self.source(name)
        pixels, labels = images.test
        first = FIRST_TESTED if len(labels) > FIRST_TESTED else 0
        return self.placed(self.resized(name, data.tested((pixels[first:], labels[first:]), normalise, self.most)))

    def choice(self, name: str) -> data.Pairs:
        """Test images that settings may be chosen on, in batches."""
        images, normalise = self.source(name)
        return self.placed(self.resized(name, data.tested(images.choice, normalise, self.most)))

    def resized(self, name: str, pairs: data.Pairs) -> data.Pairs:
        """Images of the size that a network was trained on."""
        if name not in _SIZES:
            return pairs
        return [(interpolate(x, _SIZES[name], mode="bilinear", antialias=True), y) for x, y in pairs]

    def placed(self, pairs: data.Pairs) -> data.Pairs:
        """Images and labels on the device."""
        return [(x.to(self.device), y.to(self.device)) for x, y in pairs]

    def calibration(self, name: str, count: int, seed: int) -> list[Tensor]:
        """Training images without labels, in batches, drawn by the seed."""
        drawn = data.calibration(*self.source(name), count, seed)
        return [x.to(self.device) for x, _ in self.resized(name, drawn)]


def right(model: nn.Module, test: data.Pairs) -> list[bool]:
    """For each image whether it is classified correctly, in float32."""
    model.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        correct = [
            bit
            for x, y in test
            for bit in (model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).tolist()
        ]
    model.to(memory_format=torch.contiguous_format)
    return correct
