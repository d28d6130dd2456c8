"""Backend ``cpu``: the compiled CPU kernels, called on the weights where they lie in memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..formula import Formula
from . import extension
from .layout import Arrangement, Placement, algorithm_for, arranged, evenly_strided, placements_of


def built() -> bool:
    """Tells whether this installation has the compiled kernels."""
    return extension.native is not None


def instruction_sets() -> dict[str, bool]:
    """Lists the instruction sets that were built, narrowest first, and whether this processor supports them."""
    return dict(extension.native.instruction_sets())


def forced() -> str:
    """Reads the instruction set that the environment variable ``FEC_FAST_INSTRUCTION_SET`` forces; empty for none."""
    return os.environ.get("FEC_FAST_INSTRUCTION_SET", "")


def chosen() -> tuple[str, dict[str, float]]:
    """Tells the instruction set that runs where none is forced: the fastest by a timing of the kernels.

    Returns:
        Its name, and the seconds of each that was timed. The timing takes half a millisecond at first use in a process.
        There are no seconds where this processor supports only one that is worth it.
    """
    name, seconds = extension.native.choice_of_instruction_set()
    return str(name), dict(seconds)


def threads() -> str:
    """Names what runs the kernels on several threads, such as OpenMP. ``torch.set_num_threads`` sets how many."""
    return str(extension.native.threads)


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    instruction_set: str = "",
    in_float64: bool = False,
    apart: bool = False,
) -> tuple[list[Tensor], int]:
    """Computes the entropies of all weights in one call of the extension.

    Args:
        weights: CPU tensors ``[N, C/groups, *kernel]`` of a supported dtype. They are read in place, not copied.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.
        instruction_set: One of :func:`instruction_sets`. Default: the one that the environment forces, else the fastest
            on this processor; see :func:`chosen`.
        in_float64: Whether to compute in float64, whatever the dtype of the weights; about half as fast.
        apart: Whether each result has memory of its own, as torch wants it of an operator. By default they are views of
            one tensor.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, and the position of the first weight with a value that
        is not finite, or -1. With such a weight the results are not valid.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
        ValueError: The instruction set is not usable here.
    """
    kept = weights
    choice = (tuple(axes), tuple(groups), formula, algorithm)
    arrangement = _arranged(placements_of(kept), *choice)
    if arrangement is None:
        kept = [evenly_strided(weight.detach()) for weight in weights]
        arrangement = _arranged(placements_of(kept), *choice)
        assert arrangement is not None
    sizes = arrangement.sizes
    if apart:
        results = [torch.empty(size, dtype=torch.float64) for size in sizes]
    else:
        results = list(torch.empty(sum(sizes), dtype=torch.float64).split_with_sizes(sizes))
    first_bad: int = extension.native.entropies(
        arrangement.rows,
        [values.data_ptr() for values in results],
        compress=formula.compress,
        entropy=formula.entropy,
        axis=formula.axis,
        tau=formula.tau or 0.0,
        tau_scale=formula.tau_scale,
        threads=torch.get_num_threads(),
        instruction_set=instruction_set or forced(),
        in_float64=in_float64,
    )
    del kept  # the rows hold bare pointers into these tensors, so they live until the kernels have returned
    return results, first_bad


# Kept for the last few calls: it follows from these arguments alone, whatever the memory at the addresses is used for.
@functools.lru_cache(maxsize=8)
def _arranged(
    placements: tuple[Any, ...], axes: tuple[int, ...], groups: tuple[int, ...], formula: Formula, algorithm: str
) -> Arrangement | None:
    """Arranges a call for weights at these places; see :func:`fec_fast.scoring.backends.layout.arranged`."""
    weights = [Placement(*placement) for placement in placements]
    algorithms = [
        algorithm_for(algorithm, formula, weight, axis, group, index=i)
        for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True))
    ]
    return arranged(weights, axes, groups, algorithms)
