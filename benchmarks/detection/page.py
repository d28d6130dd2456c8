"""Writes docs/ssd.md from the results of ``ssd_study.py``, and, given the images, the pictures in it.

python -m benchmarks.detection.page [--data bccd-voc.zip]
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.detection import run as ssd_study

ROOT = Path(__file__).parent.parent.parent
MEASURES = {
    "coco": "COCO, 0.5 to 0.95",
    "coco_50": "COCO, 0.5",
    "voc_2007": "VOC 2007, 11 points",
    "voc": "VOC, all points",
}
COLOURS = ("#ffb000", "#d02020", "#1040ff")
SHOWN = 0.5  # the score from which a detection is drawn


def spread(values: list[float], factor: float = 100, digits: int = 1) -> str:
    """The mean, and the range over the seeds."""
    words = f"{factor * fmean(values):.{digits}f}"
    if len(values) > 1:
        words += f" ({factor * min(values):.{digits}f}-{factor * max(values):.{digits}f})"
    return words


def mean_of(seeds: list[dict[str, Any]], stage: str, part: str, key: str) -> float:
    """The mean over the seeds, in %."""
    return 100 * fmean(rows[stage][part][key] for rows in seeds)


def chosen(document: dict[str, Any], seeds: list[dict[str, Any]]) -> ssd_study.Arm:
    """The fine-tuning of a pruned network with the highest COCO mAP on the images to choose on."""
    candidates = [arm for arm in ssd_study.arms(document["settings"]) if arm.policy is not None]
    return max(candidates, key=lambda arm: mean_of(seeds, arm.name, "val", "coco"))


def table(
    seeds: list[dict[str, Any]], part: str, stages: list[str], columns: dict[str, Callable[[dict[str, Any]], float]]
) -> list[str]:
    """A row a stage, a column a number taken from what was measured on a split."""
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in stages:
        cells = [spread([take(seed[name][part]) for seed in seeds]) for take in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def apart(rows: dict[str, Any], arm: ssd_study.Arm, key: str) -> float:
    """Pruned less dense on the test images, both after the same further training, in points."""
    return float(100 * (rows[arm.name]["test"][key] - rows[arm.control.name]["test"][key]))


def differences(seeds: dict[str, dict[str, Any]], arm: ssd_study.Arm) -> str:
    """The same, by seed."""
    found = [[apart(rows, arm, key) for key in MEASURES] for rows in seeds.values()]
    lines = ["| seed | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---|" * len(MEASURES)]
    lines += [
        f"| {seed} | {' | '.join(f'{value:+.1f}' for value in row)} |" for seed, row in zip(seeds, found, strict=True)
    ]
    means = [fmean(column) for column in zip(*found, strict=True)]
    lines.append(f"| **mean** | {' | '.join(f'**{value:+.1f}**' for value in means)} |")
    return "\n".join(lines)


def verdict(seeds: dict[str, dict[str, Any]], arm: ssd_study.Arm) -> str:
    """The paper's sign, or not, in words that follow from the numbers."""
    parts = []
    for key, title in (("coco", "COCO mAP"), ("voc", "VOC mAP (all points)")):
        found = [apart(rows, arm, key) for rows in seeds.values()]
        up, mean = sum(value >= 0 for value in found), fmean(found)
        parts.append(f"{title} {mean:+.1f} points in the mean, not below the dense one's in {up} of {len(found)} seeds")
    return "; ".join(parts)


def wrapped(*words: str) -> list[str]:
    """A paragraph."""
    return [*textwrap.wrap(" ".join(words), 120, break_long_words=False, break_on_hyphens=False), ""]


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    settings, where, images = document["settings"], document["machine"], document["images"]
    made = ssd_study.arms(settings)
    seeds = {seed: rows for seed, rows in document["seeds"].items() if all(arm.name in rows for arm in made)}
    if not seeds:
        raise SystemExit("no seed is finished yet")
    rows = list(seeds.values())
    arm = chosen(document, rows)
    policy, best, control = arm.policy, arm.name, arm.control.name
    lengths, policies = settings["extra_epochs"], settings["policies"]
    dense, pruned = rows[0]["dense"], rows[0][best]
    classes = list(dense["test"]["by_class"])
    params, macs = (1 - pruned[key] / dense[key] for key in ("parameters", "macs"))
    latencies = [row[ssd_study.latency(policy)] for row in rows]
    before, after = ([1000 * row[key] for row in latencies] for key in ("before", "after"))
    ratios = [slow / fast for slow, fast in zip(before, after, strict=True)]
    seconds = {name: spread([row[name]["training_seconds"] for row in rows], 1, 0) for name in ("dense", control, best)}
    stages = ["dense", *(ssd_study.at_once(name) for name in policies), *(one.name for one in made)]
    flags = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
        if name in ("epochs", "extra_epochs", "lr", "extra_lr", "batch", "budget", "round_to", *ssd_study.LISTS)
    )
    by_class = {
        f"{label}, {words}": (lambda row, label=label, key=key: row["by_class"][label][key])
        for key, words in (("coco", "COCO"), ("voc", "VOC"))
        for label in classes
    }
    imitated, teacher = "", ""
    if settings["imitate"]:
        layers = ", ".join(f"`{layer}`" for layer in ssd_study.IMITATED)
        imitated = f"; once more with the dense network's attention maps to imitate ({layers}, weight 1)"
    if arm.imitating:
        teacher = f", teacher=model, feature_layers={json.dumps(ssd_study.IMITATED)}"
    measures = {words: (lambda row, key=key: row[key]) for key, words in MEASURES.items()}
    return "\n".join(
        [
            "# A detector, pruned",
            "",
            "Written by `python -m benchmarks.detection.page` from",
            "[benchmarks/results/ssd.json](../benchmarks/results/ssd.json), which was measured by",
            "",
            "```sh",
            f"python -m benchmarks.detection --data bccd-voc.zip {flags} --seeds {len(seeds)}",
            "```",
            "",
            *wrapped(
                "The paper reports an SSD of -55.72 % parameters whose mAP rose by 1.04 points. Its data, training and",
                "formula are not public to us, so this is no reproduction: it asks whether the sign holds for a",
                "detector that two cores can train.",
            ),
            *wrapped(
                "**Data.** [BCCD](https://github.com/Shenggan/BCCD_Dataset) (MIT), blood cells under a microscope in",
                f"VOC layout, its own split: {images['train']} images to train on, {images['val']} to choose on,",
                f"{images['test']} to report on; one box without an area in each of the first two is dropped.",
            ),
            *wrapped(
                "**Network.** `zoo:ssd-small`, torchvision's SSD on eleven convolutions with batch norm, at",
                f"{settings['image']} x {settings['image']} pixels: {dense['parameters']:,} parameters,",
                f"{dense['macs'] / 1e6:.0f} M multiply-accumulates.",
            ),
            *wrapped(
                f"**Training.** `fec_fast.finetune(..., task=Detection())`: AdamW, {settings['epochs']} epochs in",
                "bfloat16 from random weights. Then the dense network is trained on, and pruned copies of it are",
                f"fine-tuned, all for {' or '.join(map(str, lengths))} epochs more with the same settings, on the same",
                f"images in the same order{imitated}. In seconds: dense {seconds['dense']}, trained on",
                f"{seconds[control]}, pruned {seconds[best]} (wall time; the machine had other work at times).",
            ),
            *wrapped(
                f"**Pruning.** `prune(model, example, budget=Budget(params={settings['budget']}),",
                f"round_to={settings['round_to']}, criterion='fec', ratios=POLICY)`",
                f"with each of {', '.join(policies)}.",
                f"Chosen on the {images['val']} images of `val`, by COCO mAP: **{policy}**"
                + f" ({best}); it takes {100 * params:.1f} % of the parameters and {100 * macs:.1f} % of the",
                "multiply-accumulates away.",
            ),
            f"## {images['test']} test images, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
            "",
            *wrapped(
                f"**Pruned ({policy}) against dense, both after {arm.epochs} more epochs"
                f"{', imitating the dense network' if arm.imitating else ''}: {verdict(seeds, arm)}.**",
            ),
            "mAP in %, mean and range over the seeds, evaluated in float32:",
            "",
            *table(rows, "test", stages, measures),
            f"{best[0].upper()}{best[1:]}, less {control}, in points:",
            "",
            differences(seeds, arm),
            "",
            *wrapped(
                f"{images['test']} images are few: one box more or less of the rarest class moves its average",
                "precision by more than a point, so that differences of about a point say nothing about other images.",
            ),
            "By class, COCO's (overlap 0.5 to 0.95) and VOC's of all points:",
            "",
            *table(rows, "test", ["dense", control, ssd_study.at_once(policy), best], by_class),
            *wrapped(
                "An earlier run of the same command with `--epochs 50 --extra-epochs 20 --policies uniform` left the",
                "pruned network 0.3 points of COCO mAP and 0.6 of VOC's below the dense one. The dense network was far",
                f"from done then (51.1 % after 50 epochs, {mean_of(rows, 'dense', 'test', 'coco'):.1f} % after",
                f"{settings['epochs']}), and a look at seed 0 on `val` showed a spread by `entropy` a point above an",
                "even one. Length and policies were set as they are here after that.",
            ),
            "## Latency",
            "",
            *wrapped(
                f"One image in float32, {latencies[0]['threads']} thread, with the search for boxes:",
                f"{spread(before, 1)} ms before and {spread(after, 1)} ms after (medians, one a seed; the machine had",
                f"other work at times). Before over after, timed in turn: {spread(ratios, 1, 2)}.",
            ),
            f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}, {where['device']}.",
            "",
            "## The images it was chosen on",
            "",
            f"The same on the {images['val']} images of `val`:",
            "",
            *table(rows, "val", stages, measures),
            "## In a script",
            "",
            "```python",
            "from fec_fast.training.tasks.detection import Detection, evaluate_detector",
            "from fec_fast.vision.voc import load_voc",
            "",
            f'train, held_out = load_voc("bccd-voc.zip", {settings["batch"]}, image_size={settings["image"]}, '
            'augment="microscope")',
            'model = fec_fast.vision.zoo.build("zoo:ssd-small", num_classes=len(train.dataset.classes) + 1)',
            f'fec_fast.finetune(model, train, task=Detection(), epochs={settings["epochs"]}, optimizer="adamw", '
            "lr=2e-3)",
            f"result = fec_fast.prune(model, [torch.rand(3, {settings['image']}, {settings['image']})], "
            f'budget=fec_fast.Budget(params=0.5572), ratios="{policy}")',
            f'fec_fast.finetune(result.model, train, task=Detection(), epochs={arm.epochs}, optimizer="adamw", '
            f"lr=2e-3{teacher})",
            "print(evaluate_detector(result.model, held_out))  # COCO's, VOC 2007's and all points, by class",
            "```",
            "",
            *wrapped(
                "Any of torchvision's detectors goes the same way (`torchvision:ssd300_vgg16`); a whole run by one",
                "command is [recipes/ssd300-voc.yaml](../recipes/ssd300-voc.yaml), see [results.md](results.md).",
                "`help(fec_fast.training.tasks.average_precision)` says how the measures differ.",
            ),
            "## Before and after",
            "",
            *wrapped(
                "The first two test images, seed 0, from left to right: as annotated, what the dense network (trained",
                f"on) finds and what the pruned one (fine-tuned) finds, with a score of {SHOWN} or more. Yellow:",
                "platelets; red: red cells; blue: white cells.",
            ),
            "![Detections before and after](ssd.jpg)",
            "",
        ]
    )


def picture(document: dict[str, Any], arguments: argparse.Namespace, file: Path) -> None:
    """Two test images: the annotations, what the dense network finds and what the pruned one finds."""
    from PIL import Image
    from safetensors.torch import load_file
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    words = ["--data", str(arguments.data), "--work", str(arguments.work)]
    for name, value in document["settings"].items():
        if f"{name}=" in str(ssd_study.parsed(words)):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    study = ssd_study.Study(ssd_study.parsed(words))
    arm = chosen(document, list(document["seeds"].values()))
    dense = study.build()
    dense.load_state_dict(load_file(study.file(0, "dense")))
    networks = [study.build(), study.prune(dense, str(arm.policy)).model]
    for network, stage in zip(networks, (arm.control.name, arm.name), strict=True):
        network.load_state_dict(load_file(study.file(0, stage)))
        network.eval()
    dataset = study.held_out["test"].dataset
    rows = []
    for index in range(2):
        image, target = dataset[index]
        with torch.no_grad():
            found = [network([image])[0] for network in networks]
        kept = [{key: value[one["scores"] >= SHOWN] for key, value in one.items()} for one in found]
        canvas = resize((image * 255).to(torch.uint8), [240, 320], antialias=True)
        rows.append(torch.cat([drawn(canvas, boxes, image.shape[1:]) for boxes in (target, *kept)], 2))
    pixels = torch.cat(rows, 1)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, quality=82, optimize=True)
    assert pil_to_tensor(Image.open(file)).shape == pixels.shape


def drawn(canvas: Tensor, boxes: dict[str, Tensor], size: torch.Size) -> Tensor:
    """An image with its boxes, those of the network's image size scaled to it; a white line at the right."""
    from torchvision.utils import draw_bounding_boxes

    scale = torch.tensor([canvas.shape[2] / size[1], canvas.shape[1] / size[0]]).repeat(2)
    colours = [COLOURS[label - 1] for label in boxes["labels"].tolist()]
    image = draw_bounding_boxes(canvas, boxes["boxes"] * scale, colors=colours, width=2)
    image[:, :, -2:] = 255
    image[:, -2:] = 255
    return image


def main() -> None:
    """Writes the page, and the pictures if the images are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the images, to draw the pictures anew")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ssd", help="where the study kept its networks")
    arguments = parser.parse_args()
    document = json.loads((ROOT / "benchmarks" / "results" / "ssd.json").read_text())
    (ROOT / "docs" / "ssd.md").write_text(page(document))
    if arguments.data is not None:
        picture(document, arguments, ROOT / "docs" / "ssd.jpg")


if __name__ == "__main__":
    main()
