"""The compiled CPU kernels: tensors in, pointers and strides down."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..formula import Formula
from . import _native
from .layout import algorithm_for, rows_of


def instruction_sets() -> dict[str, bool]:
    """The instruction sets that were built, narrowest first, and whether this processor has them."""
    return dict(_native.instruction_sets())


def forced() -> str:
    """The instruction set that the environment variable ``FEC_FAST_INSTRUCTION_SET`` asks for; empty for none."""
    return os.environ.get("FEC_FAST_INSTRUCTION_SET", "")


def threads() -> str:
    """What runs the kernels on several threads, in words. ``torch.set_num_threads`` says on how many."""
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
        weights: CPU tensors ``[N, C/groups, *kernel]`` of a supported dtype, read where they lie.
        formula: What to compute.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.
        instruction_set: One of :func:`instruction_sets`; empty takes the one forced by the environment, else the widest
            usable one.

    Returns:
        A float64 tensor of nats for each weight, and the number of the first weight with a value that is not
        finite, or -1. With such a weight the results mean nothing.

    Raises:
        FormulaError: ``"sorted"`` for what it cannot do.
        ValueError: An instruction set that is not usable.
    """
    algorithms = [
        algorithm_for(algorithm, formula, weight, axis, group, index=i)
        for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True))
    ]
    rows, results, kept = rows_of(weights, axes, groups, algorithms)
    bad = _native.entropies(
        rows,
        compress=formula.compress,
        entropy=formula.entropy,
        axis=formula.axis,
        tau=formula.tau or 0.0,
        tau_scale=formula.tau_scale,
        threads=torch.get_num_threads(),
        instruction_set=instruction_set or forced(),
    )
    del kept  # alive until here
    return results, bad
