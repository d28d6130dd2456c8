"""Transforms of images with boxes: augmentation, size and number format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AUGMENTATIONS = ("ssd", "microscope", "none")


def make_box_transform(augment: str, size: tuple[int, int] | None) -> Callable[..., Any]:
    """Makes the transform of images with boxes.

    Args:
        augment: One of :data:`AUGMENTATIONS`. ``"ssd"``: colours, zooming out, cropping by overlap and mirroring, as in
            the paper of SSD (Liu et al., 2016). ``"microscope"``: brightness and contrast, crops of 40 to 100 % of the
            area, mirroring on both axes. ``"none"``.
        size: Width and height of the result; ``None`` leaves it open.

    Returns:
        A function from an image uint8 and its target to an image float32 in [0, 1] and its target.
    """
    from torchvision.transforms import v2

    steps: list[Any] = []
    if augment == "ssd":
        fill = [124, 116, 104]  # ImageNet's mean colour, as in the paper of SSD
        steps += [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=fill), v2.RandomIoUCrop()]
        steps += [v2.RandomHorizontalFlip()]
        if size is not None:
            steps.append(v2.Resize(size[::-1]))
    if augment == "microscope":
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)]
        steps.append(_ScaledCrop(size))
    if steps:
        steps.append(v2.SanitizeBoundingBoxes(min_size=4, labels_getter=_labels_and_flags))
    transform: Callable[..., Any] = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    return transform


class _ScaledCrop:
    """A random crop of 40 to 100 % of the area, scaled to the size of the whole image."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Any, target: Any) -> Any:
        from torchvision.transforms import v2

        size = list(image.shape[-2:]) if self.size is None else self.size[::-1]
        aspect = size[1] / size[0]
        return v2.RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(0.8 * aspect, 1.25 * aspect))(image, target)


def _labels_and_flags(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """The values that SanitizeBoundingBoxes removes together with a box."""
    return tuple(value for name, value in sample[1].items() if name != "boxes")
