"""Which channels stand or fall together: the coupled sets of a traced model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..utils.errors import LayerError, nearest
from .dispatch_mode import Use
from .trace import Trace


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
    # Most axes share a line with others (a batch norm's four, the next layer's inputs): each line is looked at once.
    lines = {id(line): line for line in [*trace.axes.values(), *(use.outputs for use in trace.uses.values())]}
    rooted = {number: roots[line] for number, line in lines.items()}
    signature = _signatures(trace, rooted, len(roots))
    every = np.concatenate([rooted[id(use.outputs)] for use in trace.uses.values()] or [np.zeros(0, dtype=np.int64)])
    _, first = np.unique(every, return_index=True)
    order = every[np.sort(first)]
    order = order[~pinned[order]]
    _, first, alike, sizes = np.unique(signature[order], return_index=True, return_inverse=True, return_counts=True)
    ranks = np.argsort(np.argsort(first))  # the sets in the order of their first units
    group = np.full(len(roots), -1)
    group[order] = ranks[alike]
    gathered = np.split(order[np.argsort(group[order], kind="stable")], np.cumsum(sizes[np.argsort(first)])[:-1])
    # For each line, the sets that have channels on it, and how many.
    on_line = {
        number: [
            (int(of), int(n)) for of, n in zip(*np.unique(group[line], return_counts=True), strict=True) if of >= 0
        ]
        for number, line in rooted.items()
    }
    makers: list[dict[str, int]] = [{} for _ in first]
    for use in trace.uses.values():
        for number, count in on_line[id(use.outputs)]:
            makers[number][use.layer] = makers[number].get(use.layer, 0) + count
    held: list[dict[tuple[str, int], np.ndarray]] = [{} for _ in first]
    for key, line in trace.axes.items():
        for number, _ in on_line[id(line)]:
            held[number][key] = rooted[id(line)]
    sets = [
        CoupledSet(
            next(iter(layers)),
            tuple(layers),
            tuple(units.tolist()),
            tuple(n // len(units) for n in layers.values()),
            where,
        )
        for units, layers, where in zip(gathered, makers, held, strict=len(first) > 0)
    ]
    whole, partly = _pinned(trace, roots, pinned)
    return Coupling(tuple(sets), whole, partly, {key: len(line) for key, line in trace.axes.items()})


def _signatures(trace: Trace, rooted: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    """Numbers that tell sets of units apart.

    Units are alike if they hold as many indices of the same axes and are made by the same layers. That is summed up in
    random numbers, one for each axis and each layer, so that no unit has to be looked at by itself. Of 64 bits: among
    a million kinds of units, two would be taken for one another once in 30 million models.

    Args:
        trace: The traced model.
        rooted: For each line, by its identity, the representatives.
        count: How many labels there are.

    Returns:
        Unsigned ``[labels]``.
    """
    lines = [*trace.axes.values(), *(use.outputs for use in trace.uses.values())]
    keys: dict[int, int] = defaultdict(int)
    numbers = np.random.default_rng(0).integers(2**64, size=len(lines), dtype=np.uint64)
    for line, key in zip(lines, numbers.tolist(), strict=True):
        keys[id(line)] += key
    signature = np.zeros(count, dtype=np.uint64)
    for number, key in keys.items():
        np.add.at(signature, rooted[number], np.uint64(key % 2**64))
    return signature


def _pinned(trace: Trace, roots: np.ndarray, pinned: np.ndarray) -> tuple[dict[str, str], dict[str, str]]:
    whole: dict[str, str] = {}
    partly: dict[str, str] = {}
    for use in trace.uses.values():
        stays = np.flatnonzero(pinned[roots[use.outputs]])
        if len(stays):
            reason = trace.sets.reason(int(use.outputs[stays[0]]))
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


def kept_indices(line: np.ndarray, gone: np.ndarray) -> list[int]:
    """The indices of an axis that remain.

    Args:
        line: The labels of the axis.
        gone: See :func:`gone_labels`.

    Returns:
        The remaining indices in order.
    """
    kept: list[int] = np.flatnonzero(~gone[line]).tolist()
    return kept


def new_attributes(use: Use, gone: np.ndarray) -> tuple[int, int, int]:
    """The input channels, output channels and groups of a layer after pruning.

    Args:
        use: The layer's use.
        gone: See :func:`gone_labels`.

    Returns:
        ``(inputs, outputs, groups)``.
    """
    inputs, outputs = (len(line) - int(np.count_nonzero(gone[line])) for line in (use.inputs, use.outputs))
    groups = use.groups * inputs // len(use.inputs) if use.whole_groups else use.groups
    return inputs, outputs, groups
