"""Tables of the recovery benchmark: accuracy by method and budget, by number of images, and compared with the aims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.common.tables import markdown_table
from benchmarks.recovery.methods import BUDGETS, COUNTS, IMAGES, METHODS, OURS
from benchmarks.recovery.networks import LARGE, NAMES
from benchmarks.study.estimates import Correct, Estimate, difference, estimate, unpacked
from benchmarks.study.rows import CURRENCIES

Budget = tuple[str, float]
# The most points below the dense network that are aimed at, by network and budget.
AIMS: dict[tuple[str, Budget], float] = {
    ("vgg16", ("params", 0.7)): 0.3,
    ("vgg16", ("params", 0.9)): 0.8,
    ("vgg16", ("params", 0.94)): 2.5,
    ("resnet56", ("params", 0.5)): 2.5,
    ("resnet56", ("params", 0.7)): 8.0,
    ("mobilenetv2", ("macs", 0.3)): 4.0,
    ("mobilenetv2", ("macs", 0.5)): 10.0,
}


def written(budget: Budget) -> str:
    """A budget, such as "-90 % of parameters"."""
    return f"-{100 * budget[1]:.0f} % of {CURRENCIES[budget[0]]}"


class Accuracies:
    """The rows of accuracy in a result file, by what was pruned and recovered how."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.dense = document["dense"]
        self.rows: dict[tuple[str, str, Budget, int], list[dict[str, Any]]] = defaultdict(list)
        for row in document["rows"]:
            if row["key"][0] == "accuracy":
                _, network, method, currency, share, _, images = row["key"]
                self.rows[network, method, (currency, share), images].append(row)

    def get(self, network: str, method: str, budget: Budget, images: int = IMAGES) -> Correct | None:
        """Which images are classified correctly, by seed; ``None`` if nothing was measured."""
        rows = self.rows.get((network, method, budget, images if METHODS[method].images else 0))
        return None if not rows else {row["key"][5]: unpacked(row["right"], row["images"]) for row in rows}

    def dense_correct(self, network: str, seeds: Sequence[int]) -> Correct:
        """The same of the dense network, for each of some seeds."""
        dense = self.dense[network]
        return dict.fromkeys(seeds, unpacked(dense["right"], dense["images"]))

    def ahead(self, network: str, ours: str, theirs: str, budget: Budget) -> Estimate | None:
        """One method minus another, on the same images and seeds; ``None`` if one was not measured."""
        first, second = self.get(network, ours, budget), self.get(network, theirs, budget)
        if first is None or second is None:
            return None
        if not METHODS[theirs].images:  # the same for every draw of the images
            second = dict.fromkeys(first, second[0])
        if not METHODS[ours].images:
            first = dict.fromkeys(second, first[0])
        return difference(first, second) if first.keys() & second.keys() else None

    def drop(self, network: str, method: str, budget: Budget, images: int = IMAGES) -> Estimate | None:
        """The dense network minus a method, in points; ``None`` if it was not measured."""
        correct = self.get(network, method, budget, images)
        return None if correct is None else difference(self.dense_correct(network, list(correct)), correct)

    def best(self, network: str, budget: Budget) -> str | None:
        """The method of the project with the highest accuracy; ``None`` if none was measured."""
        values = {name: self.get(network, name, budget) for name in OURS}
        means = {name: estimate(value).mean for name, value in values.items() if value is not None}
        return max(means, key=lambda name: means[name]) if means else None


def table_of_aims(rows: Accuracies) -> str:
    """What is aimed at, and the method of the project that comes nearest."""
    lines = []
    for (network, budget), allowed in AIMS.items():
        method = rows.best(network, budget) if network in rows.dense else None
        drop = None if method is None else rows.drop(network, method, budget)
        cells = ["not measured yet", "", ""]
        if drop is not None:
            cells = [drop.text(), str(method), "yes" if drop.mean <= allowed else "no"]
        lines.append([NAMES[network], written(budget), f"{allowed:.1f}", *cells])
    return markdown_table(["network", "removed", "points below dense, at most", "measured", "method", "reached"], lines)


def table_of_methods(rows: Accuracies, network: str, ours: str) -> str:
    """The methods by budget; in brackets each one's difference to one of them on the same images and seeds."""
    lines = []
    for name in METHODS:
        cells = []
        for budget in BUDGETS[network]:
            correct, behind = rows.get(network, name, budget), rows.ahead(network, name, ours, budget)
            cell = "" if correct is None else estimate(correct).text()
            if name == ours and cell:
                cell = f"**{cell}**"
            elif behind is not None:
                cell = f"{cell[: cell.index(' ')]} ({behind.text('+')})"
            cells.append(cell)
        if any(cells):
            lines.append([name, *cells])
    return markdown_table([NAMES[network], *map(written, BUDGETS[network])], lines)


def table_by_count(rows: Accuracies, network: str, methods: Sequence[str], budget: Budget) -> str:
    """Accuracy by the number of calibration images."""
    lines = []
    for name in methods:
        values = [rows.get(network, name, budget, count) for count in COUNTS]
        if any(value is not None for value in values):
            lines.append([name, *("" if value is None else estimate(value).text() for value in values)])
    return markdown_table([NAMES[network], *(f"{count:,} images" for count in COUNTS)], lines)


def verdicts(rows: Accuracies, network: str, ours: str, theirs: str) -> dict[str, list[str]]:
    """The budgets at which a method is ahead of, level with or behind another."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for budget in BUDGETS[network]:
        ahead = rows.ahead(network, ours, theirs, budget)
        if ahead is not None:
            grouped[ahead.verdict()].append(f"{written(budget)} ({ahead.text('+')})")
    return grouped


def of_table(document: dict[str, Any], table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of one table of a result file, by their keys."""
    return {tuple(row["key"][1:]): row for row in document["rows"] if row["key"][0] == table}


def table_of_cost(document: dict[str, Any]) -> str:
    """CPU seconds, memory, and where the time goes."""
    lines = []
    parts: list[str] = []
    for (network, images), row in of_table(document, "cost").items():
        parts = list(row["shares"])
        seconds = (f"{row[name]:.1f}" for name in ("dense_seconds", "pruned_seconds", "compensate_seconds"))
        split = (f"{100 * share:.0f} %" for share in row["shares"].values())
        name = {**NAMES, **LARGE}[network]
        lines.append(
            [
                f"{name}, {images:,} images",
                *seconds,
                f"{median(row['ratios']):.1f} ({min(row['ratios']):.1f} to {max(row['ratios']):.1f})",
                f"{row['memory_mib']:,}",
                *split,
            ]
        )
    header = ["network", "dense pass, s", "pruned pass, s", "compensate, s", "ratio", "memory, MiB", *parts]
    return markdown_table(header, lines)


def table_of_detector(document: dict[str, Any]) -> str:
    """The average precision of the detector, by method: the mean over the dense detectors, and the difference."""
    by_method: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for (seed, method), row in of_table(document, "detector").items():
        by_method[method][seed] = row
    lines = []
    for method, rows in by_method.items():
        cells = []
        for metric in ("coco", "voc"):
            values = {seed: 100 * row[metric] for seed, row in rows.items()}
            behind = fmean(values[seed] - 100 * by_method["dense"][seed][metric] for seed in values)
            cells.append(f"{fmean(values.values()):.1f}" + ("" if method == "dense" else f" ({behind:+.1f})"))
        lines.append([method, *cells, str(len(rows))])
    return markdown_table(["method", "COCO mAP, %", "VOC mAP, %", "dense detectors"], lines)


def table_of_training(document: dict[str, Any], network: str, baseline: str) -> str:
    """Accuracy after training, by start; each start with the rate that is best on the images for choices.

    Args:
        document: The content of the result file.
        network: The name of the network.
        baseline: The start that the others are compared with, on the same images and seeds.
    """
    rows: dict[tuple[float, int, str], dict[int, dict[float, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for (of_network, share, seed, steps, rate, start), row in of_table(document, "training").items():
        if of_network == network:
            rows[share, steps, start][seed][rate] = row
    lines = []
    to_compare: dict[tuple[float, int], Correct] = {}
    for (share, steps, start), by_seed in sorted(
        rows.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] != baseline)
    ):
        rates = {
            rate: fmean(by_rate[rate]["on_choice"] for by_rate in by_seed.values())
            for rate in set.intersection(*(set(by_rate) for by_rate in by_seed.values()))
        }
        if rates:
            best = max(rates, key=lambda rate: rates[rate])
            correct = {seed: unpacked(by[best]["right"], by[best]["images"]) for seed, by in by_seed.items()}
            before = fmean(by[best]["before"] for by in by_seed.values())
            cells = [written(("params", share)), str(steps), start, f"{before:.1f}", estimate(correct).text()]
            if start == baseline:
                to_compare[share, steps] = correct
            theirs = to_compare.get((share, steps), {})
            ahead = start != baseline and correct.keys() & theirs.keys()
            cells.append(difference(correct, theirs).text("+") if ahead else "")
            lines.append([*cells, f"{best:g}", str(len(by_seed))])
    header = [NAMES[network], "steps", "start", "before", "after", f"to {baseline}", "rate", "seeds"]
    return markdown_table(header, lines)
