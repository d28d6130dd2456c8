"""Documentation pages generated from result files: blocks of Markdown, each with an empty line after it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from benchmarks.common.environment import ROOT
from fec_fast.utils.files import write_text

DOCS = ROOT / "docs"
WIDTH = 120


def write_page(name: str, text: str) -> None:
    """Writes a page of ``docs/``, first beside it, then renamed into place."""
    write_text(DOCS / name, text)


def page_of(title: str, *blocks: str) -> str:
    """A page: its title and its blocks."""
    return "".join([heading(title, 1), *blocks]).rstrip("\n") + "\n"


def heading(title: str, level: int = 2) -> str:
    """A heading."""
    return f"{'#' * level} {title}\n\n"


def paragraph(*sentences: str) -> str:
    """Sentences, wrapped at the line length."""
    return _wrapped(" ".join(sentences)) + "\n\n"


def bullets(items: Iterable[str]) -> str:
    """A list, each item wrapped at the line length; an empty string if there are no items."""
    lines = [_wrapped(f"- {item}", indent="  ") for item in items]
    return "\n".join(lines) + "\n\n" if lines else ""


def code(*lines: str, language: str = "sh") -> str:
    """A block of code."""
    return "\n".join([f"```{language}", *lines, "```"]) + "\n\n"


def written_by(command: str, result: str) -> str:
    """The first paragraph of a page: the command that writes it, and its results.

    Args:
        command: What writes the page from the results that exist.
        result: The name of the result file, or of the folder of them.
    """
    source = f"[benchmarks/results/{result}](../benchmarks/results/{result})"
    return paragraph(f"Written by `{command}` from {source}; do not edit.")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
