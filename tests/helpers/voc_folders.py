"""Small data sets in the layout of VOC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Box = tuple[str, int, int, int, int]


def annotation(boxes: Sequence[Box], difficult: bool = False) -> str:
    """Returns the text of one annotation."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{left}</xmin>"
        f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom in boxes
    )
    return f"<annotation>{objects}</annotation>"


def write(
    root: Path, splits: Mapping[str, Mapping[str, Sequence[Box]]], size: tuple[int, int] = (64, 48), seed: int = 0
) -> Path:
    """Writes images of noise with a bright rectangle for every box.

    Args:
        root: The folder, made.
        splits: For each split the images and their boxes, counted from 1 and with the last pixel, as VOC does.
        size: Width and height.
        seed: Of the noise.

    Returns:
        The folder.
    """
    from PIL import Image

    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, images in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, boxes in images.items():
            pixels = rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
            for kind, left, top, right, bottom in boxes:
                colour = (255, 60, 60) if kind == "red" else (60, 60, 255)
                pixels[max(0, top - 1) : bottom, max(0, left - 1) : right] = colour
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            (root / "Annotations" / f"{name}.xml").write_text(annotation(boxes))
    return root
