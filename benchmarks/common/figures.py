"""Figures of the pages: reproducible SVG files in ``docs/``."""

from __future__ import annotations

import io
import sys
from typing import Any

from benchmarks.common.pages import write_page


def pyplot() -> Any:
    """matplotlib's pyplot, set up so that equal data gives an equal file; ends the program if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the figure needs matplotlib: pip install '.[bench]'")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fec_fast"
    from matplotlib import pyplot

    return pyplot


def write_figure(name: str, figure: Any) -> None:
    """Writes a figure to ``docs/`` as SVG, without a date in it, and closes it."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    write_page(name, content.getvalue())
    pyplot().close(figure)
