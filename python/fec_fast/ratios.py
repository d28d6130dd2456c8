"""How many channels go: from the caller's ratios to a number of units for each coupled set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .coupling import CoupledSet, Coupling
from .errors import ArgumentError, LayerError, RatioError, nearest


def check_ratio(where: str, ratio: object) -> float:
    """Validates a ratio.

    Args:
        where: What to call it in the message.
        ratio: The share of channels to remove.

    Returns:
        The ratio as a float.

    Raises:
        RatioError: Not a number in [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise RatioError(f"{where}={ratio!r}: give the share of channels to remove, a number in [0, 1)")
    return float(ratio)


def check_round_to(round_to: object) -> int:
    """Validates the number that layer widths are to be multiples of.

    Args:
        round_to: The number.

    Returns:
        The number.

    Raises:
        ArgumentError: Not a whole number of at least 1.
    """
    if type(round_to) is not int or round_to < 1:
        raise ArgumentError(f"round_to={round_to!r}: give a whole number of at least 1")
    return round_to


def removals(
    coupling: Coupling,
    ratio: float | None,
    ratios: Mapping[str, float] | None,
    round_to: int,
    known: Sequence[str],
) -> list[int]:
    """The number of units to remove from each coupled set.

    With ``round_to``, fewer units may go than the share asks for, never more: every width that was a multiple of it
    stays one. A width is the length of any axis that the set narrows, whatever else lies on that axis (concatenated
    channels, channels that must stay), and the filters of one group of a grouped convolution. Where a layer's width
    was no multiple, it becomes one if that can be had without harm to the others.

    Args:
        coupling: The sets.
        ratio: The share of every set, or ``None``.
        ratios: The share for each named layer; sets of which no layer is named keep all.
        round_to: See above.
        known: The names of all layers that could be named.

    Returns:
        One number a set, always less than the number of its units.

    Raises:
        RatioError: A ratio outside [0, 1), or different ratios for coupled layers.
        LayerError: A name that does not exist or cannot be pruned.
    """
    if ratios is None:
        shares: list[float] = [0.5 if ratio is None else check_ratio("ratio", ratio)] * len(coupling.sets)
    else:
        shares = _named(coupling, ratios, known)
    counts = []
    for one, share in zip(coupling.sets, shares, strict=True):
        units = len(one.units)
        # A share such as 0.7 of 10 must not lose a unit to binary rounding.
        least = max(1, units - math.floor(share * units + 1e-9))
        counts.append(units - _rounded(one, coupling.lengths, least, round_to))
    return counts


def _rounded(one: CoupledSet, lengths: Mapping[tuple[str, int], int], least: int, round_to: int) -> int:
    """The number of units to keep, ``least`` or more."""
    if round_to == 1:
        return least
    units = len(one.units)
    # The removed, not the kept, are counted in multiples: then it does not matter what else lies on the axis.
    steps = [
        round_to // math.gcd(round_to, len(indices))
        for key, indices in one.members[0].items()
        if lengths[key] % round_to == 0
    ]
    if units % round_to == 0 and any(_in_every_group(one, key, lengths[key]) for key in one.members[0]):
        steps.append(round_to)
    step = math.lcm(*steps)
    kept = range(units - (units - least) // step * step, units + 1, step)
    return next((k for k in kept if all(k * width % round_to == 0 for width in one.widths)), kept[0])


def _in_every_group(one: CoupledSet, key: tuple[str, int], length: int) -> bool:
    """Whether a unit holds the same position in each of several blocks, as in a grouped convolution."""
    units = len(one.units)
    if len(one.members[0][key]) < 2 or len(one.members[0][key]) * units != length:
        return False
    return all(unit[key] == list(range(unit[key][0], length, units)) for unit in one.members)


def _named(coupling: Coupling, ratios: Mapping[str, float], known: Sequence[str]) -> list[float]:
    wanted = {name: check_ratio(f"ratios[{name!r}]", ratio) for name, ratio in ratios.items()}
    prunable = {layer for one in coupling.sets for layer in one.layers}
    for name, share in wanted.items():
        if name not in known:
            raise LayerError(f"ratios: no layer {name!r}; {nearest(name, known)}")
        if name not in prunable and share > 0:
            raise LayerError(f"ratios: {name!r} cannot be pruned: {coupling.pinned.get(name, 'nothing of it can go')}")
    shares = []
    for one in coupling.sets:
        given = {layer: wanted[layer] for layer in one.layers if layer in wanted}
        if len(set(given.values())) > 1:
            raise RatioError(f"ratios: {given} are coupled and share one decision; give them the same ratio")
        shares.append(next(iter(given.values()), 0.0))
    return shares
