"""``channel_distances``: the matrix of distances that the entropies are made of."""

from __future__ import annotations

from torch import Tensor

from ..utils.errors import ArgumentError, FormulaError
from ..utils.public_call import names_checked
from . import reference
from .formula import Formula
from .weight_checks import check_weight


@names_checked
def channel_distances(weight: Tensor, formula: Formula | None = None, *, filters: slice | None = None) -> Tensor:
    """Computes the matrix of distances that the entropies are made of, to look at or to check.

    Args:
        weight: ``[N, C, *kernel]`` of any floating dtype.
        formula: Its ``compress`` and ``axis`` are used. Default: ``Formula("rms", axis="channels")``, which compares
            the channels inside each filter by their root mean square.
        filters: A slice of the filters. Default: all. For all filters of a large layer the result may not fit in
            memory: it has ``8 N C^2`` bytes on the channel axis.

    Returns:
        Float64 on the weight's device, in the units of the weights, for the ``B`` filters of the slice:
        ``[B, C, C]`` between the channels of each for ``axis="channels"``, ``[B, N]`` to all filters for
        ``axis="filters"``. Where a weight is NaN, so are its distances.

    Raises:
        WeightError: The weight cannot be read, as for :func:`fec_fast.scoring.ops.entropies`, or is empty.
        ArgumentError: ``filters`` is not a slice, or selects no filter of the weight.
        FormulaError: The formula is of both axes, and so has two matrices.
    """
    check_weight(weight, 0, 1, "weight 0", None, may_be_empty=False)
    formula = Formula("rms", axis="channels") if formula is None else formula
    if not isinstance(formula, Formula):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got a {type(formula).__name__}")
    if formula.axis == "both":
        raise FormulaError("axis='both' has one matrix per axis: ask for axis='channels' or axis='filters'")
    if filters is not None and not isinstance(filters, slice):
        raise ArgumentError(f"filters={filters!r}: give a slice, such as slice(0, 8) for the first eight")
    chosen = slice(None) if filters is None else filters
    if weight.shape[0] and len(range(weight.shape[0])[chosen]) == 0:
        raise ArgumentError(f"filters={filters!r} selects none of the weight's {weight.shape[0]} filters")
    if formula.axis == "filters":
        return reference.distances(weight, formula)[0, chosen]
    return reference.distances(weight[chosen], formula)
