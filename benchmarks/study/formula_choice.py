"""Choice of the default formula: one-shot accuracy of a trained CIFAR ResNet-56, by criterion and ratio.

    pip install '.[bench,vision]' && python -m benchmarks.study.formula_choice --weights cifar-resnet56.pth \\
        --images cifar10-jpeg.zip

Nothing is fine-tuned: every coupled set loses the same share of its channels, batch norm is re-estimated on training
images, and the accuracy is counted on test images. The zip file has folders ``train/CLASS`` and ``test/CLASS``. Writes
benchmarks/results/choose_formula.json.
"""

from __future__ import annotations

import argparse
import copy
import random
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from benchmarks.common.results import RESULTS, run_number, write_result
from benchmarks.study.data import classes_of, decoded, listed, normaliser
from fec_fast import Formula
from fec_fast.vision import networks
from fec_fast.vision.weights import load_weights

CANDIDATES: dict[str, dict[str, Any]] = {
    "l1, both sides": {"criterion": "l1"},
    "l1, producer": {"criterion": "l1", "sides": "producer"},
    "l2, both sides": {"criterion": "l2"},
    "fpgm, both sides": {"criterion": "fpgm"},
    "random": {"criterion": "random"},
    "literal (channels, mean), both sides": {"formula": Formula.literal()},
    "literal (channels, mean), producer": {"formula": Formula.literal(), "sides": "producer"},
    "channels, rms, both sides": {"formula": Formula(compress="rms", axis="channels")},
    "channels, absmean, both sides": {"formula": Formula(compress="absmean", axis="channels")},
    "channels, none, both sides": {"formula": Formula(compress="none", axis="channels")},
    "filters, rms, both sides": {"formula": Formula(compress="rms", axis="filters")},
    "filters, none, both sides": {"formula": Formula(compress="none", axis="filters")},
    "filters, none, producer": {"formula": Formula(compress="none", axis="filters"), "sides": "producer"},
    "filters, none, both sides, tau 0.5": {"formula": Formula(compress="none", axis="filters", tau_scale=0.5)},
    "filters, softmax, none, both sides": {"formula": Formula(compress="none", axis="filters", entropy="softmax")},
}


def drawn(archive: zipfile.ZipFile, part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of ``"train"`` or ``"test"`` drawn at random: float32 [count, 3, 32, 32], and their labels."""
    names = listed(archive, part)
    pixels, labels = decoded(archive, random.Random(seed).sample(names, count), classes_of(names))
    return normaliser("resnet56")(pixels), labels


def accuracy(model: nn.Module, train: Tensor, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that are classified correctly, after batch norm is re-estimated on ``train``."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()
        for batch in train.split(200):
            model(batch)
        model.eval()
        batches = zip(images.split(500), labels.split(500), strict=True)
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return 100 * correct / len(labels)


def main() -> None:
    """The command line: measures every candidate at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="state dict of the CIFAR ResNet-56")
    parser.add_argument("--images", required=True, help="the zip file of images")
    parser.add_argument("--output", default=RESULTS / "choose_formula.json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = networks.resnet56_cifar()
    load_weights(model, arguments.weights)
    model.eval()
    with zipfile.ZipFile(arguments.images) as archive:
        train, _ = drawn(archive, "train", 800, seed=0)
        images, labels = drawn(archive, "test", 1500, seed=1)
    whole = round(accuracy(copy.deepcopy(model), train, images, labels), 2)
    print(f"nothing removed: {whole} %", flush=True)
    rows: list[dict[str, Any]] = []
    for name, options in CANDIDATES.items():
        by_ratio = {}
        for ratio in (0.3, 0.4, 0.5):
            torch.manual_seed(0)
            pruned = fec_fast.prune(
                model, images[:2], ratio=ratio, verify=False, recover=None, **{"criterion": "fec", **options}
            ).model
            by_ratio[str(ratio)] = round(accuracy(pruned, train, images, labels), 2)
        rows.append({"candidate": name, "accuracy": by_ratio, "mean": round(sum(by_ratio.values()) / 3, 2)})
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: -row["mean"])
    document: dict[str, Any] = {
        "network": "CIFAR ResNet-56, no fine-tuning, batch norm re-estimated on 800 training images",
        "test_images": len(labels),
        "accuracy_with_nothing_removed": whole,
        "standard_error_points": round(100 * (0.5 * 0.5 / len(labels)) ** 0.5, 2),  # the largest: at 50 %
        "results": rows,
    }
    document["run"] = run_number(document)
    write_result(arguments.output, document)


if __name__ == "__main__":
    main()
