"""The networks of the coverage table, with inputs that are as small as each network allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

IMAGE = {  # torchvision classifiers that do not take 64 x 64
    "alexnet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "squeezenet": 96,
    "swin": 224,
    "vit": 224,
    "googlenet": 224,
    "vgg": 64,
}


@dataclass(frozen=True)
class Network:
    """A network to prune.

    Attributes:
        name: As the table has it.
        family: The part of the table.
        build: Makes an instance, randomly initialised.
        inputs: As ``fec_fast.prune`` takes them.
        targets: Detection only: what the training mode wants beside the images.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Any
    targets: list[dict[str, Tensor]] | None = None

    def call(self, model: nn.Module) -> Any:
        return model(*self.inputs) if isinstance(self.inputs, tuple) else model(self.inputs)

    def call_training(self, model: nn.Module) -> Any:
        return model(self.inputs, self.targets) if self.targets else self.call(model)


def _image(size: int, *, frames: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *([frames] if frames else []), size, size, generator=generator)


def classifiers() -> Iterator[Network]:
    for name in list_models(module=torchvision.models):
        size = next((size for start, size in IMAGE.items() if name.startswith(start)), 64)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "vit_h_14":
            options = {"image_size": 56}
            size = 56
        build = partial(get_model, name, weights=None, **options)
        yield Network(name, "torchvision, classification", build, _image(size))


def detectors() -> Iterator[Network]:
    generator = torch.Generator().manual_seed(0)
    for name in list_models(module=torchvision.models.detection):
        images = [torch.rand(3, 96, 96, generator=generator), torch.rand(3, 96, 96, generator=generator)]
        target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
        if name.startswith("maskrcnn"):
            target["masks"] = torch.ones(1, 96, 96, dtype=torch.uint8)
        if name.startswith("keypointrcnn"):
            target["keypoints"] = torch.rand(1, 17, 3, generator=generator) * 60 + 8
            target["keypoints"][..., 2] = 1
        options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
        build = partial(get_model, name, weights=None, weights_backbone=None, **options)
        yield Network(name, "torchvision, detection", build, images, [target, target])


def others() -> Iterator[Network]:
    for name in list_models(module=torchvision.models.segmentation):
        build = partial(get_model, name, weights=None, weights_backbone=None, aux_loss=True)
        yield Network(name, "torchvision, segmentation", build, _image(64))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"):
        frames = 16 if name in ("s3d", "mvit_v2_s") else 8
        size = 224 if name in ("mvit_v2_s", "s3d") else 56
        yield Network(name, "torchvision, video", partial(get_model, name, weights=None), _image(size, frames=frames))
    for name in ("raft_small", "raft_large"):
        pair = (_image(128), _image(128).flip(3))
        yield Network(name, "torchvision, optical flow", partial(get_model, name, weights=None), pair)


# A spread of 150: every convolutional or hybrid family of timm, the smaller members first.
TIMM = """
""".split()


def timm_networks() -> Iterator[Network]:
    import timm

    for name in TIMM:
        build = partial(timm.create_model, name, pretrained=False)
        yield Network(name, "timm", build, None)


def networks() -> Iterator[Network]:
    yield from classifiers()
    yield from detectors()
    yield from others()
