"""The page docs/defaults.md: the defaults compared with uniform ratios and the L1 norm, and with other choices."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table
from benchmarks.defaults.jobs import BUDGETS, CHOICES, CLASSICAL, DEFAULT, IMAGES, RECOVERIES
from benchmarks.defaults.networks import NAMES
from benchmarks.study.estimates import Correct, difference, estimate, pooled
from benchmarks.study.rows import CURRENCIES

TITLES = {
    "none": "As pruned",
    "data-free": "Recovered without images",
    "re-estimated": "Batch norm re-estimated",
    "least squares": "Recovered with images",
}
CALLS = {  # what `default` stands for
    "none": "`prune(model, example, budget=..., recover=None)`: the cut alone.",
    "data-free": "`prune(model, example, budget=...)`: what is done with batch norms if nothing else is said.",
    "re-estimated": "`prune(model, example, budget=..., recover=None)`, then `recalibrate` on the images.",
    "least squares": "`prune(model, example, budget=..., recover=images)`; `calibration=images` alone does the same.",
}


class Rows:
    """The rows of a result file."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.dense: dict[str, Correct] = {}
        self.rows: dict[tuple[Any, ...], Correct] = defaultdict(dict)
        for row in document["rows"]:
            found = np.frombuffer(bytes.fromhex(row["values"]), np.uint8) / 255
            if len(row["key"]) == 2:
                self.dense[row["key"][0]] = {0: found}
            else:
                *key, seed = row["key"]
                self.rows[tuple(key)][seed] = found


def table(rows: Rows, network: str, recovery: str) -> str:
    """The choices by budget; in brackets each one's difference to the default on the same images."""
    lines = []
    for choice in CHOICES:
        cells = []
        for budget in BUDGETS:
            own, default = (rows.rows.get((network, name, recovery, *budget)) for name in (choice, DEFAULT))
            cell = "" if own is None else estimate(own).text()
            if own is not None and default is not None and choice != DEFAULT:
                cell = f"{cell[: cell.index(' ')]} ({difference(own, default).text('+')})"
            cells.append(cell)
        if any(cells):
            lines.append([choice, *cells])
    return markdown_table([NAMES[network], *(f"-{100 * s:.0f} % of {CURRENCIES[c]}" for c, s in BUDGETS)], lines)


def verdicts(rows: Rows, recovery: str) -> str:
    """By budget: the mean over the networks of the default minus its classical rival, and where it is behind."""
    lines = []
    for currency, share in BUDGETS:
        ahead = {}
        for network in NAMES:
            ours, theirs = (
                rows.rows.get((network, choice, recovery, currency, share)) for choice in (DEFAULT, CLASSICAL)
            )
            if ours and theirs:
                ahead[network] = difference(ours, theirs)
        behind = [NAMES[network] for network, each in ahead.items() if each.verdict() == "behind"]
        if ahead:
            mean = pooled(ahead.values()).text("+")
            lines.append([f"-{100 * share:.0f} % of {CURRENCIES[currency]}", mean, ", ".join(behind) or "none"])
    return markdown_table(["budget", "default minus L1, uniform: mean", "default behind"], lines)


def costs(document: dict[str, Any]) -> str:
    """What the choices take to prune and recover to half of the MACs, by network."""
    seconds = {tuple(row["key"]): row["cpu_seconds"] for row in document["rows"] if "cpu_seconds" in row}
    kinds = [(choice, recovery) for choice in (DEFAULT, CLASSICAL) for recovery in RECOVERIES]
    lines = []
    for network, name in NAMES.items():
        found = [seconds.get((network, *kind, "macs", 0.5, 0)) for kind in kinds]
        if any(found):
            lines.append([name, *("" if each is None else f"{each:.0f}" for each in found)])
    titles = [f"{choice}, {TITLES[recovery][:1].lower()}{TITLES[recovery][1:]}" for choice, recovery in kinds]
    return markdown_table(["network", *titles], lines)


def page(document: dict[str, Any]) -> str:
    """The text of the page."""
    rows = Rows(document)
    anchor = TITLES["data-free"].lower().replace(" ", "-")
    parts = [
        written_by("python -m benchmarks.defaults --page-only", "defaults.json"),
        paragraph("The rows were measured by"),
        code("python -m benchmarks.defaults --data FOLDER"),
        paragraph(
            "Right after the cut: accuracy in % on test images of CIFAR-10 (JPEG) that nothing was chosen on; for",
            "the U-Net the intersection over union of pixels; for the SSD the F1 score of the boxes, by image, on",
            "`val` and `test` of BCCD's images of blood cells. `default` is `prune(model, example, budget=...)`",
            "without further options, except `recover=`, which is said above each table. If nothing is said,",
            f"networks with batch norms are [recovered without images](#{anchor}). Calibration: {IMAGES:,}",
            "training images (of blood cells all) without labels. In brackets: the difference to the default on",
            "the same images, with its 95 % interval. One draw of the calibration images. Empty cells, and",
            "networks and choices that are missing, were not measured.",
        ),
        paragraph(
            "**Dense networks:**",
            ", ".join(f"{NAMES[name]} {estimate(value).text()}" for name, value in rows.dense.items()) + ".",
            "`python -m benchmarks.defaults.train` trained the U-Net, and for an hour on one core the DenseNet, which",
            "is far from its best.",
        ),
        measured_on(document, document["rows"]),
    ]
    for recovery in RECOVERIES:
        tables = [table(rows, network, recovery) for network in NAMES]
        parts += [heading(TITLES[recovery]), paragraph(CALLS[recovery]), verdicts(rows, recovery), *tables]
    parts += [
        heading("What it takes"),
        paragraph(
            "CPU seconds of one thread to half of the MACs: scores, cut and what follows it, without the proof",
            "(`verify=False`). The rows come from different machines: compare those of one network.",
        ),
        costs(document),
    ]
    return page_of("Defaults", *parts)


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("defaults.md", page(document))
