"""Aims of the scoring benchmark and whether the results meet them."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.common.tables import markdown_table

Rows = list[dict[str, Any]]
TIMES_FASTER = 30  # than plain torch


def steepest_rise(rows: Rows, column: str, *, squared_log: bool) -> float:
    """The largest rise of a column from one row to a later one, divided by the rise of log^2 C (or of C)."""

    def law(channels: float) -> float:
        return math.log2(channels) ** 2 if squared_log else channels

    return max(
        later[column] / row[column] / (law(later["channels"]) / law(row["channels"]))
        for i, row in enumerate(rows)
        for later in rows[i + 1 :]
    )


def aims(rows: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is compared, the aim, the figure reached, and whether it meets the aim.

    Args:
        rows: The rows of every part of scoring.json, by the name of the part.
    """
    return [*_of_resnet50(rows), *_of_networks(rows), *_of_growth(rows), *_of_formulas(rows)]


def table_of_aims(rows: dict[str, Any]) -> str:
    """The aims in Markdown."""
    lines = [(what, aim, reached, "met" if met else "**missed**") for what, aim, reached, met in aims(rows)]
    return markdown_table(("", "aim", "reached", ""), lines)


def _of_resnet50(rows: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    seconds, row = rows["resnet50"]["cpu_seconds"], rows["networks"]["resnet50"]
    to_sum = [row[f"channels/{compress}"] / row["w.sum()"] for compress in ("rms", "absmean", "mean")]
    faster = {
        rival: seconds[rival] / seconds["score_model, Formula('rms', axis='channels')"]
        for rival in (
            "channels, plain torch, a filter at a time",
            "between filters, plain torch (cdist + entropy)",
            "Torch-Pruning, FPGM",
        )
    }
    plain, cdist, fpgm = faster.values()
    return [
        (
            "ResNet-50, rms / absmean / mean on channels, divided by `w.sum()`",
            "at most 20, better 10",
            " / ".join(f"{ratio:.1f}" for ratio in to_sum),
            max(to_sum) <= 20,
        ),
        (
            "rms on channels, compared with plain torch, filter by filter",
            "400 times as fast",
            f"{plain:,.0f}",
            plain >= 400,
        ),
        ("compared with torch.cdist and entropy between filters", "5 times as fast", f"{cdist:.0f}", cdist >= 5),
        ("compared with Torch-Pruning's FPGM", "10 times as fast", f"{fpgm:.0f}", fpgm >= 10),
    ]


def _of_networks(rows: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    networks = rows["networks"]
    worst = max(networks, key=lambda name: networks[name]["channels/rms"] / networks[name]["w.sum()"])
    whole, kernels = (
        networks[worst][column] / networks[worst]["w.sum()"] for column in ("channels/rms", "channels/rms, kernels")
    )
    large = ("resnet50", "resnet152", "wide_resnet101_2")
    speedup = min(networks[n][f"{f}, two threads"] for n in large for f in ("channels/rms", "filters/none"))
    cdist = {name: row["filters/none"] / row["torch.cdist alone"] for name, row in networks.items()}
    slowest = max(cdist, key=lambda name: cdist[name])
    memory = max(row["peak extra MiB"] for row in networks.values())
    return [
        (
            f"the largest of {len(networks)} networks, rms on channels, divided by `w.sum()`",
            "kernels at most 25",
            f"{whole:.1f} ({worst}); kernels {kernels:.1f}",
            kernels <= 25,
        ),
        ("two threads, ResNet-50 and larger, the smallest speedup", "1.7", f"{speedup:.2f}", speedup >= 1.7),
        ("peak extra memory, the largest of the networks", "at most 32 MiB", f"{memory:.0f} MiB", memory <= 32),
        (
            "between filters, share of the time of `torch.cdist` alone, the largest",
            "at most 0.7",
            f"{cdist[slowest]:.2f} ({slowest})",
            cdist[slowest] <= 0.7,
        ),
    ]


def _of_growth(rows: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    growth, products = rows["growth"], rows["products"]
    sort, pairs = (steepest_rise(growth, column, squared_log=column == "sorted") for column in ("sorted", "pairwise"))
    shares = [rate / products["peak"] for rate in products["GFMA/s"].values()]
    span = f"{growth[0]['channels']} to {growth[-1]['channels']} channels"
    return [
        (f"`sorted`, {span}, steepest rise divided by that of log² C", "1 (up to noise)", f"{sort:.2f}", sort <= 1.1),
        (f"`pairwise`, {span}, steepest rise divided by that of C", "1 (up to noise)", f"{pairs:.2f}", pairs <= 1.1),
        (
            "between filters, share of the measured multiply-add peak",
            "at least 75 %",
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %",
            min(shares) >= 0.75,
        ),
    ]


def _of_formulas(rows: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    compared = []
    for what, timings in (
        ("every formula on channels, ResNet-50, compared with plain torch", rows["formulas"].values()),
        ("the O(C²) kernel, 3x3 layers, none, compared with plain torch", rows["pairwise"]),
    ):
        gains = [row["plain torch"] / row["fec_fast"] for row in timings]
        reached = f"{min(gains):,.0f} to {max(gains):,.0f}"
        compared.append((what, f"{TIMES_FASTER} times as fast", reached, min(gains) >= TIMES_FASTER))
    return compared
