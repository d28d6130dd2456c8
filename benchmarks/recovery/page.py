"""docs/recovery.md and its figure from benchmarks/results/recovery.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from benchmarks.common.figures import pyplot, write_figure
from benchmarks.common.pages import bullets, code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on, older_scores
from benchmarks.recovery.methods import (
    AS_PRUNED,
    BUDGETS,
    COUNTED_METHODS,
    COUNTED_NETWORKS,
    COUNTED_SHARE,
    DEFAULT,
    IMAGES,
    METHODS,
    OURS,
    RE_ESTIMATED,
    WITHOUT_IMAGES,
)
from benchmarks.recovery.networks import NAMES
from benchmarks.recovery.tables import (
    Accuracies,
    of_table,
    table_by_count,
    table_of_aims,
    table_of_cost,
    table_of_detector,
    table_of_methods,
    table_of_training,
    verdicts,
    written,
)
from benchmarks.study.estimates import estimate

SHOWN = (
    AS_PRUNED,
    RE_ESTIMATED,
    "Neuron Merging",
    "Model Folding",
    "GRAIL, re-estimated",
    WITHOUT_IMAGES,
    *OURS,
)

NOT_YET = paragraph("Not measured yet.")


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    rows = Accuracies(document)
    return page_of(
        "Recovery without training",
        *_method(document),
        "![Accuracy by what is left](recovery.svg)\n\n",
        heading("Aims"),
        table_of_aims(rows),
        heading("Accuracy by method"),
        paragraph(
            f"Accuracy in % right after the cut, {IMAGES:,} calibration images, no training, no labels. In brackets:",
            f"the difference to `{DEFAULT}` on the same images.",
        ),
        *(table for network in BUDGETS if (table := table_of_methods(rows, network, DEFAULT))),
        heading(f"Where `{DEFAULT}` is not ahead"),
        *_not_ahead(rows),
        heading("Accuracy by number of images"),
        paragraph(f"{written(('params', COUNTED_SHARE))}:"),
        *(table_by_count(rows, network, COUNTED_METHODS, ("params", COUNTED_SHARE)) for network in COUNTED_NETWORKS),
        heading("Detector"),
        *_command("detector"),
        paragraph("`zoo:ssd-small` on blood cells (72 test images), -55.7 % of parameters, right after the cut:"),
        table_of_detector(document) if of_table(document, "detector") else NOT_YET,
        heading("Cost"),
        *_command("cost"),
        paragraph(
            "CPU seconds in one thread at -50 % of parameters, medians of three rounds; the ratio is that to the dense",
            "and the pruned forward pass over the same images in the same round, with the least and the greatest.",
            "Memory is what the process grows by. At the right, where the time goes. A fit costs the same however",
            "small the images are: the ratio is higher where passes are cheap (MobileNetV2 at 32 x 32). VGG-16-BN at",
            "224 x 224 loses, at this budget, channels of its linear layers alone.",
        ),
        table_of_cost(document) if of_table(document, "cost") else NOT_YET,
        heading("Start for training"),
        *_command("training"),
        paragraph(
            "Accuracy in % before and after some steps of 64 images (SGD, cosine, float32). Each start has the",
            "learning rate that is best for it on other test images. All starts have the same channels (`fec_l1`,",
            "ratios `entropy`): what differs is the recovery.",
        ),
        *(
            [table_of_training(document, network, "re-estimated") for network in COUNTED_NETWORKS]
            if of_table(document, "training")
            else [NOT_YET]
        ),
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page and its figure."""
    write_page("recovery.md", page(document))
    write_figure("recovery.svg", figure_of(Accuracies(document)))


def _range(numbers: Collection[int]) -> str:
    """The least and the greatest of some numbers; one number if they are equal."""
    least, greatest = min(numbers), max(numbers)
    return str(least) if least == greatest else f"{least} to {greatest}"


def _method(document: dict[str, Any]) -> list[str]:
    most = max(row["images"] for row in document["dense"].values())
    dense = "; ".join(f"{NAMES[name]} {row['accuracy']:.1f}" for name, row in document["dense"].items())
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for network, *method, _, images in of_table(document, "accuracy"):
        if images == IMAGES:
            rows[network][str(method)] += 1
    draws = ", ".join(f"{NAMES[network]} {_range(of_network.values())}" for network, of_network in rows.items())
    return [
        written_by("python -m benchmarks.recovery --page-only", "recovery.json"),
        paragraph("All tables are measured by"),
        code("python -m benchmarks.recovery --data FOLDER"),
        paragraph("and those of accuracy alone by"),
        code("python -m benchmarks.recovery.accuracy --data FOLDER"),
        paragraph(
            f"**Images.** CIFAR-10 as JPEG: {most:,} test images that neither settings were chosen on nor the",
            "[study](study.md) tested; scikit-learn's digits: 450 test images. Calibration images are training images,",
            f"without their labels. Accuracy in % of the dense networks, in float32: {dense}.",
        ),
        paragraph(
            "**Methods.** All remove the same channels (`fec_l1`, ratios `entropy`), except those whose name says",
            "otherwise, and except Model Folding, which merges channels into as many.",
            f"With its defaults, `prune(..., budget=..., recover=images)` does `{DEFAULT}`,",
            f"`prune(..., budget=...)` alone, where there are batch norms, `{WITHOUT_IMAGES}`, and",
            f"`prune(..., budget=..., recover=None)` `{AS_PRUNED}`. Neuron Merging (Kim et al.,",
            "NeurIPS 2020), Model Folding with REPAIR (Wang et al., ICLR 2025) and GRAIL (Tang et al., CPAL 2026) are",
            "written from the papers and the authors' code in",
            "[baselines.py](../benchmarks/recovery/baselines.py). `re-estimated` is `fec_fast.recalibrate`,",
            "`least squares` is `fec_fast.compensate` with its defaults, and `data-free` the same without images.",
        ),
        paragraph(
            "**Intervals.** 95 %, over the test images and the draws of the calibration images (Student's t). Draws:",
            f"{draws}.",
        ),
        measured_on(document, document["rows"]),
        older_scores(document, document["rows"]),
    ]


def _command(name: str) -> list[str]:
    return [paragraph("Measured by"), code(f"python -m benchmarks.recovery.{name} --data FOLDER")]


def _not_ahead(rows: Accuracies) -> list[str]:
    """The methods that the project's is level with or behind, computed from the rows."""
    items = []
    for network in BUDGETS:
        for name in METHODS:
            grouped = verdicts(rows, network, DEFAULT, name) if name not in OURS else {}
            said = [
                f"{verdict} at {', '.join(grouped[verdict])}" for verdict in ("level", "behind") if verdict in grouped
            ]
            if said:
                items.append(f"{NAMES[network]}, {name}: {'; '.join(said)}.")
    return [bullets(items) or paragraph("It is ahead of every method at every budget, beyond the interval.")]


def figure_of(rows: Accuracies) -> Any:
    """Accuracy by what is left: one panel per network, one line per method."""
    figure, panels = pyplot().subplots(2, 3, figsize=(11, 6.5))
    for panel, (network, budgets) in zip(panels.flat, BUDGETS.items(), strict=True):
        for number, name in enumerate(SHOWN):
            points = [
                (100 * (1 - budget[1]), estimate(correct))
                for budget in budgets
                if (correct := rows.get(network, name, budget)) is not None
            ]
            if points:
                x, y, half = zip(*((left, each.mean, each.half_width()) for left, each in points), strict=True)
                panel.errorbar(x, y, half, marker="o", capsize=3, label=name, color=f"C{number}")
        if network in rows.dense:
            panel.axhline(rows.dense[network]["accuracy"], color="grey", linestyle="--", label="dense")
        panel.set_title(NAMES[network])
        panel.set_xlabel(f"{'MACs' if budgets[0][0] == 'macs' else 'parameters'} left, %")
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("accuracy, %")
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure
