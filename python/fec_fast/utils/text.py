"""Text tables: columns aligned with spaces, for terminals and logs; folded where a terminal is narrow."""

from __future__ import annotations

import contextlib
import contextvars
import textwrap
from collections.abc import Iterator, Sequence

_width: contextvars.ContextVar[int | None] = contextvars.ContextVar("width", default=None)


@contextlib.contextmanager
def lines_within(width: int | None) -> Iterator[None]:
    """Lets tables and :func:`folded` keep to a width, until the end of the context.

    Args:
        width: The number of columns; ``None`` for any.

    Yields:
        Nothing.
    """
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def folded(text: str) -> str:
    """Folds the lines that are wider than the width that is set, at spaces. Words stay whole: numbers, paths.

    Args:
        text: Lines. What is behind the first line of a long one is indented by two spaces more.

    Returns:
        Lines; the text itself where no width is set.
    """
    width = _width.get()
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line.strip(),
            max(width, len(indent) + 12),
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


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

    Where :func:`lines_within` sets a width and the table is wider, each row becomes a few lines, with the titles of the
    columns beside the cells.

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
    width = _width.get()
    if width is not None and max(map(len, lines)) > width:
        return "\n".join(_folded_row(header, row) for row in rows)
    dashes = "-" * max(map(len, lines))
    if totals:
        lines.insert(-1, dashes)
    if rule:
        lines.insert(1, dashes)
    return "\n".join(lines)


def _folded_row(header: Sequence[str], row: Sequence[str]) -> str:
    """A row in lines: its name, and below it the other cells behind their titles."""
    names = [cell for title, cell in zip(header, row, strict=True) if cell and not title]
    first = next((at for at, title in enumerate(header) if title), 0)
    names.append(row[first])
    cells = [f"{title} {cell}" for title, cell in list(zip(header, row, strict=True))[first + 1 :] if cell and title]
    return folded(" ".join(names)) + "".join(f"\n{line}" for line in _packed(cells))


def _packed(cells: Sequence[str]) -> list[str]:
    """Cells side by side, as many to a line as fit, indented by two spaces."""
    width = _width.get() or 80
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + 2 + len(cell) <= width:
            lines[-1] += f"; {cell}"
        else:
            lines.append(f"  {cell}")
    return [folded(line) for line in lines]
