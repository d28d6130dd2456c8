"""Networks that the defaults are decided on, and what their answers to test images are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.defaults.segmentation import UNet, composed, overlap
from benchmarks.defaults.train import densenet
from benchmarks.recovery.networks import NAMES as CLASSIFIERS
from benchmarks.recovery.networks import Bench
from benchmarks.study.run import DENSE

NAMES = {
    **{name: CLASSIFIERS[name] for name in ("resnet20", "mobilenetv2", "resnet56", "vgg16")},
    "densenet": "DenseNet",
    "unet": "U-Net, segmentation",
}
_BUILDERS: dict[str, Callable[[], nn.Module]] = {"densenet": densenet, "unet": UNet}


class Subjects:
    """The dense networks, their test and calibration images.

    Test images are split as in the other benchmarks: on those of ``choice`` settings may be chosen.

    Attributes:
        bench: The classifiers that the recovery benchmark has too.
        most: The number of test images at most.
    """

    def __init__(self, folder: Path, work: Path, most: int) -> None:
        self.bench, self.most = Bench(folder, work, most), most

    def dense(self, name: str) -> nn.Module:
        """A network before pruning, with its trained weights."""
        if name not in _BUILDERS:
            return self.bench.dense(name)
        model = _BUILDERS[name]()
        file = DENSE / f"{name}.safetensors"
        if not file.is_file():
            raise SystemExit(f"{file} is missing: python -m benchmarks.defaults.train writes it")
        model.load_state_dict(load_file(file))
        return model.eval()

    def test(self, name: str, *, choice: bool) -> list[tuple[Tensor, Tensor]]:
        """Test images with labels (of pixels, for segmentation), in batches."""
        if name != "unet":
            return self.bench.choice(name) if choice else self.bench.test(name)
        cifar, normalise = self.bench.source(name)
        photographs = (cifar.choice if choice else cifar.test)[0][-self.most :]
        generator = torch.Generator().manual_seed(int(choice))
        inputs, classes = composed(photographs, self.bench.digits.test, generator, normalise)
        return list(zip(inputs.split(250), classes.split(250), strict=True))

    def calibration(self, name: str, count: int, seed: int) -> list[Tensor]:
        """Training images without labels, in batches, drawn by the seed."""
        if name != "unet":
            return self.bench.calibration(name, count, seed)
        cifar, normalise = self.bench.source(name)
        generator = torch.Generator().manual_seed(1000 + seed)
        photographs = cifar.train[0][torch.randint(len(cifar.train[0]), (count,), generator=generator)]
        return list(composed(photographs, self.bench.digits.train, generator, normalise)[0].split(250))


def values(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> list[float]:
    """What the answer to each image is worth, in [0, 1], in float32.

    1 or 0 for a class that is right or wrong; for segmentation the intersection over union of the pixels of digits.
    """
    model.eval().to(memory_format=torch.channels_last)
    found: list[float] = []
    with torch.inference_mode():
        for x, y in test:
            scores = model(x.contiguous(memory_format=torch.channels_last))
            found += (overlap(scores, y) if scores.ndim == 4 else (scores.argmax(1) == y).double()).tolist()
    model.to(memory_format=torch.contiguous_format)
    return found
