"""The pages that the benchmarks write say what the committed results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_performance_page_is_that_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("scoring_page", ROOT / "benchmarks" / "scoring_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads((ROOT / "benchmarks" / "results" / "scoring.json").read_text())
    assert module.page(result) == (ROOT / "docs" / "performance.md").read_text()
