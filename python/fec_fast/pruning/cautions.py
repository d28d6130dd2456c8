"""Cautions: layers that lose more than later layers and training are likely to make up for."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.groups import Coupling
from ..plan.plan import Plan
from ..utils.errors import list_some
from .allocation.ratios import allowed_removal_counts

# A layer is early if it is among this share of the layers, or the first; narrow, if it has at most so many filters.
_EARLY, _NARROW = 0.1, 32
# What is left of a layer that has lost most of itself.
_LEFT = 0.25


def useless_rounding(coupling: Coupling, round_to: int) -> list[str]:
    """A warning for the user where ``round_to`` decides nothing.

    Args:
        coupling: The coupled sets.
        round_to: What widths are to be multiples of.

    Returns:
        At most one message.
    """
    choices = [
        [len(allowed_removal_counts(coupled, coupling.axis_lengths, number, 1)) for coupled in coupling.sets]
        for number in (1, round_to)
    ]
    if round_to == 1 or choices[0] != choices[1]:
        return []
    widest = max(len(coupled.units) * max(coupled.channels_per_unit) for coupled in coupling.sets)
    return [
        f"round_to={round_to} has no effect: no width that can be narrowed is a multiple of {round_to} or can become "
        f"one; the widest is {widest}: give a smaller number"
    ]


def layers_cut_to_the_bone(plan: Plan, layers: Sequence[str]) -> list[str]:
    """A warning for the user where early or narrow layers keep less than a quarter of their filters.

    Args:
        plan: What is kept.
        layers: The layers with multiply-accumulates, in the order of the model.

    Returns:
        At most one message.
    """
    early = set(layers[: max(1, round(_EARLY * len(layers)))])
    hurt = []
    for entry in plan.sets:
        removed = set(entry["removed"])
        for layer in entry["layers"]:
            units = [unit for unit in entry["filters"].get(layer, ()) if unit is not None]
            kept = sum(unit not in removed for unit in units)
            if units and kept < _LEFT * len(units) and (layer in early or len(units) <= _NARROW):
                hurt.append(f"{layer or 'the model itself'} keeps {kept} of {len(units)} filters")
    if not hurt:
        return []
    layers_lose = "early or narrow layer loses" if len(hurt) == 1 else "early or narrow layers lose"
    return [
        f"{len(hurt)} {layers_lose} most of the filters: {list_some(hurt)}; later layers cannot bring back what is "
        "lost there: remove less, set min_channels=, or name layers in ignore="
    ]
