"""Unit scores: a criterion applied to both sides of every layer, combined into one score per coupled unit.

A unit is a channel with everything that is coupled to it. Each layer that makes the channel holds a filter of it, and
each layer that reads the channel holds a slice (all weights that multiply this input channel). Both say how much the
channel matters: a criterion is applied to the filters (the producer side) and to the slices (the consumer side).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import CoupledChannels
from ..graph.label_tracker import WeightUse
from ..graph.trace import Trace
from ..scoring import ops
from ..scoring.backends.registry import ResolvedBackend, resolve
from ..scoring.formula import Formula
from ..utils.errors import LayerError, WeightError
from .criteria import CLASSICAL_CRITERIA, ENTROPY_CRITERIA, Criterion, bn_scale, l1, l2, random, sum_per_filter

# Weights per block in which norms are computed. A block of terms stays in the cache for both sides; as one piece, the
# terms of a large layer would be written to memory and read back for each side.
_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class LayerSide:
    """One side of a layer: its filters, or the slices that read its input channels.

    Attributes:
        use: The layer's convolution or linear operation.
        is_consumer: ``False`` for the filters, which make channels; ``True`` for the slices, which read them.
    """

    use: WeightUse
    is_consumer: bool

    @property
    def axis(self) -> int:
        """The weight axis that the filters or slices lie on."""
        return self.use.in_axis if self.is_consumer else self.use.out_axis

    @property
    def labels(self) -> np.ndarray:
        """The channel label of each filter or slice, int64."""
        return self.use.inputs if self.is_consumer else self.use.outputs


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
    scored_sides, values = _criterion_values(trace, tensors, criterion, formula, sides, backend)
    roots = trace.partition.roots
    # Row 0: producer side, row 1: consumer side. By unit (root label): the sum of its values, and the number of layers.
    sums, layers = np.zeros((2, len(roots))), np.zeros((2, len(roots)))
    for side, vector in zip(scored_sides, values, strict=True):
        units = roots[side.labels]
        relative = divide_by_mean(vector).numpy()
        # A unit may hold several filters or slices of one layer (groups, a flatten); the layer counts once, with their
        # mean. Strictly rising units have no repetition, which is the common case.
        if (units[1:] <= units[:-1]).any():
            units, position, counts = np.unique(units, return_inverse=True, return_counts=True)
            relative = np.bincount(position, weights=relative) / counts
        sums[int(side.is_consumer), units] += relative
        layers[int(side.is_consumer), units] += 1
    # A side without any value (a layer with one channel has no entropy) is neutral: its factor is 1.
    means = np.divide(sums, layers, out=np.ones_like(sums), where=layers > 0)
    scores = means[0] * means[1]
    return [torch.from_numpy(scores[list(coupled.units)]) for coupled in sets]


def _criterion_values(
    trace: Trace,
    tensors: Mapping[str, Tensor],
    criterion: str | Criterion,
    formula: Formula,
    sides: str,
    backend: ResolvedBackend,
) -> tuple[list[LayerSide], list[Tensor]]:
    """The sides that a criterion gives numbers for, and for each of them float64 ``[filters or slices]``."""
    consumer_flags = (False, True) if sides == "both" else (False,)
    if criterion in ENTROPY_CRITERIA:
        scored_sides, entropies = side_entropies(trace, tensors, formula, consumer_flags, backend)
        if criterion == "fec":
            return scored_sides, entropies
        norms = _l1_norms(scored_sides, tensors)
        return scored_sides, [entropy * norm for entropy, norm in zip(entropies, norms, strict=True)]
    function = criterion if callable(criterion) else CLASSICAL_CRITERIA[criterion]
    scored_sides, values = [], []
    for use in trace.weight_uses.values():
        sides_of_layer = [LayerSide(use, is_consumer) for is_consumer in consumer_flags]
        scored_sides += sides_of_layer
        values += _apply_criterion(function, sides_of_layer, tensors[use.weight])
    return scored_sides, values


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
            values = divide_by_mean(bn_scale(tensors[key[0]].detach().to("cpu", torch.float64)))
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


def has_entropy(weight: Tensor, axis: int, groups: int, formula: Formula) -> bool:
    """Whether a side of a layer has an entropy: a single channel, or a single filter, has nothing to be compared with.

    Args:
        weight: The layer's weight ``[N, C/groups, *kernel]``; ``[C, N/groups, *kernel]`` if transposed.
        axis: The weight axis that the filters (or slices) of this side lie on, 0 or 1.
        groups: The groups of the layer.
        formula: Of the entropies.

    Returns:
        Whether more than one channel (``formula.axis="channels"``) or filter (``"filters"``) is compared.
    """
    if formula.axis == "both":
        return any(has_entropy(weight, axis, groups, part) for part in formula.parts())
    compares_channels = formula.axis == "channels"
    if axis == 0:
        return weight.shape[1 if compares_channels else 0] > 1
    return weight.shape[0] // groups > 1 if compares_channels else groups * weight.shape[1] > 1


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
    devices = {tensors[use.weight].device for use in trace.weight_uses.values()}
    return resolve("auto", devices.pop().type) if len(devices) == 1 else resolve("cpu")


def side_entropies(
    trace: Trace,
    tensors: Mapping[str, Tensor],
    formula: Formula,
    consumer_flags: Sequence[bool],
    backend: ResolvedBackend,
) -> tuple[list[LayerSide], list[Tensor]]:
    """The entropies of all layers' sides, in one call of the scoring backend.

    Args:
        trace: The traced model.
        tensors: The model's parameters and buffers by name.
        formula: Of the entropies.
        consumer_flags: The sides wanted of each layer: ``False`` for the filters, ``True`` for the slices.
        backend: What computes them, see :func:`scoring_backend`.

    Returns:
        The sides that have an entropy, and for each of them a float64 CPU tensor ``[filters or slices]``, in nats.

    Raises:
        WeightError: A weight is NaN or infinite, or cannot be read; the layer is named.
    """
    scored_sides = [
        side
        for use in trace.weight_uses.values()
        for side in (LayerSide(use, is_consumer) for is_consumer in consumer_flags)
        if has_entropy(tensors[use.weight], side.axis, use.groups, formula)
    ]
    weights = [tensors[side.use.weight].detach() for side in scored_sides]
    entropies = ops.entropies(
        weights,
        formula,
        axes=[side.axis for side in scored_sides],
        groups=[side.use.groups for side in scored_sides],
        names=[side.use.layer for side in scored_sides],
        backend=backend,
    )
    return scored_sides, entropies


def _l1_norms(scored_sides: Sequence[LayerSide], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The L1 norm of every filter or slice of some sides; the sides of a layer are consecutive and share the terms."""
    norms: list[Tensor] = []
    for _, sides_of_layer in itertools.groupby(scored_sides, key=lambda side: id(side.use)):
        group = list(sides_of_layer)
        norms += _apply_criterion(l1, group, tensors[group[0].use.weight])
    return norms


def as_filters(weight: Tensor, axis: int, groups: int) -> Tensor:
    """A weight seen as filters of channels, from either side.

    Args:
        weight: ``[N, C/groups, *kernel]``.
        axis: 0 for the filters; 1 for the slices that belong to each input channel of each group.
        groups: Groups of the convolution.

    Returns:
        ``[filters or slices, channels, *kernel]``; a view where that is possible.
    """
    if axis == 0:
        return weight
    if groups == 1:
        return weight.transpose(0, 1)
    rows, columns, *kernel = weight.shape
    grouped = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return grouped.reshape(groups * columns, rows // groups, *kernel)


def _apply_criterion(function: Criterion, sides_of_layer: Sequence[LayerSide], weight: Tensor) -> list[Tensor]:
    """A criterion's numbers for some sides of one layer, checked: float64 CPU tensors ``[filters or slices]``."""
    use, weight = sides_of_layer[0].use, weight.detach()
    axes = [side.axis for side in sides_of_layer]
    if function in (l1, l2):
        results = _norms_of_sides(function, weight, axes, use.groups)
    else:
        results = [function(as_filters(weight, axis, use.groups).float()) for axis in axes]
    checked = []
    for axis, result in zip(axes, results, strict=True):
        values = torch.as_tensor(result).detach().to("cpu", torch.float64)
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
        terms = block.float().abs() if function is l1 else block.float().square()
        for sums, axis in zip(sums_of_axes, axes, strict=True):
            sums.append(sum_per_filter(as_filters(terms, axis, groups)))
    # A block holds whole filters (axis 0), but only a part of every slice (axis 1).
    totals = [
        torch.stack(sums).sum(0) if axis == 1 else torch.cat(sums)
        for sums, axis in zip(sums_of_axes, axes, strict=True)
    ]
    return totals if function is l1 else [total.sqrt() for total in totals]
