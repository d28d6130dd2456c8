"""What a channel is worth: the entropies of this package, and the classical criteria to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from . import ops
from .coupling import CoupledSet
from .errors import ArgumentError, LayerError, WeightError, nearest
from .formula import Formula
from .trace import Trace
from .tracer import Use

Criterion = Callable[[Tensor], Tensor]


def l1(weight: Tensor) -> Tensor:
    """The sum of absolute weights of each filter (Li et al., ICLR 2017).

    Args:
        weight: ``[filters, channels, *kernel]``.

    Returns:
        ``[filters]``.
    """
    return weight.flatten(1).abs().sum(1)


def l2(weight: Tensor) -> Tensor:
    """The Euclidean norm of each filter.

    Args:
        weight: ``[filters, channels, *kernel]``.

    Returns:
        ``[filters]``.
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


def fpgm(weight: Tensor) -> Tensor:
    """The sum of each filter's distances to all others (He et al., CVPR 2019).

    Args:
        weight: ``[filters, channels, *kernel]``.

    Returns:
        ``[filters]``.
    """
    flat = weight.flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


CLASSICAL: dict[str, Criterion] = {"l1": l1, "l2": l2, "fpgm": fpgm}
NAMES = ("fec", *CLASSICAL, "random")


def check_criterion(criterion: str | Criterion) -> str:
    """Validates a criterion.

    Args:
        criterion: A name or a callable.

    Returns:
        Its name for the plan.

    Raises:
        ArgumentError: Neither a known name nor a callable.
    """
    if callable(criterion):
        return f"callable {getattr(criterion, '__name__', type(criterion).__name__)}"
    if criterion not in NAMES:
        raise ArgumentError(f"criterion={criterion!r}: {nearest(str(criterion), NAMES)}; one of {NAMES} or a callable")
    return criterion


def unit_scores(
    coupled: Sequence[CoupledSet],
    trace: Trace,
    weights: Mapping[str, Tensor],
    criterion: str | Criterion,
    formula: Formula,
    sides: str,
) -> list[Tensor]:
    """Scores every unit of every coupled set; the lowest go first.

    A layer's scores are divided by their mean, so that layers of one set weigh alike, and averaged over the
    producing layers; with ``sides="both"`` that is multiplied by the same average over the consuming layers.

    Args:
        coupled: The sets.
        trace: The traced model.
        weights: The weights by name.
        criterion: A name of ``NAMES``, or a callable from ``[filters, channels, *kernel]`` to ``[filters]``.
        formula: Of the entropies, for ``"fec"``.
        sides: ``"both"`` or ``"producer"``.

    Returns:
        For each set a float64 tensor, one score a unit.

    Raises:
        LayerError: A criterion that returns something else than one finite number a filter.
        WeightError: A weight that is not finite.
    """
    if criterion == "random":
        return [torch.rand(len(one.units), dtype=torch.float64) for one in coupled]
    jobs = [(use, False) for use in trace.uses.values()]
    if sides == "both":
        jobs += [(use, True) for use in trace.uses.values()]
    if criterion == "fec":
        jobs = [(use, consumer) for use, consumer in jobs if _has_entropy(use, weights[use.weight], consumer, formula)]
        vectors = _entropies(jobs, weights, formula)
    else:
        function = criterion if callable(criterion) else CLASSICAL[criterion]
        vectors = [_call(function, use, weights[use.weight], consumer) for use, consumer in jobs]
    sums: dict[tuple[int, bool], list[float]] = {}
    for (use, consumer), vector in zip(jobs, vectors, strict=True):
        mean = float(vector.mean())
        values = (vector / mean if mean > 0 else vector).tolist()
        gathered: dict[int, list[float]] = {}
        for label, value in zip(use.inputs if consumer else use.outputs, values, strict=True):
            gathered.setdefault(trace.sets.find(label), []).append(value)
        for root, found in gathered.items():
            sums.setdefault((root, consumer), []).append(sum(found) / len(found))
    return [torch.tensor([_combine(sums, root) for root in one.units], dtype=torch.float64) for one in coupled]


def _combine(sums: Mapping[tuple[int, bool], list[float]], root: int) -> float:
    score = 1.0
    for consumer in (False, True):
        found = sums.get((root, consumer))
        if found:
            score *= sum(found) / len(found)
    return score


def _axis(use: Use, consumer: bool) -> int:
    return use.in_axis if consumer else use.out_axis


def _has_entropy(use: Use, weight: Tensor, consumer: bool, formula: Formula) -> bool:
    """Whether a side of a layer carries an entropy: one channel, or one filter, has nothing to compare."""
    axis = _axis(use, consumer)
    if formula.axis == "channels":
        return weight.shape[1] > 1 if axis == 0 else weight.shape[0] // use.groups > 1
    return len(use.inputs if consumer else use.outputs) > 1


def _entropies(jobs: Sequence[tuple[Use, bool]], weights: Mapping[str, Tensor], formula: Formula) -> list[Tensor]:
    try:
        return ops.entropies(
            [weights[use.weight].detach() for use, _ in jobs],
            formula,
            axes=[_axis(use, consumer) for use, consumer in jobs],
            groups=[use.groups for use, _ in jobs],
        )
    except WeightError as error:
        position = getattr(error, "layer_index", None)
        if position is None:
            raise
        raise WeightError(f"{jobs[position][0].layer}: {error}") from error


def as_filters(weight: Tensor, axis: int, groups: int) -> Tensor:
    """A weight seen as filters of channels, from either side.

    Args:
        weight: ``[N, C, *kernel]``.
        axis: 0 for the rows; 1 for the slices that belong to each channel of each group.
        groups: Groups of the convolution.

    Returns:
        ``[filters, channels, *kernel]``.
    """
    if axis == 0:
        return weight
    rows, columns, *kernel = weight.shape
    grouped = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return grouped.reshape(groups * columns, rows // groups, *kernel)


def _call(function: Criterion, use: Use, weight: Tensor, consumer: bool) -> Tensor:
    side = as_filters(weight.detach(), _axis(use, consumer), use.groups).float()
    scores = torch.as_tensor(function(side)).detach().to("cpu", torch.float64)
    if scores.shape != side.shape[:1]:
        raise LayerError(f"{use.layer}: the criterion returned shape {list(scores.shape)}, expected [{side.shape[0]}]")
    if not bool(torch.isfinite(scores).all()):
        raise WeightError(f"{use.layer}: the criterion returned NaN or infinity; look at this layer's weights")
    return scores
