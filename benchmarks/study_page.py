"""Writes docs/study.md and its figure from the rows of ``study.py``.

python benchmarks/study_page.py
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
STAGES = {"at_once": "at once", "recalibrated": "re-estimated", "tuned": "fine-tuned"}
NAMES = {"vgg16": "VGG-16-BN", "resnet56": "ResNet-56"}
POLICIES = ("uniform", "entropy", "global", "sensitivity")

Rows = dict[tuple[str, str, str, float, bool], list[dict[str, Any]]]


def grouped(document: dict[str, Any]) -> Rows:
    """The rows of each combination, one a seed."""
    found: Rows = defaultdict(list)
    for row in document["rows"]:
        network, criterion, policy, budget, _, tuned = row["key"]
        found[network, criterion, policy, budget, tuned].append(row)
    return found


def rights(rows: list[dict[str, Any]], images: int) -> list[float]:
    """For each test image the share of the seeds that classify it rightly."""
    several = [f"{int(row['right'], 16):0{images}b}" for row in rows]
    return [sum(bits[at] == "1" for bits in several) / len(several) for at in range(images)]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over the images in per cent, and the half-width of its 95 % interval."""
    mean = fmean(values)
    return 100 * mean, 196 * math.sqrt(fmean((value - mean) ** 2 for value in values) / len(values))


def policies(document: dict[str, Any], found: Rows, tuned: bool) -> list[str]:
    """A table a network: criterion and budget by policy, with the difference to uniform and what a call costs."""
    images = document["settings"]["test_images"]
    lines: list[str] = []
    for network, title in NAMES.items():
        keys = sorted(
            {(key[3], key[1]) for key in found if key[0] == network and key[4] == tuned and key[2] != "uniform"}
        )
        rows = []
        for budget, criterion in keys:
            cells, base = [], found.get((network, criterion, "uniform", budget, tuned))
            for policy in POLICIES:
                here = found.get((network, criterion, policy, budget, tuned))
                if here is None:
                    cells.append("")
                    continue
                values = rights(here, images)
                mean, half = interval(values)
                cell = f"{mean:.1f} +- {half:.1f}"
                if base is not None and policy != "uniform":
                    pairs = [a - b for a, b in zip(values, rights(base, images), strict=True)]
                    difference, reach = interval(pairs)
                    cell += f" ({difference:+.1f} +- {reach:.1f})"
                cell += f", {here[0]['macs'] / 1e6:.0f} M"
                cells.append(cell)
            seeds = max(len(found.get((network, criterion, policy, budget, tuned), [])) for policy in POLICIES)
            rows.append(f"| {100 * budget:.0f} % | {criterion} | {' | '.join(cells)} | {seeds} |")
        if rows:
            lines += [f"### {title}", "", f"| removed | criterion | {' | '.join(POLICIES)} | seeds |"]
            lines += ["|---|---|" + "---|" * len(POLICIES) + "---|", *rows, ""]
    return lines


def at_once(found: Rows) -> list[str]:
    """What re-estimating batch norm is worth, by network and budget, over all rows that were not fine-tuned."""
    sums: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for (network, _, _, budget, tuned), rows in found.items():
        if not tuned:
            sums[network, budget] += [(row["at_once"], row["recalibrated"]) for row in rows]
    lines = ["| network | removed | at once | re-estimated | rows |", "|---|---|---|---|---|"]
    for (network, budget), pairs in sorted(sums.items()):
        means = [sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
        lines.append(f"| {NAMES[network]} | {100 * budget:.0f} % | {means[0]:.1f} | {means[1]:.1f} | {len(pairs)} |")
    return [*lines, ""]


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    settings, where, found = document["settings"], document["machine"], grouped(document)
    dense = "; ".join(f"{NAMES[name]} {row['accuracy']:.1f} %" for name, row in document["dense"].items())
    tuned = sum(row["key"][5] for row in document["rows"])
    trained = (
        f"was fine-tuned on these images for {settings['dense_steps']} steps of 128 first"
        if settings["dense_steps"]
        else "was taken as it came: **not** fine-tuned on these images first, for want of time"
    )
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    lines = [
        "# The study: what to remove where",
        "",
        "Written by `python benchmarks/study_page.py` from",
        "[benchmarks/results/study.json](../benchmarks/results/study.json), which holds every row that was measured by",
        "",
        "```sh",
        f"python benchmarks/study.py --data FOLDER {flags}",
        "```",
        "",
        f"CIFAR-10 as JPEG, accuracy in % on {settings['test_images']:,} test images. Formulas and policies were",
        "chosen on other test images, but on these two networks: how they do on other networks is not known.",
        f"Each network {trained}.",
        f"Accuracy before pruning: {dense}.",
        f"Batch norm is re-estimated on {settings['calibration_images']:,} training images, drawn anew for each seed.",
        "Intervals are 95 %, over the test images, and do not hold what other seeds or networks would add; in brackets",
        "the difference to `uniform` on the same images.",
        "",
        f"**What was run:** {len(document['rows'])} rows, {len(document['rows']) - tuned} of them without fine-tuning. "
        + (
            "Nothing was fine-tuned after pruning."
            if not tuned
            else f"Fine-tuning was {settings['steps']} steps of 128."
        )
        + " What the tables",
        "lack (criteria, seeds, networks) was not run: the command goes on where it stopped. No default rests on it.",
        "",
        f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}, {where['device']}.",
        "",
        "## One shot, after batch norm was re-estimated",
        "",
        "Accuracy, and millions of multiply-accumulates that are left: the budget is in parameters, so the policies do",
        "**not** leave networks of the same speed. `entropy` and `global` take from the wide late layers, which hold",
        "the parameters, and leave more of the early ones, which take the time.",
        "",
        "![Accuracy by budget](study.svg)",
        "",
        *policies(document, found, tuned=False),
        "## What the re-estimation is worth",
        "",
        "Means over all rows without fine-tuning:",
        "",
        *at_once(found),
    ]
    if tuned:
        lines += ["## After fine-tuning", "", *policies(document, found, tuned=True)]
    return "\n".join(lines).rstrip() + "\n"


def figure(document: dict[str, Any], file: Path) -> None:
    """Accuracy by budget, a panel a network and a line a policy, for the criterion ``fec``."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fec_fast"
    from matplotlib import pyplot

    found, images = grouped(document), document["settings"]["test_images"]
    _, panels = pyplot.subplots(1, len(NAMES), figsize=(9, 3.5), sharey=True)
    for panel, (network, title) in zip(panels, NAMES.items(), strict=True):
        for policy in POLICIES:
            keys = sorted(key for key in found if key[0] == network and key[1:3] == ("fec", policy) and not key[4])
            points = [interval(rights(found[key], images)) for key in keys]
            if points:
                panel.errorbar(
                    [100 * key[3] for key in keys],
                    [mean for mean, _ in points],
                    [half for _, half in points],
                    marker="o",
                    capsize=3,
                    label=policy,
                )
        if network in document["dense"]:
            panel.axhline(document["dense"][network]["accuracy"], color="grey", linestyle=":", label="dense")
        panel.set_title(f"{title}, criterion fec")
        panel.set_xlabel("parameters removed, %")
    panels[0].set_ylabel("accuracy, one shot, re-estimated, %")
    panels[0].legend()
    pyplot.tight_layout()
    pyplot.savefig(file, metadata={"Date": None})


def main() -> None:
    """Writes both."""
    document = json.loads((ROOT / "benchmarks" / "results" / "study.json").read_text())
    (ROOT / "docs" / "study.md").write_text(page(document))
    figure(document, ROOT / "docs" / "study.svg")


if __name__ == "__main__":
    main()
