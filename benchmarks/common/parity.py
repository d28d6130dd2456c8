"""Parity with the float64 reference, which every benchmark checks before it times a kernel."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from fec_fast.scoring import ops, reference
from fec_fast.scoring.formula import Formula


def allowed_error(weight: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1) -> float:
    """The largest difference to the reference that counts as equal, in nats.

    Args:
        weight: [N, C, *kernel].
        formula: The formula of the entropies.
        axis: The axis of the weight that filters are on.
        groups: The number of groups of the convolution.
    """
    filters = weight.shape[0] if axis == 0 else groups * weight.shape[1]
    channels = weight.shape[1] if axis == 0 else weight.shape[0] // groups
    return reference.tolerance(weight.dtype, channels if formula.axis == "channels" else filters)


def require_parity(weight: Tensor, formula: Formula, **choice: Any) -> float:
    """The largest error of the kernels on a weight, in nats; ends the program if it is larger than allowed."""
    (entropies,) = ops.entropies([weight], formula, axes=[0], groups=[1], **choice)
    error = float((entropies - reference.entropy(weight, formula)).abs().max())
    if not error <= allowed_error(weight, formula):
        sys.exit(f"{formula} on {list(weight.shape)} is {error:.1e} nats from the reference: not timed")
    return error
