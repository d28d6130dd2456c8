"""docs/surgery.md from benchmarks/results/surgery.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common.pages import bullets, page_of, paragraph, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table

LARGE = 32  # MiB of a model from which on its memory is compared with its own size


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    networks = result["networks"]
    pruned_by_both = {name: row for name, row in networks.items() if isinstance(row["torch-pruning"], float)}
    times = {name: row["torch-pruning"] / row["fec_fast"] for name, row in pruned_by_both.items()}
    rows = []
    for name, row in networks.items():
        other = row["torch-pruning"]
        cells = (f"{other:.3f}", f"{times[name]:.1f}") if name in times else (other.partition(":")[0], "-")
        rows.append((name, row["image"], f"{row['fec_fast']:.3f}", *cells, f"{row['memory']:.2f}"))
    return page_of(
        "Cost of tracing and surgery, compared with Torch-Pruning",
        written_by("python -m benchmarks.surgery --page-only", "surgery.json"),
        paragraph(
            "`pip install '.[bench]' && python -m benchmarks.surgery` measures it (`--help` says what is timed): CPU",
            "seconds on one thread, `prune` with the L1 criterion and one step of Torch-Pruning's magnitude pruner,",
            "ratio 0.5, one image, random weights.",
        ),
        measured_on(result, networks.values()),
        *([] if "torch-pruning" not in result else [paragraph(f"Torch-Pruning {result['torch-pruning']}.")]),
        bullets(_summary(networks, times)),
        markdown_table(
            ("network", "image", "fec_fast, s", "Torch-Pruning, s", "ratio of the times", "extra memory / model"), rows
        ),
    )


def _summary(networks: dict[str, dict[str, Any]], times: dict[str, float]) -> list[str]:
    fastest, slowest = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
    longest = max(networks, key=lambda name: networks[name]["fec_fast"])
    large = {name: row["memory"] for name, row in networks.items() if row["model MiB"] >= LARGE}
    small = [row["memory"] * row["model MiB"] for row in networks.values() if row["model MiB"] < LARGE]
    most = max(large, key=lambda name: large[name])
    return [
        f"Torch-Pruning prunes {len(times)} of these {len(networks)} networks. There, its time divided by that of"
        f" `prune` is {statistics.median(times.values()):.1f} in the median, {times[slowest]:.1f} ({slowest}) to"
        f" {times[fastest]:.1f} ({fastest}); `prune` is faster on {sum(ratio > 1 for ratio in times.values())}.",
        f"The longest time of `prune` is {networks[longest]['fec_fast']:.2f} s ({longest}).",
        f"Extra memory, the pruned copy included: at most {large[most]:.2f} times the model ({most}) for models of"
        f" {LARGE} MiB and more, at most {max(small):.0f} MiB for smaller ones.",
    ]
