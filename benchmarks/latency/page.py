"""docs/latency.md from benchmarks/results/latency.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common.pages import bullets, code, heading, page_of, paragraph, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table, significant

DOUBTED = 1.1  # the fifth fastest call takes so many times as long as the fastest: the machine was too busy
PAYS = 1.1  # a smaller speed-up is called none
SLOWER = 1.1  # several threads take so many times as long as one: they waited for cores
NEAR = 0.05  # the aim of a latency budget: so near to the target
TORCH, ONNXRUNTIME = "torch", "onnxruntime"
TITLES = {TORCH: "torch", ONNXRUNTIME: "ONNX Runtime"}


def speed_up(times: dict[str, Any]) -> float:
    """How many times as fast the pruned network is."""
    return float(times["dense"]["ms"] / times["pruned"]["ms"])


def is_doubted(row: dict[str, Any], times: dict[str, Any]) -> bool:
    """Whether the fastest call of one of the networks stands alone, or takes longer on several threads than on one."""
    one = _times(row, (times["runtime"], 1)) or times
    return any(
        times[network]["again"] > DOUBTED or times[network]["ms"] > SLOWER * one[network]["ms"]
        for network in ("dense", "pruned")
    )


def cell(row: dict[str, Any], times: dict[str, Any]) -> str:
    """A speed-up, with a question mark where it is doubted."""
    return f"{speed_up(times):.2f}{' ?' if is_doubted(row, times) else ''}"


def page(result: dict[str, Any]) -> str:
    """The whole page.

    Args:
        result: The content of the result file.
    """
    rows = {name: row for name, row in result["networks"].items() if "error" not in row}
    failed = {name: row["error"] for name, row in result["networks"].items() if "error" in row}
    missing = result["listed"] - len(result["networks"])
    return page_of(
        "Speed where it counts",
        written_by("python -m benchmarks.latency --page-only", "latency.json"),
        paragraph(
            "Fewer multiply-accumulates (MACs) are not yet a shorter time: it depends on the network, the runtime, the",
            "threads and the widths. A [latency budget](budgets.md#latency) is measured in the runtime where the",
            "network is deployed:",
        ),
        "<!-- not run: the milliseconds depend on the machine -->\n",
        code(
            "result = fec_fast.prune(model, example, "
            'budget=fec_fast.Budget.keep(latency="3 ms", runtime="onnxruntime"))',
            'print(result.latency(model, example, runtime="onnxruntime"))',
            language="python",
        ),
        paragraph(
            "A search takes seconds to minutes, more on a busy machine: it times layers, then whole networks. A",
            "progress bar shows both.",
        ),
        heading("Speed-up at half of the multiply-accumulates"),
        measured_on(result, [*result["networks"].values(), *result["budgets"].values()]),
        paragraph(
            "`pip install '.[coverage,onnx]' && python -m benchmarks.latency` measures the networks without a result."
        ),
        paragraph(
            "Every network has random weights, a batch of one image of 224 x 224 pixels (inception_v3: 299), and loses",
            "the same share of every coupled set, in steps of 8 channels (`round_to=8`), until half of the MACs are",
            "left, or as few as its structure allows. `MACs` says how many times fewer there are: a speed-up of",
            "that size is all that can be expected of arithmetic. Dense and pruned network are called in turns in one",
            "process; each time is that of the fastest call. On one thread it is in CPU seconds, on several in seconds",
            "of the clock. The outputs of ONNX Runtime were those of torch to 0.001 of the largest before anything was",
            "timed.",
        ),
        _speed_ups(rows),
        paragraph(
            f"A question mark: the fifth fastest call of one of the two took more than {DOUBTED:g} times as long as",
            "the fastest, or it took longer on several threads than on one: other programs ran, or the threads waited",
            "for each other. Measure such a network again on an idle machine (`--only NAME --anew`).",
            _loads(rows),
        ),
        _summary(rows),
        paragraph(f"{missing} of the {result['listed']} networks of the list have not been measured yet.")
        if missing
        else "",
        bullets(f"{name}: not measured: {error}" for name, error in failed.items()),
        heading("Where pruning does not pay"),
        _unpaid(rows),
        _budgets(result["budgets"]),
    )


def _loads(rows: dict[str, dict[str, Any]]) -> str:
    """How busy the machine was."""
    loads = [row["load"] for row in rows.values() if row.get("load") is not None]
    if not loads:
        return ""
    return (
        f"Before these networks, {min(loads):g} to {max(loads):g} programs wanted a core at a time (mean of a minute)."
    )


def _pairs(rows: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    """The runtimes and threads of the columns."""
    return sorted(
        {(times["runtime"], times["threads"]) for row in rows.values() for times in row["times"]},
        key=lambda pair: (pair[0] != TORCH, pair[1]),
    )


def _times(row: dict[str, Any], pair: tuple[str, int]) -> dict[str, Any] | None:
    return next((times for times in row["times"] if (times["runtime"], times["threads"]) == pair), None)


def _column(pair: tuple[str, int]) -> str:
    return f"{TITLES[pair[0]]}, {pair[1]} thread{'' if pair[1] == 1 else 's'}"


def _speed_ups(rows: dict[str, dict[str, Any]]) -> str:
    pairs = _pairs(rows)
    lines = []
    for name, row in rows.items():
        cells = []
        for pair in pairs:
            times = _times(row, pair)
            cells.append("" if times is None else cell(row, times))
        one = [_times(row, (runtime, 1)) for runtime in (TORCH, ONNXRUNTIME)]
        dense = [significant(times["dense"]["ms"]) if times else "" for times in one]
        lines.append((name, f"{row['macs'][0] / row['macs'][1]:.2f}", *cells, *dense))
    header = ("network", "MACs", *map(_column, pairs), "dense, torch (ms, 1 thread)", "dense, ONNX Runtime (ms)")
    return markdown_table(header, lines)


def _summary(rows: dict[str, dict[str, Any]]) -> str:
    """Medians over the networks whose times are not doubted."""
    items = []
    for pair in _pairs(rows):
        timed = [(row, times) for row in rows.values() if (times := _times(row, pair)) is not None]
        sure = [speed_up(times) for row, times in timed if not is_doubted(row, times)]
        text = f"{_column(pair)}: {len(sure)} of {len(timed)} networks without a doubt"
        if sure:
            text += f"; speed-up {min(sure):.2f} to {max(sure):.2f}, median {statistics.median(sure):.2f}"
        items.append(text)
    return bullets(items)


def _unpaid(rows: dict[str, dict[str, Any]]) -> str:
    """Networks whose speed-up is next to none, or far from what the MACs promise."""
    none, little = [], []
    for pair in _pairs(rows):
        sure = {
            name: (speed_up(times), row["macs"][0] / row["macs"][1])
            for name, row in rows.items()
            if (times := _times(row, pair)) is not None and not is_doubted(row, times)
        }
        slow = [f"{name} {found:.2f}" for name, (found, _) in sure.items() if found < PAYS]
        behind = [f"{name} {found:.2f}" for name, (found, macs) in sure.items() if PAYS <= found < 1 + (macs - 1) / 2]
        none += [f"{_column(pair)}: {', '.join(slow)}"] if slow else []
        little += [f"{_column(pair)}: {', '.join(behind)}"] if behind else []
    first = paragraph(
        f"Less than {PAYS:g} times as fast:" if none else f"No network is less than {PAYS:g} times as fast."
    )
    second = (
        paragraph("Less than half of the gain that the MACs promise (under 1.5 times as fast for 2 times fewer MACs):")
        + bullets(little)
        if little
        else paragraph("No other network has less than half of the gain that the MACs promise.")
    )
    why = paragraph(
        "Doubted times are left out of both lists. What a call needs beside its convolutions does not shrink with",
        "them: Python and the dispatch of small operators (torch, small networks), depthwise layers, shuffles and",
        "concatenations, activations. There, give the budget as a latency, and look at ONNX Runtime first, which fuses",
        "these operators.",
    )
    return first + bullets(none) + second + why


def _kept(measured: dict[str, dict[str, Any]]) -> str:
    """How many searches came near their target, and how many networks are slower than the dense one."""
    if not measured:
        return ""
    off = [abs(row["found_ms"] / row["target_ms"] - 1) for row in measured.values()]
    shares = [row["pruned"]["ms"] / row["dense"]["ms"] for row in measured.values()]
    seconds = [row["seconds"] for row in measured.values()]
    return bullets(
        [
            f"{sum(each <= NEAR for each in off)} of {len(off)} networks are within {NEAR:.0%} of the target; the "
            f"furthest is off by {max(off):.1%}".replace("%", " %"),
            f"{sum(share > 1 for share in shares)} are slower than the dense network; the fastest calls take "
            f"{min(shares):.2f} to {max(shares):.2f} of its time, median {statistics.median(shares):.2f}",
            f"a search took {min(seconds):.0f} to {max(seconds):.0f} seconds, median {statistics.median(seconds):.0f}; "
            "layers of a shape that was timed before are not timed again",
        ]
    )


def _budgets(budgets: dict[str, dict[str, Any]]) -> str:
    measured = {name: row for name, row in budgets.items() if "error" not in row}
    lines = []
    for name, row in measured.items():
        ratio = row["pruned"]["ms"] / row["dense"]["ms"]
        lines.append(
            (
                *name.split(" "),
                significant(row["target_ms"]),
                significant(row["found_ms"]),
                f"{100 * (row['found_ms'] / row['target_ms'] - 1):+.1f} %",
                f"{ratio:.2f}",
                f"{row['macs'][1] / row['macs'][0]:.2f}",
                f"{row['seconds']:.0f}",
            )
        )
    header = ("network", "runtime", "target (ms)", "found (ms)", "off", "of dense", "MACs left", "search (s)")
    return "".join(
        (
            heading("Latency budgets"),
            paragraph(
                "`python -m benchmarks.latency --budgets` asks for 70 % of the dense network's latency on one thread.",
                "`found` is the median that the search ended with, by the clock. `of dense` compares the fastest calls",
                "of both networks after the search, in turns, in CPU seconds: 0.70 is what was asked for. Channels",
                "go by the L1 norm, uniformly, as above, and nothing is recovered; the defaults first measure errors,",
                "and recover afterwards, which takes longer.",
                _loads(measured),
            ),
            _kept(measured),
            markdown_table(header, lines),
            bullets(f"{name}: {row['error']}" for name, row in budgets.items() if "error" in row),
            paragraph("No search has been measured yet.") if not budgets else "",
        )
    )
