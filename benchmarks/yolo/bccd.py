"""Blood cells: average precision of a YOLO network, dense and pruned, each trained by ultralytics' own trainer.

    pip install '.[ultralytics,detection]' && python -m benchmarks.yolo.bccd --data bccd-voc.zip

A dense network is trained from random weights. It is pruned, recovered on its training images without labels, and
tuned; the dense network gets the same further training. Every stage is measured on the split ``test`` and written to
benchmarks/results/yolo_bccd.json at once. An interrupted training goes on after its last epoch when the command is
given again. Data, weights and logs are in runs/yolo. Ultralytics is licensed under AGPL-3.0.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.yolo.page import table_of_detection
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.utils.timing import compare_latency
from fec_fast.vision.voc_annotations import VocRoot, read_split

SPLITS = ("train", "val", "test")
SETTINGS = ("model", "epochs", "extra_epochs", "imgsz", "batch", "lr", "extra_lr", "remove", "limit", "seed")


def write_data(source: Path, folder: Path, limit: int | None) -> Path:
    """The data set in ultralytics' layout; made anew, so that no half of it is left from an interrupted run.

    Args:
        source: BCCD in VOC's layout, a folder or a zip archive.
        folder: Where it is written.
        limit: How many images of each split are used; ``None``: all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root = VocRoot(source)
    splits = {split: read_split(root, split, limit) for split in SPLITS}
    classes = sorted({name for images in splits.values() for image in images for name in image.classes})
    for split, images in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for image in images:
            (folder / "images" / split / Path(image.file).name).write_bytes(root.read(image.file, 1 << 26))
            lines = []
            for (left, top, right, bottom), name in zip(image.boxes, image.classes, strict=True):
                width, height = image.size
                box = ((left + right) / 2 / width, (top + bottom) / 2 / height)
                box += ((right - left) / width, (bottom - top) / height)
                lines.append(f"{classes.index(name)} " + " ".join(f"{number:.6f}" for number in box) + "\n")
            (folder / "labels" / split / f"{image.name}.txt").write_bytes("".join(lines).encode())
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(classes))
    paths = "".join(f"{split}: images/{split}\n" for split in SPLITS)
    (folder / "data.yaml").write_bytes(f"path: {folder.resolve()}\n{paths}names:\n{names}".encode())
    return folder / "data.yaml"


class Study:
    """The result file, and the trainings."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, arguments.work.resolve()
        settings = {name: getattr(arguments, name) for name in SETTINGS}
        self.document = read_result(arguments.output) or {"settings": settings, "stages": {}}
        if self.document["settings"] != settings:
            raise SystemExit(f"{arguments.output} was measured with {self.document['settings']}, not {settings}")
        self.data = write_data(arguments.data, self.work / "data", arguments.limit)
        self.example = torch.rand(1, 3, arguments.imgsz, arguments.imgsz)

    def settings(self, epochs: int, lr: float) -> dict[str, Any]:
        """Of a training."""
        chosen = {"epochs": epochs, "lr0": lr, "optimizer": "AdamW", "cos_lr": True, "seed": self.arguments.seed}
        images = {"data": str(self.data), "imgsz": self.arguments.imgsz, "batch": self.arguments.batch}
        return {**chosen, **images, "device": "cpu", "workers": 0, "plots": False, "patience": 0}

    def trained(self, stage: str, yolo: Any, epochs: int, lr: float) -> Any:
        """Trains a network, or goes on with an interrupted training, or opens one that has ended."""
        from ultralytics import YOLO

        last = self.work / stage / "weights" / "last.pt"
        if not last.is_file():
            yolo.train(project=str(self.work), name=stage, exist_ok=True, **self.settings(epochs, lr))
            return yolo
        opened = YOLO if integration().plan_of(yolo) is None else integration().from_checkpoint
        yolo = opened(str(last))
        if yolo.ckpt["epoch"] < 0:  # ultralytics takes the epoch out of the file at the end of a training
            return opened(str(last.with_name("best.pt")))
        yolo.train(resume=True)
        return yolo

    def measure(self, stage: str, yolo: Any, dense: Any) -> None:
        """Adds a stage to the result file."""
        if stage in self.document["stages"]:
            return
        where = {"project": str(self.work), "name": "val", "exist_ok": True, "device": "cpu", "workers": 0}
        found = yolo.val(data=str(self.data), imgsz=self.arguments.imgsz, split="test", plots=False, **where).box
        size = count(yolo.model, self.example)
        latency = compare_latency(dense.model.eval(), yolo.model.eval(), self.example, self.arguments.timing)
        self.document["stages"][stage] = {
            "map": round(float(found.map), 4),
            "map50": round(float(found.map50), 4),
            "parameters": size.parameters,
            "macs": size.macs,
            "latency": round(latency.after, 5),
            "run": run_number(self.document, "ultralytics"),
        }
        write_result(self.arguments.output, self.document)

    def run(self) -> None:
        """All stages."""
        from ultralytics import YOLO

        options = self.arguments
        dense = self.trained("dense", YOLO(f"{options.model}.yaml"), options.epochs, options.lr)
        file = str(self.work / "dense" / "weights" / "best.pt")
        self.measure("dense", dense, dense)
        for stage, recover in (("pruned", None), ("pruned, recovered", self.data)):
            pruned = YOLO(file)
            budget = Budget.remove(macs=options.remove)
            integration().prune(pruned, budget=budget, imgsz=options.imgsz, recover=recover)
            self.measure(stage, pruned, dense)
        tuned = self.trained("tuned", pruned, options.extra_epochs, options.extra_lr)
        self.measure("pruned, recovered, tuned", tuned, dense)
        further = self.trained("further", YOLO(file), options.extra_epochs, options.extra_lr)
        self.measure("dense, trained further", further, dense)


def integration() -> Any:
    """The integration, imported once the settings of ultralytics' folders are made."""
    from fec_fast.integrations import ultralytics

    return ultralytics


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BCCD in VOC's layout: a folder or a zip archive")
    parser.add_argument("--model", default="yolo11n", help="a network of ultralytics' YAML files")
    parser.add_argument("--epochs", type=int, default=100, help="of the dense training")
    parser.add_argument("--extra-epochs", type=int, default=50, help="of the tuning, and of the dense network's")
    parser.add_argument("--imgsz", type=int, default=320, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.002, help="learning rate of the dense training")
    parser.add_argument("--extra-lr", type=float, default=0.0005, help="that of the further trainings")
    parser.add_argument("--remove", type=float, default=0.5, help="the share of MACs that is removed")
    parser.add_argument("--limit", type=int, help="images of each split, for a try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timing", type=float, default=5.0, help="seconds that a network's latency is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "yolo", help="data, weights and logs")
    parser.add_argument("--output", type=Path, default=RESULTS / "yolo_bccd.json", help="the result file")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(arguments.work))
    os.environ.setdefault("YOLO_OFFLINE", "true")
    torch.set_num_threads(arguments.threads)
    Study(arguments).run()
    print(table_of_detection(read_result(arguments.output)), end="")


if __name__ == "__main__":
    main()
