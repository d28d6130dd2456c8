"""docs/trials.md from benchmarks/results/trials.json."""

from __future__ import annotations

from typing import Any

from benchmarks.common.pages import code, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on, older_scores
from benchmarks.study.jobs import POLICY
from benchmarks.study.page import devices
from benchmarks.study.rows import CRITERION, STAGES, Rows
from benchmarks.study.tables import table_of_criteria


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    images, rows = document["settings"]["test_images"], Rows(document)
    return page_of(
        "Criteria that were tried and not built",
        written_by("python -m benchmarks.study.trials --page-only", "trials.json"),
        paragraph("The rows were measured by"),
        code(f"python -m benchmarks.study.trials --data FOLDER --test-images {images}"),
        paragraph(
            "[The study](study.md) compares the criteria of the package. These are variants of the same idea,",
            "entropies of the similarity of filters, each a few lines of `benchmarks/study/trials.py`: another",
            "distance, another population, another decay of the similarity with the distance, another function of the",
            f"entropy, a factor for the norm of the filter. Networks, budgets, policy (`{POLICY}`) and training are",
            f"those of the study; the images are {images:,} other test images, which settings may be chosen on.",
        ),
        paragraph(
            f"All on both sides; in brackets the difference to `{CRITERION}` on the same images and seeds; intervals",
            f"are 95 %. Rows by device: {devices(document)}.",
        ),
        measured_on(document, document["rows"]),
        older_scores(document, document["rows"]),
        *(block for tuned, stage in STAGES.items() for block in _stage(rows, list(document["dense"]), tuned, stage)),
    )


def _stage(rows: Rows, networks: list[str], tuned: bool, stage: str) -> list[str]:
    return [paragraph(f"**{stage}.**"), *(table_of_criteria(rows, network, tuned) for network in networks)]


def write(document: dict[str, Any]) -> None:
    """Writes the page."""
    write_page("trials.md", page(document))
