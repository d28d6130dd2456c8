"""Markdown tables and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, with an empty line after it; an empty string if there are no rows.

    Args:
        header: The titles of the columns.
        rows: One sequence of cells per row, each as long as the header.

    Raises:
        ValueError: A row has more or fewer cells than the header.
    """
    body = [[str(cell) for cell in row] for row in rows]
    if any(len(row) != len(header) for row in body):
        raise ValueError(f"every row of the table {list(header)} needs {len(header)} cells")
    lines = [list(header), ["---"] * len(header), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n" if body else ""


def significant(value: float) -> str:
    """Three significant figures, with commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
