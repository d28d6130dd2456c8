"""Text tables: columns aligned with spaces, for terminals and logs."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str, *, rule: bool = True, totals: bool = False
) -> str:
    """Lays out a table whose columns are as wide as their widest cell and two spaces apart.

    Args:
        header: The titles of the columns.
        rows: The cells, one sequence per row, each as long as the header.
        align: One letter per column: ``"l"`` for left, ``"r"`` for right.
        rule: Whether a line of dashes separates the header.
        totals: Whether the last row is separated by a line of dashes too.

    Returns:
        Lines without trailing spaces, joined by newlines, no newline at the end.

    Raises:
        ValueError: A row or ``align`` has another length than the header.
    """
    table = [list(header), *map(list, rows)]
    if any(len(row) != len(align) for row in table):
        raise ValueError(f"a table of {len(align)} columns needs as many cells in the header and in every row")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    dashes = "-" * max(map(len, lines))
    if totals:
        lines.insert(-1, dashes)
    if rule:
        lines.insert(1, dashes)
    return "\n".join(lines)
