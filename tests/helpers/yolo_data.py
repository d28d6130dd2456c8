"""A made-up data set in ultralytics' layout, and settings with which it stays off the network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np


def without_network() -> None:
    """Settings that ultralytics reads when it is imported: not in the home folder, no downloads, no installations."""
    settings = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    if "YOLO_CONFIG_DIR" not in os.environ:
        settings["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolo-settings-")
    os.environ.update(settings)


def write_boxes(root: Path, classes: int = 2) -> Path:
    """Ten images to train on, four to validate on, of 64 x 64 pixels with one box in each; returns the YAML file."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(drawn.integers(0, 255, (64, 64, 3), dtype=np.uint8))
            picture.save(root / "images" / part / f"{number}.png")
            (root / "labels" / part / f"{number}.txt").write_text(f"{number % classes} 0.5 0.5 0.4 0.4\n")
    names = ", ".join(f"{number}: kind{number}" for number in range(classes))
    file = root / "data.yaml"
    file.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: {{{names}}}\n")
    return file
