"""Ranking of numbers that were computed with rounding: almost equal ones are ties."""

from __future__ import annotations

import numpy as np

# Far above what the order of a sum changes in float64 (some 1e-15, or 1e-12 where weights are much larger than their
# distances), far below any difference that says something about a channel.
TIE = 1e-9


def merge_ties(values: np.ndarray, *, absolute: bool = False) -> np.ndarray:
    """Makes numbers equal that differ by no more than rounding, so that a stable sort ranks them by their positions.

    Without it, units of mathematically equal scores (copies of one filter, say) would be ranked by the last digit,
    which depends on the instruction set. Rounding to a grid would not do: a number next to a border of the grid could
    fall on either side. Numbers are merged with their neighbours instead, whatever their place.

    Args:
        values: Float64 ``[n]``, in any order.
        absolute: Whether numbers within :data:`TIE` of the next smaller one are ties, and those so near 0 are 0, as for
            entropies in nats, which are not negative. Default: those within :data:`TIE` times their own magnitude.

    Returns:
        Float64 ``[n]``: of each run of ties all have the value of the smallest. NaN and infinities are unchanged.
    """
    merged = values.copy()
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    rising = values[order]
    apart = np.diff(rising, prepend=0.0 if absolute else -np.inf) > TIE * (1.0 if absolute else np.abs(rising))
    merged[order] = np.concatenate([np.zeros(1), rising[apart]])[np.cumsum(apart)]
    return merged
