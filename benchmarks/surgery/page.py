"""docs/surgery.md from benchmarks/results/surgery.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common.pages import bullets, page_of, paragraph, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table

SIDES = {"l1": "the L1 criterion", "default": "the default one"}  # of fec_fast: keys of a row, and their names
SHORT = {"l1": "L1", "default": "default"}
OLDER = (
    "**These rows are older than the runs in training mode and the checks of cuts, which made `prune` slower.** Six",
    "networks were timed again at commit b0ed4ac, on a loaded machine: with L1 ResNet-50 took 0.18 s (Torch-Pruning",
    "0.33), DenseNet-121 0.37 (3.5), MobileNetV2 0.13 (0.11), MobileNetV3-small 0.13 (0.08), RegNet-Y 8GF 0.30 (0.59),",
    "Wide ResNet-50-2 0.29 (1.1), and with the default criterion 0.40, 0.41, 0.18, 0.15, 0.53 and 0.86 s.",
)
LARGE = 32  # MiB of a model from which on its memory is compared with its own size


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    networks = result["networks"]
    pruned_by_both = {name: row for name, row in networks.items() if isinstance(row["torch-pruning"], float)}
    sides = [side for side in SIDES if all(side in row for row in networks.values())]  # rows may be older than a side
    ratios = {side: {name: row["torch-pruning"] / row[side] for name, row in pruned_by_both.items()} for side in sides}
    rows = []
    for name, row in networks.items():
        other = row["torch-pruning"]
        cells = [f"{row[side]:.3f}" for side in sides]
        if name in pruned_by_both:
            cells += [f"{other:.3f}", *(f"{ratios[side][name]:.1f}" for side in sides)]
        else:
            cells += [other.partition(":")[0], *("-" for _ in sides)]
        rows.append((name, row["image"], *cells, f"{row['memory']:.2f}"))
    return page_of(
        "Cost of tracing and surgery, compared with Torch-Pruning",
        written_by("python -m benchmarks.surgery --page-only", "surgery.json"),
        paragraph(
            "`pip install '.[bench]' && python -m benchmarks.surgery` measures it (`--help` says what is timed): CPU",
            f"seconds on one thread, `prune` with {' and with '.join(SIDES[side] for side in sides)}, and one step of",
            "Torch-Pruning's magnitude pruner (L1), ratio 0.5, one image, random weights. The ratios are",
            "Torch-Pruning's time divided by ours.",
        ),
        *([] if "default" in sides else [paragraph(*OLDER)]),
        measured_on(result, networks.values()),
        bullets(_summary(networks, ratios)),
        markdown_table(
            (
                "network",
                "image",
                *(f"{SHORT[side]}, s" for side in sides),
                "Torch-Pruning, s",
                *(f"ratio, {SHORT[side]}" for side in sides),
                "memory",
            ),
            rows,
        ),
        paragraph("Memory: extra memory with the L1 criterion, the pruned copy included, divided by the model's size."),
    )


def _summary(networks: dict[str, dict[str, Any]], ratios: dict[str, dict[str, float]]) -> list[str]:
    number = len(ratios["l1"])
    lines = [f"Torch-Pruning prunes {number} of these {len(networks)} networks."]
    for side, times in ratios.items():
        name = SIDES[side]
        fastest, slowest = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
        lines.append(
            f"There, its time divided by that of `prune` with {name} is {statistics.median(times.values()):.1f} in the"
            f" median, {times[slowest]:.1f} ({slowest}) to {times[fastest]:.1f} ({fastest}); `prune` is faster on"
            f" {sum(ratio > 1 for ratio in times.values())}."
        )
    last = list(ratios)[-1]
    longest = max(networks, key=lambda name: networks[name][last])
    large = {name: row["memory"] for name, row in networks.items() if row["model MiB"] >= LARGE}
    small = [row["memory"] * row["model MiB"] for row in networks.values() if row["model MiB"] < LARGE]
    most = max(large, key=lambda name: large[name])
    if last != "l1":
        to_l1 = {name: row[last] / row["l1"] for name, row in networks.items()}
        dearest = max(to_l1, key=to_l1.__getitem__)
        lines.append(
            f"{SIDES[last].capitalize()} takes {statistics.median(to_l1.values()):.1f} times the L1 criterion's time in"
            f" the median, at most {to_l1[dearest]:.1f} times ({dearest})."
        )
    return [
        *lines,
        f"The longest time is {networks[longest][last]:.2f} s ({longest}).",
        f"Extra memory, the pruned copy included: at most {large[most]:.2f} times the model ({most}) for models of"
        f" {LARGE} MiB and more, at most {max(small):.0f} MiB for smaller ones.",
    ]
