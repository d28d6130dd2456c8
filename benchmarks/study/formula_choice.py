"""Which formula should be the default? One-shot accuracy of a trained CIFAR ResNet-56, by criterion and ratio.

    python -m benchmarks.study.formula_choice --weights cifar-resnet56.pth --images cifar10-jpeg.zip

Nothing is fine-tuned: every coupled set loses the same share of channels, batch norm is re-estimated on training
images, and accuracy is counted on test images the re-estimation has not seen. The images are a zip with folders
``train/CLASS`` and ``test/CLASS``. Results go to ``benchmarks/results/choose_formula.json``.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import fec_fast
from fec_fast import Formula
from fec_fast.utils.machine import describe_machine
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
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(archive: zipfile.ZipFile, part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Reads images of a folder drawn at random: float32 [count, 3, 32, 32], and their labels."""
    names = sorted(name for name in archive.namelist() if f"{part}/" in name and name.endswith(".jpg"))
    classes = sorted({name.split("/")[-2] for name in names})
    chosen = random.Random(seed).sample(names, count)
    pixels = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").tobytes() for name in chosen]
    images = torch.stack([torch.frombuffer(bytearray(p), dtype=torch.uint8).view(32, 32, 3) for p in pixels])
    normal = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return normal, torch.tensor([classes.index(name.split("/")[-2]) for name in chosen])


def accuracy(model: nn.Module, train: Tensor, images: Tensor, labels: Tensor) -> float:
    """Percent of the images classified rightly, after batch norm was re-estimated on ``train``."""
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
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return 100 * right / len(labels)


def main() -> None:
    """Measures every candidate at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="state dict of the CIFAR ResNet-56")
    parser.add_argument("--images", required=True, help="zip of JPEG folders")
    parser.add_argument("--output", default=Path(__file__).parent.parent / "results" / "choose_formula.json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = networks.resnet56_cifar()
    load_weights(model, arguments.weights)
    model.eval()
    with zipfile.ZipFile(arguments.images) as archive:
        train, _ = read(archive, "train", 800, seed=0)
        images, labels = read(archive, "test", 1500, seed=1)
    whole = round(accuracy(copy.deepcopy(model), train, images, labels), 2)
    print(f"nothing removed: {whole} %", flush=True)
    rows: list[dict[str, Any]] = []
    for name, options in CANDIDATES.items():
        by_ratio = {}
        for ratio in (0.3, 0.4, 0.5):
            torch.manual_seed(0)
            pruned = fec_fast.prune(
                model, images[:2], ratio=ratio, verify=False, **{"criterion": "fec", **options}
            ).model
            by_ratio[str(ratio)] = round(accuracy(pruned, train, images, labels), 2)
        rows.append({"candidate": name, "accuracy": by_ratio, "mean": round(sum(by_ratio.values()) / 3, 2)})
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: -row["mean"])
    document = {
        "network": "CIFAR ResNet-56, no fine-tuning, batch norm re-estimated on 800 training images",
        "test_images": len(labels),
        "accuracy_with_nothing_removed": whole,
        "standard_error_points": round(100 * (0.5 * 0.5 / len(labels)) ** 0.5, 2),  # at 50 %, where it is largest
        "machine": describe_machine(),
        "results": rows,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
