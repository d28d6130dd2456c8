"""Which channels stand or fall together: the coupled sets of a traced model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .errors import LayerError, nearest
from .trace import Trace
from .tracer import Use


@dataclass(frozen=True)
class CoupledSet:
    """Channels of the same layers, one decision each.

    A *unit* is one decision: all the indices, on all the weight axes, that are removed together.

    Attributes:
        name: The first layer that makes these channels.
        layers: All layers that make them.
        units: The label of each unit.
        widths: Channels per unit in each producing layer.
        lines: For each ``(tensor, axis)`` that holds some of them, the representative label of every index, int64.
    """

    name: str
    layers: tuple[str, ...]
    units: tuple[int, ...]
    widths: tuple[int, ...]
    lines: Mapping[tuple[str, int], np.ndarray] = field(repr=False, compare=False)

    @cached_property
    def members(self) -> tuple[dict[tuple[str, int], list[int]], ...]:
        """For each unit, the indices it holds on each ``(tensor, axis)``."""
        position = {root: unit for unit, root in enumerate(self.units)}
        found: tuple[dict[tuple[str, int], list[int]], ...] = tuple({} for _ in self.units)
        for key, line in self.lines.items():
            for index in np.flatnonzero(np.isin(line, self.units)).tolist():
                found[position[int(line[index])]].setdefault(key, []).append(index)
        return found


@dataclass(frozen=True)
class Coupling:
    """The coupled sets of a model and what must stay.

    Attributes:
        sets: The sets whose channels may be removed.
        pinned: For each layer none of whose channels may be removed, the reason.
        partly: For each layer some of whose channels may not, the reason.
        lengths: The length of each ``(tensor, axis)``, with what must stay.
    """

    sets: tuple[CoupledSet, ...]
    pinned: dict[str, str]
    partly: dict[str, str]
    lengths: dict[tuple[str, int], int]


def couple(trace: Trace, ignore: Sequence[str] = ()) -> Coupling:
    """Gathers labels into coupled sets.

    Args:
        trace: The traced model; the ignored layers are pinned in it.
        ignore: Names of layers, or of modules that hold layers, whose own channels are not removed.

    Returns:
        The sets in the order in which the model uses them.

    Raises:
        LayerError: A name in ``ignore`` that is not, and does not hold, a layer the model uses.
    """
    for name in ignore:
        inside = [use for use in trace.uses.values() if name in ("", use.layer) or use.layer.startswith(f"{name}.")]
        if not inside:
            raise LayerError(f"ignore: no layer {name!r}; {nearest(name, [u.layer for u in trace.uses.values()])}")
        for use in inside:
            trace.sets.pin(use.outputs, f"it is ignored as {name!r}")

    roots, pinned = trace.sets.roots(), trace.sets.pinned()
    lines = {key: roots[np.asarray(line, dtype=np.int64)] for key, line in trace.axes.items()}
    made = [roots[np.asarray(use.outputs, dtype=np.int64)] for use in trace.uses.values()]
    # Units are alike if they hold as many indices of the same axes and are made by the same layers: summed up in
    # random numbers of 128 bits, one for each axis and each layer, so that no unit has to be looked at by itself.
    signature = np.zeros((len(roots), 2), dtype=np.uint64)
    random = np.random.default_rng(0)
    for line in [*lines.values(), *made]:
        found, counts = np.unique(line, return_counts=True)
        key = random.integers(1, 2**64, size=2, dtype=np.uint64)
        signature[found] += counts.astype(np.uint64)[:, None] * key
    gathered: dict[tuple[int, int], list[int]] = defaultdict(list)
    every = np.concatenate(made) if made else np.zeros(0, dtype=np.int64)
    _, first = np.unique(every, return_index=True)
    order = every[np.sort(first)]
    order = order[~pinned[order]]
    for root, (high, low) in zip(order.tolist(), signature[order].tolist(), strict=True):
        gathered[high, low].append(root)

    group = np.full(len(roots), -1)
    for number, units in enumerate(gathered.values()):
        group[units] = number
    makers: list[dict[str, int]] = [{} for _ in gathered]
    for use, line in zip(trace.uses.values(), made, strict=True):
        for number, count in zip(*np.unique(group[line], return_counts=True), strict=True):
            if number >= 0:
                before = makers[number].get(use.layer, 0)
                makers[number][use.layer] = before + int(count)
    held: list[dict[tuple[str, int], np.ndarray]] = [{} for _ in gathered]
    for key_of, line in lines.items():
        for number in np.unique(group[line]).tolist():
            if number >= 0:
                held[number][key_of] = line
    sets = [
        CoupledSet(
            next(iter(layers)), tuple(layers), tuple(units), tuple(n // len(units) for n in layers.values()), where
        )
        for units, layers, where in zip(gathered.values(), makers, held, strict=True)
    ]
    whole, partly = _pinned(trace, roots, pinned)
    return Coupling(tuple(sets), whole, partly, {key: len(line) for key, line in trace.axes.items()})


def _pinned(trace: Trace, roots: np.ndarray, pinned: np.ndarray) -> tuple[dict[str, str], dict[str, str]]:
    whole: dict[str, str] = {}
    partly: dict[str, str] = {}
    for use in trace.uses.values():
        stays = np.flatnonzero(pinned[roots[np.asarray(use.outputs, dtype=np.int64)]])
        if len(stays):
            reason = trace.sets.reason(use.outputs[int(stays[0])])
            assert reason is not None
            (whole if len(stays) == len(use.outputs) else partly)[use.layer] = reason
    for layer in trace.unreached:
        whole[layer] = "the example inputs do not reach it"
    return whole, partly


def gone_labels(trace: Trace, removed: Collection[int]) -> np.ndarray:
    """Which labels go with the units that go.

    Args:
        trace: Knows the representatives.
        removed: The labels (representatives) of the units that go.

    Returns:
        Bool ``[labels]``.
    """
    roots = trace.sets.roots()
    gone = np.zeros(len(roots), dtype=bool)
    gone[list(removed)] = True
    of_labels: np.ndarray = gone[roots]
    return of_labels


def kept_indices(line: Sequence[int], gone: np.ndarray) -> list[int]:
    """The indices of an axis that remain.

    Args:
        line: The labels of the axis.
        gone: See :func:`gone_labels`.

    Returns:
        The remaining indices in order.
    """
    kept: list[int] = np.flatnonzero(~gone[np.asarray(line, dtype=np.int64)]).tolist()
    return kept


def new_attributes(use: Use, gone: np.ndarray) -> tuple[int, int, int]:
    """The input channels, output channels and groups of a layer after pruning.

    Args:
        use: The layer's use.
        gone: See :func:`gone_labels`.

    Returns:
        ``(inputs, outputs, groups)``.
    """
    inputs = len(kept_indices(use.inputs, gone))
    outputs = len(kept_indices(use.outputs, gone))
    groups = use.groups * inputs // len(use.inputs) if use.whole_groups else use.groups
    return inputs, outputs, groups
