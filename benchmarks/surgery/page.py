"""docs/surgery.md from the results of ``bench_surgery.py``."""

from __future__ import annotations

import statistics
from typing import Any


def page(result: dict[str, Any]) -> str:
    """The page as Markdown.

    Args:
        result: What the benchmark wrote.
    """
    networks, where = result["networks"], result["machine"]
    both = {n: r for n, r in networks.items() if isinstance(r["torch-pruning"], float)}
    times = {n: r["torch-pruning"] / r["fec_fast"] for n, r in both.items()}
    slowest = max(networks, key=lambda n: networks[n]["fec_fast"])
    large = {n: r["memory"] for n, r in networks.items() if r["model MiB"] >= 32}
    small = max(r["memory"] * r["model MiB"] for r in networks.values() if r["model MiB"] < 32)
    hungry = max(large, key=lambda n: large[n])
    lines = [
        "# Graph and surgery, beside Torch-Pruning",
        "",
        "Written by `python -m benchmarks.surgery` (its head says what is timed): CPU seconds on one thread, "
        "`prune` with the L1 criterion beside one step of Torch-Pruning's magnitude pruner, ratio 0.5, one image, "
        "weights random.",
        f"Measured on {where['processor']}, Python {where['python']}, torch {where['torch']}, "
        f"Torch-Pruning {result['torch-pruning']}.",
        "",
        f"- Over the {len(both)} of {len(networks)} networks that Torch-Pruning gets through, `prune` is "
        f"{statistics.median(times.values()):.1f} times as fast in the median, "
        f"{min(times.values()):.1f} times ({min(times, key=times.__getitem__)}) to "
        f"{max(times.values()):.1f} times ({max(times, key=times.__getitem__)}).",
        f"- The slowest is {slowest} with {networks[slowest]['fec_fast']:.2f} s.",
        f"- Of the networks of 32 MiB and more, {hungry} takes the most memory on top of the model: "
        f"{large[hungry]:.2f} times the model, the pruned copy included. Smaller ones take {small:.0f} MiB at most.",
        "",
        "| network | image | fec_fast, s | Torch-Pruning, s | times as fast | extra memory / model |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in networks.items():
        other = row["torch-pruning"]
        shown = f"{other:.3f} | {times[name]:.1f}" if name in both else f"{other.partition(':')[0]} | -"
        lines.append(f"| {name} | {row['image']} | {row['fec_fast']:.3f} | {shown} | {row['memory']:.2f} |")
    return "\n".join(lines) + "\n"
