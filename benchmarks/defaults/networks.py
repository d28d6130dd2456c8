"""Networks that the defaults are decided on, and what their answers to test images are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.defaults.detector import agreements, cells, detector
from benchmarks.defaults.segmentation import UNet, composed, overlap
from benchmarks.defaults.train import densenet
from benchmarks.recovery.networks import NAMES as CLASSIFIERS
from benchmarks.recovery.networks import Bench
from benchmarks.study.run import DENSE

NAMES = {
    **{name: CLASSIFIERS[name] for name in ("resnet20", "mobilenetv2", "resnet56", "vgg16")},
    "densenet": "DenseNet",
    "unet": "U-Net, segmentation",
    "ssd": "SSD, detection",
}
_BUILDERS: dict[str, Callable[[], nn.Module]] = {"densenet": densenet, "unet": UNet, "ssd": detector}
_WRITTEN_BY = {"ssd": "python -m benchmarks.detection"}


class Subjects:
    """The dense networks, their test and calibration images.

    Test images are split as in the other benchmarks: on those of ``choice`` settings may be chosen.

    Attributes:
        bench: The classifiers that the recovery benchmark has too.
        most: The number of test images at most.
    """

    def __init__(self, folder: Path, work: Path, most: int) -> None:
        self.folder, self.bench, self.most = folder, Bench(folder, work, most), most

    def dense(self, name: str) -> nn.Module:
        """A network before pruning, with its trained weights."""
        if name not in _BUILDERS:
            return self.bench.dense(name)
        model = _BUILDERS[name]()
        file = DENSE / f"{name}.safetensors"
        if not file.is_file():
            command = _WRITTEN_BY.get(name, "python -m benchmarks.defaults.train")
            raise SystemExit(f"{file} is missing: {command} writes it")
        model.load_state_dict(load_file(file))
        return model.eval()

    def test(self, name: str, *, choice: bool) -> list[tuple[Any, Any]]:
        """Test images with labels (of pixels, for segmentation) or boxes, in batches."""
        if name == "ssd":
            if choice:
                raise SystemExit(f"{NAMES[name]}: no images are set aside to choose on; name the --networks")
            return cells(self.folder)[1]
        if name != "unet":
            return self.bench.choice(name) if choice else self.bench.test(name)
        cifar, normalise = self.bench.source(name)
        photographs = (cifar.choice if choice else cifar.test)[0][-self.most :]
        generator = torch.Generator().manual_seed(int(choice))
        inputs, classes = composed(photographs, self.bench.digits.test, generator, normalise)
        return list(zip(inputs.split(250), classes.split(250), strict=True))

    def calibration(self, name: str, count: int, seed: int) -> list[Any]:
        """Training images without labels, in batches, drawn by the seed; of blood cells all."""
        if name == "ssd":
            return [images for images, _ in cells(self.folder, seed)[0]]
        if name != "unet":
            return self.bench.calibration(name, count, seed)
        cifar, normalise = self.bench.source(name)
        generator = torch.Generator().manual_seed(1000 + seed)
        photographs = cifar.train[0][torch.randint(len(cifar.train[0]), (count,), generator=generator)]
        return list(composed(photographs, self.bench.digits.train, generator, normalise)[0].split(250))


def values(model: nn.Module, test: list[tuple[Any, Any]]) -> list[float]:
    """What the answer to each image is worth, in [0, 1], in float32.

    1 or 0 for a class that is right or wrong; for segmentation the intersection over union of the pixels of digits; for
    detection the F1 score of the boxes.
    """
    if isinstance(test[0][0], list):
        return agreements(model, test)
    model.eval().to(memory_format=torch.channels_last)
    found: list[float] = []
    with torch.inference_mode():
        for x, y in test:
            scores = model(x.contiguous(memory_format=torch.channels_last))
            found += (overlap(scores, y) if scores.ndim == 4 else (scores.argmax(1) == y).double()).tolist()
    model.to(memory_format=torch.contiguous_format)
    return found
