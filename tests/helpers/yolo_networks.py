"""Networks of ultralytics for two classes, and settings of trainings of a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import ultralytics
import yaml
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.utils.torch_utils import unwrap_model

CONFIGS = Path(ultralytics.__file__).parent / "cfg" / "models"


class Interrupted(Exception):
    """Ends a training."""


def interrupt(trainer: Any) -> None:
    """A callback that ends a training."""
    raise Interrupted


def with_statistics(yolo: Any) -> Any:
    """Means and variances that are not those of a new network, so that folding and fitting have something to do."""
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in yolo.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=drawn)
                module.running_var.uniform_(0.5, 1.5, generator=drawn)
                module.weight.uniform_(0.5, 1.5, generator=drawn)
    yolo.model.eval()
    return yolo


def two_classes(folder: Path, family: str = "v8/yolov8.yaml") -> Any:
    """A network as deep as size n and half as wide, for two classes."""
    content = yaml.safe_load((CONFIGS / family).read_text(encoding="utf-8")) | {"nc": 2}
    depth, width, most = content["scales"]["n"]
    content["scales"] = {"n": [depth, width / 2, most]}
    size, dash, task = Path(family).stem.partition("-")
    file = folder / f"{size}n{dash}{task}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    torch.manual_seed(0)
    return with_statistics(YOLO(str(file)))


def tiny_rtdetr(folder: Path) -> Any:
    """An RT-DETR for two classes that is narrow, with 50 queries and two layers of its decoder."""
    content = yaml.safe_load((CONFIGS / "rt-detr" / "rtdetr-l.yaml").read_text(encoding="utf-8"))
    content |= {"scales": {"l": [0.33, 0.25, 128]}, "nc": 2}
    content["head"][-1][3] = ["nc", 256, 50, 4, 8, 2]  # width, queries, points, heads, layers
    file = folder / "rtdetr-tiny.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    torch.manual_seed(0)
    return with_statistics(RTDETR(str(file)))


def widths(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes of all parameters."""
    return {name: parameter.shape for name, parameter in unwrap_model(model).named_parameters()}


def settings(data: Path, folder: Path, **others: Any) -> dict[str, Any]:
    """Of trainings and validations of a moment."""
    small = {"imgsz": 64, "batch": 5, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    return {"data": str(data), "project": str(folder), "name": "run", "exist_ok": True, **small, **others}
