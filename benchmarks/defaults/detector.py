"""The small SSD of ``benchmarks.detection`` on images of blood cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.run import SETTINGS
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc

CLASSES = 3
# From which score and overlap on a detection counts.
SCORE, OVERLAP = 0.5, 0.5
_HELD_OUT = ("val", "test")


def detector() -> nn.Module:
    """The network, without trained weights."""
    return zoo.build("zoo:ssd-small", num_classes=CLASSES + 1, image_size=SETTINGS["image"])


Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def cells(folder: Path, seed: int = 0) -> tuple[list[Batch], list[Batch]]:
    """Training images as they are and their boxes, in batches, and the images of ``val`` and ``test``.

    Args:
        folder: The folder with ``bccd-voc.zip``.
        seed: Of the order of the training images.
    """
    options: dict[str, Any] = {"image_size": SETTINGS["image"], "augment": "none"}
    loaders = [load_voc(folder / "bccd-voc.zip", 16, seed, splits=("train", part), **options) for part in _HELD_OUT]
    return list(loaders[0][0]), [batch for _, held_out in loaders for batch in held_out]


def agreement(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The F1 score of one image's detections: twice the found boxes, by all detections and all boxes.

    A detection counts if its score is at least ``SCORE``. It has found a box of its class that it overlaps by at least
    ``OVERLAP`` (intersection over union), and that none with a higher score has found.

    Args:
        found: ``boxes`` ``[N, 4]``, ``labels`` and ``scores`` ``[N]``.
        wanted: ``boxes`` ``[M, 4]`` and ``labels`` ``[M]``.

    Returns:
        In [0, 1]; 1 for an image without boxes and detections.
    """
    from torchvision.ops import box_iou

    certain = found["scores"] >= SCORE
    order = found["scores"][certain].argsort(descending=True)
    boxes, labels = found["boxes"][certain][order], found["labels"][certain][order]
    fits = box_iou(boxes, wanted["boxes"]) * (labels[:, None] == wanted["labels"])
    hits = 0
    for row in range(len(boxes)):
        if fits.shape[1] and float(fits[row].max()) >= OVERLAP:
            fits[:, int(fits[row].argmax())] = 0
            hits += 1
    total = len(boxes) + len(wanted["boxes"])
    return 2 * hits / total if total else 1.0


def agreements(model: nn.Module, test: list[Batch]) -> list[float]:
    """The agreement of every image, in float32."""
    with torch.inference_mode():
        return [
            agreement(found, wanted)
            for images, targets in test
            for found, wanted in zip(model.eval()(images), targets, strict=True)
        ]
