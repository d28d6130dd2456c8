"""Text tables: columns aligned with spaces, for terminals and logs."""

from __future__ import annotations

from collections.abc import Sequence


def short_number(number: float) -> str:
    """A count in three digits and a letter, for headlines.

    Args:
        number: Not negative.

    Returns:
        Such as ``"950"``, ``"25.6 M"`` or ``"4.09 G"``.
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {letter}"
    return f"{number:g}"


def counted(number: int, noun: str) -> str:
    """A number of things.

    Args:
        number: How many.
        noun: What, in the singular; the plural ends in s.

    Returns:
        Such as ``"1 layer"`` or ``"1,200 layers"``.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def change(old: float, new: float) -> str:
    """How much a number has changed, for tables.

    Args:
        old: The number before.
        new: The number after.

    Returns:
        Per cent of the number before, such as ``"-25.0 %"``; ``"="`` where they are equal, ``"new"`` where the first
        is 0.
    """
    if old == new:
        return "="
    return f"{100 * (new - old) / old:+.1f} %" if old else "new"


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
