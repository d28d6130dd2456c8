"""Images with rectangles to detect, and what tests of detectors check of metrics and plans."""

from __future__ import annotations

from pathlib import Path

import torch

import fec_fast
from helpers import voc_folders

METRICS = {"map", "map_50", "voc_2007", "voc", "map/blue", "voc/blue", "map/red", "voc/red"}


def rectangles(root: Path) -> Path:
    """Writes twelve training images and four held-out ones, with a red and a blue rectangle each."""
    generator = torch.Generator().manual_seed(0)

    def image() -> list[voc_folders.Box]:
        left, top = (int(x) for x in torch.randint(2, 40, (2,), generator=generator))
        red: voc_folders.Box = ("red", left, top, left + 30, top + 30)
        blue: voc_folders.Box = ("blue", left + 45, 90 - top // 2, left + 70, 115 - top // 2)
        return [red, blue]

    splits = {part: {f"{part}{n}": image() for n in range(count)} for part, count in (("train", 12), ("val", 4))}
    return voc_folders.write(root, splits, size=(128, 128))


def assert_all_parts_are_cut(plan: fec_fast.Plan) -> None:
    """Checks that backbone and extra layers lose filters, and both heads the channels that they read of them."""
    filters = [name for name, axes in plan.keep.items() if "0" in axes]
    inputs = [name for name, axes in plan.keep.items() if "1" in axes]
    for names, part in (
        (filters, "backbone.features"),
        (filters, "backbone.extra"),
        (inputs, "head.classification_head"),
        (inputs, "head.regression_head"),
    ):
        assert any(name.startswith(part) for name in names), part
