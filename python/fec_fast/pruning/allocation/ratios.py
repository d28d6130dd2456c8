"""How many channels go: from the caller's ratios to a number of units for each coupled set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...graph.groups import CoupledChannels, Coupling
from ...utils.errors import ArgumentError, LayerError, RatioError, nearest


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


def check_number(where: str, number: object) -> int:
    """Validates a number of channels.

    Args:
        where: What to call it in the message.
        number: The number.

    Returns:
        The number.

    Raises:
        ArgumentError: Not a whole number of at least 1.
    """
    if type(number) is not int or number < 1:
        raise ArgumentError(f"{where}={number!r}: give a whole number of at least 1")
    return number


def removals(
    coupling: Coupling,
    ratio: float | None,
    ratios: Mapping[str, float] | None,
    round_to: int,
    min_channels: int,
    known: Sequence[str],
) -> list[int]:
    """The number of units to remove from each coupled set.

    Args:
        coupling: The sets.
        ratio: The share of every set, or ``None``.
        ratios: The share for each named layer; sets of which no layer is named keep all.
        round_to: See :func:`levels`.
        min_channels: See :func:`levels`.
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
        shares = named(coupling, ratios, known)
    counts = []
    for one, share in zip(coupling.sets, shares, strict=True):
        allowed = levels(one, coupling.axis_lengths, round_to, min_channels)
        # A share such as 0.7 of 10 must not lose a unit to binary rounding.
        most = math.floor(share * len(one.units) + 1e-9)
        counts.append(int(allowed[np.searchsorted(allowed, most, side="right") - 1]))
    return counts


def levels(
    one: CoupledChannels, lengths: Mapping[tuple[str, int], int], round_to: int, min_channels: int
) -> np.ndarray:
    """The numbers of units that may be removed from a set.

    With ``round_to``, every width that was a multiple of it stays one. A width is the length of any axis that the set
    narrows, whatever else lies on that axis (concatenated channels, channels that must stay), and the filters of one
    group of a grouped convolution. Where a layer's width was no multiple, it becomes one if that can be had without
    harm to the others.

    Args:
        one: The set.
        lengths: The length of each ``(tensor, axis)``.
        round_to: See above.
        min_channels: Of these channels every layer of the set keeps so many, or all where it has fewer.

    Returns:
        Rising from 0, int64, all less than the number of units.
    """
    units = len(one.units)
    least = max(min(units, -(-min_channels // width)) for width in one.channels_per_unit)
    kept = np.arange(units, least - 1, -_step(one, lengths, round_to), dtype=np.int64)
    multiple = np.all([kept * width % round_to == 0 for width in one.channels_per_unit], axis=0)
    # Where a width can become a multiple, smaller ones that are none are passed over.
    allowed = multiple | (kept > kept[multiple].max(initial=-1))
    removed: np.ndarray = units - kept[allowed]
    return removed


def _step(one: CoupledChannels, lengths: Mapping[tuple[str, int], int], round_to: int) -> int:
    """Units go in multiples of this: the removed are counted, so it does not matter what else lies on an axis."""
    if round_to == 1:
        return 1
    steps = [
        round_to // math.gcd(round_to, len(indices))
        for key, indices in one.members[0].items()
        if lengths[key] % round_to == 0
    ]
    whole = len(one.units) % round_to == 0
    if whole and any(_in_every_group(one, key, lengths[key]) for key in one.members[0]):
        steps.append(round_to)
    return math.lcm(*steps)


def _in_every_group(one: CoupledChannels, key: tuple[str, int], length: int) -> bool:
    """Whether a unit holds the same position in each of several blocks, as in a grouped convolution."""
    units = len(one.units)
    if len(one.members[0][key]) < 2 or len(one.members[0][key]) * units != length:
        return False
    return all(unit[key] == list(range(unit[key][0], length, units)) for unit in one.members)


def named(coupling: Coupling, ratios: Mapping[str, float], known: Sequence[str]) -> list[float]:
    """The share of each coupled set, from ratios by layer.

    Args:
        coupling: The sets.
        ratios: The share for each named layer.
        known: The names of all layers that could be named.

    Returns:
        One share a set; 0 for those of which no layer is named.

    Raises:
        RatioError: A ratio outside [0, 1), or different ratios for coupled layers.
        LayerError: A name that does not exist or cannot be pruned.
    """
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
