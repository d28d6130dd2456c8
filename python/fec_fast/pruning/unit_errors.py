"""Removal errors: what the removal of units costs the layers that read them, with and without compensation.

With it, their other inputs make up for the removal ("reconstruction"); without, nothing does ("ablation"), and what the
others could make up for matters only to the order, once much is lost.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import CoupledChannels
from ..graph.trace import Trace
from ..graph.weight_labels import WeightUse
from ..recovery.calibration import DATA_FREE, calibration_batches
from ..recovery.data_free import copy_on_noise
from ..recovery.elimination import AblatedSystem, LinearSystem, System, eliminate
from ..recovery.input_covariance import LayerInputs, gather_input_covariances
from ..recovery.layer_calls import WeightWay
from ..utils.errors import InputError, list_some
from ..utils.model_index import ModelIndex
from ..utils.plain_code import as_written
from .layer_sides import as_filters

# Images that are used at most.
MOST_IMAGES = 1024
# Added to the diagonal of a covariance, relative to its mean, besides the shrinkage: what the removed and the kept
# channels share is never known exactly. Recovery draws the fitted weights to the present ones by as much.
_RIDGE = 1e-2
# Layers with more columns are joined to one column per channel, and divided into parts if these are still more: 2,048
# columns take a second to invert and to eliminate, 4,608 (512 channels, 3 x 3 taps) ten.
_MOST_COLUMNS = 2048


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads channels, as linear systems.

    Attributes:
        moments: float64 ``[parts, columns, columns]``: the covariance of its inputs; the inverse of the regularised
            one where the inputs make up for one another.
        products: float64 ``[parts, columns, columns]``: ``W W'`` of its weights ``W`` ``[columns, outputs]``, scaled so
            that the energy of the whole output is 1.
        labels: Int64 ``[parts, columns]``: the unit that each column belongs to.
    """

    moments: Tensor
    products: Tensor
    labels: np.ndarray


def removal_errors(
    index: ModelIndex,
    trace: Trace,
    sets: Sequence[CoupledChannels],
    calibration: Any,
    example_inputs: Any,
    orders: Sequence[Sequence[int]] | None = None,
    *,
    made_up_for: bool = True,
) -> tuple[list[Tensor], list[str]]:
    """The error of every coupled set alone, when its units are removed one after the other.

    The error of a layer that reads the set is the squared error of its output, around the mean and relative to the
    output's variance, when its weights on the channels that are left are fitted anew, or stay as they are. It is a
    function of the covariance of the layer's inputs and of its weights, so nothing is fitted
    (:meth:`fec_fast.recovery.elimination.LinearSystem.errors`, :class:`~.AblatedSystem`). The errors of
    several layers have the same cause and add up coherently: the sum is multiplied by the number of layers, because the
    square of a sum of ``n`` terms is up to ``n`` times the sum of their squares. A layer that passes channels on
    (depthwise, or convolutions that lose whole groups) has no error of its own: it arises where the channel is read. A
    weight that is used in several ways, such as transposed, is a layer of its own in each.

    Args:
        index: The index of the model, which is left as it was.
        trace: Its trace.
        sets: The coupled sets.
        calibration: A loader, an iterable of batches or a tensor of images; labels are ignored, and the first 1,024
            images are used. ``"data-free"``: noise stands in for images, for the layers behind a batch norm
            (:func:`fec_fast.recovery.data_free.copy_on_noise`).
        example_inputs: What the model was traced on.
        orders: For each set the order in which its units are removed; ``None``: the unit that costs the least comes
            next, see :func:`fec_fast.recovery.elimination.eliminate`.
        made_up_for: Whether the weights on the channels that are left are fitted anew.

    Returns:
        For each set float64 ``[units]``: the error when the unit, and those before it in the order, are removed. And
        notes on layers whose inputs were not seen: their channels are taken to be uncorrelated and of equal variance.

    Raises:
        InputError: No images, images with NaN or infinity, or images that the model cannot be run on.
        ArgumentError: Not a tensor nor an iterable.
    """
    roots = trace.partition.roots
    removable = np.array([label for coupled in sets for label in coupled.units])
    uses: dict[WeightWay, WeightUse] = {}
    for use in [*trace.weight_uses.values(), *trace.further_uses]:
        if not use.whole_groups and np.isin(roots[use.inputs], removable).any():
            shape = tuple(use.weight_in(index.tensors).shape)
            uses.setdefault(WeightWay(use.weight, use.in_axis, use.groups, shape), use)
    columns = {way: _columns(use, use.weight_in(index.tensors), roots, removable) for way, use in uses.items()}
    slots = {way: of_layer for way, (of_layer, _) in columns.items()}
    with as_written(index):
        if isinstance(calibration, str) and calibration == DATA_FREE:
            copied = copy_on_noise(index, example_inputs, of_each_batch=not made_up_for)
            known = {way: slots[way] for way, use in uses.items() if use.weight not in copied.unknown}
            seen = gather_input_covariances(copied.index, copied.batches, known)
        else:
            seen = gather_input_covariances(index, calibration_batches(calibration, MOST_IMAGES, index), slots)
    uses = _without_copies(uses, seen, roots)
    both = not made_up_for and orders is None
    readers, fitted_readers = {}, {}
    for way, use in uses.items():
        if way in seen:
            if not bool(torch.isfinite(seen[way].covariance).all()):
                raise InputError(
                    f"layer {use.layer!r} reads NaN, infinity, or values whose products overflow, on the calibration: "
                    "check the weights and how the images are normalised"
                )
            readers[way] = _reader(seen[way], columns[way][1], made_up_for)
            if both:
                fitted_readers[way] = _reader(seen[way], columns[way][1], True)
        else:
            readers[way] = fitted_readers[way] = _blind_reader(use.weight_in(index.tensors), use, roots)
    kind = LinearSystem if made_up_for else AblatedSystem
    errors: list[Tensor] = []
    for number, (coupled, reading_it) in enumerate(zip(sets, _readers_of(sets, readers, len(roots)), strict=True)):
        systems = [_systems(coupled, readers[way], kind) for way in reading_it]
        fitted = [_systems(coupled, fitted_readers[way], LinearSystem) for way in reading_it if both]
        in_order = None if orders is None else orders[number]
        flat, flat_fitted = (list(chain.from_iterable(of_layers)) for of_layers in (systems, fitted))
        total = eliminate(flat, len(coupled.units), in_order, flat_fitted)
        errors.append(total * max(1, sum(map(bool, systems))))
    unseen = list(dict.fromkeys(use.layer for way, use in uses.items() if way not in seen))
    notes = [f"the inputs of {list_some(unseen)} were not seen: taken to be uncorrelated"] if unseen else []
    return errors, notes


def _without_copies(
    uses: Mapping[WeightWay, WeightUse], seen: Container[WeightWay], roots: np.ndarray
) -> dict[WeightWay, WeightUse]:
    """The uses, without those that were not seen of weights that were seen to read the same channels in another way."""
    channels = {way: (way.weight, frozenset(roots[use.inputs].tolist())) for way, use in uses.items()}
    known = {channels[way] for way in uses if way in seen}
    return {way: use for way, use in uses.items() if way in seen or channels[way] not in known}


def _columns(
    use: WeightUse, weight: Tensor, roots: np.ndarray, removable: np.ndarray
) -> tuple[Tensor | None, np.ndarray]:
    """How the columns of a layer's rows are joined and divided (``None``: not at all), and the unit of each column.

    Returns:
        Int64 ``[parts, columns, slots]`` as :func:`gather_input_covariances` takes it, and int64 ``[parts, columns]``.
    """
    channels = roots[use.inputs].reshape(use.groups, -1)
    taps, width = weight[0, 0].numel(), channels.shape[1]
    if width * taps <= _MOST_COLUMNS:
        return None, np.tile(channels, taps)
    by_label = np.argsort(channels, axis=1, kind="stable")
    if taps > 1:  # one column per channel
        labels = np.take_along_axis(channels, by_label, 1)
        slots = by_label[:, :, None] + width * np.arange(taps)
    else:  # a linear layer behind a flatten: one column for all positions of a channel, which have one label
        by_label = by_label[:, np.isin(channels[0][by_label[0]], removable)]
        tables = [_by_label(row, of_group[row]) for row, of_group in zip(by_label, channels, strict=True)]
        slots, labels = (np.stack(arrays) for arrays in zip(*tables, strict=True))
    slots = np.where(slots >= 0, slots + (np.arange(use.groups) * width * taps)[:, None, None], -1)
    parts = -(-labels.shape[1] // _MOST_COLUMNS)
    size = -(-labels.shape[1] // parts)
    missing = parts * size - labels.shape[1]
    slots = np.pad(slots, ((0, 0), (0, missing), (0, 0)), constant_values=-1)
    labels = np.pad(labels, ((0, 0), (0, missing)), constant_values=0)  # label 0 is that of fixed channels
    return torch.from_numpy(slots.reshape(-1, size, slots.shape[2])), labels.reshape(-1, size)


def _reader(layer: LayerInputs, labels: np.ndarray, made_up_for: bool) -> _Reader:
    """A layer whose inputs were seen."""
    products = layer.weight @ layer.weight.mT
    if not made_up_for:
        return _Reader(layer.covariance, _scaled(products, (layer.covariance * products).sum()), labels)
    diagonal = layer.covariance.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)
    mean = torch.where(mean > 0, mean, 1.0)  # inputs that never vary: any regularisation will do
    covariance = layer.covariance * (1 - layer.shrinkage)[:, None, None]
    covariance.diagonal(dim1=1, dim2=2).add_((layer.shrinkage + _RIDGE)[:, None] * mean[:, None])
    energy = (covariance * products).sum()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    return _Reader(inverse, _scaled(products, energy), labels)


def _blind_reader(weight: Tensor, use: WeightUse, roots: np.ndarray) -> _Reader:
    """A layer whose inputs were not seen: uncorrelated channels of equal variance, which share no output."""
    slices = as_filters(weight.detach(), use.in_axis, use.groups).flatten(1).to("cpu", torch.float64)
    energies = slices.square().sum(1)
    identity = torch.eye(len(energies), dtype=torch.float64)
    return _Reader(identity[None], _scaled(torch.diag(energies)[None], energies.sum()), roots[use.inputs][None])


def _scaled(products: Tensor, energy: Tensor) -> Tensor:
    return products / energy if float(energy) > 0 else products


def _readers_of(
    sets: Sequence[CoupledChannels], readers: Mapping[WeightWay, _Reader], labels: int
) -> list[list[WeightWay]]:
    """The layers that read channels of each set, in the order of ``readers``; most read those of few."""
    set_of = np.full(labels, -1)
    for number, coupled in enumerate(sets):
        set_of[list(coupled.units)] = number
    found: list[list[WeightWay]] = [[] for _ in sets]
    for way, reader in readers.items():
        for number in np.unique(set_of[reader.labels]).tolist():
            if number >= 0:
                found[number].append(way)
    return found


def _systems(coupled: CoupledChannels, reader: _Reader, kind: type[LinearSystem | AblatedSystem]) -> list[System]:
    """The systems of a layer's groups that read channels of a set."""
    systems: list[System] = []
    position = np.full(max(int(reader.labels.max()), *coupled.units) + 1, -1)
    position[list(coupled.units)] = np.arange(len(coupled.units))
    for moments, products, labels in zip(reader.moments, reader.products, reader.labels, strict=True):
        unit_of = position[labels]
        columns = np.flatnonzero(unit_of >= 0)
        if len(columns):
            columns = columns[np.argsort(unit_of[columns], kind="stable")]
            table, units = _by_label(columns, unit_of[columns])
            systems.append(kind(moments, products, units.tolist(), torch.from_numpy(table)))
    return systems


def _by_label(items: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gathers items by label.

    Args:
        items: Int64 ``[n]``.
        labels: Int64 ``[n]``, rising: the label of each item.

    Returns:
        Int64 ``[labels, most items of one label]``, filled up with -1; and the labels, rising.
    """
    unique, counts = np.unique(labels, return_counts=True)
    table = np.full((len(unique), counts.max()), -1)
    rank = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[np.repeat(np.arange(len(unique)), counts), rank] = items
    return table, unique
