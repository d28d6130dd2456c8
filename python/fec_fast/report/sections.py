"""The sections of a report, each made from its part of the content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from ..plan.plan import Plan
from ..plan.widths import LayerWidth
from ..utils.html import Html, escape
from ..utils.text import change, counted, short_number
from .charts import coupling_graph, curve_chart, distribution, is_logarithmic, sensitivity_chart
from .content import CurveChart, MeasuredSensitivity, ReportContent
from .detections import LOWEST_SCORE, MOST_OBJECTS, drawn_detections
from .layer_facts import LayerFacts
from .page import Section, figure, folded, paragraph, table
from .weights import first_layer, heat_maps

# More pictures than these make the page larger than a mail may be.
_MOST_CHARTS, _MOST_MAPS, _MOST_ROWS = 120, 60, 200


def headline(content: ReportContent, facts: Sequence[LayerFacts]) -> Html:
    """The sizes in large letters, and how the result was made.

    Args:
        content: What is known.
        facts: The layers.

    Returns:
        HTML.
    """
    tiles = []
    if content.before and content.after:
        for name, old, new in (
            ("parameters", content.before.parameters, content.after.parameters),
            ("multiply-accumulates", content.before.macs, content.after.macs),
        ):
            tiles.append(_tile(name, f"{short_number(old)} → {short_number(new)}", change(old, new), new / max(old, 1)))
    known = [one for one in facts if one.width.width is not None and one.width.kept is not None]
    filters, kept = sum(one.width.width or 0 for one in known), sum(one.width.kept or 0 for one in known)
    if filters:
        fewer = sum((one.width.kept or 0) < (one.width.width or 0) for one in known)
        text = f"in {fewer} of {counted(len(known), 'layer')}"
        tiles.append(_tile("filters", f"{filters:,} → {kept:,}", f"{change(filters, kept)} {text}", kept / filters))
    lines = "".join(f"<li>{escape(fact)}</li>" for fact in content.facts)
    return Html(f'<div class="tiles">{"".join(tiles)}</div>' + (f'<ul class="notes">{lines}</ul>' if lines else ""))


def _tile(name: str, sizes: str, text: str, share: float) -> str:
    sizes = sizes.replace(" → ", " →\0").replace(" ", "\N{NO-BREAK SPACE}").replace("\0", " ")  # "35.2 k" is one word
    return f'<div class="tile">{escape(name)}<strong>{escape(sizes)}</strong>{escape(text)}{_meter(share)}</div>'


def _meter(share: float) -> Html:
    width = 100 * min(max(share, 0.0), 1.0)
    return Html(f'<span class="meter" aria-hidden="true"><span style="width:{width:.1f}%"></span></span>')


def curve_sections(charts: Sequence[CurveChart]) -> Iterator[Section]:
    """Charts of curves, each with its numbers.

    Args:
        charts: The charts.

    Yields:
        One section per chart.
    """
    for number, chart in enumerate(charts):
        names = ", ".join(curve.name for curve in chart.curves)
        description = f"{chart.title}: {chart.y_label} against {chart.x_label} for {names}. The table has the numbers."
        drawn = curve_chart(chart.curves, f"curves{number}", chart.x_label, chart.y_label, description)
        rows = [
            (curve.name, f"{x:g}", f"{y:g}") for curve in chart.curves for x, y in zip(curve.x, curve.y, strict=True)
        ]
        numbers = table(chart.title, ("curve", chart.x_label, chart.y_label), rows, (1, 2))
        body = f'<div class="wide">{figure(drawn, chart.text)}<div>{numbers}</div></div>'
        yield Section(f"curves{number}", chart.title, body)


def layer_section(facts: Sequence[LayerFacts], spread: str) -> Section:
    """A bar per layer, with sizes before and after and the reasons.

    Args:
        facts: The layers in the order of the model.
        spread: How the removal was spread over them, or nothing.

    Returns:
        The section.
    """
    rows = []
    sized = any(one.before.parameters for one in facts)
    for one in facts:
        width = one.width
        if width.width is None or width.kept is None:
            bar = Html(f'<div class="bar">all{_meter(1.0)}</div>')
        else:
            bar = Html(f'<div class="bar">{width.kept:,} of {width.width:,}{_meter(width.kept / width.width)}</div>')
        sizes = []
        if sized:
            sizes = [_before_after(one.before.parameters, one.after.parameters)]
            sizes.append(_before_after(one.before.macs, one.after.macs))
        rows.append((width.name, bar, *sizes, " ".join(one.why)))
    header = ("layer", "filters kept", *(("parameters", "MACs") if sized else ()), "why")
    numbers, ranks = (2, 3) if sized else (), [one.lost for one in facts]
    caption = "The filled part of a bar is what is kept." + (" MACs: multiply-accumulates." if sized else "")
    drawn = table(caption, header, rows, numbers, kind="layers", ranks=ranks)
    button = '<button id="order" type="button" aria-pressed="false" hidden>Largest loss first</button>'
    lead = paragraph(f"Removal {spread}.") if spread else ""
    return Section("layers", "Layers", f"{lead}{button}{drawn}")


def _before_after(old: int, new: int) -> str:
    return f"{short_number(old)} → {short_number(new)}" if old != new else short_number(old)


def score_section(plan: Plan) -> Section:
    """The distribution of the scores of every set, with the cut.

    Args:
        plan: The plan.

    Returns:
        The section.
    """
    figures, rows = [], []
    for number, record in enumerate(plan.sets):
        scores = np.array(record["scores"], dtype=float)
        gone = np.zeros(len(scores), dtype=bool)
        gone[record["removed"]] = True
        name = record["name"] + (f", round {record['round']}" if record["round"] > 1 else "")
        text = f"{name}: {int((~gone).sum())} of {len(gone)} units kept"
        text += ", logarithmic scale" if is_logarithmic(scores) else ""
        if number < _MOST_CHARTS:
            description = f"Distribution of the scores of {text}; scores from {scores.min():.4g} to {scores.max():.4g}"
            figures.append(figure(distribution(scores[~gone], scores[gone], f"scores{number}", description), text))
        ends = [
            f"{part.min():.4g} to {part.max():.4g}" if len(part) else "none" for part in (scores[gone], scores[~gone])
        ]
        rows.append((name, str(len(gone)), str(int(gone.sum())), *ends))
    header = ("coupled set", "units", "removed", "removed scores", "kept scores")
    lead = (
        f"Scores by {plan.criterion}: the units with the lowest are removed (hatched), up to the dashed line. Scores "
        "of different sets need not have the same scale; how many units a set loses is decided over all sets."
    )
    more = paragraph(f"The first {_MOST_CHARTS} of {len(rows)} sets are drawn; the table has all.")
    body = f'{paragraph(lead)}<div class="grid">{"".join(figures)}</div>'
    body += more if len(rows) > _MOST_CHARTS else ""
    return Section("scores", "Scores and the cut", body + folded("As a table", table("Scores", header, rows, (1, 2))))


def coupling_section(content: ReportContent, facts: Sequence[LayerFacts]) -> Section:
    """The graph of the coupled sets.

    Args:
        content: What is known.
        facts: The layers, which are the rows of the graph.

    Returns:
        The section.
    """
    links = content.links
    known = any(link.readers for link in links)
    layers = {one.width.name: _kept_of(one.width) for one in facts}
    readers = ", hollow diamonds read them" if known else ""
    body = paragraph(
        "One row per layer, from the input down. A line joins the layers that lose the same channels: filled discs "
        f"make them{readers}. The thicker the line, the more of it is kept."
    )
    if len(layers) <= _MOST_ROWS:
        description = f"Graph of {counted(len(links), 'coupled set')} over {counted(len(layers), 'layer')}"
        body = Html(f'{body}<div class="scroll">{coupling_graph(links, layers, description + "; see the table")}</div>')
    else:
        body = Html(body + paragraph(f"{len(layers)} layers are too many to draw; the table has all."))
    rows = [(link.name, f"{link.share:.0%}", ", ".join(link.makers), ", ".join(link.readers)) for link in links]
    header = ("coupled set", "kept", "made by", "also narrowed")
    return Section(
        "couplings", "Coupled layers", body + folded("As a table", table("Coupled sets", header, rows, (1,)))
    )


def _kept_of(width: LayerWidth) -> str:
    return "all kept" if width.kept == width.width else f"{width.kept} of {width.width} kept"


def sensitivity_section(sensitivity: MeasuredSensitivity, plan: Plan) -> Section:
    """What each set costs alone.

    Args:
        sensitivity: What was measured.
        plan: The plan.

    Returns:
        The section.
    """
    curves = {
        name: [(count / sensitivity.units[name], value) for count, value in sorted(values.items())]
        for name, values in sensitivity.values.items()
    }
    shares = {record["name"]: len(record["removed"]) / len(record["scores"]) for record in plan.sets}
    drawn = sensitivity_chart(
        curves,
        {name: share for name, share in shares.items() if name in curves},
        sensitivity.whole,
        f"Sensitivity of {counted(len(curves), 'coupled set')}; the table has the numbers",
    )
    rows = [
        (name, "  ".join(f"{share:.0%}: {value:.4g}" for share, value in points))
        for name, points in sorted(curves.items(), key=lambda item: min(value for _, value in item[1]))
    ]
    lead = (
        f"Each curve is one coupled set that alone loses units; {sensitivity.whole:.4g} with nothing removed. The "
        "three that cost the most are named, the others are thin."
    )
    numbers = folded("As a table", table("Value by share removed", ("coupled set", "measured"), rows))
    return Section("sensitivity", "Sensitivity", paragraph(lead) + f'<div class="scroll">{drawn}</div>' + numbers)


def filter_sections(
    original: nn.Module, plan: Plan, facts: Sequence[LayerFacts], filters: Sequence[tuple[str, int]]
) -> Iterator[Section]:
    """Pictures of the original's weights.

    Args:
        original: The network before pruning.
        plan: The plan.
        facts: The layers.
        filters: Filters whose heat maps are wanted; none: two of every layer.

    Yields:
        The first layer's filters, and heat maps, where there are any.
    """
    widths = [one.width for one in facts]
    pictures = first_layer(original, plan, widths)
    if pictures:
        lead = paragraph("Each square is one filter before pruning; grey is zero, and all have the same scale.")
        figures = "".join(figure(picture, caption) for caption, picture in pictures)
        yield Section("first-layer", "Filters of the first layer", f'{lead}<div class="wide pixels">{figures}</div>')
    chosen: dict[str, list[int]] = {}
    for layer, number in filters:
        chosen.setdefault(layer, []).append(number)
    names = list(chosen) or [width.name for width in widths if width.reason is None]
    panels: list[str] = []
    options: list[str] = []
    for name in names:
        if len(panels) == _MOST_MAPS and not chosen:
            break
        maps = heat_maps(original, plan, name, chosen.get(name, ()))
        if maps:
            options.append(f"<option>{escape(name)}</option>")
            figures = "".join(figure(picture, caption) for caption, picture in maps)
            panels.append(
                f'<div data-panel="maps"><h3>{escape(name)}</h3><div class="grid pixels">{figures}</div></div>'
            )
    if panels:
        lead = paragraph(
            "Distances between the channels inside one filter, by their root mean square. Dark blocks are channels "
            "that do the same. "
            + ("" if chosen else "Of every layer: the filter with the lowest and with the highest score.")
        )
        choice = (
            f'<p class="choice" hidden><label>Layer <select data-for="maps">{"".join(options)}</select></label></p>'
        )
        yield Section("distances", "Distances between channels", lead + choice + "".join(panels))


def image_section(content: ReportContent) -> Section:
    """What both detectors find in the example images.

    Args:
        content: What is known, with both networks.

    Returns:
        The section.
    """
    assert content.original is not None and content.pruned is not None
    pictures = drawn_detections(content.original, content.pruned, content.images)
    figures = "".join(figure(picture, caption) for caption, picture in pictures)
    lead = paragraph(
        f"Objects that the network before and after pruning finds with a score of at least {LOWEST_SCORE}, up to "
        f"{MOST_OBJECTS} per image."
    )
    return Section("images", "Example images", f'{lead}<div class="wide">{figures}</div>')


def note_section(plan: Plan) -> Section:
    """The notes of the plan.

    Args:
        plan: The plan.

    Returns:
        The section.
    """
    lines = "".join(f"<li>{escape(note)}</li>" for note in plan.notes)
    return Section("notes", "Notes", f'<ul class="notes">{lines}</ul>')
