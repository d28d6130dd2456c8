"""Figures: matplotlib draws them, the style sheet colours them, so that one drawing fits dark, light and paper."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..utils.critical_section import surely_closed, surely_left
from ..utils.errors import missing_extra
from ..utils.html import Html, escape

# What a drawing marks in these colours gets the colour of that name in the style sheet of the page (page.py).
INK, MUTED, GRID, PAGE = "#010101", "#010102", "#010103", "#010104"
KEPT, REMOVED, THIRD = "#010105", "#010106", "#010107"
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAGE: "page", KEPT: "kept", REMOVED: "removed", THIRD: "third"}
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a name with a dollar sign is a name
    "svg.fonttype": "none",  # text stays text: it is searched, read aloud and shown in the reader's font
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "hatch.color": REMOVED,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
}
# Pillow's palette of a heat map: as many steps as one can tell apart, so that the picture stays small.
_STEPS = 64


def check_plotting() -> None:
    """Checks that figures can be drawn, so that an error comes before a long computation.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except (ImportError, AttributeError) as error:
        raise missing_extra("matplotlib", "report", "a report", error) from error


@surely_closed
def drawing(width: float, height: float) -> Iterator[Any]:
    """Makes an empty figure in the style of the report.

    Args:
        width: In pixels of the page.
        height: In pixels of the page.

    Yields:
        A ``matplotlib.figure.Figure``. Give it to :func:`to_svg` inside the context.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plotting()
    import matplotlib
    from matplotlib.figure import Figure

    with surely_left(matplotlib.rc_context()):
        matplotlib.rcdefaults()  # whatever styles the user has set
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        figure.patch.set_visible(False)
        yield figure


def to_svg(figure: Any, name: str, description: str) -> Html:
    """Turns a figure into SVG for a page.

    Args:
        figure: The figure.
        name: Another one for every figure of a page, so that no two parts of the page have the same id.
        description: What it shows, for those who cannot see it.

    Returns:
        The ``<svg>`` element, with the colours of the page.
    """
    import matplotlib

    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with surely_left(matplotlib.rc_context({"svg.hashsalt": name})):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _in_the_style_of_the_page(tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    assert width is not None  # savefig writes one
    head = (
        f'<svg role="img" aria-label="{escape(description)}" style="width:{width[1]}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    )
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    return Html(head + view_box[0] + svg[svg.index(">") :].strip())


def _in_the_style_of_the_page(tag: str) -> str:
    """One tag of a drawing, shorter, with the colours and the font of the page. Text between tags never comes here."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)  # the same in every figure; what is referred to has other ids
    tag = re.sub(r"(\d\.\d)\d+", r"\1", tag)  # tenths of a pixel
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", tag)
    for colour, role in _ROLES.items():
        tag = tag.replace(colour, f"var(--{role})")
    return tag


def to_image(values: np.ndarray, description: str, *, scale: int = 1) -> Html:
    """Turns a picture into an ``<img>`` with its data.

    Args:
        values: uint8 ``[height, width, 3]``, a colour picture, or ``[height, width, 4]``, one with clear parts; or
            float ``[height, width]`` in [0, 1], whose values become colours from dark to bright.
        description: What it shows, for those who cannot see it.
        scale: Pixels of the page per pixel of the picture.

    Returns:
        The element.

    Raises:
        MissingExtraError: Pillow, which matplotlib needs too, is not installed.
    """
    try:
        import matplotlib
        from PIL import Image
    except (ImportError, AttributeError) as error:
        raise missing_extra("matplotlib", "report", "a report", error) from error
    if values.ndim == 2:
        picture = Image.fromarray(np.round(np.clip(values, 0, 1) * (_STEPS - 1)).astype(np.uint8))
        colours = matplotlib.colormaps["cividis"](np.linspace(0, 1, _STEPS))[:, :3]
        picture.putpalette(np.round(255 * colours).astype(np.uint8).tobytes())
        options: dict[str, Any] = {"format": "PNG", "optimize": True, "bits": 6}
    else:
        picture, options = Image.fromarray(values), {"format": "PNG", "optimize": True}
        if (
            values.shape[2] == 3 and picture.width * picture.height > 128 * 128
        ):  # a photograph, not the weights of a filter
            options = {"format": "JPEG", "quality": 80}
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    kind, data = options["format"].lower(), base64.b64encode(buffer.getvalue()).decode()
    return Html(
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(description)}" '
        f'width="{scale * picture.width}" height="{scale * picture.height}">'
    )
