"""A few shapes of SVG, on a white sheet with a border: readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

KEPT, REMOVED, OTHER, INK, FAINT = "#00796b", "#c62828", "#e08a00", "#1f2933", "#9aa5b1"
CELL = 22


def sheet(width: int, height: int, title: str, shapes: Iterable[str]) -> str:
    """The file: its size in pixels, what it shows in words, and its shapes."""
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="14">',
            f"<title>{escape(title)}</title>",
            f"<defs>{arrow}</defs>",
            f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="#fff" stroke="#d5dbe1"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK, size: int = 14, bold: bool = False
) -> str:
    """One line of text; ``y`` is its base line."""
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float) -> str:
    """A rectangle with round corners."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="5" fill="#eef2f5" stroke="{FAINT}"/>'


def cell(x: float, y: float, colour: str) -> str:
    """A channel, or one part of a weight."""
    place = f'x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}"'
    return f'<rect {place} fill="{colour}" stroke="#fff" stroke-width="2"/>'


def cross(x: float, y: float) -> str:
    """A cross over a cell that is removed: not by its colour alone."""
    left, top, right, bottom = (f"{place:g}" for place in (x + 5, y + 5, x + CELL - 5, y + CELL - 5))
    lines = f"M{left} {top} {right} {bottom} M{right} {top} {left} {bottom}"
    return f'<path d="{lines}" stroke="#fff" stroke-width="2"/>'


def stack(x: float, y: float, channels: int, removed: Iterable[int] = (), colour: str = KEPT) -> str:
    """Channels above one another; those that are removed are red, with a cross."""
    gone = set(removed)
    return "".join(
        cell(x, y + CELL * number, REMOVED if number in gone else colour)
        + (cross(x, y + CELL * number) if number in gone else "")
        for number in range(channels)
    )


def grid(
    x: float, y: float, rows: int, columns: int, gone_rows: Iterable[int] = (), gone_columns: Iterable[int] = ()
) -> str:
    """A weight: a row per filter, a column per input channel."""
    rows_gone, columns_gone = set(gone_rows), set(gone_columns)
    shapes = []
    for row in range(rows):
        for column in range(columns):
            removed = row in rows_gone or column in columns_gone
            left, top = x + CELL * column, y + CELL * row
            shapes.append(cell(left, top, REMOVED if removed else KEPT) + (cross(left, top) if removed else ""))
    return "".join(shapes)


def arrow(*points: tuple[float, float], width: float = 1.5) -> str:
    """A line through points, with a head at its end."""
    path = " ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="{width:g}" marker-end="url(#arrow)"/>'
