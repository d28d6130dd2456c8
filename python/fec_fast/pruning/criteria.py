"""What a channel is worth: the entropies of this package, and the classical criteria to compare with.

A criterion is a name of ``NAMES`` or any function from weights ``[filters, channels, *kernel]`` to one number a filter;
low goes first. The published form of the classical ones looks at the filters alone: ``prune(..., sides="producer")``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..graph.dispatch_mode import Use
from ..graph.groups import CoupledSet
from ..graph.trace import Trace
from ..scoring import ops
from ..scoring.formula import Formula
from ..utils.errors import ArgumentError, LayerError, WeightError, nearest

Criterion = Callable[[Tensor], Tensor]


def l1(weight: Tensor) -> Tensor:
    """The sum of absolute weights of each filter (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017).

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``: ``sum(abs(weight[i]))``.
    """
    return _added(weight.abs())


def l2(weight: Tensor) -> Tensor:
    """The Euclidean norm of each filter (He et al., Soft Filter Pruning, IJCAI 2018, with p = 2).

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``: ``sqrt(sum(weight[i] ** 2))``.
    """
    return _added(weight.square()).sqrt()


def _added(terms: Tensor) -> Tensor:
    """The sum of each filter's terms; a side that lies across the memory is not copied for it."""
    return terms.flatten(1).sum(1) if terms.is_contiguous() else terms.sum(tuple(range(1, terms.dim())))


def fpgm(weight: Tensor) -> Tensor:
    """The sum of each filter's distances to all others (He et al., Filter Pruning via Geometric Median, CVPR 2019).

    A geometric median is a point with the least such sum; the paper looks for it among the filters themselves, so the
    filters of the least sums, which the others can stand in for, go first.

    Args:
        weight: ``[filters, channels, *kernel]``, float32 or float64.

    Returns:
        ``[filters]``: ``sum over j of norm(weight[i] - weight[j])``, Euclidean.
    """
    flat = weight.flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def bn_scale(gamma: Tensor) -> Tensor:
    """The scale of each channel's batch norm (Liu et al., Network Slimming, ICCV 2017).

    In a coupled set with several batch norms each is divided by its mean, and they are averaged. The paper trains
    with an L1 penalty on the scales first; a network without it has little to tell by them.

    Args:
        gamma: ``[channels]``, the weight of a batch norm; not that of a convolution.

    Returns:
        ``[channels]``: ``abs(gamma[i])``.
    """
    return gamma.abs()


def random(weight: Tensor) -> Tensor:
    """A random number for each filter, by torch's global generator: the criterion that others have to beat.

    Args:
        weight: ``[filters, ...]``; its values do not count.

    Returns:
        ``[filters]``, float64, uniform in [0, 1).
    """
    return torch.rand(weight.shape[0], dtype=torch.float64)


CLASSICAL: dict[str, Criterion] = {"l1": l1, "l2": l2, "fpgm": fpgm, "bn_scale": bn_scale, "random": random}
# The entropies: times the L1 norm of the same filter or slice, and alone. Among filters that are all far from one
# another the entropy tells little, and how strong they are tells more; docs/study.md compares the two.
ENTROPIC = ("fec_l1", "fec")
NAMES = (*ENTROPIC, *CLASSICAL)
DEFAULT = "fec_l1"


def check_criterion(criterion: str | Criterion) -> str:
    """Validates a criterion.

    Args:
        criterion: A name or a callable.

    Returns:
        Its name for the plan: the functions of this module have the names they can be asked for by.

    Raises:
        ArgumentError: Neither a known name nor a callable.
    """
    for name, function in CLASSICAL.items():
        if criterion is function:
            return name
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
    producing layers; with ``sides="both"`` that is multiplied by the same average over the consuming layers. The
    criteria ``"bn_scale"`` and ``"random"`` look at no weight of a layer, so ``sides`` makes no difference to them.

    Args:
        coupled: The sets.
        trace: The traced model.
        weights: The weights by name.
        criterion: A name of ``NAMES``, or a callable from ``[filters, channels, *kernel]`` to ``[filters]``.
        formula: Of the entropies, for the criteria of ``ENTROPIC``.
        sides: ``"both"`` or ``"producer"``.

    Returns:
        For each set a float64 tensor, one score a unit.

    Raises:
        LayerError: A criterion that returns something else than one number a filter; for ``"bn_scale"``, a set
            without a batch norm.
        WeightError: A weight or a score that is not finite.
    """
    if criterion in ("random", random):
        # One draw a unit: a unit's mean over several layers would not be uniform.
        return [random(torch.empty(len(one.units))) for one in coupled]
    if criterion in ("bn_scale", bn_scale):
        return _scales(coupled, weights)
    consumers = (False, True) if sides == "both" else (False,)
    jobs = [(use, consumer) for use in trace.uses.values() for consumer in consumers]
    if criterion in ENTROPIC:
        jobs, vectors = side_entropies(trace, weights, formula, consumers)
        if criterion == "fec_l1":
            vectors = [entropies * norms for entropies, norms in zip(vectors, _strengths(jobs, weights), strict=True)]
    else:
        function = criterion if callable(criterion) else CLASSICAL[criterion]
        called = [_call(function, use, weights[use.weight], consumers) for use in trace.uses.values()]
        vectors = [vector for of_use in called for vector in of_use]
    roots = trace.sets.roots()
    # For either side, by unit: the sum of its scores in the layers that have it, and in how many that is.
    sums, layers = np.zeros((2, len(roots))), np.zeros((2, len(roots)))
    for (use, consumer), vector in zip(jobs, vectors, strict=True):
        line = roots[use.inputs if consumer else use.outputs]
        values = relative(vector).numpy()
        if (line[1:] <= line[:-1]).any():  # a unit may have several channels of a layer: their mean counts
            line, place, counts = np.unique(line, return_inverse=True, return_counts=True)
            values = np.bincount(place, weights=values) / counts
        sums[int(consumer), line] += values
        layers[int(consumer), line] += 1
    means = np.divide(sums, layers, out=np.ones_like(sums), where=layers > 0)
    product = means[0] * means[1]
    return [torch.from_numpy(product[list(one.units)]) for one in coupled]


def _scales(coupled: Sequence[CoupledSet], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Scores units by the batch norms that hold them, known by a running variance beside their weight."""
    norms: list[list[str]] = []
    for one in coupled:
        owners = [name.removesuffix(".running_var") for name, _ in one.members[0] if name.endswith(".running_var")]
        norms.append([owner for owner in owners if (f"{owner}.weight", 0) in one.members[0]])
    bare = [one.name for one, found in zip(coupled, norms, strict=True) if not found]
    if bare:
        raise LayerError(
            f"criterion='bn_scale': no batch norm with weights and running statistics follows {', '.join(bare)} or "
            f"what is coupled to them; pass ignore={tuple(bare)!r} or another criterion"
        )
    scores = []
    for one, found in zip(coupled, norms, strict=True):
        total = torch.zeros(len(one.units), dtype=torch.float64)
        for owner in found:
            key = (f"{owner}.weight", 0)
            values = relative(bn_scale(weights[key[0]].detach().to("cpu", torch.float64)))
            total += torch.stack([values[unit[key]].mean() for unit in one.members])
        scores.append(total / len(found))
    return scores


def relative(vector: Tensor) -> Tensor:
    """Divides a layer's scores by their mean, so that layers weigh alike.

    Args:
        vector: ``[filters]``, float64.

    Returns:
        The same shape and dtype; unchanged where the mean is not positive.
    """
    mean = float(vector.mean())
    return vector / mean if mean > 0 else vector


def _axis(use: Use, consumer: bool) -> int:
    return use.in_axis if consumer else use.out_axis


def has_entropy(weight: Tensor, axis: int, groups: int, formula: Formula) -> bool:
    """Whether a side of a layer carries an entropy: one channel, or one filter, has nothing to compare.

    Args:
        weight: The layer's weight.
        axis: The weight axis that the filters of this side lie on.
        groups: The groups of the layer.
        formula: Of the entropies.

    Returns:
        Whether more than one channel, or filter, is compared.
    """
    if formula.axis == "both":
        return any(has_entropy(weight, axis, groups, part) for part in formula.parts())
    inside = formula.axis == "channels"
    if axis == 0:
        return weight.shape[1 if inside else 0] > 1
    return weight.shape[0] // groups > 1 if inside else groups * weight.shape[1] > 1


def side_entropies(
    trace: Trace, weights: Mapping[str, Tensor], formula: Formula, consumers: Sequence[bool]
) -> tuple[list[tuple[Use, bool]], list[Tensor]]:
    """The entropies of the layers' sides.

    Args:
        trace: The traced model.
        weights: The weights by name.
        formula: Of the entropies.
        consumers: Which sides: ``False`` for the filters, ``True`` for the slices that read a channel.

    Returns:
        The sides that carry an entropy, as uses and whether it is the consumers' side, and for each of them float64
        ``[filters or slices]``, in nats.

    Raises:
        WeightError: A weight that is not finite.
    """
    jobs = [
        (use, consumer)
        for use in trace.uses.values()
        for consumer in consumers
        if has_entropy(weights[use.weight], _axis(use, consumer), use.groups, formula)
    ]
    return jobs, _entropies(jobs, weights, formula)


def _entropies(jobs: Sequence[tuple[Use, bool]], weights: Mapping[str, Tensor], formula: Formula) -> list[Tensor]:
    found = [weights[use.weight].detach() for use, _ in jobs]
    try:
        return ops.entropies(
            found,
            formula,
            axes=[_axis(use, consumer) for use, consumer in jobs],
            groups=[use.groups for use, _ in jobs],
            # Where the weights are; of a model that is spread over several devices, copies on the CPU.
            backend="auto" if len({weight.device for weight in found}) < 2 else "cpu",
        )
    except WeightError as error:
        position = getattr(error, "layer_index", None)
        if position is None:
            raise
        raise WeightError(f"{jobs[position][0].layer}: {error}") from error


def _strengths(jobs: Sequence[tuple[Use, bool]], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The L1 norms of sides, the sides of one layer after another."""
    layers = [list(sides) for _, sides in itertools.groupby(jobs, key=lambda job: id(job[0]))]
    found = [_call(l1, sides[0][0], weights[sides[0][0].weight], [side for _, side in sides]) for sides in layers]
    return [norms for of_layer in found for norms in of_layer]


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
    if groups == 1:
        return weight.transpose(0, 1)
    rows, columns, *kernel = weight.shape
    grouped = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return grouped.reshape(groups * columns, rows // groups, *kernel)


def _call(function: Criterion, use: Use, weight: Tensor, consumers: Sequence[bool]) -> list[Tensor]:
    weight, axes = weight.detach(), [_axis(use, consumer) for consumer in consumers]
    if function in (l1, l2):
        found = _norms(function, weight, axes, use.groups)
    else:
        found = [function(as_filters(weight, axis, use.groups).float()) for axis in axes]
    vectors = []
    for axis, vector in zip(axes, found, strict=True):
        scores, filters = torch.as_tensor(vector).detach().to("cpu", torch.float64), len(weight)
        if axis == 1:
            filters = weight.shape[1] * use.groups
        if scores.shape != (filters,):
            raise LayerError(f"{use.layer}: the criterion returned shape {list(scores.shape)}, expected [{filters}]")
        if not bool(torch.isfinite(scores).all()):
            raise WeightError(f"{use.layer}: the criterion returned NaN or infinity; look at this layer's weights")
        vectors.append(scores)
    return vectors


def _norms(function: Criterion, weight: Tensor, axes: Sequence[int], groups: int) -> list[Tensor]:
    """The L1 or L2 norms of either side: they share the terms, a block of rows at a time, and no weight is copied."""
    rows = max(1, _BLOCK * len(weight) // weight.numel()) if groups == 1 else len(weight)
    sums: list[list[Tensor]] = [[] for _ in axes]
    for block in weight.split(rows):  # type: ignore[no-untyped-call]
        terms = block.float().abs() if function is l1 else block.float().square()
        for found, axis in zip(sums, axes, strict=True):
            found.append(_added(as_filters(terms, axis, groups)))
    totals = [
        torch.stack(found).sum(0) if axis == 1 else torch.cat(found) for found, axis in zip(sums, axes, strict=True)
    ]
    return totals if function is l1 else [total.sqrt() for total in totals]


_BLOCK = 2**20  # weights looked at together: they fit into the cache
