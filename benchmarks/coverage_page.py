"""docs/coverage.md from benchmarks/results/coverage.json."""

from __future__ import annotations

from typing import Any

from scoring_page import number, table


def page(result: dict[str, Any]) -> str:
    return ""
