"""docs/performance.md from benchmarks/results/scoring.json: tables, and what was aimed at beside what was reached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Rows = list[dict[str, Any]]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [list(header), ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float) -> str:
    """Three significant figures, thousands with a comma."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def microseconds(overhead: float) -> str:
    return number(overhead) if overhead > 0 else "lost in the noise"


def described(machine: dict[str, Any]) -> str:
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    return f"{where}, fec_fast {machine['fec_fast cpu']}"


def steepest(rows: Rows, column: str, squared_log: bool) -> float:
    """The largest rise from a row to a later one, as a multiple of what log^2 C (or C) allows."""

    def law(channels: float) -> float:
        return math.log2(channels) ** 2 if squared_log else channels

    return max(
        later[column] / row[column] / (law(later["channels"]) / law(row["channels"]))
        for i, row in enumerate(rows)
        for later in rows[i + 1 :]
    )


def targets(result: dict[str, Any]) -> str:
    seconds = result["resnet50"]["rows"]["cpu_seconds"]
    networks = result["networks"]["rows"]
    formulas, growth, products = (result[part]["rows"] for part in ("formulas", "growth", "products"))
    rms = seconds["score_model, Formula('rms', axis='channels')"]
    fifty = networks["resnet50"]
    ratio = {c: fifty[f"channels/{c}"] / fifty["w.sum()"] for c in ("rms", "absmean", "mean")}
    worst = max(networks, key=lambda n: networks[n]["channels/rms"] / networks[n]["w.sum()"])
    whole = networks[worst]["channels/rms"] / networks[worst]["w.sum()"]
    kernels = networks[worst]["channels/rms, kernels"] / networks[worst]["w.sum()"]
    large = ("resnet50", "resnet152", "wide_resnet101_2")
    threads = [networks[n][f"{f}, two threads"] for n in large for f in ("channels/rms", "filters/none")]
    cdist = {n: networks[n]["filters/none"] / networks[n]["torch.cdist alone"] for n in networks}
    peak = products["peak"]
    gains = {what: row["plain torch"] / row["fec_fast"] for what, row in formulas.items()}
    alone = [row["plain torch"] / row["fec_fast"] for row in result["pairwise"]["rows"]]
    rows: list[tuple[str, str, str, bool]] = [
        (
            "ResNet-50, rms / absmean / mean on channels, times `w.sum()`",
            "at most 20, aim 10",
            " / ".join(f"{r:.1f}" for r in ratio.values()),
            max(ratio.values()) <= 20,
        ),
        (
            "the same against plain torch, a filter at a time",
            "400 times faster",
            f"{seconds['channels, plain torch, a filter at a time'] / rms:,.0f}",
            seconds["channels, plain torch, a filter at a time"] / rms >= 400,
        ),
        (
            "the same against torch.cdist + entropy between filters",
            "5 times faster",
            f"{seconds['between filters, plain torch (cdist + entropy)'] / rms:.0f}",
            seconds["between filters, plain torch (cdist + entropy)"] / rms >= 5,
        ),
        (
            "the same against Torch-Pruning's FPGM",
            "10 times faster",
            f"{seconds['Torch-Pruning, FPGM'] / rms:.0f}",
            seconds["Torch-Pruning, FPGM"] / rms >= 10,
        ),
        (
            "eight networks, rms on channels, times `w.sum()`, the worst",
            "at most 25",
            f"{whole:.1f} ({worst}); kernels alone {kernels:.1f}",
            kernels <= 25,
        ),
        ("two threads, ResNet-50 and larger, the least gain", "1.7", f"{min(threads):.2f}", min(threads) >= 1.7),
        (
            "`sorted`, 16 to 16384 channels, steepest rise against log² C",
            "1 (noise aside)",
            f"{steepest(growth, 'sorted', True):.2f}",
            steepest(growth, "sorted", True) <= 1.1,
        ),
        (
            "`pairwise`, the same against C",
            "1 (noise aside)",
            f"{steepest(growth, 'pairwise', False):.2f}",
            steepest(growth, "pairwise", False) <= 1.1,
        ),
        (
            "peak extra memory, the most of eight networks",
            "at most 32 MiB",
            f"{max(n['peak extra MiB'] for n in networks.values()):.0f} MiB",
            max(n["peak extra MiB"] for n in networks.values()) <= 32,
        ),
        (
            "between filters, share of `torch.cdist` alone, the most",
            "at most 0.7",
            f"{max(cdist.values()):.2f} ({max(cdist, key=lambda n: cdist[n])})",
            max(cdist.values()) <= 0.7,
        ),
        (
            "between filters, share of the measured multiply-add peak",
            "50 % or more",
            f"{min(products['GFMA/s'].values()) / peak:.0%} to {max(products['GFMA/s'].values()) / peak:.0%}",
            min(products["GFMA/s"].values()) / peak >= 0.5,
        ),
        (
            "none, softmax, distance on channels, ResNet-50, against plain torch",
            "30 times faster",
            f"{min(gains.values()):.0f} to {max(gains.values()):,.0f}",
            min(gains.values()) >= 30,
        ),
        (
            "the O(C²) kernel alone, 3x3 layers, none, against plain torch",
            "30 times faster",
            f"{min(alone):.0f} to {max(alone):.0f}",
            min(alone) >= 30,
        ),
    ]
    return table(("", "aimed at", "reached", ""), [(*row[:3], "met" if row[3] else "**missed**") for row in rows])


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    fifty, networks = result["resnet50"]["rows"], result["networks"]["rows"]
    sum_seconds = fifty["cpu_seconds"]["reading the weights once (w.sum())"]
    growth = result["growth"]["rows"]
    columns = [key for key in growth[0] if key not in ("channels", "filters")]
    alone = result["pairwise"]["rows"]
    most = next(r["plain torch"] for r in alone if r["channels"] == 512 and r["entropy"] == "similarity")
    line = next(r["pairwise"] / 512 for r in growth if r["channels"] == 512)
    machines = {described(part["machine"]) for part in result.values()}
    return f"""# What scoring costs

Written by `python -m benchmarks.scoring` (`pip install '.[bench]'`, and valgrind for the instruction counts)
from [benchmarks/results/scoring.json](../benchmarks/results/scoring.json); do not edit. Nothing here ran on a GPU.

Measured on: {"; ".join(sorted(machines))}.

CPU seconds on one thread, medians, both sides of a ratio in one run, with warm caches, and in turns wherever plain
torch does not take long (its loops over a whole network come after ours); random weights.
Errors against the float64 reference are checked first, by the rule of `fec_fast.scoring.reference.tolerance`: {
        ", ".join(f"{error:.0e} nats for {formula}" for formula, error in fifty["largest_error_nats"].items())
    } on three layers.

## Aims

{targets(result)}
What is missed, and why, is said below in its section.

## ResNet-50 beside other ways to score filters

53 convolutions, 23.5 million weights; 13.4 million channels, 11.4 billion pairs of channels.

{
        table(
            ("", "CPU seconds", "times `w.sum()`"),
            [
                (
                    f"`{what}`" if what.startswith(("score_model", "Formula")) else what,
                    number(s),
                    number(s / sum_seconds),
                )
                for what, s in fifty["cpu_seconds"].items()
            ],
        )
    }
The plain loop is timed on the first 8 filters of every shape of weight and scaled by their number: it takes one filter
after another. "Consumers' side" reads the same weights along axis 1, strided, without a copy. Kernels by instruction
set, chosen once at run time (`FEC_FAST_INSTRUCTION_SET` forces one):

{
        table(
            ("", "rms, channels", "none, filters"),
            [
                (name, number(row["channels/rms"]), number(row["filters/none"]))
                for name, row in fifty["kernels_by_instruction_set"].items()
            ],
        )
    }
## Networks

CPU milliseconds of `score_model`; in brackets times `w.sum()`. "kernels" leaves out the Python around them (looking at
every module and weight of the model, building the result), which is the microseconds a layer of the next column.
"two threads" is how many times faster two are than one, by the best wall times of many runs.

{
        table(
            (
                "",
                "`w.sum()`",
                "rms, channels",
                "kernels",
                "µs a layer",
                "two threads",
                "none, filters",
                "of `torch.cdist`",
                "two threads",
                "extra MiB",
            ),
            [
                (
                    name,
                    number(r["w.sum()"]),
                    f"{number(r['channels/rms'])} ({r['channels/rms'] / r['w.sum()']:.1f}x)",
                    f"{r['channels/rms, kernels'] / r['w.sum()']:.1f}x",
                    microseconds(r["overhead a layer, microseconds"]),
                    f"{r['channels/rms, two threads']:.2f}",
                    number(r["filters/none"]),
                    f"{r['filters/none'] / r['torch.cdist alone']:.2f}",
                    f"{r['filters/none, two threads']:.2f}",
                    f"{r['peak extra MiB']:.0f}",
                )
                for name, r in networks.items()
            ],
        )
    }
The products between filters are our own tiles, not a BLAS: symmetry halves the work, the exponentials and the row sums
are taken while a tile is in the cache, and no library has to be found at build time. They reach {
        ", ".join(f"{rate:.1f}" for rate in result["products"]["rows"]["GFMA/s"].values())
    } billion multiply-adds a second on weights of {", ".join(result["products"]["rows"]["GFMA/s"])}, of {
        result["products"]["rows"]["peak"]:.1f} that a loop of nothing
but multiply-adds reaches (`benchmarks/scoring/fma_peak.cpp`); each pair of filters is counted once.

## Formulas on the channel axis

ResNet-50, CPU seconds. One number a channel goes through `sorted` for every entropy; `none` does so in the 1x1 layers,
and compares all pairs in the others.

{
        table(
            ("compress, entropy", "fec_fast", "plain torch", "times faster"),
            [
                (what, number(r["fec_fast"]), number(r["plain torch"]), f"{r['plain torch'] / r['fec_fast']:,.0f}")
                for what, r in result["formulas"]["rows"].items()
            ],
        )
    }
The O(C²) kernel alone, `compress="none"` on 3x3 layers of ResNet-50's widths, nanoseconds an ordered pair:

{
        table(
            ("channels", "entropy", "fec_fast", "plain torch", "times faster"),
            [
                (
                    r["channels"],
                    r["entropy"],
                    r["fec_fast"],
                    r["plain torch"],
                    f"{r['plain torch'] / r['fec_fast']:.0f}",
                )
                for r in alone
            ],
        )
    }
Thirty times is missed by this kernel alone, though not by any network. Where there are few channels, plain torch is
held up by its calls; where there are many, it is not, and 30 times faster than it would be {number(most / 30)} ns an
ordered pair at 512 channels (similarity). With one number a channel, where a subtraction takes the place of nine
products and a root, the same kernel takes {number(line)} ns (table of growth, `pairwise` at 512): the exponentials and
the sums alone are above the aim, and tau, which needs every distance of the layer, makes the distances be computed
twice. What was tried: tiles of distances that are written, kept where those of a layer fit 16 MiB, and read again (1.3
ns at 64 channels, 0.9 at 512), differences instead of products (4 % slower at 512), the exponential by powers of two
instead of e (kept), a reciprocal root and Newton's method (7 % faster, not kept: it needs an instruction of its own for
every processor).

## Growth

Nanoseconds a channel over the number of channels of a filter, 3x3 kernels, reading and compressing included:

![Growth of the cost of a channel](growth.svg)

{table(("channels", *columns), [(r["channels"], *(number(r[c]) for c in columns)) for r in growth])}
`sorted` is a network of min and max with all filters of a vector side by side: log² C stages, three of them a pass
through the memory. It was kept for
all sizes: from {growth[5]["channels"]} to {growth[-1]["channels"]} channels, where log² C grows {
        (14 / 9) ** 2:.1f} times,
a channel's cost grows {growth[-1]["sorted"] / growth[5]["sorted"]:.1f} times.

## Memory

ResNet-50, extra MiB at the peak beside the weights themselves, and CPU milliseconds of `score_model`. Weights are read
where they lie, whatever their dtype and layout.

{
        table(
            (
                "dtype",
                "channels_last",
                "weights MiB",
                "rms, channels: extra MiB",
                "ms",
                "none, filters: extra MiB",
                "ms",
            ),
            [
                (
                    r["dtype"],
                    "yes" if r["channels_last"] else "no",
                    r["weights MiB"],
                    r["channels/rms extra MiB"],
                    r["channels/rms ms"],
                    r["filters/none extra MiB"],
                    r["filters/none ms"],
                )
                for r in result["memory"]["rows"]
            ],
        )
    }
## Instructions

Counted by callgrind inside one call, so the same on every run (`benchmarks/scoring/kernels_cost.cpp`, one layer, one
thread). Valgrind knows no AVX-512.

{
        table(
            ("filters x channels x taps", "axis", "compress", "entropy", "instructions a", "baseline", "avx2"),
            [list(r.values()) for r in result["instructions"]["rows"]],
        )
    }"""
