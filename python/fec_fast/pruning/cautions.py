"""Cautions: layers that lose more than later layers and training are likely to make up for."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan.plan import Plan
from ..utils.errors import list_some

# A layer is early if it is among this share of the layers, or the first; narrow, if it has at most so many filters.
_EARLY, _NARROW = 0.1, 32
# What is left of a layer that has lost most of itself.
_LEFT = 0.25


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
