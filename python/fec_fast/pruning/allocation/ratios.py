"""Ratios and widths: from the caller's ratios, ``round_to`` and ``min_channels`` to removal counts of coupled sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...graph.groups import CoupledChannels, Coupling
from ...utils.errors import LayerError, RatioError, nearest


def check_ratio(argument: str, ratio: object) -> float:
    """Validates a ratio.

    Args:
        argument: The name of the argument, for the message.
        ratio: The share of channels to remove.

    Returns:
        The ratio as a float.

    Raises:
        RatioError: Not a number in [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise RatioError(f"{argument}={ratio!r}: give the share of channels to remove, a number in [0, 1)")
    return float(ratio)


def removal_counts_from_ratios(
    coupling: Coupling,
    ratio: float | None,
    ratios: Mapping[str, float] | None,
    round_to: int,
    min_channels: int,
    layer_names: Sequence[str],
) -> list[int]:
    """The number of units to remove from each coupled set, for given ratios.

    Args:
        coupling: The coupled sets.
        ratio: The share of channels to remove from every set, in [0, 1); ``None`` is 0.5. Not used with ``ratios``.
        ratios: The share for each named layer; sets of which no layer is named lose nothing. Or ``None``.
        round_to: Widths that are multiples of this stay multiples, see :func:`allowed_removal_counts`.
        min_channels: The number of channels that every layer keeps at least.
        layer_names: The names of all layers of the model that may be named in ``ratios``.

    Returns:
        One number per set, always less than the number of its units.

    Raises:
        RatioError: A ratio outside [0, 1), or different ratios for coupled layers.
        LayerError: A name that does not exist or cannot be pruned.
    """
    if ratios is None:
        shares: list[float] = [0.5 if ratio is None else check_ratio("ratio", ratio)] * len(coupling.sets)
    else:
        shares = ratios_of_sets(coupling, ratios, layer_names)
    counts = []
    for coupled, share in zip(coupling.sets, shares, strict=True):
        allowed = allowed_removal_counts(coupled, coupling.axis_lengths, round_to, min_channels)
        # The tolerance: 0.7 of 10 units is 7, and 6.999... in binary floating point.
        most = math.floor(share * len(coupled.units) + 1e-9)
        counts.append(int(allowed[np.searchsorted(allowed, most, side="right") - 1]))
    return counts


def allowed_removal_counts(
    coupled: CoupledChannels, lengths: Mapping[tuple[str, int], int], round_to: int, min_channels: int
) -> np.ndarray:
    """The numbers of units that may be removed from a set.

    With ``round_to``, every width that was a multiple of it stays one. A width is the length of any axis that the set
    narrows, including other channels on that axis (concatenated, or kept), and the number of filters in one group of a
    grouped convolution. A layer width that was not a multiple becomes one where that does not break the other widths.

    Args:
        coupled: The coupled set.
        lengths: The length of each ``(tensor name, axis)`` before pruning.
        round_to: Removed channels come in multiples of this; 1 allows every number.
        min_channels: The number of this set's channels that every layer of the set keeps, or all where it has fewer.

    Returns:
        Int64, rising from 0, all less than the number of units.
    """
    units = len(coupled.units)
    fewest_kept = max(min(units, -(-min_channels // width)) for width in coupled.channels_per_unit)
    kept = np.arange(units, fewest_kept - 1, -_removal_step(coupled, lengths, round_to), dtype=np.int64)
    is_multiple = np.all([kept * width % round_to == 0 for width in coupled.channels_per_unit], axis=0)
    # Where a width can become a multiple, smaller widths that are no multiple are not allowed.
    allowed = is_multiple | (kept > kept[is_multiple].max(initial=-1))
    removed: np.ndarray = units - kept[allowed]
    return removed


def _removal_step(coupled: CoupledChannels, lengths: Mapping[tuple[str, int], int], round_to: int) -> int:
    """The number that removal counts are multiples of, so that every width that is a multiple of ``round_to`` stays it.

    A width stays a multiple if what is removed from it is a multiple. Removed channels are counted, not kept ones, so
    other channels on the same axis do not matter.
    """
    if round_to == 1:
        return 1
    steps = [
        round_to // math.gcd(round_to, len(indices))
        for key, indices in coupled.members[0].items()
        if lengths[key] % round_to == 0
    ]
    divides_units = len(coupled.units) % round_to == 0
    if divides_units and any(_is_in_every_group(coupled, key, lengths[key]) for key in coupled.members[0]):
        steps.append(round_to)
    return math.lcm(*steps)


def _is_in_every_group(coupled: CoupledChannels, key: tuple[str, int], length: int) -> bool:
    """Whether each unit holds the same position in every block of an axis, as in a grouped convolution.

    Then the filters in one group are as many as the units, and their number is a width too.
    """
    units = len(coupled.units)
    if len(coupled.members[0][key]) < 2 or len(coupled.members[0][key]) * units != length:
        return False
    return all(unit[key] == list(range(unit[key][0], length, units)) for unit in coupled.members)


def ratios_of_sets(coupling: Coupling, ratios: Mapping[str, float], layer_names: Sequence[str]) -> list[float]:
    """The ratio of each coupled set, from ratios by layer.

    Args:
        coupling: The coupled sets.
        ratios: The share of channels to remove for each named layer, in [0, 1).
        layer_names: The names of all layers of the model that may be named.

    Returns:
        One ratio per set; 0 for sets of which no layer is named.

    Raises:
        RatioError: A ratio outside [0, 1), or different ratios for coupled layers.
        LayerError: A name that does not exist or cannot be pruned.
    """
    requested = {name: check_ratio(f"ratios[{name!r}]", ratio) for name, ratio in ratios.items()}
    prunable = {layer for coupled in coupling.sets for layer in coupled.layers}
    for name, ratio in requested.items():
        if name not in layer_names:
            raise LayerError(f"remove= or ratios=: no layer {name!r}; {nearest(name, layer_names)}")
        if name not in prunable and ratio > 0:
            reason = coupling.pinned.get(name, "none of its channels can be removed")
            raise LayerError(
                f"remove= or ratios=: {name!r} cannot be pruned: {reason}; leave it out, or give it the ratio 0"
            )
    ratio_of_set = []
    for coupled in coupling.sets:
        given = {layer: requested[layer] for layer in coupled.layers if layer in requested}
        if len(set(given.values())) > 1:
            raise RatioError(f"ratios: {given} are coupled and share one decision; give them the same ratio")
        ratio_of_set.append(next(iter(given.values()), 0.0))
    return ratio_of_set
