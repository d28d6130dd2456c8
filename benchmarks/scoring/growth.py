"""How the cost of a channel grows with their number, and the share of the machine's peak that the products reach."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.measuring import checked, cpu_seconds
from benchmarks.scoring.networks import kernels
from fec_fast.scoring.formula import Formula

LENGTHS = tuple(2**k for k in range(4, 15))  # 16 ... 16384
SORTED = Formula("rms", axis="channels")
PLANE = [Formula("rms", entropy, "channels") for entropy in ("softmax", "distance")]  # type: ignore[arg-type]


def growth(runs: int) -> list[dict[str, float]]:
    """Nanoseconds a channel over the number of channels, one thread, 3x3 kernels read and compressed on the way."""
    rows = []
    for length in LENGTHS:
        filters = max(16, 2**20 // length)
        weight = torch.randn(filters, length, 3, 3)
        if length <= 1024:
            checked(weight[:32], SORTED)
        row: dict[str, float] = {"channels": length, "filters": filters}
        sides = {"sorted": kernels([weight], SORTED, algorithm="sorted")}
        for formula in PLANE:
            sides[f"sorted, {formula.entropy}"] = kernels([weight], formula, algorithm="sorted")
        seconds = cpu_seconds(sides, runs)
        row |= {what: round(1e9 * s / weight.shape[:2].numel(), 2) for what, s in seconds.items()}
        few = weight[: max(16, min(filters, 2**26 // length**2))]  # quadratic: as many pairs as take a moment
        pairwise = cpu_seconds({"": kernels([few], SORTED, algorithm="pairwise")}, min(runs, 3))[""]
        row["pairwise"] = round(1e9 * pairwise / few.shape[:2].numel(), 2)
        rows.append(row)
    return rows


def products(runs: int) -> dict[str, Any]:
    """Multiply-adds a second between filters, beside what a loop of nothing but multiply-adds reaches here."""
    source = Path(__file__).with_name("fma_peak.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma_peak"
        subprocess.run(["g++", "-O3", "-march=native", str(source), "-o", str(program)], check=True)
        measured = [
            float(subprocess.run([program], check=True, capture_output=True, text=True).stdout) for _ in range(5)
        ]
    formula, layers = Formula(), {}
    for shape in ((512, 512, 3, 3), (512, 2048, 1, 1), (2048, 512, 1, 1)):
        weight = torch.randn(shape)
        checked(weight, formula)
        seconds = cpu_seconds({"": kernels([weight], formula)}, runs)[""]
        n, k = shape[0], weight[0].numel()
        layers["x".join(map(str, shape))] = round(n * (n + 1) / 2 * k / seconds / 1e9, 1)  # each pair once
    return {"peak": round(max(measured), 1), "GFMA/s": layers}


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """The growth as a picture, on logarithmic axes."""
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("the plot needs matplotlib: pip install '.[bench]'")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    x = [row["channels"] for row in rows]
    for column in ("sorted", "sorted, softmax", "sorted, distance", "pairwise"):
        axes.loglog(x, [row[column] for row in rows], marker="o", markersize=3.5, label=column)
    start = rows[0]
    axes.loglog(x, [start["sorted"] * (math.log2(c) / 4) ** 2 for c in x], "k:", linewidth=1, label="log² C")
    axes.loglog(x, [rows[4]["pairwise"] * c / x[4] for c in x], "k--", linewidth=1, label="C")
    axes.set(xlabel="channels C of a filter", ylabel="ns a channel", xticks=x, xticklabels=map(str, x))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    part = path.with_suffix(".part.svg")
    pyplot.rcParams["svg.hashsalt"] = "fec_fast"
    figure.savefig(part, metadata={"Date": None})
    part.replace(path)
    pyplot.close(figure)
