"""Detections: what two detectors find in the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.forward import call_model, undisturbed
from ..utils.html import Html
from ..utils.modules import device_of
from ..utils.text import counted
from .figures import to_image

# Boxes with a lower score are not drawn, as detectors return hundreds of them; nor more than these.
LOWEST_SCORE = 0.3
MOST_OBJECTS = 20
_LONGEST_SIDE = 320
# A light line inside a dark one is seen on any picture.
_DARK, _LIGHT = (0, 0, 0), (255, 220, 0)


def drawn_detections(original: nn.Module, pruned: nn.Module, images: Sequence[Tensor]) -> list[tuple[str, Html]]:
    """Runs two detectors and draws what they find.

    Args:
        original: The network before pruning, left as it was.
        pruned: The network after pruning, left as it was.
        images: Float ``[3, H, W]`` in [0, 1].

    Returns:
        For each image two pictures with captions: what is found before and after.

    Raises:
        InputError: An image of another shape, or a network that does not return boxes and scores.
    """
    for number, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"images: image {number} is {shape}: give float tensors [3, H, W] in [0, 1]")
    pictures = []
    for number, image in enumerate(images):
        for state, model in (("before", original), ("after", pruned)):
            boxes, scores = _found(model, image)
            caption = f"image {number + 1}, {state}: {counted(len(boxes), 'object')}"
            caption += ", scores " + ", ".join(f"{score:.2f}" for score in scores) if len(scores) else ""
            drawn = _drawn(image, boxes)
            scale = max(1, _LONGEST_SIDE // max(drawn.shape))
            pictures.append((caption, to_image(drawn, f"{caption}; each object has a frame", scale=scale)))
    return pictures


def _found(model: nn.Module, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The boxes ``[boxes, 4]`` (left, top, right, bottom, in pixels) that a detector is surest of, and their scores."""
    with undisturbed(model):
        found: Any = call_model(model, [image.to(device_of(model))])
    if not (isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict)):
        found = [{}]
    if not {"boxes", "scores"} <= found[0].keys():
        raise InputError(
            f"images: the {type(model).__name__} returns no boxes and scores as torchvision's detectors do; images are "
            "shown for detectors alone"
        )
    boxes, scores = (found[0][key].cpu().double().numpy() for key in ("boxes", "scores"))
    surest = np.argsort(-scores, kind="stable")[:MOST_OBJECTS]
    surest = surest[scores[surest] >= LOWEST_SCORE]
    return boxes[surest], scores[surest]


def _drawn(image: Tensor, boxes: np.ndarray) -> np.ndarray:
    """The image as uint8 ``[height, width, 3]``, at most ``_LONGEST_SIDE`` pixels long, with the frames of boxes."""
    scale = min(1.0, _LONGEST_SIDE / max(image.shape[1:]))
    size = [max(1, round(scale * side)) for side in image.shape[1:]]
    small = nn.functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    picture = (255 * small.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy().copy()
    height, width = picture.shape[:2]
    for left, top, right, bottom in (boxes * scale).round().astype(int):
        for inset, colour in ((0, _DARK), (1, _LIGHT), (2, _DARK)):
            x0, x1 = np.clip((left + inset, right - inset), 0, width - 1)
            y0, y1 = np.clip((top + inset, bottom - inset), 0, height - 1)
            if x0 < x1 and y0 < y1:
                picture[[y0, y1], x0 : x1 + 1] = colour
                picture[y0 : y1 + 1, [x0, x1]] = colour
    return picture
