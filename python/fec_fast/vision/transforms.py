"""Transforms for image classification: augmentation, size and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError, nearest

AUGMENTATIONS = ("cifar", "imagenet", "none")


def make_transforms(
    augment: str, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """Makes the transforms of training and of held-out images.

    Args:
        augment: ``"cifar"``: the whole image at the given size, mirrored at random and shifted by up to an eighth.
            ``"imagenet"``: a random part of 8 to 100 % of the area, mirrored at random; held-out images are scaled to
            256/224 of the size on the shorter side and cropped in the centre. ``"none"``: the whole image.
        size: Height and width in pixels.
        mean: Subtracted from each of the three colours, after scaling to [0, 1].
        std: Divisor of each colour.

    Returns:
        Two functions from PIL images to tensors float32 ``[3, H, W]``, for training and held-out images.

    Raises:
        InputError: There is no such augmentation.
    """
    from torchvision.transforms import v2

    if augment not in AUGMENTATIONS:
        raise InputError(f"augment={augment!r}: {nearest(str(augment), AUGMENTATIONS)}")
    whole = [v2.Resize(size)]
    training: dict[str, list[Any]] = {
        "cifar": [*whole, v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8])],
        "imagenet": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
        "none": whole,
    }
    held_out: list[Any] = whole
    if augment == "imagenet":
        held_out = [v2.Resize(round(min(size) * 256 / 224)), v2.CenterCrop(size)]
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    return v2.Compose([*training[augment], *to_tensor]), v2.Compose([*held_out, *to_tensor])
