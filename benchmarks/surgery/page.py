"""docs/surgery.md from benchmarks/results/surgery.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common.pages import bullets, heading, page_of, paragraph, written_by
from benchmarks.common.results import measured_on, older_scores
from benchmarks.common.tables import markdown_table
from benchmarks.surgery.budgets import CALLS, IMAGE, MACS

SIDES = {"l1": "the L1 criterion", "default": "`fec_l1`"}  # of fec_fast: keys of a row, and their names
LARGE = 32  # MiB of a model from which on its memory is compared with its own size


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    networks = result["networks"]
    pruned_by_both = {name: row for name, row in networks.items() if isinstance(row["torch-pruning"], float)}
    ratios = {side: {name: row["torch-pruning"] / row[side] for name, row in pruned_by_both.items()} for side in SIDES}
    rows = []
    for name, row in networks.items():
        other = row["torch-pruning"]
        cells = [f"{row[side]:.3f}" for side in SIDES]
        if name in pruned_by_both:
            cells += [f"{other:.3f}", *(f"{ratios[side][name]:.1f}" for side in SIDES)]
        else:
            cells += [other.partition(":")[0], "-", "-"]
        rows.append((name, row["image"], *cells, f"{row['memory']:.2f}"))
    return page_of(
        "Cost of tracing and surgery, compared with Torch-Pruning",
        written_by("python -m benchmarks.surgery --page-only", "surgery.json"),
        paragraph(
            "`pip install '.[bench]' && python -m benchmarks.surgery` measures it (`--help` says what is timed): CPU",
            "seconds on one thread, `prune(recover=None)` with the L1 criterion, with its default one (`fec_l1`), and",
            "one step of Torch-Pruning's magnitude pruner (L1), ratio 0.5, one image, random weights. The ratios are",
            "Torch-Pruning's time divided by ours. Neither side recovers or proves: the recovery, which `prune` makes",
            "by default, takes longer than all this.",
        ),
        measured_on(result, networks.values()),
        older_scores(result, networks.values()),
        *([paragraph(result["note"])] if "note" in result else []),
        bullets(_summary(networks, ratios)),
        markdown_table(
            ("network", "image", "L1, s", "fec_l1, s", "Torch-Pruning, s", "ratio, L1", "ratio, fec_l1", "memory"),
            rows,
        ),
        paragraph("Memory: extra memory with the L1 criterion, the pruned copy included, divided by the model's size."),
        *_budgets(result),
    )


def _budgets(result: dict[str, Any]) -> list[str]:
    rows = result.get("budgets")
    if not rows:
        return []
    return [
        heading("With a budget"),
        paragraph(
            f"`prune(model, example, budget=Budget.remove(macs={MACS}))`, ours alone: CPU seconds on one thread,",
            f"images of {IMAGE} x {IMAGE}, random weights, the proof included. By default the network is recovered,",
            "here without images, and the recovery also decides what is removed; with `recover=None`,",
            "`ablation` does, unless a criterion is named.",
            "`python -m benchmarks.surgery --tables budgets` measures this.",
        ),
        measured_on(result, rows.values()),
        markdown_table(
            ("network", "defaults, s", "recover=None, s", "recover=None, fec_l1, s"),
            [(name, *(f"{row[call]:.1f}" for call in CALLS)) for name, row in rows.items()],
        ),
    ]


def _summary(networks: dict[str, dict[str, Any]], ratios: dict[str, dict[str, float]]) -> list[str]:
    number = len(ratios["l1"])
    lines = [f"Torch-Pruning prunes {number} of these {len(networks)} networks."]
    for side, name in SIDES.items():
        times = ratios[side]
        fastest, slowest = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
        lines.append(
            f"There, its time divided by that of `prune` with {name} is {statistics.median(times.values()):.1f} in the"
            f" median, {times[slowest]:.1f} ({slowest}) to {times[fastest]:.1f} ({fastest}); `prune` is faster on"
            f" {sum(ratio > 1 for ratio in times.values())}."
        )
    to_l1 = {name: row["default"] / row["l1"] for name, row in networks.items()}
    longest = max(networks, key=lambda name: networks[name]["default"])
    large = {name: row["memory"] for name, row in networks.items() if row["model MiB"] >= LARGE}
    small = [row["memory"] * row["model MiB"] for row in networks.values() if row["model MiB"] < LARGE]
    most, dearest = max(large, key=lambda name: large[name]), max(to_l1, key=to_l1.__getitem__)
    return [
        *lines,
        f"`fec_l1` takes {statistics.median(to_l1.values()):.1f} times the L1 criterion's time in the median, at"
        f" most {to_l1[dearest]:.1f} times ({dearest}); the longest time is {networks[longest]['default']:.2f} s"
        f" ({longest}).",
        f"Extra memory, the pruned copy included: at most {large[most]:.2f} times the model ({most}) for models of"
        f" {LARGE} MiB and more, at most {max(small):.0f} MiB for smaller ones.",
    ]
