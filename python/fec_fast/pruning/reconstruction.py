"""Reconstruction: what the removal of units costs the layers that read them, once their other inputs make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import CoupledChannels
from ..graph.label_tracker import WeightUse
from ..graph.trace import Trace
from ..recovery.calibration import calibration_batches
from ..recovery.elimination import LinearSystem, eliminate
from ..recovery.input_covariance import LayerInputs, gather_input_covariances
from ..utils.errors import list_some
from ..utils.model_index import ModelIndex
from .unit_scores import as_filters

# Images that are used at most.
MOST_IMAGES = 1024
# Added to the diagonal of a covariance, relative to its mean, besides the shrinkage: what the removed and the kept
# channels share is never known exactly. Recovery draws the fitted weights to the present ones by as much.
_RIDGE = 1e-2
# Layers with more columns are joined to one column per channel, see gather_input_covariances: 1,200 columns take a
# tenth of a second to invert, 4,608 (512 channels, 3 x 3 taps) several seconds.
_MOST_COLUMNS = 1200


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads channels, as linear systems.

    Attributes:
        covariance: float64 ``[groups, columns, columns]``, regularised.
        weight: float64 ``[groups, columns, outputs]``, scaled so that the energy of the whole output is 1.
        labels: Int64 ``[groups, columns]``: the unit that each column belongs to.
    """

    covariance: Tensor
    weight: Tensor
    labels: np.ndarray


def removal_errors(
    index: ModelIndex,
    trace: Trace,
    sets: Sequence[CoupledChannels],
    calibration: Any,
    orders: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Tensor], list[str]]:
    """The error of every coupled set alone, when its units are removed one after the other.

    The error of a layer that reads the set is the squared error of its output, relative to the output's variance, when
    its weights on the channels that are left are fitted anew. It is a function of the covariance of the layer's inputs
    and of its weights, so nothing is fitted (:meth:`fec_fast.recovery.elimination.LinearSystem.errors`). The errors of
    several layers have the same cause and add up coherently: the sum is multiplied by the number of layers, because the
    square of a sum of ``n`` terms is up to ``n`` times the sum of their squares. A layer that passes channels on
    (depthwise, or convolutions that lose whole groups) has no error of its own: it arises where the channel is read.

    Args:
        index: The index of the model, which is left as it was.
        trace: Its trace.
        sets: The coupled sets.
        calibration: A loader, an iterable of batches or a tensor of images; labels are ignored, and the first 1,024
            images are used.
        orders: For each set the order in which its units are removed; ``None``: the unit that costs the least comes
            next.

    Returns:
        For each set float64 ``[units]``: the error when the unit, and those before it in the order, are removed. And
        notes on layers whose inputs were not seen: their channels are taken to be uncorrelated and of equal variance.

    Raises:
        InputError: No images, images with NaN or infinity, or images that the model cannot be run on.
        ArgumentError: Not a tensor nor an iterable.
    """
    roots = trace.partition.roots
    uses = {name: use for name, use in trace.weight_uses.items() if not use.whole_groups}
    columns = {name: _columns(use, index.tensors[name], roots) for name, use in uses.items()}
    batches = calibration_batches(calibration, MOST_IMAGES)
    seen = gather_input_covariances(index, batches, {name: slots for name, (slots, _) in columns.items()})
    readers = {}
    for name, use in uses.items():
        if name in seen:
            readers[name] = _reader(seen[name], columns[name][1])
        else:
            readers[name] = _blind_reader(index.tensors[name], use, roots)
    errors: list[Tensor] = []
    used: set[str] = set()
    for number, coupled in enumerate(sets):
        systems = {name: _systems(coupled, reader) for name, reader in readers.items()}
        reading = [name for name, of_layer in systems.items() if of_layer]
        used |= set(reading)
        in_order = None if orders is None else orders[number]
        total = eliminate(list(chain.from_iterable(systems.values())), len(coupled.units), in_order)
        errors.append(total * max(1, len(reading)))
    unseen = [use.layer for name, use in uses.items() if name in used and name not in seen]
    notes = [f"the inputs of {list_some(unseen)} were not seen: taken to be uncorrelated"] if unseen else []
    return errors, notes


def _columns(use: WeightUse, weight: Tensor, roots: np.ndarray) -> tuple[Tensor | None, np.ndarray]:
    """How the columns of a layer's rows are joined (``None``: not at all), and the unit of each column of the result.

    Returns:
        Int64 ``[groups, columns, slots]`` as :func:`gather_input_covariances` takes it, and int64
        ``[groups, columns]``.
    """
    channels = roots[use.inputs].reshape(use.groups, -1)
    taps, width = weight[0, 0].numel(), channels.shape[1]
    if width * taps <= _MOST_COLUMNS:
        return None, np.tile(channels, taps)
    if taps > 1:
        return torch.arange(taps * width).view(taps, width).T.expand(use.groups, -1, -1), channels
    # A linear layer behind a flatten: the columns of one channel have one label.
    units, unit_of, counts = np.unique(channels[0], return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return None, channels
    by_unit = np.argsort(unit_of, kind="stable")
    slots = np.full((len(units), counts.max()), -1)
    slots[unit_of[by_unit], np.arange(width) - np.repeat(np.cumsum(counts) - counts, counts)] = by_unit
    return torch.from_numpy(slots)[None], units[None]


def _reader(layer: LayerInputs, labels: np.ndarray) -> _Reader:
    """A layer whose inputs were seen."""
    identity = torch.eye(layer.covariance.shape[1], dtype=torch.float64)
    mean = layer.covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    mean = torch.where(mean > 0, mean, 1.0)  # inputs that never vary: any regularisation will do
    shrinkage = layer.shrinkage[:, None, None]
    covariance = (1 - shrinkage) * layer.covariance + (shrinkage + _RIDGE) * mean * identity
    return _Reader(covariance, _scaled(layer.weight, (layer.weight * (covariance @ layer.weight)).sum()), labels)


def _blind_reader(weight: Tensor, use: WeightUse, roots: np.ndarray) -> _Reader:
    """A layer whose inputs were not seen: uncorrelated channels, each with the norm of its slice as its only weight."""
    slices = as_filters(weight.detach(), use.in_axis, use.groups).flatten(1).to("cpu", torch.float64)
    norms = slices.square().sum(1).sqrt()
    identity = torch.eye(len(norms), dtype=torch.float64)
    return _Reader(identity[None], _scaled(norms[None, :, None], norms.square().sum()), roots[use.inputs][None])


def _scaled(weight: Tensor, energy: Tensor) -> Tensor:
    return weight / energy.sqrt() if float(energy) > 0 else weight


def _systems(coupled: CoupledChannels, reader: _Reader) -> list[LinearSystem]:
    """The systems of a layer's groups that read channels of a set."""
    systems = []
    position = {root: unit for unit, root in enumerate(coupled.units)}
    for covariance, weight, labels in zip(reader.covariance, reader.weight, reader.labels, strict=True):
        columns: dict[int, list[int]] = {}
        for column in np.flatnonzero(np.isin(labels, coupled.units)).tolist():
            columns.setdefault(position[int(labels[column])], []).append(column)
        if columns:
            table = torch.full((len(columns), max(map(len, columns.values()))), -1)
            for row, members in zip(table, columns.values(), strict=True):
                row[: len(members)] = torch.tensor(members)
            systems.append(LinearSystem(covariance, weight, list(columns), table))
    return systems
