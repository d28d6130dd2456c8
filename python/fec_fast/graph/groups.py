"""Coupled channels: which channels of a traced model are removed together, as sets of units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..utils.errors import LayerError, nearest
from .channel_statistics import REMEDY
from .cuts import CountKept
from .label_sets import LabelPartition, Pin
from .labels import FIXED
from .remedies import with_remedy
from .trace import Trace
from .weight_labels import WeightUse


@dataclass(frozen=True, eq=False)
class AxisLabels:
    """The labels of an axis, sorted when they are first asked for; sets that narrow the same axis share it.

    Attributes:
        labels: The representative label of every index, int64.
    """

    labels: np.ndarray

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.labels, kind="stable")

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.asarray(self.labels[self._order])

    def indices_of(self, units: np.ndarray) -> np.ndarray:
        """The indices that some units hold.

        Args:
            units: Labels of units that hold equally many, int64.

        Returns:
            Int64 ``[units, indices per unit]``, rising in each row.
        """
        first, end = (np.searchsorted(self._sorted, units, side) for side in ("left", "right"))
        return np.asarray(self._order[first[:, None] + np.arange(end[0] - first[0])])


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that are made by the same layers and decided on unit by unit.

    A *unit* is one decision: all the indices, on all the weight axes, that are removed together. In most layers a unit
    holds one index per axis. It holds several where an operator ties channels of one layer to one another: the
    channels at one position of every group of a grouped convolution, the features that one channel becomes in a
    flatten, the channels that a pixel shuffle turns into one.

    Attributes:
        name: The first layer that makes these channels.
        layers: All layers that make them.
        units: The label (representative) of each unit.
        channels_per_unit: How many channels of each layer one unit holds.
        axes: For each ``(tensor, axis)`` that holds some of them, its labels.
    """

    name: str
    layers: tuple[str, ...]
    units: tuple[int, ...]
    channels_per_unit: tuple[int, ...]
    axes: Mapping[tuple[str, int], AxisLabels] = field(repr=False, compare=False)

    @cached_property
    def members(self) -> tuple[dict[tuple[str, int], list[int]], ...]:
        """For each unit, the indices it holds on each ``(tensor, axis)``."""
        by_axis = {key: indices.tolist() for key, indices in self.indices().items()}
        return tuple({key: rows[unit] for key, rows in by_axis.items()} for unit in range(len(self.units)))

    def indices(self) -> dict[tuple[str, int], np.ndarray]:
        """For each ``(tensor, axis)``, the indices of every unit, int64 ``[units, indices per unit]``."""
        units = np.array(self.units)
        return {key: axis.indices_of(units) for key, axis in self.axes.items()}


@dataclass(frozen=True)
class Coupling:
    """The coupled channels of a model and what must be kept.

    Attributes:
        sets: The sets whose channels may be removed.
        pinned: For each layer none of whose channels may be removed, the reason.
        partly_pinned: For each layer some of whose channels may not be removed, the reason.
        axis_lengths: The length of each ``(tensor, axis)``, with what must be kept.
        partition: The labels of the trace with all pins: the trace's own, the ignored layers, and those handed in.
        notes: The notes of the trace and of the pins that were handed in.
    """

    sets: tuple[CoupledChannels, ...]
    pinned: Mapping[str, str]
    partly_pinned: Mapping[str, str]
    axis_lengths: Mapping[tuple[str, int], int]
    partition: LabelPartition = field(repr=False, compare=False)
    notes: tuple[str, ...]


def couple_channels(trace: Trace, ignore: Sequence[str] = (), pins: Sequence[Pin] = ()) -> Coupling:
    """Gathers labels into sets of coupled channels.

    Args:
        trace: The traced model; it is not changed.
        ignore: Names of layers, or of modules that hold layers, whose own channels are not removed.
        pins: What else must be kept, such as the hard-coded widths that a trial run found.

    Returns:
        The sets in the order in which the model uses them.

    Raises:
        LayerError: A name in ``ignore`` that is not, and does not hold, a layer the model uses.
    """
    partition = trace.partition.with_pins([*_ignored(trace, ignore), *pins])
    # Many axes share one vector of labels (the four of a batch norm, the inputs of the next layer): each vector is
    # looked at once, by its identity.
    vectors = {id(v): v for v in [*trace.axes.values(), *(use.outputs for use in trace.weight_uses.values())]}
    roots_of = {identity: partition.roots[labels] for identity, labels in vectors.items()}
    units_by_set, set_of = _sets_of_units(trace, partition, roots_of)
    # For each vector of labels, the sets that have channels on it, and how many.
    sets_on = {
        identity: [
            (int(number), int(count))
            for number, count in zip(*np.unique(set_of[labels], return_counts=True), strict=True)
            if number >= 0
        ]
        for identity, labels in roots_of.items()
    }
    channels: list[dict[str, int]] = [{} for _ in units_by_set]
    for use in trace.weight_uses.values():
        for number, count in sets_on[id(use.outputs)]:
            channels[number][use.layer] = channels[number].get(use.layer, 0) + count
    tied = [
        of_set
        for of_set, of_layers in zip(units_by_set, channels, strict=True)
        if len(of_set) == 1 and max(of_layers.values()) > 1
    ]
    if tied:
        causes = "divisions and shuffles"
        if any("group" in size.attribute for size in trace.sizes):
            causes += f", or as whole groups of group norms ({REMEDY})"
        reason = f"its channels are all tied to one another, by {causes}: some of them cannot go alone"
        return couple_channels(trace, ignore, [*pins, Pin(np.concatenate(tied), reason)])
    axis_labels = {identity: AxisLabels(labels) for identity, labels in roots_of.items()}
    axes: list[dict[tuple[str, int], AxisLabels]] = [{} for _ in units_by_set]
    for key, labels in trace.axes.items():
        for number, _ in sets_on[id(labels)]:
            axes[number][key] = axis_labels[id(labels)]
    sets = tuple(
        CoupledChannels(
            name=next(iter(of_layers)),
            layers=tuple(of_layers),
            units=tuple(of_set.tolist()),
            channels_per_unit=tuple(count // len(of_set) for count in of_layers.values()),
            axes=of_axes,
        )
        for of_set, of_layers, of_axes in zip(units_by_set, channels, axes, strict=True)
    )
    whole, partly = _pinned_layers(trace, partition)
    axis_lengths = {key: len(labels) for key, labels in trace.axes.items()}
    notes = tuple(dict.fromkeys((*trace.notes, *(pin.note for pin in pins if pin.note))))
    return Coupling(sets, whole, partly, axis_lengths, partition, notes)


def _ignored(trace: Trace, ignore: Sequence[str]) -> list[Pin]:
    pins = []
    for name in ignore:
        uses = [
            use for use in trace.weight_uses.values() if name in ("", use.layer) or use.layer.startswith(f"{name}.")
        ]
        if not uses:
            layers = [use.layer for use in trace.weight_uses.values()]
            raise LayerError(f"ignore: no layer {name!r}; {nearest(name, layers)}")
        pins += [Pin(use.outputs, f"it is ignored as {name!r}") for use in uses]
    return pins


def _sets_of_units(
    trace: Trace, partition: LabelPartition, roots_of: Mapping[int, np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Sorts the units that may be removed into sets.

    Args:
        trace: The traced model.
        partition: Its labels, with all pins.
        roots_of: For each vector of labels, by its identity, the representatives.

    Returns:
        The units (representatives) of each set, both in the order in which the model makes them, and for every label
        the number of the set whose unit it represents, -1 for none.
    """
    made = [roots_of[id(use.outputs)] for use in trace.weight_uses.values()]
    every = np.concatenate(made or [np.zeros(0, dtype=np.int64)])
    _, first = np.unique(every, return_index=True)
    units = every[np.sort(first)]
    units = units[~partition.pinned[units]]
    set_of = np.full(len(partition.roots), -1)
    if not len(units):
        return [], set_of
    # Units with equal signatures form one set. np.unique sorts by signature; the sets are numbered by their first unit.
    signatures = _signatures(trace, partition, roots_of)[units]
    _, first, inverse, sizes = np.unique(signatures, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    set_of[units] = np.argsort(order)[inverse]
    by_set = np.split(units[np.argsort(set_of[units], kind="stable")], np.cumsum(sizes[order])[:-1])
    return by_set, set_of


def _signatures(trace: Trace, partition: LabelPartition, roots_of: Mapping[int, np.ndarray]) -> np.ndarray:
    """A 64-bit signature per unit; units with equal signatures form one set.

    Units belong to one set if they hold as many indices of the same axes, of the same parts of a cut, and are made by
    the same layers. Each axis, part and layer gets a random number; the signature of a unit is the sum, over all
    indices it holds, of their numbers (modulo 2**64). So no unit has to be looked at by itself. Among a million kinds
    of units, two would have equal signatures by chance once in 30 million models.

    Args:
        trace: The traced model.
        partition: Its labels, with all pins.
        roots_of: For each vector of labels, by its identity, the representatives.

    Returns:
        Uint64 ``[labels]``, right at representatives.
    """
    vectors = [*trace.axes.values(), *(use.outputs for use in trace.weight_uses.values())]
    parts = [part for cut in trace.cuts if cut.divides for part in cut.widths()]
    numbers = np.random.default_rng(0).integers(2**64, size=len(vectors) + len(parts), dtype=np.uint64)
    of_vector: dict[int, int] = defaultdict(int)  # axes that share a vector add to it with the sum of their numbers
    for vector, number in zip(vectors, numbers[: len(vectors)].tolist(), strict=True):
        of_vector[id(vector)] += number
    signatures = np.zeros(len(partition.roots), dtype=np.uint64)
    for identity, number in of_vector.items():
        np.add.at(signatures, roots_of[identity], np.uint64(number % 2**64))
    for part, number in zip(parts, numbers[len(vectors) :], strict=True):
        np.add.at(signatures, partition.roots[np.maximum(part, FIXED)], number)
    return signatures


def _pinned_layers(trace: Trace, partition: LabelPartition) -> tuple[dict[str, str], dict[str, str]]:
    """The layers with pinned channels and the reason for the first of them: all channels pinned, and some."""
    whole: dict[str, str] = {}
    partly: dict[str, str] = {}
    pinned = partition.pinned
    for use in trace.weight_uses.values():
        kept = np.flatnonzero(pinned[use.outputs])
        if len(kept):
            reason = partition.reason(int(use.outputs[kept[0]]))
            assert reason is not None
            (whole if len(kept) == len(use.outputs) else partly)[use.layer] = with_remedy(reason)
    for layer in trace.unreached:
        whole[layer] = with_remedy("the example inputs do not reach it")
    return whole, partly


def removed_labels(partition: LabelPartition, removed_units: Collection[int]) -> np.ndarray:
    """Which labels are removed with a choice of units.

    Args:
        partition: Of the trace or of its coupling.
        removed_units: The labels (representatives) of the units that are removed.

    Returns:
        Bool ``[labels]``.
    """
    is_removed = np.zeros(len(partition.roots), dtype=bool)
    is_removed[list(removed_units)] = True
    return np.asarray(is_removed[partition.roots])


def kept_indices(labels: np.ndarray, is_removed: np.ndarray) -> list[int]:
    """The indices of an axis that remain.

    Args:
        labels: The labels of the axis.
        is_removed: For every label whether it is removed, see :func:`removed_labels`.

    Returns:
        The remaining indices in order.
    """
    kept: list[int] = np.flatnonzero(~is_removed[labels]).tolist()
    return kept


def count_kept(is_removed: np.ndarray) -> CountKept:
    """A function that counts the channels that remain.

    Args:
        is_removed: For every label whether it is removed, see :func:`removed_labels`.

    Returns:
        From a vector of labels to the number of those that remain.
    """
    return lambda labels: len(labels) - int(np.count_nonzero(is_removed[np.maximum(labels, FIXED)]))


def widths_after(use: WeightUse, is_removed: np.ndarray) -> tuple[int, int, int]:
    """The input channels, output channels and groups of a layer after pruning.

    Args:
        use: The layer's use of its weight.
        is_removed: For every label whether it is removed, see :func:`removed_labels`.

    Returns:
        ``(inputs, outputs, groups)``.
    """
    inputs, outputs = (len(labels) - int(np.count_nonzero(is_removed[labels])) for labels in (use.inputs, use.outputs))
    groups = use.groups * inputs // len(use.inputs) if use.whole_groups else use.groups
    return inputs, outputs, groups
