"""The picture of docs/yolo.md: annotations and detections on two test images of blood cells.

    pip install '.[ultralytics,detection]' && python -m benchmarks.yolo.pictures

Needs the data and the trained networks that ``python -m benchmarks.yolo.bccd`` keeps in runs/yolo.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common.environment import ROOT
from benchmarks.common.pages import DOCS
from benchmarks.detection.pictures import HEIGHT, WIDTH, drawn

CONFIDENCE = 0.4
IMAGE_SIZE = 320


def annotations(file: Path) -> dict[str, Tensor]:
    """The boxes of a label file in ultralytics' layout, in pixels of the picture, and their labels from 1."""
    rows = torch.tensor([[float(number) for number in line.split()] for line in file.read_text().splitlines()])
    centre, size = rows[:, 1:3], rows[:, 3:5]
    scale = torch.tensor([WIDTH, HEIGHT]).repeat(2)
    return {"boxes": torch.cat([centre - size / 2, centre + size / 2], 1) * scale, "labels": rows[:, 0].long() + 1}


def picture(work: Path, file: Path) -> None:
    """One row per test image: the annotations, the detections of the dense and of the pruned and tuned network."""
    from PIL import Image
    from torchvision.io import read_image
    from torchvision.transforms.v2.functional import resize
    from ultralytics import YOLO

    from fec_fast.integrations import ultralytics

    networks = [
        YOLO(str(work / "dense" / "weights" / "best.pt")),
        ultralytics.from_checkpoint(str(work / "tuned" / "weights" / "best.pt")),
    ]
    rows = []
    for path in sorted((work / "data" / "images" / "test").iterdir())[:2]:
        canvas = resize(read_image(str(path)), [HEIGHT, WIDTH], antialias=True)
        shown = [annotations(work / "data" / "labels" / "test" / f"{path.stem}.txt")]
        for network in networks:
            settings = {"imgsz": IMAGE_SIZE, "conf": CONFIDENCE, "device": "cpu", "verbose": False}
            found = network.predict(str(path), **settings)[0]
            boxes = found.boxes.xyxyn * torch.tensor([WIDTH, HEIGHT]).repeat(2)
            shown.append({"boxes": boxes, "labels": found.boxes.cls.long() + 1})
        rows.append(torch.cat([drawn(canvas, boxes, torch.Size((HEIGHT, WIDTH))) for boxes in shown], 2))
    Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy()).save(file, quality=82)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "yolo", help="the folder of data and networks")
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_CONFIG_DIR", str(arguments.work))
    os.environ.setdefault("YOLO_OFFLINE", "true")
    picture(arguments.work.resolve(), DOCS / "yolo.webp")


if __name__ == "__main__":
    main()
