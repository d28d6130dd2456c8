"""Result files: where they are, how they are read and written, and which run measured which part of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT, describe, describe_commit, environment
from benchmarks.common.pages import bullets, paragraph
from fec_fast.utils.files import write_text

RESULTS = ROOT / "benchmarks" / "results"
# Runs before this moment ranked channels by scores in float32.
_SCORES_IN_FLOAT64 = "2026-11-28T10:31"


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file; an empty one if there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_result(path: Path, document: dict[str, Any]) -> None:
    """Writes a result file as JSON, first beside it, then renamed into place.

    A list under the top-level key ``rows`` is written one row per line, so that a new row is one line of a diff.
    """
    entries = []
    for key, value in document.items():
        if key == "rows":
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n  ]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        entries.append(f"  {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def run_number(document: dict[str, Any], *packages: str) -> int:
    """The index of this process in ``document["runs"]``; the first call adds its environment.

    A result file grows over several runs, on different machines and commits. Each part that is measured carries this
    number as ``run``. Parts without one are older than the list: the file's ``machine`` describes them.

    Args:
        document: The content of the result file.
        packages: See :func:`benchmarks.common.environment.environment`.
    """
    here, runs = environment(*packages), document.setdefault("runs", [])
    if here not in runs:
        runs.append(here)
    return int(runs.index(here))


def measured_on(document: dict[str, Any], parts: Iterable[dict[str, Any]]) -> str:
    """The runs that measured the parts of a result file, for the head of a page.

    Args:
        document: The content of the result file.
        parts: Its parts, each with ``run``, or with ``machine``, or with neither.

    Returns:
        A paragraph; or a list with the number of parts of each machine and set of versions, and its commits.
    """
    counts: Counter[str] = Counter()
    commits: dict[str, dict[str, None]] = defaultdict(dict)
    for part in parts:
        run = _run_of(document, part)
        counts[describe(run)] += 1
        commits[describe(run)][describe_commit(run)] = None
    described = {machine: f"{machine}; {'; '.join(commits[machine])}." for machine in counts}
    if len(counts) == 1:
        return paragraph(f"Measured on: {next(iter(described.values()))}")
    runs = bullets(
        f"{count:,} of {counts.total():,} results: {described[machine]}" for machine, count in counts.items()
    )
    return paragraph("Measured on:") + runs


def older_scores(document: dict[str, Any], parts: Iterable[dict[str, Any]]) -> str:
    """A sentence about the parts whose networks were pruned by scores in float32; nothing if there are none.

    Args:
        document: The content of the result file.
        parts: Its parts, as for :func:`measured_on`. One without a date is older than the dates.
    """
    older = [_run_of(document, part).get("date", "") < _SCORES_IN_FLOAT64 for part in parts]
    if not any(older):
        return ""
    return paragraph(
        f"{'These' if all(older) else f'{sum(older):,} of these'} results are older than the scores in float64",
        "([reliability.md](reliability.md#numbers)): where scores are nearly equal, other channels may be removed",
        "today; scoring on a CPU takes about half as much time again ([formula.md](formula.md)).",
    )


def _run_of(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The run that measured a part of a result file."""
    run = document["runs"][part["run"]] if "run" in part else part.get("machine", document.get("machine"))
    return dict(run)
