"""The pages that the benchmarks write say what the committed results say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("writer", "results", "page"),
    [
        ("scoring_page", "scoring.json", "performance.md"),
        ("coverage_page", "coverage.json", "coverage.md"),
        ("study_page", "study.json", "study.md"),
    ],
)
def test_a_page_is_that_of_the_results(writer: str, results: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(writer)
    result = json.loads((ROOT / "benchmarks" / "results" / results).read_text())
    assert module.page(result) == (ROOT / "docs" / page).read_text()
