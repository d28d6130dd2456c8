"""docs/ssd.md from benchmarks/results/ssd.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import RESULTS, measured_on, read_result
from benchmarks.common.tables import markdown_table
from benchmarks.detection.stages import DENSE, DENSE_TRAINED, IMITATED, PRUNED, PRUNED_TRAINED, STAGES
from fec_fast.utils.text import counted

MEASURES = {
    "coco": "COCO, 0.5 to 0.95",
    "coco_50": "COCO, 0.5",
    "voc_2007": "VOC 2007, 11 points",
    "voc": "VOC, all points",
}
_FORMATS = {"no": "float32", "bf16": "bfloat16"}
SHOWN = 0.5  # the score from which on a detection is drawn
Seeds = dict[str, dict[str, Any]]  # stages by seed


def finished(document: dict[str, Any]) -> Seeds:
    """The seeds whose stages are all measured; ends the program if there is none."""
    seeds = {seed: rows for seed, rows in document["seeds"].items() if all(name in rows for name in STAGES)}
    if not seeds:
        raise SystemExit("no seed is finished yet: there is nothing to write a page from")
    return seeds


def spread(values: Sequence[float], factor: float = 100, digits: int = 1, sign: str = "") -> str:
    """The mean over the seeds with its 95 % interval by Student's t, such as "55.8 ± 0.4"."""
    text = f"{factor * fmean(values):{sign}.{digits}f}"
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        text += f" ± {factor * half:.{digits}f}"
    return text


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    images, seeds = document["images"], finished(document)
    measures = {title: _measure(key) for key, title in MEASURES.items()}
    classes = next(iter(seeds.values()))[DENSE]["test"]["by_class"]
    by_class = {
        f"{label}, {title}": _measure("by_class", label, key)
        for key, title in (("coco", "COCO"), ("voc", "VOC"))
        for label in classes
    }
    gains = [f"{title} {_gain(seeds, key)}" for key, title in (("coco", "COCO mAP"), ("voc", "VOC mAP (all points)"))]
    return page_of(
        "Pruning a detector",
        *_method(document, seeds),
        heading(f"Results: {images['test']} images, {len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'}"),
        paragraph(f"**Pruned minus dense, both trained further: {', '.join(gains)} points.**"),
        paragraph("mAP in %, evaluated in float32, with the 95 % interval of the mean over the seeds:"),
        _table(seeds, measures),
        paragraph("Pruned minus dense, both trained further, in points:"),
        _differences(seeds),
        paragraph("By class, COCO (overlap 0.5 to 0.95) and VOC (all points):"),
        _table(seeds, by_class),
        *_earlier(),
        *_latency(seeds),
        *_script(document["settings"]),
        heading("Detections before and after"),
        paragraph(
            "Two images of `test`, seed 0. Left: the annotations; middle: the dense network, trained further; right:",
            f"the pruned network, trained further. Shown are detections with a score of {SHOWN} or more. Yellow:",
            "platelets; red: red cells; blue: white cells.",
        ),
        "![Detections before and after](ssd.jpg)\n",
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("ssd.md", page(document))


def _method(document: dict[str, Any], seeds: Seeds) -> list[str]:
    settings, images = document["settings"], document["images"]
    rows = list(seeds.values())
    dense, pruned = rows[0][DENSE], rows[0][PRUNED]
    parameters, macs = (100 * (1 - pruned[key] / dense[key]) for key in ("parameters", "macs"))
    formats = " or ".join(
        sorted({_FORMATS[row[stage]["precision"]] for row in rows for stage in STAGES if stage != PRUNED})
    )
    seconds = [fmean(row[n]["training_seconds"] for row in rows) for n in (DENSE, DENSE_TRAINED, PRUNED_TRAINED)]
    return [
        written_by("python -m benchmarks.detection --page-only", "ssd.json"),
        paragraph("The results were measured by"),
        code(f"python -m benchmarks.detection --data bccd-voc.zip --seeds {len(seeds)}"),
        measured_on(document, [row for stages in rows for row in stages.values()]),
        paragraph(
            "The paper reports an SSD with 55.72 % fewer parameters and an mAP that is 1.04 points higher. Its data,",
            "training and formula are not public; this is not a reproduction. It measures the difference on a detector",
            "that two cores can train.",
        ),
        paragraph(
            "**Data.** [BCCD](https://github.com/Shenggan/BCCD_Dataset) (MIT): blood cells under a microscope, in the",
            f"layout of VOC, its own split: {images['train']} images for training; `val` and `test`, on which nothing",
            f"was chosen, {images['test']} for the results. Two boxes without an area are dropped.",
        ),
        paragraph(
            "**Network.** `zoo:ssd-small`: torchvision's SSD on eleven convolutions with batch norm,",
            f"{settings['image']} x {settings['image']} pixels, {dense['parameters']:,} parameters,",
            f"{dense['macs'] / 1e6:.0f} M multiply-accumulates.",
        ),
        paragraph(
            f"**Pruning.** `prune(model, example, budget=Budget.remove(params={settings['params']}),",
            f"round_to={settings['round_to']}, recover=images)` with its defaults, on the training images without",
            f"their boxes. It removes {parameters:.1f} % of the parameters and {macs:.1f} % of the",
            "multiply-accumulates.",
        ),
        paragraph(
            f"**Training.** `fec_fast.finetune(..., task=task)`: AdamW, {settings['epochs']} epochs in {formats}",
            f"from random weights. Then the dense and the pruned network are trained for {settings['extra_epochs']}",
            "further epochs with equal settings, on the same images in the same order. Both imitate the attention maps",
            f"of the dense network before them ({', '.join(IMITATED)}, weight 1). These settings are those of the",
            "earlier study below, which compared them on `val`. Wall time in seconds (other work on the machine was",
            f"not excluded): dense {seconds[0]:.0f}, trained further {seconds[1]:.0f}, pruned {seconds[2]:.0f}.",
        ),
    ]


def _measure(*keys: str) -> Callable[[dict[str, Any]], float]:
    def take(row: Any) -> float:
        for key in keys:
            row = row[key]
        return float(row)

    return take


def _table(seeds: Seeds, columns: dict[str, Callable[[dict[str, Any]], float]]) -> str:
    """One row per stage, one column per measure."""
    rows = [
        [name, *(spread([take(stages[name]["test"]) for stages in seeds.values()]) for take in columns.values())]
        for name in STAGES
    ]
    return markdown_table(["", *columns], rows)


def _gains(seeds: Seeds, key: str) -> list[float]:
    """Pruned minus dense by seed, both trained further, as a share."""
    return [rows[PRUNED_TRAINED]["test"][key] - rows[DENSE_TRAINED]["test"][key] for rows in seeds.values()]


def _gain(seeds: Seeds, key: str) -> str:
    return spread(_gains(seeds, key), sign="+")


def _differences(seeds: Seeds) -> str:
    columns = [_gains(seeds, key) for key in MEASURES]
    body = [
        [seed, *(f"{100 * gain:+.1f}" for gain in gains)]
        for seed, gains in zip(seeds, zip(*columns, strict=True), strict=True)
    ]
    body.append(["**mean**", *(f"**{_gain(seeds, key)}**" for key in MEASURES)])
    return markdown_table(["seed", *MEASURES.values()], body)


def _earlier() -> list[str]:
    """The study of bare cuts, of the version that had policies to choose from."""
    document = read_result(RESULTS / "ssd_bare.json")
    assert document is not None
    seeds, count = document["seeds"].values(), document["images"]["test"]
    rows = []
    for policy, suffix in (("uniform", ""), ("entropy", ""), ("global", ""), ("entropy", ", imitating")):
        pruned, dense = f"{policy}, 50 more{suffix}", f"dense, 50 more{suffix}"
        gains = ([row[pruned]["test"][key] - row[dense]["test"][key] for row in seeds] for key in MEASURES)
        rows.append([f"{policy}{suffix}", *(spread(each, sign="+") for each in gains)])
    return [
        heading("Earlier: bare cuts"),
        paragraph(
            "What was tried before recovery: the criterion `fec` with three policies, bare cuts (`recover=None`), 50",
            "further epochs in bfloat16, without and with the attention maps to imitate. Pruned minus dense, both",
            f"trained further, in points, on the {count} images of `test`, {len(seeds)} seeds. The policy was to be",
            "chosen on `val`. It was measured before commit b1572fc, by the command in docs/ssd.md there.",
        ),
        markdown_table(["policy", *MEASURES.values()], rows),
    ]


def _latency(seeds: Seeds) -> list[str]:
    rows = [row[PRUNED]["latency"] for row in seeds.values()]
    before, after = ([1000 * row[key] for row in rows] for key in ("before", "after"))
    ratios = [slow / fast for slow, fast in zip(before, after, strict=True)]
    return [
        heading("Latency"),
        paragraph(
            f"One image in float32, {counted(rows[0]['threads'], 'thread')}, with the selection of boxes:",
            f"{spread(before, 1)} ms before, {spread(after, 1)} ms after (medians, one per seed; other work on the",
            "machine was not excluded).",
            f"Before divided by after: {spread(ratios, 1, 2)}.",
        ),
    ]


def _script(settings: dict[str, Any]) -> list[str]:
    size = settings["image"]
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
            f"    budget=fec_fast.Budget.remove(params={settings['params']}),",
            f"    round_to={settings['round_to']},",
            "    recover=train,  # the boxes are not used",
            ")",
            "fec_fast.finetune(",
            "    result.model,",
            "    train,",
            "    task=task,",
            f"    epochs={settings['extra_epochs']},",
            '    optimizer="adamw",',
            f"    lr={settings['lr']},",
            "    teacher=model,",
            f"    feature_layers={json.dumps(IMITATED)},",
            ")",
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
