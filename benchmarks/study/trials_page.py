"""Writes docs/trials.md from the rows of ``study_trials.py``.

python -m benchmarks.study.trials_page
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.study.page import ROOT, STAGES, Rows, criteria, devices


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    settings, rows = document["settings"], Rows(document)
    lines = [
        "# What else was tried for a criterion",
        "",
        "Written by `python -m benchmarks.study.trials_page` from",
        "[benchmarks/results/trials.json](../benchmarks/results/trials.json), which holds every row that was measured",
        "by",
        "",
        "```sh",
        f"python -m benchmarks.study.trials --data FOLDER --test-images {settings['test_images']}",
        "```",
        "",
        "[The study](study.md) compares the criteria that are built. These are others within the idea, entropies of",
        "how similar filters are, each a few lines of `study_trials.py`: another distance, another population, another",
        "fall of similarity with distance, another count of the entropy, the filter's norm with it. Networks, budgets,",
        "policy (`entropy`) and training are those of the study, but the images are the",
        f"{settings['test_images']:,} test images that may be chosen on.",
        "All on both sides; in brackets the difference to `fec_l1` on the same images and seeds, intervals are 95 %.",
        "",
        f"Rows by what they were made on: {devices(document)}.",
        "",
    ]
    for tuned in (True, False):
        lines += [f"**{STAGES[tuned]}.**", ""]
        for network in document["dense"]:
            lines += criteria(rows, network, tuned)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Writes it."""
    document = json.loads((ROOT / "benchmarks" / "results" / "trials.json").read_text())
    (ROOT / "docs" / "trials.md").write_text(page(document))


if __name__ == "__main__":
    main()
