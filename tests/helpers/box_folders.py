"""Small data sets in the layouts of COCO and YOLO."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (40, 20)  # width and height of every picture


def picture(file: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """Writes a picture: left half red, right half blue."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (250, 20, 20))
    image.paste((20, 20, 250), (size[0] // 2, 0, size[0], size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)


def instances(
    images: Mapping[int, str], annotations: Sequence[Mapping[str, Any]], categories: Mapping[int, str]
) -> str:
    """The text of a COCO file: pictures and categories by their ids."""
    return json.dumps(
        {
            "info": {"year": 2017},
            "images": [
                {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1], "license": 1}
                for number, name in images.items()
            ],
            "categories": [{"id": number, "name": name, "supercategory": "x"} for number, name in categories.items()],
            "annotations": [
                {"id": at, "area": 1.0, "iscrowd": 0, "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], **entry}
                for at, entry in enumerate(annotations, start=100)
            ],
        }
    )


CATEGORIES = {18: "dog", 3: "car", 90: "brush"}


def write_coco(root: Path) -> Path:
    """A data set in COCO's own layout: three training pictures, the last without a box, and two held-out ones."""
    for part, names in (("train", "abc"), ("val", "de")):
        for name in names:
            picture(root / f"{part}2017" / f"{name}.jpg")
    (root / "annotations").mkdir(parents=True)
    train = [
        {"image_id": 7, "category_id": 18, "bbox": [0, 0, 20, 20]},
        {"image_id": 7, "category_id": 3, "bbox": [20, 0, 20, 20], "iscrowd": 1},
        {"image_id": 1000000, "category_id": 3, "bbox": [20.5, 0, 10.25, 20]},
    ]
    (root / "annotations" / "instances_train2017.json").write_text(
        instances({7: "a.jpg", 1000000: "b.jpg", 2: "c.jpg"}, train, CATEGORIES)
    )
    held_out = [
        {"image_id": 5, "category_id": 18, "bbox": [0, 0, 20, 20]},
        {"image_id": 5, "category_id": 3, "bbox": [20, 0, 20, 20], "iscrowd": 1},
    ]
    (root / "annotations" / "instances_val2017.json").write_text(
        instances({5: "d.jpg", 4: "e.jpg"}, held_out, CATEGORIES)
    )
    return root


def write_yolo(root: Path, held_out: bool = True) -> Path:
    """A data set in YOLO's layout: three training pictures, the last without a text file, and two held-out ones."""
    for part, names in (("train", "abc"), ("val", "de")):
        for name in names:
            picture(root / "images" / part / f"{name}.jpg")
        (root / "labels" / part).mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("0 0.25 0.5 0.5 1\n1 0.75 0.5 0.5 1.0\n")
    (root / "labels/train/b.txt").write_text("1 0.5 0.1 0.75 0.1 0.75 0.9\n")
    (root / "labels/val/d.txt").write_text("0 2.5e-1 .5 0.5 1\n")
    (root / "labels/val/e.txt").write_text("")
    val = "val: images/val\n" if held_out else ""
    (root / "data.yaml").write_text(f"path: ../datasets/mine\ntrain: images/train\n{val}names: {{0: red, 1: blue}}\n")
    return root
