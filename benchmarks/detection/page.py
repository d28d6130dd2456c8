"""docs/ssd.md from benchmarks/results/ssd.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on, older_scores
from benchmarks.common.tables import markdown_table
from benchmarks.detection.stages import IMITATED, LISTS, Arm, arms, latency, untuned

MEASURES = {
    "coco": "COCO, 0.5 to 0.95",
    "coco_50": "COCO, 0.5",
    "voc_2007": "VOC 2007, 11 points",
    "voc": "VOC, all points",
}
SHOWN = 0.5  # the score from which on a detection is drawn
Seeds = dict[str, dict[str, Any]]  # stages by seed
EARLIER_RUN = (
    "An earlier run, not part of the results (before 2026-11-26, `--epochs 50 --extra-epochs 20 --policies uniform`): "
    "51.1 % COCO mAP dense; pruned 0.3 points of COCO mAP and 0.6 points of VOC mAP below dense. `--epochs`, "
    "`--extra-epochs` and `--policies` were chosen after it, with a look at seed 0 on `val`."
)


def finished(document: dict[str, Any]) -> Seeds:
    """The seeds whose stages are all measured; ends the program if there is none."""
    names = [arm.name for arm in arms(document["settings"])]
    seeds = {seed: rows for seed, rows in document["seeds"].items() if all(name in rows for name in names)}
    if not seeds:
        raise SystemExit("no seed is finished yet: there is nothing to write a page from")
    return seeds


def selected(document: dict[str, Any], seeds: Seeds) -> Arm:
    """The fine-tuning of a pruned network with the highest mean COCO mAP on the split ``val``."""
    candidates = [arm for arm in arms(document["settings"]) if arm.policy is not None]
    return max(candidates, key=lambda arm: fmean(rows[arm.name]["val"]["coco"] for rows in seeds.values()))


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    settings, images, seeds = document["settings"], document["images"], finished(document)
    arm = selected(document, seeds)
    stages = ["dense", *map(untuned, settings["policies"]), *(each.name for each in arms(settings))]
    measures = {title: _measure(key) for key, title in MEASURES.items()}
    classes = next(iter(seeds.values()))["dense"]["test"]["by_class"]
    by_class = {
        f"{label}, {title}": _measure("by_class", label, key)
        for key, title in (("coco", "COCO"), ("voc", "VOC"))
        for label in classes
    }
    imitating = ", imitating the dense network" if arm.imitating else ""
    return page_of(
        "Pruning a detector",
        *_method(document, seeds, arm),
        heading(f"Results: {images['test']} test images, {len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'}"),
        paragraph(
            f"**Pruned ({arm.policy}) minus dense, both after {arm.epochs} more epochs{imitating}:"
            f" {_summary(seeds, arm)}.**"
        ),
        paragraph("mAP in %, evaluated in float32, mean and range over the seeds:"),
        _table(seeds, "test", stages, measures),
        paragraph(f"{arm.name[0].upper()}{arm.name[1:]}, minus {arm.control.name}, in points:"),
        _differences(seeds, arm),
        paragraph("By class, COCO (overlap 0.5 to 0.95) and VOC (all points):"),
        _table(seeds, "test", ["dense", arm.control.name, untuned(str(arm.policy)), arm.name], by_class),
        paragraph(EARLIER_RUN),
        *_latency(seeds, arm),
        heading("Validation images"),
        paragraph(f"The same on the {images['val']} images of `val`, which the policy was selected on:"),
        _table(seeds, "val", stages, measures),
        *_script(settings, arm),
        heading("Detections before and after"),
        paragraph(
            "The first two test images, seed 0. Left: the annotations; middle: the dense network, trained further;",
            f"right: the pruned network, fine-tuned. Shown are detections with a score of {SHOWN} or more. Yellow:",
            "platelets; red: red cells; blue: white cells.",
        ),
        "![Detections before and after](ssd.jpg)\n",
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("ssd.md", page(document))


def _method(document: dict[str, Any], seeds: Seeds, arm: Arm) -> list[str]:
    settings, images = document["settings"], document["images"]
    rows = list(seeds.values())
    dense, pruned = rows[0]["dense"], rows[0][arm.name]
    trained = [row for stages in rows for row in stages.values() if "training_seconds" in row]
    parameters, macs = (100 * (1 - pruned[key] / dense[key]) for key in ("parameters", "macs"))
    seconds = [
        spread([row[n]["training_seconds"] for row in rows], 1, 0) for n in ("dense", arm.control.name, arm.name)
    ]
    options = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
        if name in ("epochs", "extra_epochs", "lr", "extra_lr", "batch", "budget", "round_to", *LISTS)
    )
    imitated = f"; once more with the attention maps of the dense network to imitate ({', '.join(IMITATED)}, weight 1)"
    return [
        written_by("python -m benchmarks.detection --page-only", "ssd.json"),
        paragraph("The results were measured by"),
        code(f"python -m benchmarks.detection --data bccd-voc.zip {options} --seeds {len(seeds)}"),
        measured_on(document, trained),
        older_scores(document, trained),
        paragraph(
            "The paper reports an SSD with 55.72 % fewer parameters and an mAP that is 1.04 points higher. Its data,",
            "training and formula are not public; this is not a reproduction. It measures the difference on a detector",
            "that two cores can train.",
        ),
        paragraph(
            "**Data.** [BCCD](https://github.com/Shenggan/BCCD_Dataset) (MIT): blood cells under a microscope, in the",
            f"layout of VOC, its own split: {images['train']} images for training, {images['val']} for the selection",
            f"of the policy, {images['test']} for the results. One box without an area is dropped in each of the first",
            "two.",
        ),
        paragraph(
            "**Network.** `zoo:ssd-small`: torchvision's SSD on eleven convolutions with batch norm,",
            f"{settings['image']} x {settings['image']} pixels, {dense['parameters']:,} parameters,",
            f"{dense['macs'] / 1e6:.0f} M multiply-accumulates.",
        ),
        paragraph(
            f"**Training.** `fec_fast.finetune(..., task=task)`: AdamW, {settings['epochs']} epochs in bfloat16",
            "from random weights. Then the dense network is trained further and pruned copies are fine-tuned, for",
            f"{' or '.join(map(str, settings['extra_epochs']))} epochs with equal settings, on the same images in the",
            f"same order{imitated if settings['imitate'] else ''}. Wall time in seconds (other work on the machine was",
            f"not excluded): dense {seconds[0]}, trained further {seconds[1]}, pruned {seconds[2]}.",
        ),
        paragraph(
            f"**Pruning.** `prune(model, example, budget=Budget.remove(params={settings['budget']}),",
            f"round_to={settings['round_to']}, criterion='fec', ratios=POLICY, recover=None)` with the policies",
            f"{', '.join(settings['policies'])}. Selected by COCO mAP on `val`: **{arm.policy}** ({arm.name}); it",
            f"removes {parameters:.1f} % of the parameters and {macs:.1f} % of the multiply-accumulates.",
        ),
    ]


def spread(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """The mean and the range over the seeds, such as "55.8 (55.3-56.1)"."""
    text = f"{factor * fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({factor * min(values):.{digits}f}-{factor * max(values):.{digits}f})"
    return text


def _measure(*keys: str) -> Callable[[dict[str, Any]], float]:
    def take(row: Any) -> float:
        for key in keys:
            row = row[key]
        return float(row)

    return take


def _table(
    seeds: Seeds, split: str, stages: Sequence[str], columns: dict[str, Callable[[dict[str, Any]], float]]
) -> str:
    """One row per stage, one column per measure, on one split."""
    rows = [
        [name, *(spread([take(stages_of[name][split]) for stages_of in seeds.values()]) for take in columns.values())]
        for name in stages
    ]
    return markdown_table(["", *columns], rows)


def _points(rows: dict[str, Any], arm: Arm, key: str) -> float:
    """Pruned minus dense on the test images, both after the same further training, in points."""
    return float(100 * (rows[arm.name]["test"][key] - rows[arm.control.name]["test"][key]))


def _differences(seeds: Seeds, arm: Arm) -> str:
    points = {seed: [_points(rows, arm, key) for key in MEASURES] for seed, rows in seeds.items()}
    means = [fmean(column) for column in zip(*points.values(), strict=True)]
    body = [[seed, *(f"{value:+.1f}" for value in values)] for seed, values in points.items()]
    body.append(["**mean**", *(f"**{mean:+.1f}**" for mean in means)])
    return markdown_table(["seed", *MEASURES.values()], body)


def _summary(seeds: Seeds, arm: Arm) -> str:
    """The differences in words: the mean, the range, and the number of seeds where pruned is not below dense."""
    parts = []
    for key, title in (("coco", "COCO mAP"), ("voc", "VOC mAP (all points)")):
        points = [_points(rows, arm, key) for rows in seeds.values()]
        not_below = sum(value >= 0 for value in points)
        parts.append(
            f"{title} {fmean(points):+.1f} points in the mean, {min(points):+.1f} to {max(points):+.1f} over the seeds,"
            f" not below dense in {not_below} of {len(points)}"
        )
    return "; ".join(parts)


def _latency(seeds: Seeds, arm: Arm) -> list[str]:
    rows = [row[latency(str(arm.policy))] for row in seeds.values()]
    before, after = ([1000 * row[key] for row in rows] for key in ("before", "after"))
    ratios = [slow / fast for slow, fast in zip(before, after, strict=True)]
    return [
        heading("Latency"),
        paragraph(
            f"One image in float32, {rows[0]['threads']} thread, with the selection of boxes: {spread(before, 1)} ms",
            f"before, {spread(after, 1)} ms after (medians, one per seed; other work on the machine was not excluded).",
            f"Before divided by after: {spread(ratios, 1, 2)}.",
        ),
    ]


def _script(settings: dict[str, Any], arm: Arm) -> list[str]:
    size, teacher = settings["image"], ""
    if arm.imitating:
        teacher = f", teacher=model, feature_layers={json.dumps(IMITATED)}"
    return [
        heading("The same in a script"),
        code(
            "import torch",
            "",
            "import fec_fast",
            "",
            "task = fec_fast.detection.Detection()",
            f'train, held_out = fec_fast.voc.load_voc("bccd-voc.zip", {settings["batch"]}, image_size={size}, '
            'augment="microscope")',
            'model = fec_fast.zoo.build("zoo:ssd-small", num_classes=len(train.dataset.classes) + 1)',
            f'fec_fast.finetune(model, train, task=task, epochs={settings["epochs"]}, optimizer="adamw", '
            f"lr={settings['lr']})",
            "result = fec_fast.prune(",
            "    model,",
            f"    [torch.rand(3, {size}, {size})],",
            f"    budget=fec_fast.Budget.remove(params={settings['budget']}),",
            f"    round_to={settings['round_to']},",
            '    criterion="fec",',
            f'    ratios="{arm.policy}",',
            "    recover=None,",
            ")",
            f'fec_fast.finetune(result.model, train, task=task, epochs={arm.epochs}, optimizer="adamw", '
            f"lr={settings['extra_lr']}{teacher})",
            "# COCO, VOC 2007 and VOC with all points, by class",
            "print(fec_fast.detection.evaluate_detector(result.model, held_out))",
            language="python",
        ),
        paragraph(
            "Other detectors of torchvision work in the same way (`torchvision:ssd300_vgg16`). A complete run by one",
            "command is [recipes/ssd300-voc.yaml](../recipes/ssd300-voc.yaml), see [results.md](results.md).",
            "`help(fec_fast.training.tasks.average_precision)` explains the measures.",
        ),
    ]
