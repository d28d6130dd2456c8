"""HTML for notebooks: a title, a few facts, and a table that scrolls, so that a result fits one screen."""

from __future__ import annotations

import html
from collections.abc import Sequence

# A notebook's cell has as many rows as one scrolls through; str() has them all.
_MOST_ROWS = 200
_CELL = "padding:2px 10px 2px 0;text-align:{side};vertical-align:top;white-space:nowrap"


class Html(str):
    """Text that is HTML already and is not escaped again."""


def escape(text: object) -> Html:
    """Text for HTML.

    Args:
        text: Any text; :class:`Html` is returned as it is.

    Returns:
        The text with ``<``, ``>``, ``&`` and quotes replaced.
    """
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def share_bar(share: float, text: str) -> Html:
    """A bar that shows a share, with the text beside it.

    Args:
        share: In [0, 1].
        text: What the bar shows, in words or numbers.

    Returns:
        The bar, in the colour of the surrounding text, so that it is readable on dark and on light.
    """
    width = round(100 * min(max(share, 0.0), 1.0))
    return Html(
        '<span aria-hidden="true" style="display:inline-block;width:80px;height:8px;margin-right:8px;'
        'border:1px solid currentColor;border-radius:2px;opacity:.75">'
        f'<span style="display:block;width:{width}%;height:100%;background:currentColor"></span></span>{escape(text)}'
    )


def html_panel(
    title: str, facts: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]], align: str
) -> str:
    """Lays out what a notebook shows of a result. It is at most about 30 lines high; a longer table scrolls.

    Args:
        title: The first line, in bold.
        facts: One line each.
        header: The titles of the table's columns.
        rows: The cells, one sequence per row, each as long as the header.
        align: One letter per column: ``"l"`` for left, ``"r"`` for right.

    Returns:
        HTML with inline styles alone, in the colours of the notebook. Text is escaped, but for :class:`Html`.

    Raises:
        ValueError: A row or ``align`` has another length than the header.
    """
    if any(len(row) != len(align) for row in (header, *rows)):
        raise ValueError(f"a table of {len(align)} columns needs as many cells in the header and in every row")
    styles = [_CELL.format(side={"l": "left", "r": "right"}[side]) for side in align]
    head = "".join(
        f'<th scope="col" style="{style}">{escape(cell)}</th>' for cell, style in zip(header, styles, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{style}">{escape(cell)}</td>' for cell, style in zip(row, styles, strict=True))
        + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    lines = [f'<div style="font-weight:bold">{escape(title)}</div>']
    lines += [f'<div style="max-height:4.2em;overflow:auto">{escape(fact)}</div>' for fact in facts]
    if rows:
        lines.append(
            f'<div role="region" tabindex="0" aria-label="{escape(title)}" style="max-height:22em;overflow:auto">'
            f'<table style="border-collapse:collapse;margin:4px 0"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    if len(rows) > _MOST_ROWS:
        lines.append(f"<div>and {len(rows) - _MOST_ROWS} more rows; str() or summary() shows all</div>")
    return f'<div style="max-width:100%">{"".join(lines)}</div>'
