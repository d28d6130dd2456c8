"""Cost per channel by the number of channels, and the share of the multiply-add peak that the products reach."""

from __future__ import annotations

import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.figures import pyplot
from benchmarks.common.measuring import median_cpu_seconds
from benchmarks.common.parity import require_parity
from benchmarks.scoring.networks import kernel_call
from fec_fast.scoring.formula import Formula

LENGTHS = tuple(2**k for k in range(4, 15))  # 16 ... 16384
SORTED = Formula("rms", axis="channels")
SORTED_OTHERS = [Formula("rms", entropy, "channels") for entropy in ("softmax", "distance")]  # type: ignore[arg-type]


def growth(runs: int) -> list[dict[str, float]]:
    """Nanoseconds per channel by the number of channels: 3x3 kernels, reading and compression included."""
    rows = []
    for length in LENGTHS:
        filters = max(16, 2**20 // length)
        weight = torch.randn(filters, length, 3, 3)
        if length <= 1024:
            require_parity(weight[:32], SORTED)
        row: dict[str, float] = {"channels": length, "filters": filters}
        sides = {"sorted": kernel_call([weight], SORTED, algorithm="sorted")}
        for formula in SORTED_OTHERS:
            sides[f"sorted, {formula.entropy}"] = kernel_call([weight], formula, algorithm="sorted")
        seconds = median_cpu_seconds(sides, runs)
        row |= {what: round(1e9 * s / weight.shape[:2].numel(), 2) for what, s in seconds.items()}
        few = weight[: max(16, min(filters, 2**26 // length**2))]  # quadratic: at most 2^26 pairs
        pairwise = median_cpu_seconds({"": kernel_call([few], SORTED, algorithm="pairwise")}, min(runs, 3))[""]
        row["pairwise"] = round(1e9 * pairwise / few.shape[:2].numel(), 2)
        rows.append(row)
    return rows


def products(runs: int) -> dict[str, Any]:
    """Multiply-adds per second between filters, and the peak of a loop that does nothing else."""
    source = Path(__file__).with_name("fma_peak.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma_peak"
        subprocess.run(["g++", "-O3", "-march=native", str(source), "-o", str(program)], check=True)
        rates = [float(subprocess.run([program], check=True, capture_output=True, text=True).stdout) for _ in range(5)]
    formula, layers = Formula(), {}
    for shape in ((512, 512, 3, 3), (512, 2048, 1, 1), (2048, 512, 1, 1)):
        weight = torch.randn(shape)
        require_parity(weight, formula)
        seconds = median_cpu_seconds({"": kernel_call([weight], formula)}, runs)[""]
        n, k = shape[0], weight[0].numel()
        layers["x".join(map(str, shape))] = round(n * (n + 1) / 2 * k / seconds / 1e9, 1)  # each pair counted once
    return {"peak": round(max(rates), 1), "GFMA/s": layers}


def figure_of(rows: list[dict[str, float]]) -> Any:
    """The growth on logarithmic axes, as a matplotlib figure.

    Args:
        rows: What :func:`growth` returned.
    """
    figure, axes = pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    x = [row["channels"] for row in rows]
    for column in ("sorted", "sorted, softmax", "sorted, distance", "pairwise"):
        axes.loglog(x, [row[column] for row in rows], marker="o", markersize=3.5, label=column)
    start = rows[0]
    axes.loglog(x, [start["sorted"] * (math.log2(c) / 4) ** 2 for c in x], "k:", linewidth=1, label="log² C")
    axes.loglog(x, [rows[4]["pairwise"] * c / x[4] for c in x], "k--", linewidth=1, label="C")
    axes.set(xlabel="channels C per filter", ylabel="ns per channel", xticks=x, xticklabels=map(str, x))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return figure
