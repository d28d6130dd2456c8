"""docs/coverage.md from benchmarks/results/coverage.json."""

from __future__ import annotations

from typing import Any


def page(result: dict[str, Any]) -> str:
    return ""
