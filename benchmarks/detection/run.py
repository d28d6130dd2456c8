"""Detection: average precision of a narrow SSD on images of blood cells, dense and pruned, by seed.

    pip install '.[bench,train,detection]' && python -m benchmarks.detection --data bccd-voc.zip

For every seed a dense network is trained. A copy is pruned and recovered on the training images, without their boxes.
Then both are trained further, for the same epochs with the same settings, imitating the features of the dense network.
Nothing is chosen on the splits ``val`` and ``test``: both together are the images of the results. Finished stages are
kept in runs/ssd and written to benchmarks/results/ssd.json at once; an interrupted training continues after its last
epoch. At the end docs/ssd.md is written; with ``--page-only``, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.precision import quick_precision
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.detection.page import write
from benchmarks.detection.stages import DENSE, DENSE_TRAINED, IMITATED, PRUNED, PRUNED_TRAINED
from benchmarks.study.run import DENSE as DENSE_WEIGHTS
from benchmarks.study.run import halved
from fec_fast import Budget
from fec_fast.graph.counts import count
from fec_fast.training.tasks.detection import Detection, evaluate_detector
from fec_fast.utils.timing import compare_latency
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc

RESULT = RESULTS / "ssd.json"
WEIGHTS = DENSE_WEIGHTS / "ssd.safetensors"  # of the first seed's dense network, in float16, for benchmarks.defaults
TRAINING = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warmup_epochs": 1.0,
    "clip_norm": 10.0,
}
SETTINGS = {
    "image": 192,
    "batch": 8,
    "epochs": 150,  # of the dense network
    "extra_epochs": 50,  # of the further training, dense and pruned
    "lr": 2e-3,  # of both
    "params": 0.5572,  # the share of parameters to remove
    "round_to": 8,
    **TRAINING,
}


def example() -> list[Tensor]:
    """The example input of tracing and timing: one image."""
    size = SETTINGS["image"]
    return [torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))]


class Study:
    """The result file, and the images that further stages need.

    Attributes:
        document: The content of the result file.
        test: The images of the results, in batches.
    """

    def __init__(self, data: Path, output: Path, work: Path, settings: dict[str, Any]) -> None:
        self.data, self.output, self.work, self.settings = data, output, work, settings
        self.work.mkdir(parents=True, exist_ok=True)
        self.document = read_result(output) or {"settings": settings, "seeds": {}}
        if self.document["settings"] != settings:
            raise SystemExit(f"{output} was measured with {self.document['settings']}, not {settings}")
        val, test = (self.loaders(0, part)[1] for part in ("val", "test"))
        both: Any = ConcatDataset([val.dataset, test.dataset])
        both.classes = self.classes = test.dataset.classes
        self.test = DataLoader(both, settings["batch"], collate_fn=test.collate_fn)
        self.document["images"] = {"test": len(both), "train": len(self.loaders(0, "val")[0].dataset)}

    def loaders(self, seed: int, held_out: str, augment: str = "microscope") -> tuple[Any, Any]:
        """The loaders of the training images and of another split."""
        options: dict[str, Any] = {"image_size": self.settings["image"], "augment": augment}
        return load_voc(self.data, self.settings["batch"], seed, splits=("train", held_out), **options)

    def build(self) -> nn.Module:
        """A new network."""
        size = self.settings["image"]
        return zoo.build("zoo:ssd-small", num_classes=len(self.classes) + 1, image_size=size)

    def prune(self, model: nn.Module) -> fec_fast.PruneResult:
        """Prunes a network to the budget by the defaults, and recovers it on the training images as they are."""
        images = [batch for batch, _ in self.loaders(0, "val", augment="none")[0]]
        budget = Budget.remove(params=self.settings["params"])
        return fec_fast.prune(model, example(), budget=budget, round_to=self.settings["round_to"], recover=images)

    def train(self, model: nn.Module, name: str, epochs: int, seed: int, teacher: nn.Module | None = None) -> float:
        """Trains in place, continuing an interrupted training; returns the wall time in seconds."""
        model.to(memory_format=torch.channels_last)  # faster on processors with bfloat16 instructions
        result = fec_fast.finetune(
            model,
            self.loaders(seed, "val")[0],
            task=Detection(),
            teacher=teacher,
            feature_layers=IMITATED if teacher else (),
            checkpoint=self.work / f"{name}-training",
            resume=True,
            progress=False,
            mixed_precision=quick_precision(),
            **{**TRAINING, "epochs": epochs, "lr": self.settings["lr"], "seed": seed},
        )
        model.to(memory_format=torch.contiguous_format)
        return round(sum(row.seconds for row in result.history), 1)

    def file(self, seed: int, name: str) -> Path:
        """The file of weights of a stage."""
        return self.work / f"{seed}-{name.replace(', ', '-').replace(' ', '-')}.safetensors"

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """The average precisions in float32, and the size of the network."""
        size = count(model, example())
        precisions = asdict(evaluate_detector(model.eval(), self.test))
        run = run_number(self.document, "torchvision")
        return {"test": precisions, "parameters": size.parameters, "macs": size.macs, "run": run}

    def stage(self, seed: int, name: str, model: nn.Module, *training: Any) -> nn.Module:
        """Trains and measures a model, unless the result file has the stage; loads its weights in both cases.

        Args:
            seed: The seed.
            name: The name of the stage.
            model: The model; trained in place.
            training: The arguments of :meth:`train` after the name.
        """
        rows, file = self.document["seeds"].setdefault(str(seed), {}), self.file(seed, name)
        if name not in rows:
            seconds = self.train(model, file.stem, *training)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
            trained = {"training_seconds": seconds, "precision": quick_precision()}
            rows[name] = {**self.measured(model), **trained}
            write_result(self.output, self.document)
        model.load_state_dict(load_file(file))
        print(seed, name, f"COCO mAP {100 * rows[name]['test']['coco']:.1f} %", flush=True)
        return model.eval()

    def run(self, seed: int) -> None:
        """Measures all stages of a seed."""
        torch.manual_seed(seed)
        dense = self.stage(seed, DENSE, self.build(), self.settings["epochs"], seed)
        if not WEIGHTS.is_file():  # of the first seed
            save_file({key: value.contiguous() for key, value in halved(dense.state_dict()).items()}, WEIGHTS)
        pruned, rows = self.prune(dense).model, self.document["seeds"][str(seed)]
        if PRUNED not in rows:
            seconds = asdict(compare_latency(dense, pruned, example(), min_run_time=5.0))
            rows[PRUNED] = {**self.measured(pruned), "latency": seconds}
            write_result(self.output, self.document)
        for name, model in ((DENSE_TRAINED, copy.deepcopy(dense)), (PRUNED_TRAINED, pruned)):
            self.stage(seed, name, model, self.settings["extra_epochs"], 1000 + seed, copy.deepcopy(dense))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder or zip file in the layout of VOC")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "ssd", type=Path, help="a folder for the trained networks")
    parser.add_argument("--seeds", default=5, type=int)
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if not arguments.page_only:
        if arguments.data is None:
            parser.error("--data is needed, except with --page-only")
        warnings.filterwarnings("ignore", message="nothing to resume|data 'voc:")
        torch.set_num_threads(1)
        study = Study(arguments.data, arguments.output, arguments.work, SETTINGS)
        for seed in range(arguments.seeds):
            study.run(seed)
    write(read_result(arguments.output))


if __name__ == "__main__":
    main()
