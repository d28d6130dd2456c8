"""Recovery of a detector: average precision right after the cut of ``zoo:ssd-small`` on images of blood cells.

    pip install '.[bench,train,detection]' && python -m benchmarks.recovery.detector --data FOLDER

The folder holds ``bccd-voc.zip``. Budget and training are those of docs/ssd.md; criterion and ratios are those of the
bare cuts there, ``fec`` and ``entropy``. The dense detector is trained in float32 unless its weights are in
benchmarks/results/dense; an interrupted training continues. It is calibrated on the 205 training images without their
boxes, and tested on the split ``test``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.results import read_result
from benchmarks.detection.run import SETTINGS, TRAINING, example
from benchmarks.recovery.page import write
from benchmarks.recovery.rows import Rows, parser_of, started
from benchmarks.study.run import DENSE, halved
from fec_fast import Budget, PruneResult
from fec_fast.training.tasks.detection import Detection, evaluate_detector
from fec_fast.vision import zoo
from fec_fast.vision.voc import load_voc

EPOCHS, RATE, BATCH = 150, 2e-3, 8
SHARE, ROUND_TO = 0.5572, 8
CALIBRATION_BATCH = 41  # five batches


def loaders(file: Path, augment: str, batch: int, seed: int = 0) -> tuple[Any, Any]:
    """The loaders of the training and the test images."""
    return load_voc(file, batch, seed, image_size=SETTINGS["image"], augment=augment, splits=("train", "test"))


def trained(file: Path, work: Path, seed: int) -> nn.Module:
    """The dense detector, trained unless its weights exist."""
    train, held_out = loaders(file, "microscope", BATCH, seed)
    torch.manual_seed(seed)
    model = zoo.build("zoo:ssd-small", num_classes=len(held_out.dataset.classes) + 1, image_size=SETTINGS["image"])
    weights = DENSE / f"ssd-small-{seed}.safetensors"
    if not weights.is_file():
        model.to(memory_format=torch.channels_last)
        options = {**TRAINING, "epochs": EPOCHS, "lr": RATE, "seed": seed, "progress": False}
        state = work / f"ssd-{seed}-training"
        fec_fast.finetune(model, train, task=Detection(), checkpoint=state, resume=True, **options)
        model.to(memory_format=torch.contiguous_format)
        save_file({name: value.contiguous() for name, value in halved(model.state_dict()).items()}, weights)
    model.load_state_dict(load_file(weights))
    return model.eval()


def re_estimated(dense: nn.Module, result: PruneResult, images: Any) -> nn.Module:
    """The pruned detector, with its batch norms re-estimated."""
    model = copy.deepcopy(result.model)
    fec_fast.recalibrate(model, images)
    return model


def by_least_squares(dense: nn.Module, result: PruneResult, images: Any) -> nn.Module:
    """The pruned detector, compensated."""
    model = copy.deepcopy(result.model)
    fec_fast.compensate(dense, model, result.plan, images, progress=False)
    return model


METHODS: dict[str, Callable[[nn.Module, PruneResult, Any], nn.Module]] = {
    "dense": lambda dense, result, images: dense,
    "as pruned": lambda dense, result, images: result.model,
    "re-estimated": re_estimated,
    "least squares": by_least_squares,
}


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.set_defaults(work=ROOT / "runs" / "ssd")
    parser.add_argument("--seeds", default=1, type=int, help="dense detectors")
    arguments = started(parser)
    warnings.filterwarnings("ignore", message="nothing to resume|data 'voc:")
    file, rows = arguments.data / "bccd-voc.zip", Rows(arguments.output, "detector")
    for seed in range(arguments.seeds):
        if all(rows.has([seed, name]) for name in METHODS):
            continue
        dense = trained(file, arguments.work, seed)
        images, test = loaders(file, "none", CALIBRATION_BATCH)
        options: dict[str, Any] = {"ratios": "entropy", "criterion": "fec", "round_to": ROUND_TO, "recover": None}
        result = fec_fast.prune(dense, example(), budget=Budget(params=SHARE), **options)
        for name, method in METHODS.items():
            if not rows.has([seed, name]):
                precision = evaluate_detector(method(dense, result, images).eval(), test)
                rows.add([seed, name], {"coco": precision.coco, "voc": precision.voc})
    write(read_result(arguments.output))


if __name__ == "__main__":
    main()
