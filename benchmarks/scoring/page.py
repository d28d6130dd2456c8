"""docs/performance.md from benchmarks/results/scoring.json."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.common.pages import heading, page_of, paragraph, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table, significant
from benchmarks.scoring.aims import TIMES_FASTER, table_of_aims

PAIRWISE_ALTERNATIVES = (
    "Alternatives for this kernel, measured on 2026-11-24 and not part of the results: write each tile of distances, "
    "keep those of a layer up to 16 MiB and read them again instead of computing them twice for tau (1.3 ns at 64 "
    "channels, 0.9 ns at 512); differences instead of products (4 % slower at 512 channels); a reciprocal root with "
    "Newton's method (7 % faster, not used: it needs a separate instruction on every processor)."
)


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    rows = {name: part["rows"] for name, part in result.items() if name != "runs"}
    errors = rows["resnet50"]["largest_error_nats"]
    return page_of(
        "Cost of scoring",
        written_by("python -m benchmarks.scoring --page-only", "scoring.json"),
        paragraph(
            "`pip install '.[bench]' && python -m benchmarks.scoring` measures everything; the instruction counts need",
            "valgrind. Nothing here ran on a GPU.",
        ),
        measured_on(result, [part for name, part in result.items() if name != "runs"]),
        paragraph(
            "CPU seconds on one thread, medians; both sides of a ratio in one run, with warm caches, in turns except",
            "for the loops of plain torch over a whole network, which follow ours; random weights. The entropies are",
            "compared with the float64 reference first (tolerance: `fec_fast.scoring.reference.tolerance`). Largest",
            "errors on three layers:",
            f"{'; '.join(f'{error:.0e} nats ({formula})' for formula, error in errors.items())}.",
        ),
        heading("Aims"),
        table_of_aims(rows),
        *_resnet50(rows["resnet50"]),
        *_networks(rows),
        *_formulas(rows),
        *_growth(rows["growth"]),
        *_memory(rows["memory"]),
        *_instructions(rows["instructions"]),
    )


def _resnet50(rows: dict[str, Any]) -> list[str]:
    seconds = rows["cpu_seconds"]
    read = seconds["reading the weights once (w.sum())"]
    return [
        heading("ResNet-50 and other filter scores"),
        paragraph("53 convolutions, 23.5 million weights; 13.4 million channels, 11.4 billion pairs of channels."),
        markdown_table(
            ("", "CPU seconds", "divided by `w.sum()`"),
            [
                (
                    f"`{what}`" if what.startswith(("score_model", "Formula")) else what,
                    significant(taken),
                    significant(taken / read),
                )
                for what, taken in seconds.items()
            ],
        ),
        paragraph(
            "The loop of plain torch is timed on the first 8 filters of each shape of weight and multiplied by their",
            'number: it handles one filter after another. "Consumers\' side" reads the same weights along axis 1,',
            "strided, without a copy.",
        ),
        paragraph(
            "Kernels by instruction set, CPU seconds. At first use in a process the kernels time AVX2 and AVX-512 on",
            "32 KiB of weights, in turns, the shortest of seven rounds, in half a millisecond. AVX-512 runs unless",
            "AVX2 is more than 5 % faster, as it may be where a processor computes 64 bytes in two halves.",
            "`fec_fast.backends()` and `fec-fast info` show the choice. `FEC_FAST_INSTRUCTION_SET` names a set, and",
            "nothing is timed then.",
        ),
        markdown_table(
            ("", "rms, channels", "none, filters"),
            [
                (name, significant(row["channels/rms"]), significant(row["filters/none"]))
                for name, row in rows["kernels_by_instruction_set"].items()
            ],
        ),
    ]


def _networks(rows: dict[str, Any]) -> list[str]:
    products = rows["products"]
    rates = ", ".join(f"{rate:.1f}" for rate in products["GFMA/s"].values())
    return [
        heading("Networks"),
        paragraph(
            'CPU milliseconds of `score_model`; in brackets divided by `w.sum()`. "kernels" is the compiled extension',
            "alone; the next column is the Python around it (modules, weights, the result) in microseconds per layer.",
            '"two threads" is the speedup by a second thread, from the shortest wall times of many calls.',
        ),
        markdown_table(
            (
                "",
                "`w.sum()`",
                "rms, channels",
                "kernels",
                "µs per layer",
                "two threads",
                "none, filters",
                "of `torch.cdist`",
                "two threads",
                "extra MiB",
            ),
            [_network_cells(name, row) for name, row in rows["networks"].items()],
        ),
        paragraph(
            "The products between filters are computed in tiles of this package, not by a BLAS: symmetry halves the",
            "work, and the build needs no library. With one thread the weights of a layer are packed once, in blocks",
            "of coordinates that stay in the L2 cache; all tiles read these panels, as rows and as columns.",
            f"They reach {rates} billion multiply-adds per second on weights of {', '.join(products['GFMA/s'])}; a",
            f"loop of nothing but multiply-adds reaches {products['peak']:.1f} (`benchmarks/scoring/fma_peak.cpp`).",
            "Each pair of filters is counted once.",
        ),
    ]


def _network_cells(name: str, row: dict[str, float]) -> tuple[str, ...]:
    overhead = row["overhead a layer, microseconds"]
    return (
        name,
        significant(row["w.sum()"]),
        f"{significant(row['channels/rms'])} ({row['channels/rms'] / row['w.sum()']:.1f}x)",
        f"{row['channels/rms, kernels'] / row['w.sum()']:.1f}x",
        significant(overhead) if overhead > 0 else "below the noise",
        f"{row['channels/rms, two threads']:.2f}",
        significant(row["filters/none"]),
        f"{row['filters/none'] / row['torch.cdist alone']:.2f}",
        f"{row['filters/none, two threads']:.2f}",
        f"{row['peak extra MiB']:.0f}",
    )


def _formulas(rows: dict[str, Any]) -> list[str]:
    pairwise = rows["pairwise"]
    short = sum(row["plain torch"] / row["fec_fast"] < TIMES_FASTER for row in pairwise)
    wide = next(r["plain torch"] for r in pairwise if r["channels"] == 512 and r["entropy"] == "similarity")
    one_number = next(row["pairwise"] / 512 for row in rows["growth"] if row["channels"] == 512)
    return [
        heading("Formulas on the channel axis"),
        paragraph(
            "ResNet-50, CPU seconds. With one number per channel, every entropy uses `sorted`; `none` uses it in the",
            "1x1 layers and compares all pairs in the others.",
        ),
        markdown_table(
            ("compress, entropy", "fec_fast", "plain torch", "ratio"),
            [(what, *_both(row["fec_fast"], row["plain torch"])) for what, row in rows["formulas"].items()],
        ),
        paragraph(
            'The O(C²) kernel alone, `compress="none"` on 3x3 layers of the widths of ResNet-50,',
            "nanoseconds per ordered pair:",
        ),
        markdown_table(
            ("channels", "entropy", "fec_fast", "plain torch", "ratio"),
            [(row["channels"], row["entropy"], *_both(row["fec_fast"], row["plain torch"])) for row in pairwise],
        ),
        paragraph(
            f"{short} of these {len(pairwise)} ratios are below the aim of {TIMES_FASTER}. For comparison: at 512",
            f"channels (similarity), {TIMES_FASTER} times as fast as plain torch is {significant(wide / TIMES_FASTER)}",
            "ns per ordered pair. With one number per channel, where one subtraction replaces nine products and a",
            f"root, the same kernel takes {significant(one_number)} ns (`pairwise` at 512 channels, next section).",
        ),
        paragraph(PAIRWISE_ALTERNATIVES),
    ]


def _both(ours: float, theirs: float) -> tuple[str, str, str]:
    return significant(ours), significant(theirs), f"{theirs / ours:,.0f}"


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    columns = [key for key in rows[0] if key not in ("channels", "filters")]
    first, last = rows[5], rows[-1]
    law = (math.log2(last["channels"]) / math.log2(first["channels"])) ** 2
    return [
        heading("Growth"),
        paragraph(
            "Nanoseconds per channel by the number of channels of a filter, 3x3 kernels, reading and compression",
            "included:",
        ),
        "![Cost per channel by the number of channels](growth.svg)\n\n",
        markdown_table(
            ("channels", *columns), [(row["channels"], *(significant(row[c]) for c in columns)) for row in rows]
        ),
        paragraph(
            "`sorted` is a sorting network of minimum and maximum over vectors of filters: log² C stages. From",
            f"{first['channels']} to {last['channels']} channels log² C grows {law:.1f} times, the cost per channel",
            f"{last['sorted'] / first['sorted']:.1f} times.",
        ),
    ]


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("channels/rms extra MiB", "channels/rms ms", "filters/none extra MiB", "filters/none ms")
    return [
        heading("Memory"),
        paragraph(
            "A process keeps the kernels' memory of one call, at most 32 MiB, for later calls.",
            "ResNet-50, peak MiB in addition to the weights, and CPU milliseconds of `score_model`. Weights are read",
            "in place, in any dtype and layout.",
        ),
        markdown_table(
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
                (row["dtype"], "yes" if row["channels_last"] else "no", row["weights MiB"], *(row[c] for c in columns))
                for row in rows
            ],
        ),
    ]


def _instructions(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("weight", "axis", "compress", "entropy", "instructions a", "baseline", "avx2")
    titles = ("filters x channels x taps", "axis", "compress", "entropy", "instructions per", "baseline", "avx2")
    return [
        heading("Instructions"),
        paragraph(
            "Counted by callgrind inside one call, therefore equal on every run",
            "(`benchmarks/scoring/kernels_cost.cpp`, one layer, one thread). Valgrind does not support AVX-512.",
        ),
        markdown_table(titles, [[row[column] for column in columns] for row in rows]),
    ]
