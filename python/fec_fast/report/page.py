"""The page of a report: sections become one HTML file that needs no network, and no script to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ..utils.html import Html, escape

# Nothing is loaded from anywhere, whatever a name in the page looks like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        key: Its id, for links.
        title: Its heading.
        body: Its content.
    """

    key: str
    title: str
    body: str


def whole_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Puts the page together.

    Args:
        title: The heading of the page.
        lead: HTML under the heading.
        sections: The parts of the page.

    Returns:
        A whole HTML document.
    """
    files = resources.files("fec_fast.report")
    style, behaviour = ((files / name).read_text(encoding="utf-8") for name in ("style.css", "behaviour.js"))
    links = "".join(f'<li><a href="#{one.key}">{escape(one.title)}</a></li>' for one in sections)
    parts = "\n".join(
        f'<section id="{one.key}" aria-labelledby="{one.key}-title">\n'
        f'<h2 id="{one.key}-title">{escape(one.title)}</h2>\n{one.body}\n</section>'
        for one in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="generator" content="fec_fast">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<div class="bar-line"><h1>{escape(title)}</h1><button id="theme" type="button" hidden>Dark</button></div>
{lead}
<nav aria-label="Parts of this report"><ul>{links}</ul></nav>
</header>
<main>
{parts}
</main>
<footer>Made by fec_fast. This file is complete: it loads nothing.</footer>
<script>
{behaviour}</script>
</body>
</html>
"""


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    *,
    kind: str = "",
    ranks: Sequence[float] = (),
) -> Html:
    """A table whose first column names the row.

    Args:
        caption: What it lists.
        header: The titles of the columns.
        rows: The cells; text is escaped.
        numbers: The columns that hold numbers, from 0.
        kind: Its class in the style sheet.
        ranks: One number per row, by which the script can sort them.

    Returns:
        The table, in a frame that scrolls where the screen is narrower.
    """

    def cells(row: Sequence[str]) -> str:
        first, *others = row
        # Names of layers are long: they may be broken behind a dot.
        text = f'<th scope="row">{escape(first).replace(".", ".<wbr>")}</th>'
        for column, cell in enumerate(others, 1):
            text += f'<td{_number(column)} data-label="{escape(header[column])}">{escape(cell)}</td>'
        return text

    def _number(column: int) -> str:
        return ' class="n"' if column in numbers else ""

    head = "".join(f'<th scope="col"{_number(column)}>{escape(cell)}</th>' for column, cell in enumerate(header))
    starts = [f'<tr data-rank="{rank:.4f}">' for rank in ranks] or ["<tr>"] * len(rows)
    body = "\n".join(f"{start}{cells(row)}</tr>" for start, row in zip(starts, rows, strict=True))
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def figure(drawing: str, caption: str) -> Html:
    """A drawing with a caption.

    Args:
        drawing: An ``<svg>`` or an ``<img>``.
        caption: The text under it.

    Returns:
        The element.
    """
    return Html(f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>")


def folded(summary: str, body: str) -> Html:
    """A part that is closed until it is clicked.

    Args:
        summary: What it says while it is closed.
        body: Its content.

    Returns:
        The element.
    """
    return Html(f"<details><summary>{escape(summary)}</summary>{body}</details>")


def paragraph(text: str) -> Html:
    """A paragraph.

    Args:
        text: Its text, which is escaped.

    Returns:
        The element.
    """
    return Html(f"<p>{escape(text)}</p>")
