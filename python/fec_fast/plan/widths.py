"""Layer widths: how many filters each layer of a plan keeps, and why some keep all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .plan import Plan


@dataclass(frozen=True)
class LayerWidth:
    """What a plan leaves of the filters of one layer.

    Attributes:
        name: The layer.
        width: How many filters it had; ``None`` for a layer that keeps all, where the plan does not know their number.
        kept: How many of them are kept; ``None`` likewise.
        sets: The coupled sets that its filters belong to, by name.
        reason: Why it keeps all its filters; ``None`` for a layer that could lose some.
    """

    name: str
    width: int | None
    kept: int | None
    sets: tuple[str, ...]
    reason: str | None


def layer_widths(plan: Plan, order: Iterable[str] = ()) -> list[LayerWidth]:
    """Lists the layers that a plan decides about.

    Args:
        plan: The plan; one of several rounds is counted as a whole.
        order: Names of layers, in the order that is wanted. Layers that are not named come last.

    Returns:
        One entry per layer.
    """
    gone: dict[str, list[bool]] = {}
    sets: dict[str, dict[str, None]] = {}
    for record in plan.sets:
        removed = set(record["removed"])
        for layer, units in record["filters"].items():
            is_gone = gone.setdefault(layer, [False] * len(units))
            for position, unit in enumerate(units):
                is_gone[position] |= unit in removed
            sets.setdefault(layer, {})[record["name"]] = None
    entries = {
        layer: LayerWidth(layer, len(is_gone), len(is_gone) - sum(is_gone), tuple(sets[layer]), None)
        for layer, is_gone in gone.items()
    }
    for layer, reason in plan.pinned.items():
        entries.setdefault(layer, LayerWidth(layer, None, None, (), reason))
    positions = {name: position for position, name in enumerate(order)}
    return sorted(entries.values(), key=lambda entry: positions.get(entry.name, len(positions)))
