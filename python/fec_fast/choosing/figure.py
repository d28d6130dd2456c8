"""The picture of a sweep: value against cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..utils.errors import missing_extra
from .points import DenseNetwork, SweepPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXES = {"parameters": "parameters", "macs": "multiply-accumulates", "latency_ms": "milliseconds per call"}


def draw_sweep(
    dense: DenseNetwork, points: Sequence[SweepPoint], front: Sequence[SweepPoint], cost: str, metric: str
) -> Figure:
    """Draws the networks of a sweep.

    Args:
        dense: The network before pruning.
        points: The pruned networks.
        front: Those that no other beats, by rising cost.
        cost: The attribute on the horizontal axis.
        metric: The name of the value, on the vertical axis.

    Returns:
        The figure. It is no figure of pyplot, so it needs no display and is not kept alive.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except (ImportError, AttributeError) as error:
        raise missing_extra("matplotlib", "report", "Sweep.plot", error) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ways = dict.fromkeys((point.policy, point.criterion) for point in points)
    for marker, (policy, criterion) in zip(_markers(len(ways)), ways, strict=True):
        line = [point for point in points if (point.policy, point.criterion) == (policy, criterion)]
        line.sort(key=lambda point: float(getattr(point, cost)))
        axes.plot(
            [getattr(point, cost) for point in line],
            [point.value for point in line],
            marker=marker,
            label=f"{policy}, {criterion}",
        )
    costs, values = [getattr(point, cost) for point in front], [point.value for point in front]
    axes.plot(costs, values, "o", markersize=13, markerfacecolor="none", color="0.4", label="not beaten by another")
    axes.plot([getattr(dense, cost)], [dense.value], "k*", markersize=12, label="dense")
    axes.axhline(dense.value, color="k", linewidth=0.6, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel(_AXES[cost])
    axes.set_ylabel(metric)
    axes.legend()
    return figure


def _markers(count: int) -> str:
    """One marker per curve, so that curves differ without colours too."""
    return ("osD^vP<>X" * (1 + count // 9))[:count]
