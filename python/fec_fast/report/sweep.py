"""The sweep of a report: value against size, with the networks that no other beats and the one of this report."""

from __future__ import annotations

from ..utils.html import Html
from ..utils.text import counted, short_number
from .charts import CURVES
from .content import MeasuredSweep, ReportContent, SweptNetwork
from .figures import INK, MUTED, drawing, to_svg
from .page import Section, figure, paragraph, table

_NUMBER = "{:.4f}"


def sweep_section(content: ReportContent, sweep: MeasuredSweep) -> Section:
    """Value against multiply-accumulates, and a table of all networks.

    Args:
        content: What is known of the network of this report.
        sweep: The networks.

    Returns:
        The section.
    """
    front = {id(point) for point in sweep.front()}
    timed, tuned = sweep.dense.latency_ms is not None, any(point.tuned is not None for point in sweep.points)
    rows = [_row(("dense", "", ""), (sweep.dense.value, None), sweep.dense, timed, tuned)]
    for point in sweep.points:
        star = "★ " if id(point) in front else ""
        names = (star + _in_words(point.budget), point.policy, point.criterion)
        rows.append(_row(names, (point.pruned, point.tuned), point, timed, tuned))
    header = ["budget", "policy", "criterion", "pruned", "parameters", "MACs"]
    header[4:4] = ["tuned"] if tuned else []
    header += ["ms"] if timed else []
    numbers = table("Networks", tuple(header), rows, tuple(range(3, len(header))), kind="stacked")
    lead = paragraph(
        f"{counted(len(sweep.points), 'network')} of other sizes; {sweep.metric}, the higher the better. Circles, in "
        "the table stars, are the Pareto front: no other network has as few multiply-accumulates and as high a value."
    )
    text = "The star is the dense network"
    text += "; the vertical line is the size of the network of this report." if content.after else "."
    drawn = figure(_chart(content, sweep), text)
    return Section("sweep", "Sweep", f"{lead}{drawn}{numbers}")


def _in_words(budget: str) -> str:
    """A budget, such as ``"macs=0.5"`` or ``"macs=1.2G"``, in words that cannot be read backwards."""
    name, _, amount = budget.partition("=")
    try:
        return f"{name} − {100 * float(amount):g}%" if name != "latency_ms" else f"{name} ≤ {amount}"
    except ValueError:
        return f"{name} ≤ {amount}"


def _row(
    names: tuple[str, str, str], values: tuple[float, float | None], network: SweptNetwork, timed: bool, tuned: bool
) -> tuple[str, ...]:
    """Budget, policy and criterion; the values before and after training; the sizes."""
    cells = [*names, _NUMBER.format(values[0])]
    if tuned:
        cells.append("" if values[1] is None else _NUMBER.format(values[1]))
    cells += [short_number(network.parameters), short_number(network.macs)]
    if timed:
        cells.append("" if network.latency_ms is None else f"{network.latency_ms:.3g}")
    return tuple(cells)


def _chart(content: ReportContent, sweep: MeasuredSweep) -> Html:
    """The drawing."""
    ways = list(dict.fromkeys((point.policy, point.criterion) for point in sweep.points))
    description = (
        f"{sweep.metric} against multiply-accumulates of {counted(len(sweep.points), 'pruned network')}, by "
        f"{counted(len(ways), 'way')} of pruning; the table has the numbers"
    )
    front = sweep.front()
    with drawing(430, 320) as drawn:
        axes = drawn.add_subplot()
        for number, (policy, criterion) in enumerate(ways):
            colour, line, mark = CURVES[number % len(CURVES)]
            points = [point for point in sweep.points if (point.policy, point.criterion) == (policy, criterion)]
            points.sort(key=lambda point: point.macs)
            x, y = [point.macs for point in points], [point.value for point in points]
            # Beyond five ways the looks repeat; hollow marks tell the second five from the first.
            face = None if number < len(CURVES) else "none"
            label = f"{policy}, {criterion}"
            axes.plot(x, y, color=colour, linestyle=line, marker=mark, markersize=5, markerfacecolor=face, label=label)
        x, y = [point.macs for point in front], [point.value for point in front]
        axes.plot(x, y, "o", markersize=12, markerfacecolor="none", color=MUTED, label="Pareto front")
        axes.plot([sweep.dense.macs], [sweep.dense.value], "*", color=INK, markersize=11, label="dense")
        axes.axhline(sweep.dense.value, color=INK, linewidth=0.7, linestyle=":")
        if content.after:
            axes.axvline(content.after.macs, color=INK, linewidth=1.0, linestyle="--")
        axes.set_xlim(left=0)
        axes.set_xlabel("multiply-accumulates")
        axes.set_ylabel(sweep.metric)
        axes.xaxis.set_major_formatter(lambda count, _: short_number(int(count)))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(True)
        longest = max(len(policy) + len(criterion) for policy, criterion in ways)
        drawn.legend(loc="outside lower center", ncols=2 if longest < 24 else 1, fontsize=10)
        return to_svg(drawn, "sweep", description)
