"""Unit scores: a criterion applied to both sides of every layer, combined into one score per coupled unit.

A unit is a channel with everything that is coupled to it. Each layer that makes the channel holds a filter of it, and
each layer that reads the channel holds a slice (all weights that multiply this input channel). Both say how much the
channel matters: a criterion is applied to the filters (the producer side) and to the slices (the consumer side).

A unit may hold several filters or slices of a layer. Criteria that look at each of them alone (the norms, and functions
of the caller) give it their mean; the entropy between filters compares units (:mod:`fec_fast.pruning.unit_entropies`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import CoupledChannels
from ..graph.labels import FIXED
from ..graph.trace import Trace
from ..scoring.backends.registry import ResolvedBackend, resolve
from ..scoring.formula import Formula
from ..utils.errors import ArgumentError, LayerError, WeightError
from ..utils.precision import in_float64
from ..utils.ranking import merge_ties
from . import unit_entropies
from .criteria import CLASSICAL_CRITERIA, ENTROPY_CRITERIA, Criterion, bn_scale, l1, l2, random, sum_per_filter
from .layer_sides import LayerSide, UnitsOfSide, as_filters
from .unit_entropies import WeightSide

# Weights per block in which norms are computed. A block of terms stays in the cache for both sides; as one piece, the
# terms of a large layer would be written to memory and read back for each side.
_BLOCK_ELEMENTS = 2**20


def score_units(
    sets: Sequence[CoupledChannels],
    trace: Trace,
    tensors: Mapping[str, Tensor],
    criterion: str | Criterion,
    formula: Formula,
    sides: str,
    backend: ResolvedBackend,
) -> list[Tensor]:
    """Scores every unit of every coupled set. Units with the lowest scores are removed first.

    The values of each side of a layer are divided by their mean, because the magnitude of a criterion differs from
    layer to layer and the layers of one set should weigh alike. The score of a unit is the average of its filters'
    values over the layers that make its channels. With ``sides="both"`` it is multiplied by the average of its slices'
    values over the layers that read them: a channel matters little if it is redundant where it is made, or if it is
    hardly used where it is read. The criteria ``"bn_scale"`` and ``"random"`` look at no weight of a layer, so
    ``sides`` has no effect on them.

    Args:
        sets: The coupled sets.
        trace: The traced model.
        tensors: The model's parameters and buffers by name.
        criterion: One of :data:`fec_fast.pruning.criteria.CRITERIA`, or a callable from weights
            ``[filters, channels, *kernel]`` (float32) to one number per filter.
        formula: Of the entropies; used by the criteria ``"fec_l1"`` and ``"fec"`` only.
        sides: ``"both"`` or ``"producer"``.
        backend: What computes the entropies, see :func:`scoring_backend`.

    Returns:
        For each set a float64 CPU tensor ``[units]``.

    Raises:
        LayerError: The criterion did not return one number per filter; for ``"bn_scale"``, a set has no batch norm.
        WeightError: A weight or a criterion's number is NaN or infinite.
    """
    if criterion in ("random", random):
        # One draw per unit: the mean of several draws, one per layer, would not be uniform.
        return [random(torch.empty(len(coupled.units))) for coupled in sets]
    if criterion in ("bn_scale", bn_scale):
        return _batch_norm_scores(sets, tensors)
    roots = trace.partition.roots
    # Row 0: producer side, row 1: consumer side. By unit (root label): the sum of its values, and the number of layers.
    sums, layers = np.zeros((2, len(roots))), np.zeros((2, len(roots)))
    for side, units, relative in _relative_values(sets, trace, tensors, criterion, formula, sides, backend):
        sums[int(side.is_consumer), units] += relative
        layers[int(side.is_consumer), units] += 1
    # A side without any value (a layer with one channel has no entropy) is neutral: its factor is 1.
    means = np.divide(sums, layers, out=np.ones_like(sums), where=layers > 0)
    scores = means[0] * means[1]
    return [torch.from_numpy(scores[list(coupled.units)]) for coupled in sets]


def _relative_values(
    sets: Sequence[CoupledChannels],
    trace: Trace,
    tensors: Mapping[str, Tensor],
    criterion: str | Criterion,
    formula: Formula,
    sides: str,
    backend: ResolvedBackend,
) -> Iterator[tuple[LayerSide, np.ndarray, np.ndarray]]:
    """The sides that a criterion gives numbers for, and for each the units, and their numbers divided by the mean.

    A unit may hold several filters or slices of one layer (groups, a flatten); the layer counts once, with their mean.
    """
    consumer_flags = (False, True) if sides == "both" else (False,)
    if criterion in ENTROPY_CRITERIA:
        scored = side_entropies(trace, tensors, formula, consumer_flags, backend, sets)
        norms = _l1_norms([side for side, _, _ in scored], tensors) if criterion == "fec_l1" else [None] * len(scored)
        for (side, units, entropies), norm in zip(scored, norms, strict=True):
            values = entropies if norm is None else entropies * units.mean(norm.numpy())
            known = ~np.isnan(values)
            relative = divide_by_mean(torch.from_numpy(values[known])).numpy()
            removable = units.units[known] > FIXED
            yield side, units.units[known][removable], relative[removable]
        return
    function = criterion if callable(criterion) else CLASSICAL_CRITERIA[criterion]
    for use in trace.scored_uses:
        sides_of_layer = [LayerSide(use, is_consumer) for is_consumer in consumer_flags]
        for side, values in zip(
            sides_of_layer, _apply_criterion(function, sides_of_layer, use.weight_in(tensors)), strict=True
        ):
            units = UnitsOfSide.of(trace.partition.roots[side.labels])
            relative = units.mean(divide_by_mean(values).numpy())
            removable = units.units > FIXED
            yield side, units.units[removable], relative[removable]


def _batch_norm_scores(sets: Sequence[CoupledChannels], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Scores units by the scales of the batch norms that hold them."""
    norms_of_sets: list[list[str]] = []
    for coupled in sets:
        # A batch norm is recognised by the running variance beside its weight: a layer norm has none.
        owners = [name.removesuffix(".running_var") for name, _ in coupled.members[0] if name.endswith(".running_var")]
        norms_of_sets.append([owner for owner in owners if (f"{owner}.weight", 0) in coupled.members[0]])
    without_norm = [coupled.name for coupled, norms in zip(sets, norms_of_sets, strict=True) if not norms]
    if without_norm:
        raise LayerError(
            f"criterion='bn_scale': no batch norm with weights and running statistics follows {', '.join(without_norm)}"
            f" or the layers coupled to them; pass ignore={tuple(without_norm)!r} or another criterion"
        )
    scores = []
    for coupled, norms in zip(sets, norms_of_sets, strict=True):
        total = torch.zeros(len(coupled.units), dtype=torch.float64)
        for norm in norms:
            key = (f"{norm}.weight", 0)
            values = divide_by_mean(bn_scale(in_float64(tensors[key[0]].detach().cpu())))
            total += torch.stack([values[unit[key]].mean() for unit in coupled.members])
        scores.append(total / len(norms))
    return scores


def divide_by_mean(values: Tensor) -> Tensor:
    """Divides the values of a layer by their mean, so that layers weigh alike.

    Args:
        values: ``[filters]``, float64.

    Returns:
        The same shape and dtype; unchanged where the mean is not positive.
    """
    mean = float(values.mean())
    return values / mean if mean > 0 else values


def scoring_backend(trace: Trace, tensors: Mapping[str, Tensor]) -> ResolvedBackend:
    """Resolves the backend that computes a model's entropies, once per call of ``prune`` and its like.

    Args:
        trace: The traced model.
        tensors: The model's parameters and buffers by name.

    Returns:
        The backend of the weights' device. One call takes weights of one device: where a model is spread over several,
        copies of its weights are scored on the CPU.

    Raises:
        BackendError: The backend cannot run here.
    """
    devices = {use.weight_in(tensors).device for use in trace.weight_uses.values()}
    return resolve("auto", devices.pop().type if len(devices) == 1 else "cpu")


def side_entropies(
    trace: Trace,
    tensors: Mapping[str, Tensor],
    formula: Formula,
    consumer_flags: Sequence[bool],
    backend: ResolvedBackend,
    sets: Sequence[CoupledChannels] | None = None,
) -> list[tuple[LayerSide, UnitsOfSide, np.ndarray]]:
    """The entropies of all layers' sides.

    Args:
        trace: The traced model.
        tensors: The model's parameters and buffers by name.
        formula: Of the entropies.
        consumer_flags: The sides wanted of each layer: ``False`` for the filters, ``True`` for the slices.
        backend: What computes them, see :func:`scoring_backend`.
        sets: The coupled sets whose units are wanted: sides that have none of them are left out. ``None`` for all.

    Returns:
        For each side that has an entropy, the units of its filters or slices, and float64 ``[units]``, in nats, as
        :func:`fec_fast.pruning.unit_entropies.entropies` returns them, but for ties
        (:func:`fec_fast.utils.ranking.merge_ties`).

    Raises:
        WeightError: A weight is NaN or infinite, or cannot be read; the layer is named.
    """
    wanted = np.full(len(trace.partition.roots), sets is None)
    for coupled in sets or ():
        wanted[list(coupled.units)] = True
    layer_sides = [
        side
        for use in trace.scored_uses
        for side in (LayerSide(use, is_consumer) for is_consumer in consumer_flags)
        if wanted[trace.partition.roots[side.labels]].any()
    ]
    weight_sides = [
        WeightSide(
            side.use.weight_in(tensors),
            side.axis,
            side.use.groups,
            UnitsOfSide.of(trace.partition.roots[side.labels]),
            side.use.layer,
        )
        for side in layer_sides
    ]
    found = unit_entropies.entropies(weight_sides, formula, backend)
    return [
        (side, of_weight.units, merge_ties(values, absolute=True))
        for side, of_weight, values in zip(layer_sides, weight_sides, found, strict=True)
        if not np.isnan(values).all()
    ]


def _l1_norms(scored_sides: Sequence[LayerSide], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The L1 norm of every filter or slice of some sides; the sides of a layer are consecutive and share the terms."""
    norms: list[Tensor] = []
    for _, sides_of_layer in itertools.groupby(scored_sides, key=lambda side: id(side.use)):
        group = list(sides_of_layer)
        norms += _apply_criterion(l1, group, group[0].use.weight_in(tensors))
    return norms


def _apply_criterion(function: Criterion, sides_of_layer: Sequence[LayerSide], weight: Tensor) -> list[Tensor]:
    """A criterion's numbers for some sides of one layer, checked: float64 CPU tensors ``[filters or slices]``."""
    use, weight = sides_of_layer[0].use, weight.detach()
    axes = [side.axis for side in sides_of_layer]
    if function in (l1, l2):
        results = _norms_of_sides(function, weight, axes, use.groups)
    else:
        is_ours = function in CLASSICAL_CRITERIA.values()
        filters = [as_filters(weight, axis, use.groups) for axis in axes]
        # A function of the user's is given copies, which it may write to.
        results = [function(in_float64(each) if is_ours else each.float().clone()) for each in filters]
    checked = []
    for axis, result in zip(axes, results, strict=True):
        try:
            values = torch.as_tensor(result).detach().to("cpu", torch.float64)
        except Exception as error:
            raise ArgumentError(
                f"{use.layer}: criterion returned a {type(result).__name__}: return a tensor with one number per filter"
            ) from error
        expected = len(weight) if axis == 0 else weight.shape[1] * use.groups
        if values.shape != (expected,):
            raise LayerError(
                f"{use.layer}: the criterion returned shape {list(values.shape)}, expected [{expected}]: return one "
                "number per filter"
            )
        if not bool(torch.isfinite(values).all()):
            message = f"{use.layer}: the criterion returned NaN or infinity; look at this layer's weights"
            raise WeightError(message, layer=use.layer)
        checked.append(values)
    return checked


def _norms_of_sides(function: Criterion, weight: Tensor, axes: Sequence[int], groups: int) -> list[Tensor]:
    """The L1 or L2 norms for several axes of one weight; the terms are computed once, block by block, for all axes."""
    # Blocks are rows; with groups a block would cut through the slices of a group, so the weight is one block then.
    rows = max(1, _BLOCK_ELEMENTS * len(weight) // weight.numel()) if groups == 1 else len(weight)
    sums_of_axes: list[list[Tensor]] = [[] for _ in axes]
    for block in weight.split(rows):  # type: ignore[no-untyped-call]
        wide = in_float64(block)
        terms = wide.abs() if function is l1 else wide.square()
        for sums, axis in zip(sums_of_axes, axes, strict=True):
            sums.append(sum_per_filter(as_filters(terms, axis, groups)))
    # A block holds whole filters (axis 0), but only a part of every slice (axis 1).
    totals = [
        torch.stack(sums).sum(0) if axis == 1 else torch.cat(sums)
        for sums, axis in zip(sums_of_axes, axes, strict=True)
    ]
    return totals if function is l1 else [total.sqrt() for total in totals]
