"""Backend ``cpu``: the compiled CPU kernels, called on the weights where they lie in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..formula import Formula
from . import _native
from .layout import algorithm_for, rows_of


def instruction_sets() -> dict[str, bool]:
    """Lists the instruction sets that were built, narrowest first, and whether this processor supports them."""
    return dict(_native.instruction_sets())


def forced() -> str:
    """Reads the instruction set that the environment variable ``FEC_FAST_INSTRUCTION_SET`` forces; empty for none."""
    return os.environ.get("FEC_FAST_INSTRUCTION_SET", "")


def threads() -> str:
    """Names what runs the kernels on several threads, such as OpenMP. ``torch.set_num_threads`` sets how many."""
    return str(_native.threads)


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    instruction_set: str = "",
) -> tuple[list[Tensor], int]:
    """Computes the entropies of all weights in one call of the extension.

    Args:
        weights: CPU tensors ``[N, C/groups, *kernel]`` of a supported dtype. They are read in place, not copied.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.
        instruction_set: One of :func:`instruction_sets`. Default: the one that the environment forces, else the widest
            that this processor supports.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, and the position of the first weight with a value that
        is not finite, or -1. With such a weight the results are not valid.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        ValueError: The instruction set is not usable here.
    """
    algorithms = [
        algorithm_for(algorithm, formula, weight, axis, group, index=i)
        for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True))
    ]
    rows, results, kept = rows_of(weights, axes, groups, algorithms)
    first_bad = _native.entropies(
        rows,
        compress=formula.compress,
        entropy=formula.entropy,
        axis=formula.axis,
        tau=formula.tau or 0.0,
        tau_scale=formula.tau_scale,
        threads=torch.get_num_threads(),
        instruction_set=instruction_set or forced(),
    )
    del kept  # the rows hold bare pointers into these tensors, so they live until the kernels have returned
    return results, first_bad
