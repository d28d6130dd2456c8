"""docs/surgery.md from benchmarks/results/surgery.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common.pages import bullets, page_of, paragraph, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table

SIDES = {"l1": "With L1", "default": "With the default criterion"}
LARGE = 32  # MiB of a model from which on its memory is compared with its own size


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    networks = result["networks"]
    pruned_by_both = {name: row for name, row in networks.items() if isinstance(row["torch-pruning"], float)}
    times = {side: {name: row["torch-pruning"] / row[side] for name, row in pruned_by_both.items()} for side in SIDES}
    rows = []
    for name, row in networks.items():
        other = row["torch-pruning"]
        cells = (
            (f"{other:.3f}", *(f"{times[side][name]:.1f}" for side in SIDES))
            if name in pruned_by_both
            else (other.partition(":")[0], "-", "-")
        )
        rows.append((name, row["image"], *(f"{row[side]:.3f}" for side in SIDES), *cells, f"{row['memory']:.2f}"))
    return page_of(
        "Cost of tracing and surgery, compared with Torch-Pruning",
        written_by("python -m benchmarks.surgery --page-only", "surgery.json"),
        paragraph(
            "`pip install '.[bench]' && python -m benchmarks.surgery` measures it (`--help` says what is timed): CPU",
            "seconds on one thread, `prune` with the L1 criterion and with the default one, and one step of",
            "Torch-Pruning's magnitude pruner, ratio 0.5, one image, random weights.",
        ),
        measured_on(result, networks.values()),
        *([] if "torch-pruning" not in result else [paragraph(f"Torch-Pruning {result['torch-pruning']}.")]),
        bullets(_summary(networks, times)),
        markdown_table(
            (
                *("network", "image", "L1, s", "default, s", "Torch-Pruning, s", "Torch-Pruning / L1"),
                *("Torch-Pruning / default", "extra memory / model"),
            ),
            rows,
        ),
    )


def _summary(networks: dict[str, dict[str, Any]], times: dict[str, dict[str, float]]) -> list[str]:
    longest = max(networks, key=lambda name: networks[name]["default"])
    dearer = {name: row["default"] / row["l1"] for name, row in networks.items()}
    dearest = max(dearer, key=lambda name: dearer[name])
    large = {name: row["memory"] for name, row in networks.items() if row["model MiB"] >= LARGE}
    small = [row["memory"] * row["model MiB"] for row in networks.values() if row["model MiB"] < LARGE]
    most = max(large, key=lambda name: large[name])
    return [
        f"Torch-Pruning prunes {len(times['l1'])} of these {len(networks)} networks.",
        *(_compared(side, of_side) for side, of_side in times.items()),
        f"The default criterion takes {statistics.median(dearer.values()):.1f} times as long as L1 in the median,"
        f" {dearer[dearest]:.1f} times at most ({dearest}). The longest time of `prune` is"
        f" {networks[longest]['default']:.2f} s ({longest}).",
        f"Extra memory, the pruned copy included: at most {large[most]:.2f} times the model ({most}) for models of"
        f" {LARGE} MiB and more, at most {max(small):.0f} MiB for smaller ones.",
    ]


def _compared(side: str, times: dict[str, float]) -> str:
    fastest, slowest = max(times, key=lambda name: times[name]), min(times, key=lambda name: times[name])
    return (
        f"{SIDES[side]}: its time divided by that of `prune` is {statistics.median(times.values()):.1f} in the median,"
        f" {times[slowest]:.1f} ({slowest}) to {times[fastest]:.1f} ({fastest}); `prune` is faster on"
        f" {sum(ratio > 1 for ratio in times.values())}."
    )
