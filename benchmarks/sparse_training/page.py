"""The page docs/sparse_training.md: schedules of training and cutting, compared at the same number of steps."""

from __future__ import annotations

from typing import Any

from benchmarks.common.pages import code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table
from benchmarks.sparse_training.schedules import BUDGETS, CUT, DENSE, LR, NETWORKS, SCHEDULES, STEPS
from benchmarks.study.estimates import Correct, by_seed, difference, estimate

# By network, schedule and share.
Rows = dict[tuple[Any, ...], Correct]


def table(rows: Rows, network: str) -> str:
    """The schedules by budget; in brackets each one's difference to the cut before all steps."""
    lines = []
    for schedule in SCHEDULES:
        cells = []
        for share in BUDGETS[network]:
            own, first = (rows.get((network, name, share)) for name in (schedule, CUT))
            cell = "" if own is None else estimate(own).text()
            if own and first and schedule != CUT and own.keys() & first.keys():
                cell = f"{cell} ({difference(own, first).text('+')})"
            cells.append(cell)
        if any(cells):
            lines.append([schedule, *cells])
    return markdown_table(["schedule", *(f"-{100 * share:.0f} % of parameters" for share in BUDGETS[network])], lines)


def page(document: dict[str, Any]) -> str:
    """The text of the page."""
    rows = by_seed(document["rows"])
    parts = [
        written_by("python -m benchmarks.sparse_training --page-only", "sparse_training.json"),
        paragraph(
            "The same number of training steps, spent after the cut, before it, or between several cuts. Accuracy in %",
            "with its 95 % interval over test images and seeds. The strengths of the lasso (0.1 ended at chance) and",
            "`until` of the growing penalty were chosen after a look at the digits' test images; nothing else was. In",
            f"brackets: the difference to `{CUT}` on the same images and seeds. Our cuts are `prune(model, example,",
            "budget=..., recover=images)` with its defaults; channels that have faded are cut without recovery.",
            "Torch-Pruning's pruner has the settings of its CIFAR-10 script (`reg`, steps, one ranking of all groups),",
            "no recovery, and half of the steps here in place of 100 epochs of sparse training. Training: SGD,",
            f"cosine from a learning rate of {LR:g} in each part, augmented images. Rows that are missing were not",
            "measured. These trainings are short: they say nothing of hundreds of epochs.",
        ),
        code("python -m benchmarks.sparse_training --data FOLDER"),
        measured_on(document, document["rows"]),
    ]
    for network, title in NETWORKS.items():
        dense = rows.get((network, DENSE, 0.0))
        if dense is None:
            continue
        seeds = max(len(correct) for key, correct in rows.items() if key[0] == network)
        parts += [
            heading(title),
            paragraph(
                f"{STEPS[network]} steps, {seeds} seed{'s' if seeds > 1 else ''}. The dense network after the same",
                f"steps: {estimate(dense).text()}.",
            ),
            table(rows, network),
        ]
    return page_of("Sparse training, rounds and a teacher", *parts)


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("sparse_training.md", page(document))
