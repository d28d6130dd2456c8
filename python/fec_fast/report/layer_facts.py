"""Layer facts: sizes of every layer before and after, and why it lost what it lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph.counts import LayerCount
from ..plan.widths import LayerWidth, layer_widths
from ..utils.errors import list_some
from ..utils.text import counted
from .content import ReportContent

_NONE = LayerCount(0, 0)
# A layer is said to have lost much where it lost this many points more than the network as a whole.
_MUCH = 0.1


@dataclass(frozen=True)
class LayerFacts:
    """One row of the table of layers.

    Attributes:
        width: The layer's filters before and after.
        before: Its size before; zeros where it is not known.
        after: Its size after.
        why: Sentences on why it lost, or kept, what it did.
    """

    width: LayerWidth
    before: LayerCount
    after: LayerCount
    why: tuple[str, ...]

    @property
    def lost(self) -> float:
        """The share of its filters that was removed, in [0, 1]."""
        return 1 - self.width.kept / self.width.width if self.width.width and self.width.kept is not None else 0.0


def facts_of(content: ReportContent) -> list[LayerFacts]:
    """Lists the layers in the order of the model.

    Args:
        content: What is known.

    Returns:
        One entry per layer that the plan decides about.
    """
    plan = content.plan
    before = content.before.by_layer if content.before else {}
    after = content.after.by_layer if content.after else {}
    widths = layer_widths(plan, before)
    kept = sum(width.kept or 0 for width in widths)
    overall = 1 - kept / max(1, sum(width.width or 0 for width in widths))
    sizes = {
        width.name: before[width.name].parameters / width.width
        for width in widths
        if width.width and width.name in before
    }
    records: dict[str, list[dict[str, Any]]] = {}
    for record in plan.sets:
        for layer in record["filters"]:
            records.setdefault(layer, []).append(record)
    return [
        LayerFacts(
            width,
            before.get(width.name, _NONE),
            after.get(width.name, _NONE),
            tuple(_reasons(content, width, records.get(width.name, []), overall, sizes)),
        )
        for width in widths
    ]


def _reasons(
    content: ReportContent, width: LayerWidth, records: list[dict[str, Any]], overall: float, sizes: dict[str, float]
) -> list[str]:
    """Sentences on one layer; ``overall`` is the share of all filters that was removed."""
    if width.width is None or width.kept is None:
        return [f"Keeps all its filters: {width.reason}."]
    reasons = []
    lost = 1 - width.kept / width.width
    if lost > overall + _MUCH:
        reasons.append(f"Lost {lost:.0%} of its filters, all layers together {overall:.0%}.")
    for record in records[-1:]:  # the last round had the last word
        reasons += _score_reason(content.plan.criterion, record)
    if width.name in content.distinct:
        distinct = content.distinct[width.name]
        reasons.append(
            f"About {distinct:.0f} of its {width.width} filters are distinct ({distinct / width.width:.0%})."
        )
    if width.name in sizes and len(sizes) > 2:
        smaller = sum(size < sizes[width.name] for size in sizes.values()) / (len(sizes) - 1)
        if smaller >= 0.75:
            fewer = "any other layer" if smaller == 1 else f"{smaller:.0%} of the layers"
            reasons.append(f"One filter holds {sizes[width.name]:,.0f} parameters, more than in {fewer}.")
    for record in records:
        others = [layer for layer in record["layers"] if layer != width.name]
        if others:
            reasons.append(f"Its channels are tied to those of {list_some(others)}: one decision for all.")
    return reasons


def _score_reason(criterion: str, record: dict[str, Any]) -> list[str]:
    """What the scores say about the cut."""
    scores, gone = np.array(record["scores"], dtype=float), np.zeros(len(record["scores"]), dtype=bool)
    gone[record["removed"]] = True
    if not gone.any() or gone.all():
        return []
    highest, mean = float(scores[gone].max()), float(scores[~gone].mean())
    if criterion in ("reconstruction", "ablation"):
        made_up_for = ", once the others make up for them, " if criterion == "reconstruction" else " "
        return [
            f"Without the {counted(int(gone.sum()), 'removed unit')}{made_up_for}an estimated error of {highest:.2g} "
            "is left in the layers that read them (1: as large as their outputs)."
        ]
    if mean <= 0:
        return []
    return [f"The highest removed score is {highest / mean:.0%} of the mean of the kept."]
