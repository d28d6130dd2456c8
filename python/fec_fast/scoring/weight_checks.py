"""Checks of the weights that are scored, and of where their filters lie; the operator and its callers share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import ArgumentError, FormulaError, WeightError, nearest
from ..utils.weights import weight_trouble

ALGORITHMS = ("auto", "sorted", "pairwise")


def label_of(names: Sequence[str] | None, position: int) -> str:
    """The subject of a message about a weight: its layer where names are given, else its position."""
    return f"weight {position}" if names is None else f"layer {names[position]!r}: its weight"


def check_lengths(weights: Sequence[Tensor], axes: Sequence[int], groups: Sequence[int]) -> None:
    """Checks that there are as many axes and groups as weights; ``ArgumentError`` otherwise."""
    if not len(weights) == len(axes) == len(groups):
        raise ArgumentError(f"{len(weights)} weights, {len(axes)} axes and {len(groups)} groups; give as many of each")


def check_algorithm(algorithm: str) -> None:
    """Checks the name of an algorithm; ``FormulaError`` otherwise."""
    if algorithm not in ALGORITHMS:
        raise FormulaError(f"algorithm={algorithm!r}; {nearest(str(algorithm), ALGORITHMS)}")


def check_weight(weight: Tensor, axis: int, groups: int, label: str, layer: str | None, *, may_be_empty: bool) -> None:
    """Checks that a weight can be read as filters.

    Args:
        weight: Anything.
        axis: The axis that its filters shall lie on.
        groups: The groups of its layer.
        label: The subject of the message.
        layer: The name of its layer, for the error.
        may_be_empty: Whether a weight without elements is accepted.

    Raises:
        ArgumentError: It is not a tensor, the axis is not 0 or 1, or the groups are not a whole number.
        WeightError: It cannot be read, or the groups do not divide it.
    """
    if not isinstance(weight, Tensor):
        raise ArgumentError(f"{label} is a {type(weight).__name__}, not a tensor")
    trouble = weight_trouble(weight, may_be_empty=may_be_empty)
    if trouble is not None:
        raise WeightError(f"{label} {trouble.what}; {trouble.remedy}", layer=layer)
    check_filters(weight, axis, groups, label, layer)


def check_filters(weight: Tensor, axis: int, groups: int, label: str, layer: str | None) -> None:
    """Checks where the filters of a weight lie, by its shape alone; see :func:`check_weight`."""
    if weight.dim() < 2:
        raise WeightError(
            f"{label} has {weight.dim()} dimensions; give a weight [filters, channels, *kernel]", layer=layer
        )
    if isinstance(axis, bool) or axis not in (0, 1):
        raise ArgumentError(f"{label} has axis {axis!r}; give 0 or 1")
    check_groups(weight.shape, groups, label, layer)


def check_groups(shape: Sequence[int], groups: int, label: str, layer: str | None) -> None:
    """Checks that the groups of a layer divide its weight; ``label`` is the subject of the message."""
    if isinstance(groups, bool) or not isinstance(groups, int | torch.SymInt):
        raise ArgumentError(f"{label} has groups {groups!r}; give a whole number")
    if groups < 1 or shape[0] % groups:
        raise WeightError(f"{label} has shape {list(shape)}, which {groups} groups do not divide", layer=layer)
