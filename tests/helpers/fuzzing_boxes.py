"""Readers of COCO, YOLO, saved Hugging Face data, sweeps and sensitivities, and the list of all readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fec_fast
from fec_fast.vision import data
from helpers import box_folders
from helpers.fuzzing import READERS, Target, picture, tiny
from helpers.fuzzing_checks import CHECKS

_COCO = ("annotations/instances_train2017.json", "train2017/a.jpg")
_YOLO = ("data.yaml", "labels/train/a.txt", "list.txt", "images/train/a.jpg")
_SAVED = ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")
_FORMS = {"json": "json", "yaml": "yaml", "txt": "bytes", "jpg": "bytes"}


def _checked(loaders: Any) -> None:
    """Looks at all that was believed: boxes in their pictures, labels among the classes."""
    for loader in loaders:
        for number in range(len(loader.dataset)):
            image, target = loader.dataset[number]
            boxes, labels = target["boxes"], target["labels"]
            height, width = image.shape[1:]
            assert image.shape[0] == 3 and image.numel() <= 3 * 24_000_000 and len(boxes) == len(labels)
            assert bool((boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all())
            # Boxes are kept as float32: the last digit may be rounded up.
            assert bool((boxes[:, 2] <= width * 1.001).all() and (boxes[:, 3] <= height * 1.001).all())
            assert bool(((labels >= 1) & (labels <= len(loader.dataset.classes))).all())


def _file(root: Path, name: str, kind: str) -> Target:
    sound = (root / name).read_bytes()

    def read(content: bytes) -> None:
        (root / name).write_bytes(content)
        _checked(data.load(f"{kind}:{root}", 2, augment="none"))

    return Target((sound,), _FORMS[name.rpartition(".")[2]], read)


def _coco(folder: Path, name: str) -> Target:
    return _file(box_folders.write_coco(folder / f"coco-{name.replace('/', '-')}"), name, "coco")


def _yolo(folder: Path, name: str) -> Target:
    root = box_folders.write_yolo(folder / f"yolo-{name.replace('/', '-')}")
    if name == "list.txt":
        (root / name).write_text("images/train/a.jpg\n./images/train/b.jpg\n")
        (root / "data.yaml").write_text("train: list.txt\nval: images/val\nnames: [red, blue]\n")
    return _file(root, name, "yolo")


def _saved(folder: Path, name: str) -> Target:
    import datasets

    root = folder / f"saved-{name}"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = [{"image": {"bytes": picture("PNG"), "path": None}, "label": number % 2} for number in range(4)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(root)

    def read(content: bytes) -> None:
        # A new file: arrow files are mapped into memory, and those that were read before may be mapped still.
        (root / name).unlink()
        (root / name).write_bytes(content)
        for loader in data.load(f"hf:{root}", 1, augment="none"):
            for images, labels in loader:
                assert images.shape[:2] == (1, 3) and int(labels) >= 0

    return Target(((root / name).read_bytes(),), "json" if name.endswith(".json") else "bytes", read)


def _measured(kind: Any, sound: Any) -> Target:
    def read(content: bytes) -> None:
        found = kind.from_json(content)
        assert kind.from_json(found.to_json()).to_json() == found.to_json() and str(found)

    return Target((sound.to_json().encode(),), "json", read)


def _sweep(folder: Path) -> Target:
    plan = fec_fast.prune(tiny(), torch.zeros(1, 1, 4, 4), remove=0.5, recover=None).plan
    point = fec_fast.SweepPoint("macs=0.5", "entropy", "l1", 0.5, None, 10, 20, None, plan)
    dense = fec_fast.DenseNetwork(0.75, 20, 40)
    return _measured(fec_fast.Sweep, fec_fast.Sweep("accuracy", dense, (point,), {"macs=0.9": "too much"}))


def _sensitivity(folder: Path) -> Target:
    return _measured(fec_fast.Sensitivity, fec_fast.Sensitivity("sha256:0", 0.75, {"one": 4}, {"one": {2: 0.5}}))


def _of(make: Callable[[Path, str], Target], name: str) -> Callable[[Path], Target]:
    return lambda folder: make(folder, name)


ALL_READERS: dict[str, Callable[[Path], Target]] = {
    **READERS,
    **{f"COCO {name}": _of(_coco, name) for name in _COCO},
    **{f"YOLO {name}": _of(_yolo, name) for name in _YOLO},
    **{f"saved {name}": _of(_saved, name) for name in _SAVED},
    "sweep JSON": _sweep,
    "sensitivity JSON": _sensitivity,
    **CHECKS,
}
