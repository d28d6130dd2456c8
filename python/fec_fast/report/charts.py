"""Charts of a report: curves, distributions with the cut, and the graph of coupled layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.html import Html
from .figures import GRID, INK, KEPT, MUTED, PAGE, REMOVED, THIRD, drawing, to_svg

# Colour, line and mark differ at once: no curve is told from another by its colour alone.
CURVES = ((KEPT, "-", "o"), (REMOVED, "--", "s"), (THIRD, "-.", "^"), (INK, ":", "D"), (MUTED, "--", "v"))


@dataclass(frozen=True)
class Curve:
    """A line in a chart.

    Attributes:
        name: What the legend says.
        x: The positions, rising or falling.
        y: As many values.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curve_chart(curves: Sequence[Curve], name: str, x_label: str, y_label: str, description: str) -> Html:
    """Draws up to five curves in one chart.

    Args:
        curves: The curves.
        name: The name of the chart, see :func:`fec_fast.report.figures.to_svg`.
        x_label: What the horizontal axis counts, with the unit.
        y_label: What the vertical axis counts, with the unit.
        description: What the chart shows, for those who cannot see it.

    Returns:
        The chart.
    """
    with drawing(430, 280) as figure:
        axes = figure.add_subplot()
        for curve, (colour, line, mark) in zip(curves, CURVES, strict=False):
            axes.plot(curve.x, curve.y, color=colour, linestyle=line, marker=mark, markersize=5, label=curve.name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)
        figure.legend(loc="outside lower center", ncols=min(3, len(curves)), fontsize=10)
        return to_svg(figure, name, description)


def is_logarithmic(scores: np.ndarray) -> bool:
    """Whether scores are drawn on a logarithmic scale.

    Args:
        scores: The scores of a set.

    Returns:
        True if all are positive and spread over more than two powers of ten, most of which one linear bin would hold.
    """
    return bool(scores.min() > 0 and scores.max() / scores.min() > 100)


def distribution(kept: np.ndarray, removed: np.ndarray, name: str, description: str) -> Html:
    """Draws how the scores of one coupled set are distributed, with the cut between removed and kept units.

    Args:
        kept: The scores of the kept units.
        removed: Those of the removed units.
        name: The name of the chart.
        description: What it shows, for those who cannot see it.

    Returns:
        The chart.
    """
    scores = np.concatenate([kept, removed])
    low, high = float(scores.min()), float(scores.max())
    edges = min(24, 4 + len(scores) // 4)
    logarithmic = is_logarithmic(scores)
    if logarithmic:
        bins = np.geomspace(low, high, edges)
        bins[[0, -1]] = low, high  # not missed by rounding
    else:
        bins = np.linspace(low, high, edges) if high > low else np.array([low - 0.5, low + 0.5])
    with drawing(250, 120) as figure:
        axes = figure.add_subplot()
        if logarithmic:
            axes.set_xscale("log")
        # Stacked: a bin through which the cut goes shows both parts.
        counts = [np.histogram(values, bins)[0] for values in (removed, kept)]
        axes.stairs(counts[0], bins, fill=True, facecolor="none", edgecolor=REMOVED, hatch="//////", linewidth=0.8)
        axes.stairs(counts[0] + counts[1], bins, baseline=counts[0], fill=True, color=KEPT)
        if len(removed) and len(kept):
            between = np.array([removed.max(), kept.min()])
            cut = np.sqrt(between.prod()) if logarithmic else between.mean()
            axes.axvline(float(cut), color=INK, linewidth=1.2, linestyle="--")
        if logarithmic:
            axes.locator_params(axis="x", numticks=4)
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda score, _: f"{score:g}")
        else:
            axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=3, integer=True)
        axes.tick_params(labelsize=9)
        axes.margins(x=0.02)
        return to_svg(figure, name, description)


@dataclass(frozen=True)
class Link:
    """A coupled set as the graph shows it.

    Attributes:
        name: The name of the set.
        makers: The layers whose filters make the channels.
        readers: The other layers that are narrowed with them, or none where they are not known.
        share: The share of its units that is kept.
    """

    name: str
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    share: float


def lanes_of(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Places spans side by side, so that no two in the same lane touch: the fewest lanes that do.

    Args:
        spans: The first and last row of each, by rising first row.

    Returns:
        The lane of each, from 0.
    """
    ends: list[int] = []
    lanes = []
    for first, last in spans:
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes


def coupling_graph(links: Sequence[Link], layers: Mapping[str, str], description: str) -> Html:
    """Draws which layers lose channels together: a row per layer, and a line per coupled set that joins its layers.

    Args:
        links: The coupled sets.
        layers: The layers in the order of the model, the rows from the top; and a few words on each, for the other end
            of its row.
        description: What the chart shows, for those who cannot see it.

    Returns:
        The chart.
    """
    row_of = {layer: row for row, layer in enumerate(layers)}
    rows = [sorted(row_of[layer] for layer in (*link.makers, *link.readers) if layer in row_of) for link in links]
    order = sorted((number for number, found in enumerate(rows) if found), key=lambda number: rows[number][0])
    lanes = dict(zip(order, lanes_of([(rows[number][0], rows[number][-1]) for number in order]), strict=True))
    count = max(lanes.values(), default=0) + 1
    longest = max(map(len, layers), default=0)
    words = max(map(len, layers.values()), default=0)
    with drawing(60 + 6.4 * (longest + words) + 26 * count, 34 + 17 * len(layers)) as figure:
        axes = figure.add_subplot()
        axes.set_xlim(-0.7, count - 0.3)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        for row in range(len(layers)):
            axes.axhline(row, color=GRID, linewidth=0.7, zorder=0)
        for number, lane in lanes.items():
            link, found = links[number], rows[number]
            colour = KEPT if link.share == 1 else REMOVED
            axes.plot([lane, lane], [found[0], found[-1]], color=colour, linewidth=1 + 4 * link.share)
            for layer, is_maker in [*((layer, True) for layer in link.makers), *((one, False) for one in link.readers)]:
                if layer in row_of:
                    face, mark = (colour, "o") if is_maker else (PAGE, "D")
                    axes.plot(lane, row_of[layer], mark, color=colour, markerfacecolor=face, markersize=8)
        axes.set_yticks(range(len(layers)), list(layers), fontsize=10)
        axes.tick_params(length=0)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(layers)), list(layers.values()), fontsize=10)
        right.tick_params(length=0, labelcolor=MUTED)
        right.spines["right"].set_visible(False)
        axes.set_xticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return to_svg(figure, "couplings", description)


def sensitivity_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]], shares: Mapping[str, float], whole: float, description: str
) -> Html:
    """Draws what is lost when one coupled set alone loses units; the sets that lose the most stand out.

    Args:
        curves: For each set, by name, the share removed and the value measured, by rising share.
        shares: The share that the plan removes of each set.
        whole: The value with nothing removed.
        description: What the chart shows, for those who cannot see it.

    Returns:
        The chart.
    """
    weakest = sorted(curves, key=lambda name: min(value for _, value in curves[name]))[:3]
    with drawing(430, 300) as figure:
        axes = figure.add_subplot()
        for name, points in curves.items():
            x, y = [0.0, *(share for share, _ in points)], [whole, *(value for _, value in points)]
            colour, line = MUTED, "-"
            if name in weakest:
                colour, line, _ = CURVES[weakest.index(name)]
            axes.plot(
                x,
                y,
                color=colour,
                linestyle=line,
                linewidth=1.8 if name in weakest else 0.7,
                alpha=1 if name in weakest else 0.6,
                label=name if name in weakest else None,
                zorder=2 if name in weakest else 1,
            )
            if name in shares:
                axes.plot(shares[name], np.interp(shares[name], x, y), "o", color=colour, markersize=5, zorder=3)
        axes.set_xlabel("share of the set removed (dots: by this plan)")
        axes.set_ylabel("measured value")
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(True)
        figure.legend(
            loc="outside lower center", ncols=1 if any(len(name) > 20 for name in weakest) else 3, fontsize=10
        )
        return to_svg(figure, "sensitivity", description)
